"""Labelled examples, sorted by what a champion's version knows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exports.reference import Reference, shortened
from tasks.champions import Served, digests_now, sources_of
from tasks.errors import DataError
from tasks.sources import Source, read_source


@dataclass(frozen=True)
class Examples:
    """Labelled examples by what the champion's version knows of them.

    Attributes:
        fresh: rows that it was neither learnt from nor judged on.
        changed: rows of its test set whose label is another now.
        same: rows of its test set as they were.
        unknown: classes that it does not have, with the number of their examples.
        names: of the rows in `fresh`, `changed` and `same`.
    """

    source: Source
    digests: Mapping[int, bytes]
    fresh: Sequence[int]
    changed: Sequence[int]
    same: Sequence[int]
    unknown: Mapping[str, int]

    def name(self, row: int) -> str:
        """The label of a row."""
        assert self.source.labels is not None
        return self.source.labels[row]

    def raws(self, rows: Sequence[int]) -> list[bytes | str]:
        """The inputs of rows."""
        return [self.source.raw(row) for row in rows]


def sort_examples(served: Served, reference: Reference, labelled: str | None) -> Examples:
    """Read labelled examples and sort them by what the champion knows of them.

    Classes that the recipe leaves out on purpose are not of the task; where it names none, every
    class of the source is.
    """
    task = served.recipe.task
    name = labelled or task.test
    source = read_source(
        "task.test" if labelled is None else "--labelled",
        name,
        split="test",
        image_column=task.image_column,
        text_column=task.text_column,
        label_column=task.label_column,
        allow_outside=task.allow_outside_files,
    )
    _require_modality(source, served)
    assert source.labels is not None
    wanted = set(task.classes)
    unknown = Counter(
        name for name in source.labels if name not in reference.classes and not wanted
    )
    digests: dict[int, bytes] = {}
    seen: set[bytes] = set()
    fresh: list[int] = []
    changed: list[int] = []
    same: list[int] = []
    for row, label in enumerate(source.labels):
        if label not in reference.classes:
            continue
        digest = shortened(source.digest(row))
        if digest in seen or digest in reference.learnt:
            continue  # what was learnt from tells nothing; a copy counts once
        seen.add(digest)
        digests[row] = digest
        known = reference.known.get(digest)
        if known is None:
            fresh.append(row)
        elif reference.judged[known]:
            before = reference.classes[reference.labels[known]]
            (same if before == label else changed).append(row)
    return Examples(source, digests, fresh, changed, same, dict(unknown))


def _require_modality(source: Source, served: Served) -> None:
    if source.modality != served.specialist.modality:
        raise DataError(
            f"{source.field}: {source.name} holds {source.modality}s, {served.version.told} takes "
            f"{served.specialist.modality}s"
        )


def is_unchanged(served: Served) -> bool:
    """Whether the recipe's test set is still the one that the champion was judged on.

    By its digest, so that a night on which nothing has changed reads no example.
    """
    sources = {key: x for key, x in sources_of(served.version).items() if key == "test"}
    return bool(sources) and digests_now(sources)["test"] == sources["test"]["digest"]
