"""Inputs without labels under a champion's eyes: have they drifted, and what may it cost?"""

from __future__ import annotations

from typing import Any

import numpy as np

from exports.drift import LEAST_ROWS, drift, estimated_drop
from exports.reference import Reference, log_softmax, shortened
from tasks.champions import Served
from tasks.errors import DataError
from tasks.sources import read_source

# inputs that are looked at; more would show smaller differences only, which do not count
_MOST = 2000


def examine_unlabelled(
    served: Served, reference: Reference, source: str | None, notes: list[str]
) -> dict[str, Any] | None:
    """Drift and estimated accuracy on a source of inputs; None where none is named.

    Inputs that the champion was learnt from or judged on are left out, as are copies.

    Raises:
        DataError: the source or a row of it cannot be read.
    """
    if source is None:
        return None
    task, own = served.recipe.task, served.specialist
    rows = read_source(
        "--unlabelled",
        source,
        split="test",
        image_column=task.image_column,
        text_column=task.text_column,
        labelled=False,
    )
    if rows.modality != own.modality:
        raise DataError(
            f"--unlabelled: {source} holds {rows.modality}s, {served.version.told} takes "
            f"{own.modality}s"
        )
    drawn = np.random.default_rng([task.seed, 7]).permutation(len(rows))
    seen: dict[bytes, int] = {}
    for row in drawn.tolist():
        digest = shortened(rows.digest(row))
        if digest not in reference.known and digest not in reference.learnt:
            seen.setdefault(digest, row)
        if len(seen) == _MOST:
            break
    if min(len(seen), len(reference.rows)) < LEAST_ROWS:
        notes.append(
            f"drift was not looked for: {len(seen)} new inputs in {source} and "
            f"{len(reference.rows)} of the test set, of each at least {LEAST_ROWS} are needed"
        )
        return None
    logits = own.logits([rows.raw(row) for row in sorted(seen.values())])
    columns = [own.labels.index(name) for name in reference.classes]
    found, confidence = log_softmax(logits)[:, columns], served.recipe.verify.confidence
    before = reference.log_probabilities
    return {
        "source": source,
        "drift": drift(before, found, reference.classes, confidence=confidence),
        "estimate": estimated_drop(
            before, reference.right, found, confidence=confidence, seed=task.seed
        ),
    }
