"""From a float graph whose weights are on their grids to one that stores the integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file

from exports.calibrate import calibrate
from exports.embeddings import EmbeddingGrid, embedding_tables, quantize_embeddings
from exports.graph import match_layers
from exports.quantize import WeightGrid, quantize_qdq
from exports.runtime import default_activation
from models.checkpoint import Bundle
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRIDS


def lower(recipe: Recipe, data: Artifact, bundle: Bundle, model: Artifact, path: Path) -> None:
    """Quantize the graph at `path` in place with the grids that the `quantize` stage solved."""
    stored = load_file(model.folder / GRIDS)
    weights = {name: WeightGrid(*pair) for name, pair in _pairs(stored, "weight").items()}
    tables = {
        name: EmbeddingGrid(
            integers,
            scale,
            block=integers.shape[1] // scale.shape[1],
            bits=int(recipe.quantize.embeddings.removeprefix("int")),
        )
        for name, (integers, scale) in _pairs(stored, "embedding").items()
    }
    if weights:
        kind: Literal["uint8", "int8"] = "uint8" if default_activation() == "uint8" else "int8"
        shots = batches.calibration(recipe, data, bundle, generic=False, at=batches.device())
        initializers = match_layers(path, {name: grid.values() for name, grid in weights.items()})
        ranges = calibrate(
            path,
            batches.feeds(shots(), batches.INPUTS[bundle.modality]),
            rule=recipe.quantize.activation_rule,
            activation=kind,
            weights=initializers.values(),
        )
        quantize_qdq(
            path,
            path,
            weights=weights,
            ranges=ranges,
            activation=kind,
            residual=recipe.quantize.residual,
        )
    # a table that a trace folds into a constant (one token type) is no longer looked up
    looked_up = set(embedding_tables(path).values())
    kept = {name: grid for name, grid in tables.items() if grid.integers.shape in looked_up}
    if kept:
        quantize_embeddings(path, path, kept)


def _pairs(stored: Mapping[str, np.ndarray], kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [key.split(" ")[1] for key in stored if key.startswith(kind) and key.endswith("scale")]
    return {
        name: (stored[f"{kind} {name} integers"], stored[f"{kind} {name} scale"]) for name in names
    }
