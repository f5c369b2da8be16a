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
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exports.calibrate import calibrate
from exports.forms import Route, write_route
from exports.graph import export_onnx
from exports.grids import WeightGrid
from exports.onnxfile import array, initializers, layers, load_model
from exports.preprocess import load_preprocess
from models.checkpoint import Bundle, build_architecture, load_bundle, save_bundle
from models.delta import find_head
from models.folding import fold_batchnorm
from tasks.artifacts import Artifact
from tasks.batches import INPUTS, blank, samples
from tasks.config import Recipe
from tasks.layout import GRAPH, ship
from tasks.measure import logits_of
from tasks.parity import parity_chain
from tasks.splits import Split

CLASSES, ROWS, SIDE = ("ant", "bee", "cat", "dog"), 24, 32
WORDS = tuple(f"word{index}" for index in range(40))
RECIPE = {"name": "faults", "generalist": {"source": "x"}, "task": {"train": "x", "test": "x"}}
IMAGE: dict[str, Any] = {
    "modality": "image",
    "size": [SIDE, SIDE],
    "resize": SIDE,
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {"library": "timm", "architecture": "test_resnet", "classes": 4, "model_args": {}},
    "deit": {
        "library": "timm",
        "architecture": "deit_tiny_patch16_224",
        "classes": 4,
        "model_args": {
            "img_size": SIDE,
            "patch_size": 8,
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
        },
    },
    "bert": {
        "library": "transformers",
        "encoder": {
            "model_type": "bert",
            "vocab_size": 45,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
        },
        "pooling": "mean",
        "normalize": False,
        "neck": None,
        "classes": 4,
    },
}


@dataclass(frozen=True)
class Run:
    """A finished run on disk: two bundles, three exports, the shipped folder, the test set."""

    root: Path
    test: Split

    def folders(self) -> dict[str, Path]:
        """The exports by name."""
        return {name: self.root / name for name in ("teacher", "pruned", "specialist")}

    def copy(self, root: Path) -> Run:
        """The same in another folder, to be damaged."""
        return replace(self, root=Path(shutil.copytree(self.root, root)))

    def chain(self) -> list[dict[str, Any]]:
        """The rows of its parity chain."""
        recipe = Recipe.model_validate(RECIPE)
        teacher, floats = (
            Artifact(stage="teach", path=str(self.root / name), sha256=name, key="")
            for name in ("teacher-bundle", "pruned-bundle")
        )
        folders = self.folders()
        logits = logits_of(folders, self.test.inputs)
        return parity_chain(
            recipe, self.test, folders, teacher, floats, logits, self.root / "served"
        )


def awake(model: nn.Module, seed: int) -> nn.Module:
    """Random weights with the statistics of trained ones: no layer is constant or dead."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            start = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            value.data = start + 0.1 * noise
        elif "embed" not in name:
            value.data = noise / float(np.sqrt(value[0].numel()))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(32, 3, SIDE, SIDE, generator=generator))
    return model.eval()


def tokenizer_json() -> str:
    """A word-level tokenizer of forty words."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*specials, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def examples(modality: str) -> Split:
    """Photographs of noise or texts of random words, seeded."""
    random = np.random.default_rng(0)
    raws: list[bytes | str] = []
    for row in range(ROWS):
        if modality == "text":
            raws.append(" ".join(random.choice(WORDS, 9 + row % 3)))
            continue
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = BytesIO()
        Image.fromarray(coarse).resize((40, 48), Image.Resampling.BICUBIC).save(stream, "png")
        raws.append(stream.getvalue())
    labels = tuple(int(label) for label in random.integers(0, len(CLASSES), ROWS))
    return Split(tuple(raws), labels, tuple(f"{row:064d}" for row in range(ROWS)))


@torch.no_grad()
def spread(bundle: Bundle, test: Split) -> None:
    """Set the head so that every class is answered: random weights have one favourite."""
    found = find_head(bundle.model)
    assert found is not None
    head, recipe = found[1], Recipe.model_validate(RECIPE)
    batch = samples(test, bundle, recipe).batch(torch.arange(ROWS), device=torch.device("cpu"))
    logits = bundle.model(*batch)
    factor = 2 / logits.std(dim=0)
    head.weight *= factor[:, None]
    head.bias.copy_((head.bias - logits.mean(dim=0)) * factor)


def smaller(bundle: Bundle) -> Bundle:
    """The float specialist: a tenth of every weight, the smallest, set to zero."""
    pruned = bundle.copy()
    for value in pruned.model.parameters():
        if value.ndim > 1:
            value.data[value.abs() < value.abs().flatten().kthvalue(value.numel() // 10).values] = 0
    return pruned


def write_export(bundle: Bundle, folder: Path) -> None:
    """Write what the export stage does for a float bundle."""
    folder.mkdir()
    inputs = INPUTS[bundle.modality]
    if bundle.modality == "image":
        bundle = fold_batchnorm(bundle, blank(bundle))
    export_onnx(bundle.model, blank(bundle), folder / GRAPH, input_names=inputs)
    settings = {**bundle.preprocess, "labels": list(bundle.labels or ())}
    (folder / "preprocess.json").write_text(json.dumps(settings))
    if bundle.tokenizer is not None:
        (folder / "tokenizer.json").write_text(bundle.tokenizer)


def grids_of(path: Path) -> dict[str, WeightGrid]:
    """Round every layer to nearest, one symmetric grid a row."""
    model = load_model(path)
    stored, grids = initializers(model), {}
    for layer in layers(model):
        weight = array(stored[layer.weight])
        weight = weight.T if layer.rows_axis == 1 else weight
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        scale = np.where(largest > 0, largest / 127, np.float32(1e-3))
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        grids[layer.weight] = WeightGrid(np.rint(weight / steps).astype(np.int8), scale)
    return grids


def build(root: Path, family: str, route: Route) -> Run:
    """Make a healthy run in a new folder."""
    torch.manual_seed(0)
    config, text = CONFIGS[family], family == "bert"
    model = awake(build_architecture(config), 1)
    preprocess = {"modality": "text", "max_length": 16, "pad_id": 0} if text else IMAGE
    modality = "text" if text else "image"
    tokenizer = tokenizer_json() if text else None
    bundle = Bundle(model, modality, CLASSES, preprocess, tokenizer, config)  # type: ignore[arg-type]
    test = examples(modality)
    spread(bundle, test)
    if not text:
        bundle = fold_batchnorm(bundle, blank(bundle))
    save_bundle(bundle, root / "teacher-bundle")
    save_bundle(smaller(bundle), root / "pruned-bundle")
    for name in ("teacher", "pruned"):
        write_export(load_bundle(root / f"{name}-bundle"), root / name)
    shutil.copytree(root / "pruned", root / "specialist")
    run = Run(root, test)
    served, _ = load_preprocess(root / "pruned")
    feeds = [served(run.test.inputs[row : row + 1]) for row in range(ROWS)]
    fp32 = root / "pruned" / GRAPH
    write_route(
        fp32,
        root / "specialist" / GRAPH,
        route=route,
        weights=grids_of(fp32),
        ranges=calibrate(fp32, feeds),
        activation="uint8",
    )
    (root / "served").mkdir()
    ship(root / "specialist", root / "served")
    return run


# --- damage -----------------------------------------------------------------------------------


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
