"""From a float graph whose weights are on their grids to one that stores the integers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from exports.calibrate import calibrate
from exports.embeddings import EmbeddingGrid, embedding_tables, quantize_embeddings
from exports.graph import match_layers
from exports.quantize import WeightGrid, quantize_qdq
from exports.runtime import default_activation
from exports.weightonly import BlockGrid, quantize_weight_only
from models.checkpoint import Bundle
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRIDS
from tasks.progress import Callback
from tasks.sensitivity import calibration_rows, examples_needed, kept_float, single_rows

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
    weights, facts = _pairs(stored, "weight"), {"format": recipe.quantize.format}
    if weights and recipe.quantize.format == "int4":
        _lower_int4(weights, path)
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


def _lower_int4(weights: Pairs, path: Path) -> None:
    grids = {
        name: BlockGrid(integers, scale, _block_of(integers, scale))
        for name, (integers, scale) in weights.items()
    }
    quantize_weight_only(path, path, weights=grids)


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
    asked = recipe.quantize
    grids = {name: WeightGrid(*pair) for name, pair in weights.items()}
    kind = default_activation() if asked.activation == "auto" else asked.activation
    shots = batches.calibration(recipe, data, bundle, generic=False, at=batches.device())
    inputs = batches.INPUTS[bundle.modality]
    initializers = match_layers(path, {name: grid.values() for name, grid in grids.items()})
    ranges = calibrate(
        path,
        batches.feeds(shots(), inputs),
        rule=asked.activation_rule,
        activation=kind,  # type: ignore[arg-type]
        weights=initializers.values(),
    )
    static = partial(quantize_qdq, residual=asked.residual)
    total = sum(len(batch[0]) for batch in shots())
    looked_at = single_rows(
        batches.feeds(shots(), inputs), total, examples_needed(recipe), recipe.task.seed
    )
    floats, held = kept_float(recipe, path, grids, ranges, looked_at, kind, static, progress)
    report = calibration_rows(recipe, path, grids, looked_at, kind, floats, static)
    static(path, path, weights=grids, ranges=ranges, activation=kind, exclude=floats)  # type: ignore[arg-type]
    return {
        "route": "static",
        "activation": kind,
        "float_layers": list(floats),
        "sensitivity": held,
        "calibration": report,
    }


def _pairs(stored: Mapping[str, np.ndarray], kind: str) -> Pairs:
    names = [key.split(" ")[1] for key in stored if key.startswith(kind) and key.endswith("scale")]
    return {
        name: (stored[f"{kind} {name} integers"], stored[f"{kind} {name} scale"]) for name in names
    }
