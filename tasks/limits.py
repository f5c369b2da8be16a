"""The specialist's limits, measured: inputs outside the task, and inputs made worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exports.corruptions import Corruption, corruptions, upright
from exports.limits import MODELS, corruption_facts, outside_facts
from exports.preprocess import load_preprocess
from exports.runtime import host_profile, session
from exports.specialist import Specialist
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRAPH
from tasks.outside import outside_inputs
from tasks.splits import Split

_AT_ONCE = 64  # photographs in memory
_STREAM = 5  # of the draws from task.seed


def measure_limits(
    recipe: Recipe,
    data: Artifact,
    folders: Mapping[str, Path],
    test: Split,
    logits: Mapping[str, np.ndarray],
) -> dict[str, Any] | None:
    """`limits` of the report, None where `limits.samples` is 0.

    Args:
        data: the prepared task.
        folders: the exported 'teacher' and 'specialist' among others.
        test: the test set that is judged.
        logits: (N, K) of both on all of `test`.

    Raises:
        DataError: `limits.outside` cannot be used.
    """
    asked, confidence = recipe.limits, recipe.verify.confidence
    if not asked.samples:
        return None
    for name in MODELS:
        if len(logits[name]) != len(test):
            raise ValueError(f"{name}: {len(logits[name])} logits for {len(test)} test examples")
    opened = {name: _opened(folders[name]) for name in MODELS}
    found: dict[str, Any] = {"confidence": confidence, "outside": None, "corruptions": []}
    source, foreign = outside_inputs(recipe, data)
    if len(foreign) > 1 and len(test) > 1:
        found["outside"] = outside_facts(
            {name: logits[name] for name in MODELS},
            {name: model.logits(foreign) for name, model in opened.items()},
            source=source,
            threshold=asked.threshold,
            confidence=confidence,
        )
    if not asked.corruptions:
        return found
    rows = stratified(np.array(test.labels), asked.samples, recipe.task.seed)
    worse = _under_corruption(opened, test, rows, data.metrics["modality"], recipe.task.seed)
    clean = {name: logits[name][rows] for name in MODELS}
    return found | corruption_facts(
        np.array(test.labels)[rows], clean, worse, confidence=confidence
    )


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` rows in order, every class with its share of them, to within one.

    A systematic draw: sorted by class, shuffled within, one row in every len/count.
    """
    n = len(labels)
    if n <= count:
        return np.arange(n)
    random = np.random.default_rng([seed, _STREAM])
    order = np.lexsort((random.permutation(n), labels))
    places = (np.arange(count) + random.random()) * (n / count)
    return np.sort(order[np.minimum(places.astype(int), n - 1)])


def _opened(folder: Path) -> Specialist:
    preprocess, labels = load_preprocess(folder)
    cores = int(host_profile()["usable_cores"])
    return Specialist(session(folder / GRAPH, cores), preprocess, tuple(labels))


def _under_corruption(
    opened: Mapping[str, Specialist], test: Split, rows: np.ndarray, modality: str, seed: int
) -> list[tuple[Corruption, dict[str, np.ndarray]]]:
    """Each corruption with every model's logits on `rows` of the test set."""
    kinds = corruptions(modality)
    parts: list[dict[str, list[np.ndarray]]] = [{name: [] for name in opened} for _ in kinds]
    # texts all at once: those of equal length run together
    at_once = len(rows) if modality == "text" else _AT_ONCE
    for batch in _batches(rows.tolist(), at_once):
        shown = [_shown(test.inputs[row]) for row in batch]
        for kind, kept in zip(kinds, parts, strict=True):
            worse = [kind(x, seed=seed, row=row) for x, row in zip(shown, batch, strict=True)]
            for name, model in opened.items():
                kept[name].append(model.logits(worse))
    return [
        (kind, {name: np.concatenate(each) for name, each in kept.items()})
        for kind, kept in zip(kinds, parts, strict=True)
    ]


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _shown(raw: bytes | str) -> Any:
    return raw if isinstance(raw, str) else upright(raw)
