"""What a graph is fed: the training side's numbers against those of the exported settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exports.alike import relative_error
from exports.departure import Departure
from exports.parity import judged
from exports.preprocess import InputError, TextPreprocess, load_preprocess
from models.checkpoint import Bundle
from models.samples import TextSamples
from tasks import batches
from tasks.config import Recipe
from tasks.splits import Split

_BATCH = 32  # images in memory
_PIXEL = 1e-3  # of a standard deviation: a 255th of the range is several hundredths
SETTINGS, TOKENIZER = "preprocess.json", "tokenizer.json"


def fed_row(
    name: str, recipe: Recipe, split: Split, bundle: Bundle, folder: Path
) -> dict[str, Any]:
    """Compare what training showed the model with what the exported folder makes of the same rows.

    Args:
        split: some examples.
        bundle: the model as it was trained, with its own transform, tokenizer and labels.
        folder: an export with preprocess.json and, for texts, tokenizer.json.

    Returns:
        a row of the chain: `max_abs` of the numbers fed (pixels in standard deviations, or token
        ids), `agreement` the share of examples that are fed the same, no accuracy; the node names
        the file and the setting that differs.
    """
    row: dict[str, Any] = {"hop": name, "max_abs": float("nan"), "agreement": 0.0, "accuracy": None}
    limits, why = {"max_abs": _PIXEL, "agreement": 1.0}, None
    try:
        gaps = np.array(list(_gaps(recipe, split, bundle, folder)))
        row |= {"max_abs": float(gaps.max()), "agreement": float((gaps <= _PIXEL).mean())}
    except InputError as problem:
        why = f"parity {name}: {problem}"
    fed = "pixel_values" if bundle.modality == "image" else "input_ids"
    node = _first_difference(_own(bundle), _written(folder), fed)
    if node is None and judged(row, limits, why=why)["broken"]:
        node = _node("decoding", "", fed, row["max_abs"])
    return {**judged(row, limits, node=node, why=why), "n": len(split)}


def settings_departure(before: Path, after: Path) -> Departure | None:
    """Name the setting that differs between two folders of one model, None where none does."""
    return _first_difference(_written(before), _written(after), "input")


def _gaps(recipe: Recipe, split: Split, bundle: Bundle, folder: Path) -> Iterator[float]:
    """Yield the largest difference of every example; infinite where the shapes differ."""
    served, _ = load_preprocess(folder)
    if isinstance(served, TextPreprocess) != (bundle.modality == "text"):
        raise InputError(f"{folder / SETTINGS}: modality is not {bundle.modality!r}")
    for start in range(0, len(split), _BATCH):
        part = split.rows(list(range(start, min(start + _BATCH, len(split)))))
        shown = batches.samples(part, bundle, recipe)
        if isinstance(served, TextPreprocess):
            assert isinstance(shown, TextSamples)
            texts = served.encode([str(text) for text in part.inputs])
            pairs = zip(map(np.array, shown.ids), map(np.array, texts), strict=True)
        else:
            (pixels,) = shown.batch(torch.arange(len(part)), device=torch.device("cpu"))
            pairs = zip(pixels.numpy(), *served(part.inputs).values(), strict=True)
        for a, b in pairs:
            yield float(np.abs(a - b).max(initial=0)) if a.shape == b.shape else float("inf")


def _own(bundle: Bundle) -> dict[str, Any]:
    """The settings that a bundle's export must have."""
    settings = {**bundle.preprocess, "labels": list(bundle.labels or ())}
    own: dict[str, Any] = {SETTINGS: json.loads(json.dumps(settings))}
    return own if bundle.tokenizer is None else {**own, TOKENIZER: json.loads(bundle.tokenizer)}


def _written(folder: Path) -> dict[str, Any]:
    """The settings in a folder, by file; a file that is missing or broken has none."""
    found: dict[str, Any] = {}
    for name in (SETTINGS, TOKENIZER):
        try:
            found[name] = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError:
            found[name] = {}
    return found


def _first_difference(
    expected: Mapping[str, Any], found: Mapping[str, Any], fed: str
) -> Departure | None:
    """Name the first file and field that differ."""
    for file in sorted({*expected, *found}):
        before, after = expected.get(file) or {}, found.get(file) or {}
        for key in dict.fromkeys((*before, *after)):
            if before.get(key) != after.get(key):
                tensor = "label" if key == "labels" else fed
                return _node(file, key, tensor, _change(before.get(key), after.get(key)))
    return None


def _change(before: Any, after: Any) -> float:
    """The relative change of a number or a list of numbers; 1 for anything else."""
    try:
        return relative_error(np.array(after, float), np.array(before, float))
    except (TypeError, ValueError):
        return 1.0


def _node(file: str, field: str, tensor: str, error: float) -> Departure:
    """A departure before the graph: the file stands for the node, its field for the operator."""
    error = min(float(np.nan_to_num(error, nan=1e9)), 1e9)
    return {"name": file, "op": field, "tensor": tensor, "error": error, "error_before": 0.0}
