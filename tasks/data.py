"""The splits of a task: classes, stratified seeded shots, pools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from tasks.config import Task
from tasks.errors import DataError
from tasks.progress import Callback
from tasks.sources import Source, read_source
from tasks.splits import Split

REST = "rest"


def read_task_source(task: Task, field: str, *, labelled: bool = True) -> Source:
    """Read `task.<field>` with the columns that the recipe names."""
    return read_source(
        f"task.{field}",
        getattr(task, field),
        split="test" if field == "test" else "train",
        image_column=task.image_column,
        text_column=task.text_column,
        label_column=task.label_column if labelled else None,
        labelled=labelled,
        allow_outside=task.allow_outside_files,
    )


def choose_classes(task: Task, train: Source, test: Source) -> tuple[str, ...]:
    """The task's classes in order; raises where one is missing or there are fewer than two."""
    if train.modality != test.modality:
        raise DataError(
            f"task.test: {test.name} holds {test.modality}s, task.train {train.modality}s"
        )
    present = set(train.labels or ())
    classes = tuple(task.classes) or tuple(name for name in train.label_names if name in present)
    if len(set(classes)) != len(classes):
        twice = Counter(classes).most_common(1)[0][0]
        raise DataError(f"task.classes: {twice!r} is named twice; name each class once")
    for source in (train, test):
        missing = sorted(set(classes) - set(source.labels or ()))
        if missing:
            known = ", ".join(source.label_names[:8]) + (
                " ..." if len(source.label_names) > 8 else ""
            )
            raise DataError(
                f"task.classes: {missing[0]!r} has no example in {source.field} ({source.name}); "
                f"its classes: {known}"
            )
    if len(classes) < 2:
        raise DataError(
            f"task.classes: {list(classes)} is one class only; a task needs two or more"
        )
    return classes


def draw_shots(task: Task, train: Source, classes: Sequence[str]) -> tuple[Split, list[int]]:
    """`task.shots` distinct examples of each class, drawn with `task.seed`, and their rows."""
    labels = np.array(train.labels)
    rows: list[int] = []
    digests: list[str] = []
    for name in classes:
        # a stream a class: adding a class leaves the other classes' shots as they are
        random = np.random.default_rng([task.seed, *name.encode()])
        drawn: dict[str, int] = {}
        for row in random.permutation(np.flatnonzero(labels == name)).tolist():
            drawn.setdefault(train.digest(row), row)
            if len(drawn) == task.shots:
                break
        if len(drawn) < task.shots:
            raise DataError(
                f"task.shots: {task.shots} asked, but class {name!r} has {len(drawn)} distinct "
                f"examples in {train.name}; lower task.shots or add examples"
            )
        rows += drawn.values()
        digests += drawn
    every = [index for index in range(len(classes)) for _ in range(task.shots)]
    return Split(tuple(train.raw(row) for row in rows), tuple(every), tuple(digests)), rows


def labelled_split(
    source: Source, classes: Sequence[str], progress: Callback
) -> tuple[Split, list[int]]:
    """Every row of the task's classes, in the source's order, and their numbers there."""
    index = {name: at for at, name in enumerate(classes)}
    rows = [row for row, name in enumerate(source.labels or ()) if name in index]
    labels = tuple(index[source.labels[row]] for row in rows) if source.labels else ()
    digests = tuple(_digests(source, rows, progress))
    return Split(tuple(source.raw(row) for row in rows), labels, digests), rows


def unlabelled_pool(
    task: Task, train: Source, classes: Sequence[str], used: Iterable[str], progress: Callback
) -> Split | None:
    """`task.unlabelled` without labels, without the support set and without the test set."""
    if task.unlabelled is None:
        return None
    if task.unlabelled == REST:
        wanted = set(classes)
        rows = [row for row, name in enumerate(train.labels or ()) if name in wanted]
        return _pool(train, rows, used, progress)
    source = read_task_source(task, "unlabelled", labelled=False)
    _same_modality(source, train)
    return _pool(source, list(range(len(source))), used, progress)


def generic_pool(
    task: Task,
    train: Source,
    classes: Sequence[str],
    count: int,
    used: Iterable[str],
    progress: Callback,
) -> Split:
    """`count` inputs that are not of the task: `task.generic`, or train's other classes."""
    if task.generic is not None:
        source = read_task_source(task, "generic", labelled=False)
        _same_modality(source, train)
        rows = list(range(len(source)))
    else:
        source, wanted = train, set(classes)
        rows = [row for row, name in enumerate(train.labels or ()) if name not in wanted]
    if not rows:
        raise DataError(
            f"prune.calibration: generic needs inputs of other classes, and {train.name} has none; "
            "set task.generic"
        )
    chosen = np.random.default_rng([task.seed, 1]).permutation(rows)[:count].tolist()
    pool = _pool(source, sorted(chosen), used, progress)
    if not len(pool):
        raise DataError(
            f"task.generic: {source.name}: all of it is in the support or the test set; name other "
            "inputs"
        )
    return pool


def _same_modality(source: Source, train: Source) -> None:
    if source.modality != train.modality:
        raise DataError(
            f"{source.field}: {source.name} holds {source.modality}s, task.train {train.modality}s"
        )


def _pool(source: Source, rows: Sequence[int], used: Iterable[str], progress: Callback) -> Split:
    taken = set(used)
    fresh: dict[str, int] = {}
    for row, digest in zip(rows, _digests(source, rows, progress), strict=True):
        if digest not in taken:
            fresh.setdefault(digest, row)
    inputs = tuple(source.raw(row) for row in fresh.values())
    return Split(inputs, (-1,) * len(fresh), tuple(fresh))


def _digests(source: Source, rows: Sequence[int], progress: Callback) -> Iterable[str]:
    for at, row in enumerate(rows):
        progress(at, len(rows), source.field)
        yield source.digest(row)
