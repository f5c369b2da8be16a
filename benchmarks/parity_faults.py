"""Faults planted in every hop of the parity chain, and what the chain names.

    python benchmarks/parity_faults.py

Small networks with random weights (a residual one, a vision transformer, a two-layer BERT) are
saved, exported, rounded to INT8 in both layouts and shipped as a run does it. Then one file at a
time is damaged: a stored weight, a scale, a zero point, a setting, the tokenizer. Prints a Markdown
table with a row a fault and exits 1 where the hop or the node is not the one that was damaged.
Takes about a minute on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.small_runs import Run, build
from exports.forms import Route
from exports.onnxfile import array, initializers, layers, load_model
from tasks.layout import GRAPH


def edit(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one stored tensor of a file."""
    model = load_model(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, str(path))


def settings(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swapped(row: np.ndarray) -> np.ndarray:
    return row.swapaxes(0, 1)


def square(path: Path, which: int = -1) -> Any:
    """A layer of a file whose weight could be transposed unnoticed."""
    model = load_model(path)
    stored = initializers(model)
    same = [
        layer
        for layer in layers(model)
        if len(stored[layer.weight].dims) > 1
        and stored[layer.weight].dims[0] == stored[layer.weight].dims[1]
    ]
    return same[which]


def weight_scale(path: Path, which: int) -> tuple[str, str]:
    """(scales, integers) of an 8-bit layer in the middle of a file."""
    found = [layer.weight for layer in layers(load_model(path))]
    integers = found[which]
    return integers.removesuffix("_quantized") + "_scale", integers


def activation(path: Path) -> str:
    """An 8-bit activation with numbers on both sides of zero, the widest grid of a file."""
    stored = initializers(load_model(path))
    names = [
        name.removesuffix("_zero_point")
        for name, tensor in stored.items()
        if name.endswith("_zero_point") and not tensor.dims and 64 < int(array(tensor)) < 192
    ]
    return max(names, key=lambda name: float(array(stored[f"{name}_scale"])))


@dataclass(frozen=True)
class Fault:
    """One way to damage a run.

    Attributes:
        what: in words.
        hop: the hop that it breaks.
        plant: damages a run and returns a word that the named node, its operator or its tensor
            must hold.
        only: families that it is for.
    """

    what: str
    hop: str
    plant: Callable[[Run], str]
    only: tuple[str, ...] = ("resnet", "deit", "bert")


def _transposed(folder: str, which: int) -> Callable[[Run], str]:
    def plant(run: Run) -> str:
        path = run.root / folder / GRAPH
        layer = square(path, which)
        edit(path, layer.weight, swapped)
        return str(layer.node.output[0])

    return plant


def _scaled(folder: str, factor: float) -> Callable[[Run], str]:
    def plant(run: Run) -> str:
        path = run.root / folder / GRAPH
        layer = layers(load_model(path))[2]
        edit(path, layer.weight, lambda weight: weight * np.float32(factor))
        return str(layer.node.output[0])

    return plant


def _normalisation(folder: str, **changes: Any) -> Callable[[Run], str]:
    def plant(run: Run) -> str:
        settings(run.root / folder / "preprocess.json", **changes)
        return next(iter(changes))

    return plant


def _tokenizer(folder: str) -> Callable[[Run], str]:
    def plant(run: Run) -> str:
        path = run.root / folder / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["word3"], vocabulary["word4"] = vocabulary["word4"], vocabulary["word3"]
        path.write_text(json.dumps(content))
        return "tokenizer.json"

    return plant


def _one_scale(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    scale, integers = weight_scale(path, 1)

    def double(values: np.ndarray) -> np.ndarray:
        values[1] *= 2
        return values

    edit(path, scale, double)
    return integers.removesuffix("_quantized")


def _all_scales(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    scale, integers = weight_scale(path, -2)
    edit(path, scale, lambda values: values * np.float32(0.5))
    return integers.removesuffix("_quantized")


def _integers(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    layer = square(path)
    edit(path, layer.weight, swapped)
    return str(layer.weight.removesuffix("_quantized"))


def _zero_point(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    name = activation(path)
    edit(path, f"{name}_zero_point", np.zeros_like)
    return name


def _activation_scale(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    name = activation(path)
    edit(path, f"{name}_scale", lambda scale: scale * np.float32(0.25))
    return name


def _attention(run: Run) -> str:
    path = run.root / "specialist" / GRAPH
    model = load_model(path)
    score = next(node for node in model.graph.node if node.op_type == "FusedMatMul")
    alpha = next(item for item in score.attribute if item.name == "alpha")
    alpha.f *= 3
    onnx.save(model, str(path))
    return str(score.output[0])


def _bias(run: Run) -> str:
    path = run.root / "teacher" / GRAPH
    model = load_model(path)
    norm = [n for n in model.graph.node if n.op_type in ("LayerNormalization", "Conv")][2]
    edit(path, norm.input[2], lambda bias: bias + np.float32(0.3))
    return str(norm.output[0])


def _served_scale(run: Run) -> str:
    path = run.root / "served" / "specialist.onnx"
    scale, integers = weight_scale(path, 1)
    edit(path, scale, lambda values: values * np.float32(1.2))
    return integers.removesuffix("_quantized")


FAULTS = (
    Fault("teacher: other mean", "preprocess", _normalisation("teacher", mean=[0.4, 0.4, 0.3]),
          ("resnet", "deit")),
    Fault("teacher: two words swapped", "preprocess", _tokenizer("teacher"), ("bert",)),
    Fault("teacher: weight transposed", "torch->onnx", _transposed("teacher", -1)),
    Fault("teacher: first weight transposed", "torch->onnx", _transposed("teacher", 0)),
    Fault("teacher: weight times 1.5", "torch->onnx", _scaled("teacher", 1.5)),
    Fault("teacher: a bias moved", "torch->onnx", _bias),
    Fault("specialist: other std", "preprocess specialist",
          _normalisation("specialist", std=[0.2, 0.3, 0.5]), ("resnet", "deit")),
    Fault("specialist: two words swapped", "preprocess specialist", _tokenizer("specialist"),
          ("bert",)),
    Fault("specialist: labels swapped", "preprocess specialist",
          _normalisation("specialist", labels=["bee", "ant", "cat", "dog"])),
    Fault("pruned: weight transposed", "torch->onnx specialist", _transposed("pruned", -1)),
    Fault("int8: one row's scale doubled", "pruned->int8", _one_scale),
    Fault("int8: a weight's scales halved", "pruned->int8", _all_scales),
    Fault("int8: integers transposed", "pruned->int8", _integers),
    Fault("int8: zero point lost", "pruned->int8", _zero_point),
    Fault("int8: activation's scale a quarter", "pruned->int8", _activation_scale),
    Fault("int8: attention's scale tripled", "pruned->int8", _attention, ("deit", "bert")),
    Fault("served: other mean", "int8->served", _normalisation("served", mean=[0.5, 0.5, 0.5]),
          ("resnet", "deit")),
    Fault("served: two words swapped", "int8->served", _tokenizer("served"), ("bert",)),
    Fault("served: labels swapped", "int8->served",
          _normalisation("served", labels=["ant", "bee", "dog", "cat"])),
    Fault("served: other graph", "int8->served", _served_scale),
)  # fmt: skip


FORMS: tuple[tuple[str, Route], ...] = (
    ("resnet", "static"),
    ("deit", "static"),
    ("deit", "fused"),
    ("bert", "static"),
    ("bert", "fused"),
    ("bert", "dynamic"),
)


def has(fault: Fault, family: str, route: Route) -> bool:
    """Whether a fault can be planted.

    Dynamic products have no stored grid of activations, static files no attention of our own.
    """
    if fault.plant in (_zero_point, _activation_scale) and route == "dynamic":
        return False
    return family in fault.only and not (fault.plant is _attention and route == "static")


def named(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """(hop, node) that a chain names first."""
    first = next((row for row in rows if row["broken"]), None)
    if first is None:
        return "none", ""
    node = first["node"] or {"name": "none", "op": "", "tensor": ""}
    return first["hop"], f"{node['name']} ({node['op']}) {node['tensor']}"


def outcomes(scratch: Path) -> Iterator[tuple[str, str, str, str, str, bool]]:
    """Yield (form, fault, hop, expected, named, right) for every fault, healthy runs first."""
    for family, route in FORMS:
        healthy = build(scratch / f"{family}-{route}", family, route)
        found, node = named(healthy.chain())
        yield f"{family} {route}", "none", found, "none", node, found == "none"
        for index, fault in enumerate(FAULTS):
            if not has(fault, family, route):
                continue
            run = healthy.copy(scratch / f"{family}-{route}-{index}")
            expected = fault.plant(run)
            found, node = named(run.chain())
            right = found == fault.hop and expected in node
            yield f"{family} {route}", fault.what, found, expected, node, right


def main() -> int:
    warnings.simplefilter("ignore")
    count = wrong = 0
    print("| form | fault | hop named | planted at | node named | right |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="winnow-faults-") as folder:
        for form, fault, found, expected, node, right in outcomes(Path(folder)):
            told = "yes" if right else "NO"
            print(f"| {form} | {fault} | {found} | {expected} | {node} | {told} |")
            count, wrong = count + 1, wrong + (not right)
    print(f"\n{count - wrong} of {count} right.")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
