"""Every branch of a dense model at every size it may take, and what each costs in time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from exports.fused import fuse_linears
from exports.graph import export_onnx
from exports.latency_table import (
    LatencyError,
    LatencyTable,
    measure_variants,
    table_of,
    time_files,
)
from exports.masks import simplify_masks
from exports.microbench import Lower, lower_static
from exports.onnxfile import load_model, save_model
from exports.runtime import default_activation
from exports.tokens_first import tokens_first
from models.checkpoint import Bundle
from models.folding import fold_batchnorm
from models.shrinking import shrink
from models.units import Branch, branches
from models.variants import block_inputs, variant, variant_key
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.home import home
from tasks.layout import GRAPH, QUANTIZED
from tasks.progress import Callback
from tasks.sizes import Size, choices, timed_example


@dataclass(frozen=True)
class Offered:
    """What a recipe may choose among.

    Attributes:
        model: the dense model as it is served: its BatchNorms folded.
        sizes: by name, each branch and its sizes, falling from the branch as it is.
        keys: the latency table's name of each of these sizes, in the same order.
        inputs: of every block, on a batch as it will be timed.
    """

    model: nn.Module
    sizes: dict[str, tuple[Branch, list[Size]]]
    keys: dict[str, list[str]]
    inputs: Mapping[str, Tensor]

    @property
    def all_keys(self) -> list[str]:
        """Each once, in execution order."""
        return list(dict.fromkeys(key for every in self.keys.values() for key in every))

    @property
    def dense_keys(self) -> list[str]:
        """Of every branch as it is, one a branch."""
        return [every[0] for every in self.keys.values()]

    @property
    def small_keys(self) -> list[str]:
        """Of every branch at the smallest size that leaves something of it, one a branch."""
        return [self.keys[name][_smallest_at(every)] for name, (_, every) in self.sizes.items()]

    def described(self, times: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
        """Plain values: each branch with its units and its levels' sizes, keys and times."""
        return [
            {
                "name": branch.name,
                "kind": branch.kind,
                "block": branch.block,
                "units": [
                    {"name": u.name, "kind": u.kind, "groups": u.groups} for u in branch.units
                ],
                "levels": [
                    {"size": list(size), "key": key, "ms": dict(times[key])}
                    for size, key in zip(every, self.keys[branch.name], strict=True)
                ],
            }
            for branch, every in self.sizes.values()
        ]


class Variants(Mapping[str, tuple[nn.Module, Tensor]]):
    """By key, a block with one branch at one size, and its input; made when it is asked for."""

    def __init__(self, found: Offered) -> None:
        self._found = found
        self._made_by: dict[str, tuple[Branch, Size]] = {}
        for name, (branch, every) in found.sizes.items():
            for size, key in zip(every, found.keys[name], strict=True):
                self._made_by.setdefault(key, (branch, size))

    def __getitem__(self, key: str) -> tuple[nn.Module, Tensor]:
        branch, size = self._made_by[key]
        return variant(self._found.model, branch, size), self._found.inputs[branch.block]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made_by)

    def __len__(self) -> int:
        return len(self._made_by)


def offered(recipe: Recipe, bundle: Bundle, tokens: int | None) -> Offered:
    """The sizes of a dense bundle's branches, on inputs as they will be timed.

    Keys are those of the bundle as it was saved, with its BatchNorms where it has any: that is the
    model whose sizes are chosen. What is timed is the model as it is exported, without them.
    """
    example = timed_example(bundle, recipe, tokens)
    image = bundle.modality == "image"
    folded = fold_batchnorm(bundle, example).model if image else bundle.model
    inputs = block_inputs(folded, example)
    found: dict[str, tuple[Branch, list[Size]]] = {}
    keys: dict[str, list[str]] = {}
    for branch in branches(bundle.model, example):
        picked = choices(branch, branch, recipe)
        shape = tuple(inputs[branch.block].shape[1:])
        found[branch.name] = branch, picked
        keys[branch.name] = [variant_key(branch, size, shape) for size in picked]
    return Offered(folded, found, keys, inputs)


def measured(
    recipe: Recipe,
    bundle: Bundle,
    found: Offered,
    graphs: Mapping[str, Artifact],
    feed: Mapping[str, np.ndarray],
    progress: Callback,
    spared: Callable[[float], None],
) -> LatencyTable:
    """Time all sizes on this host; what an earlier run measured here is taken from the cache.

    Args:
        graphs: exports by name: 'generalist', and the dense model by format.
        feed: of the whole graphs.
        spared: called with the seconds that taking what was found there had cost.
    """
    asked = recipe.verify
    formats = [name for name in graphs if name != "generalist"]
    facts = graphs["int8"].json_file(QUANTIZED) if "int8" in graphs else {}
    activation = facts.get("activation", default_activation())
    route, residual = facts.get("route", "static"), recipe.quantize.residual
    lower = lower_static(activation, residual)
    if route != "static":
        lower = _rewritten(lower, route)
    try:
        times = measure_variants(
            Variants(found),
            formats=formats,
            threads=asked.threads,
            batch=asked.batch,
            repeats=asked.repeats,
            residual=residual,
            activation=activation,
            lower=None if route == "static" else lower,
            route=route,
            cache=home() / "latencies.json",
            spared=spared,
            progress=progress,
        )
        with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
            files = {
                "generalist": {"float32": graphs["generalist"].folder / GRAPH},
                "dense": {name: graphs[name].folder / GRAPH for name in formats},
            }
            keys = {"dense": found.dense_keys}
            if found.small_keys != found.dense_keys:  # as where only whole blocks may go
                files["small"] = _smallest(bundle, found, formats, lower, Path(scratch))
                keys["small"] = found.small_keys
            whole = time_files(
                files, feed, threads=asked.threads, repeats=asked.repeats, seed=recipe.task.seed
            )
        return _table(times, whole, keys, threads=asked.threads, batch=asked.batch)
    except LatencyError as problem:
        raise RecipeError(str(problem)) from None


def _rewritten(static: Lower, route: str) -> Lower:
    """The lowering to another form, as the dense graph was given it (`exports.forms`)."""

    def lower(fp32: Path, out: Path) -> None:
        static(fp32, out)
        model = load_model(out)
        if fuse_linears(model, "dynamic" if route == "dynamic" else "static"):
            simplify_masks(model)
            tokens_first(model)
            save_model(model, out)

    return lower


def _table(times: Any, whole: Any, keys: Any, **timing: int) -> LatencyTable:
    """The table, made exact at the smallest model too where that is a faster one.

    Of a model so small that a call costs more than what it computes, no size is faster: there the
    parts' own times stand, and a budget on bytes can still be planned.
    """
    try:
        return table_of(times, whole, keys, **timing)
    except LatencyError:
        if "small" not in whole:
            raise
        return table_of(
            times,
            {name: row for name, row in whole.items() if name != "small"},
            {"dense": keys["dense"]},
            **timing,
        )


def _smallest(
    bundle: Bundle, found: Offered, formats: Sequence[str], lower: Lower, folder: Path
) -> dict[str, Path]:
    """Write the model at its smallest sizes, with no branch gone, in every format."""
    kept = {
        unit.name: range(count)
        for branch, every in found.sizes.values()
        for unit, count in zip(branch.units, every[_smallest_at(every)], strict=True)
    }
    small = shrink(bundle, kept)
    shown = batches.blank(bundle)
    if bundle.modality == "image":
        small = fold_batchnorm(small, shown)
    files = {name: folder / f"{name}.onnx" for name in formats}
    export_onnx(small.model, shown, files["float32"], input_names=batches.INPUTS[bundle.modality])
    if "int8" in files:
        lower(files["float32"], files["int8"])
    return files


def _smallest_at(every: Sequence[Size]) -> int:
    """The position of the smallest size that leaves something of the branch."""
    return max(at for at, size in enumerate(every) if any(size))
