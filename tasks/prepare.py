"""Stage 1: the task's data, drawn, checked and written down as Parquet with digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import source_digest
from tasks.found import ROWS, counts, pair_of, refuse, require_every_class, same_digests
from tasks.progress import Callback, watching
from tasks.stage import stage


def _content(recipe: Recipe) -> dict[str, str]:
    task = recipe.task
    sources = {"train": task.train, "test": task.test}
    sources |= {"unlabelled": task.unlabelled or "", "generic": task.generic or ""}
    return {field: source_digest(name) if name else "" for field, name in sources.items()}


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
    read = _content(recipe)  # as it is now: what changes from here on, a watch is to see
    train = data.read_task_source(task, "train")
    test = data.read_task_source(task, "test")
    classes = data.choose_classes(task, train, test)
    support, shot_rows = data.draw_shots(task, train, classes)
    held, test_rows = data.labelled_split(test, classes, progress)
    used = (*support.digests, *held.digests)
    # exact copies before anything is computed; near ones need the generalist (`leaks`)
    copies = [
        pair_of(support, held, at, (shot_rows[at[0]], test_rows[at[1]]))
        for at in same_digests(support, held)
    ]
    refuse(recipe, copies, len(support), classes)
    whole = len(held)
    if recipe.leaks.exact == "drop":
        gone = {pair.other for pair in copies}
        kept = [row for row in range(whole) if row not in gone]
        require_every_class("exact", held.labels, kept, classes)
        held, test_rows = held.rows(kept), [test_rows[row] for row in kept]
        copies = [pair.model_copy(update={"other": None}) for pair in copies]
    pool = data.unlabelled_pool(task, train, classes, used, progress)
    splits = {"support": support, "test": held, "unlabelled": pool}
    if recipe.prune.calibration == "generic":
        # as many as the task's own calibration would use, so that the two can be compared
        count = min(recipe.prune.samples, len(support) + len(pool or ()))
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
    }
    (into / ROWS).write_text(json.dumps(rows), encoding="utf-8")
    # not in the files: another max_drop leaves the data, and all that follows, as it is
    needed = smallest_passable_n(asked.max_drop, asked.confidence)
    return {**facts, "passable_n": needed, "sources": read}


def warn_if_too_small(recipe: Recipe, prepared: Artifact) -> None:
    """Say at once where the test set cannot pass whatever the specialist does."""
    n, needed = int(prepared.metrics["test"]["n"]), int(prepared.metrics["passable_n"])
    if n < needed:
        watching().say(f"! {recipe.verify.too_small(n, needed)}", "yellow")


def require_outside(recipe: Recipe, prepared: Artifact) -> None:
    """Raise where `limits.outside` cannot be read: now, and not after all compute."""
    if recipe.limits.outside is not None:
        from tasks.outside import outside_source

        outside_source(recipe, prepared.metrics["modality"])
