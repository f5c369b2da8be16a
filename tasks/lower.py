"""From a float graph whose weights are on their grids to one that stores the integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from exports.embeddings import EmbeddingGrid, embedding_tables, quantize_embeddings
from exports.graph import match_layers
from exports.quantize import WeightGrid, quantize_qdq
from exports.routes import ACTIVATIONS, ROUTES, best_int8, ranges_by_activation
from exports.runtime import default_activation
from exports.weightonly import BlockGrid, quantize_weight_only
from models.checkpoint import Bundle
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.host_clock import host_clock
from tasks.layout import GRIDS
from tasks.progress import Callback
from tasks.sensitivity import Feed, calibration_rows, examples_needed, kept_float, single_rows

_COMPARED = 64  # examples on which the forms of a graph are held against the float one
_WIDEST = 4.0  # a faster form's logits may be so many times as far off as the closest form's
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def lower(
    recipe: Recipe,
    data: Artifact,
    bundle: Bundle,
    model: Artifact,
    path: Path,
    progress: Callback | None = None,
) -> dict[str, Any]:
    """Quantize the graph at `path` in place with the grids that the `quantize` stage solved.

    Returns:
        what the report tells of it: the format, and for INT8 the route, the type of the
        activations and the layers left float.
    """
    stored = load_file(model.folder / GRIDS)
    weights = _pairs(stored, "weight")
    facts: dict[str, Any] = {"format": recipe.quantize.format}
    if weights and recipe.quantize.format == "int4":
        facts |= _lower_int4(weights, path, model.metrics.get("bits", {}))
    elif weights:
        facts |= _lower_int8(recipe, data, bundle, weights, path, progress)
    bits = recipe.quantize.embeddings.removeprefix("int")
    tables = {
        name: EmbeddingGrid(
            integers, scale, block=integers.shape[1] // scale.shape[1], bits=int(bits)
        )
        for name, (integers, scale) in _pairs(stored, "embedding").items()
    }
    # a table that a trace folds into a constant (one token type) is no longer looked up
    looked_up = set(embedding_tables(path).values())
    kept = {name: grid for name, grid in tables.items() if grid.integers.shape in looked_up}
    if kept:
        quantize_embeddings(path, path, kept)
    return {**facts, "embeddings": recipe.quantize.embeddings if kept else "none"}


def _lower_int4(weights: Pairs, path: Path, bits: Mapping[str, int]) -> dict[str, Any]:
    """Store each layer at its width; returns how many layers have which, where they differ."""
    grids = {
        name: BlockGrid(integers, scale, _block_of(integers, scale), bits.get(name, 4))
        for name, (integers, scale) in weights.items()
    }
    quantize_weight_only(path, path, weights=grids)
    counts = Counter(bits.values())
    return {"bits": {str(width): counts[width] for width in sorted(counts)}} if bits else {}


def _block_of(integers: np.ndarray, scale: np.ndarray) -> int:
    """Columns that share a scale: the smallest power of two that gives so many blocks."""
    block = 16
    while -(-integers.shape[1] // block) > scale.shape[1]:
        block *= 2
    return block


def _lower_int8(
    recipe: Recipe,
    data: Artifact,
    bundle: Bundle,
    weights: Pairs,
    path: Path,
    progress: Callback | None,
) -> dict[str, Any]:
    asked, inputs = recipe.quantize, batches.INPUTS[bundle.modality]
    grids = {name: WeightGrid(*pair) for name, pair in weights.items()}
    usual = default_activation()
    kinds = ACTIVATIONS if asked.activation == "auto" else (asked.activation,)
    shots = batches.calibration(recipe, data, bundle, generic=False, at=batches.device())
    named = match_layers(path, {name: grid.values() for name, grid in grids.items()})
    ranges = ranges_by_activation(
        path,
        batches.feeds(shots(), inputs),
        weights=named.values(),
        rule=asked.activation_rule,
        activations=kinds,
        progress=progress,
    )
    kind = usual if usual in ranges else kinds[0]
    total = sum(len(batch[0]) for batch in shots())
    shown = single_rows(
        batches.feeds(shots(), inputs), total, examples_needed(recipe), recipe.task.seed
    )
    static = partial(quantize_qdq, residual=asked.residual)
    floats, held = kept_float(recipe, path, grids, ranges[kind], shown, kind, static, progress)
    report = calibration_rows(recipe, path, grids, shown, kind, floats, static)
    chosen = best_int8(
        path,
        path,
        weights=grids,
        ranges=ranges,
        feed=_usual_feed(recipe, shown),
        samples=shown[:_COMPARED],
        routes=ROUTES if asked.route == "auto" else (asked.route,),
        activations=kinds,
        exclude=floats,
        residual=asked.residual,
        # a few dozen examples: one label more or less says nothing about a form
        slack=1 - asked.keep_float.min_agreement,
        widest=_WIDEST,
        threads=recipe.verify.threads,
        seed=recipe.task.seed,
        clock=host_clock,
    )
    best = chosen.chosen
    return {
        "route": best.route,
        "activation": best.activation,
        "stem": best.stem,
        "float_layers": list(floats),
        "sensitivity": held,
        "calibration": report,
        "routes": [{**row.to_dict(), "chosen": row.name == best.name} for row in chosen.candidates],
    }


def _usual_feed(recipe: Recipe, shown: list[Feed]) -> Feed:
    """A batch of the shape that will be served: texts of the usual length."""
    by_length = sorted(shown, key=lambda feed: next(iter(feed.values())).shape[1])
    middle = by_length[len(by_length) // 2]
    rows, length = recipe.verify.batch, recipe.verify.tokens
    feed = {name: np.repeat(values, rows, axis=0) for name, values in middle.items()}
    if length is not None and "input_ids" in feed:
        feed = {name: np.resize(x[0], (rows, length)) for name, x in feed.items()}
    return feed


def _pairs(stored: Mapping[str, np.ndarray], kind: str) -> Pairs:
    names = [key.split(" ")[1] for key in stored if key.startswith(kind) and key.endswith("scale")]
    return {
        name: (stored[f"{kind} {name} integers"], stored[f"{kind} {name} scale"]) for name in names
    }
