"""Stage 1: the task's data, drawn, checked and written down as Parquet with digests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import source_digest
from tasks.errors import DataError
from tasks.found import (
    ROWS,
    Pair,
    counts,
    pair_of,
    refuse,
    repeats,
    require_every_class,
    same_digests,
)
from tasks.progress import Callback, watching
from tasks.splits import Split, aside
from tasks.stage import stage


def _content(recipe: Recipe) -> dict[str, str]:
    task = recipe.task
    sources = {"train": task.train, "test": task.test}
    sources |= {"unlabelled": task.unlabelled or "", "generic": task.generic or ""}
    return {f"task.{field}": source_digest(x) if x else "" for field, x in sources.items()}


@stage(
    reads=(
        "task.classes",
        "task.shots",
        "task.seed",
        "task.image_column",
        "task.text_column",
        "task.label_column",
        "task.allow_outside_files",
        "leaks.exact",
        "prune.calibration",
        "prune.samples",
        "verify.max_drop",
        "verify.confidence",
    ),
    outside=_content,
)
def prepare(recipe: Recipe, *, into: Path, progress: Callback) -> dict[str, Any]:
    """Draw the shots, check every example that will be used, and write the splits down."""
    # datasets and scipy take two seconds to import; a reused stage needs neither
    from exports.verdict import smallest_passable_n
    from tasks import data

    task, asked = recipe.task, recipe.verify
    # as it is now: what changes once this is published, a watch is to see
    read = {field.removeprefix("task."): digest for field, digest in _content(recipe).items()}
    train = data.read_task_source(task, "train")
    test = data.read_task_source(task, "test")
    classes = data.choose_classes(task, train, test)
    support, shot_rows = data.draw_shots(task, train, classes)
    held, test_rows = data.labelled_split(test, classes, progress)
    whole, used = len(held), (*support.digests, *held.digests)
    held, test_rows, again = _each_once(held, test_rows, classes)
    # exact copies before anything is computed; near ones need the generalist (`leaks`)
    copies = [
        pair_of(support, held, at, (shot_rows[at[0]], test_rows[at[1]]))
        for at in same_digests(support, held)
    ]
    refuse(recipe, [*copies, *again], len(support), classes)
    if recipe.leaks.exact == "drop":
        gone = {pair.other for pair in copies}
        kept = [row for row in range(len(held)) if row not in gone]
        require_every_class("exact", held.labels, kept, classes)
        held, test_rows = held.rows(kept), [test_rows[row] for row in kept]
        copies = [pair.model_copy(update={"other": None}) for pair in copies]
    pool = data.unlabelled_pool(task, train, classes, used, progress)
    splits = {"support": support, "test": held, "unlabelled": pool}
    if recipe.prune.calibration == "generic":
        # as many as the task's own calibration would use, so that the two can be compared
        own = len(pool or ())
        count = min(recipe.prune.samples, len(support) + own - aside(own))
        splits["generic"] = data.generic_pool(task, train, classes, count, used, progress)
    facts: dict[str, Any] = {
        "modality": train.modality,
        "classes": list(classes),
        "leaks": counts(copies)["exact"],
        "dropped": whole - len(held),
        "content": {},
    }
    for name, split in splits.items():
        if split is not None:
            split.save(into / f"{name}.parquet", train.modality)
            facts[name] = {"n": len(split), "sha256": split.sha256()}
            facts["content"][name] = split.content()
    (into / "task.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    rows = {
        "support": shot_rows,
        "test": test_rows,
        "exact": [pair.model_dump() for pair in copies],
        "repeats": [pair.model_dump() for pair in again],
    }
    (into / ROWS).write_text(json.dumps(rows), encoding="utf-8")
    # not in the files: another max_drop leaves the data, and all that follows, as it is
    needed = smallest_passable_n(asked.max_drop, asked.confidence)
    return {**facts, "passable_n": needed, "sources": read}


def _each_once(
    test: Split, rows: list[int], classes: Sequence[str]
) -> tuple[Split, list[int], list[Pair]]:
    """The test set with the first of every copies, its rows in the source, and what was left out.

    A copy is no evidence of its own: the verdict's interval would be narrower than it may be.
    """
    found = list(repeats(test, rows, "test"))
    gone = {pair.other for pair in found}
    kept = [row for row in range(len(test)) if row not in gone]
    lost = sorted(set(test.labels) - {test.labels[row] for row in kept})
    if lost:
        raise DataError(
            f"task.test: every example of class {classes[lost[0]]!r} is there before under another "
            "label; mend the labels"
        )
    left = [pair.model_copy(update={"other": None}) for pair in found]
    return test.rows(kept), [rows[row] for row in kept], left


def warn_if_too_small(recipe: Recipe, prepared: Artifact) -> None:
    """Say at once where the test set cannot pass whatever the specialist does."""
    n, needed = int(prepared.metrics["test"]["n"]), int(prepared.metrics["passable_n"])
    if n < needed:
        watching().say(f"! {recipe.verify.too_small(n, needed)}", "yellow")


def require_outside(recipe: Recipe, prepared: Artifact) -> None:
    """Raise where `limits.outside` has no inputs to be used: now, and not after all compute."""
    if recipe.limits.outside is not None:
        from tasks.outside import named_inputs

        named_inputs(recipe, prepared, min(2, recipe.limits.samples))
