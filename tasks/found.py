"""Pairs of examples that show the same: how they are counted, listed and put into one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.config import Recipe
from tasks.errors import DataError
from tasks.splits import Split

# of the prepared task: source rows of the support and the test set, exact copies between them and
# inside the test set
ROWS = "rows.json"

_LISTED = 50
_LETTERS, _NAMED = 80, 60  # most of a text in the list, and in one line
_ORDER = ("conflict", "exact", "near", "within")  # of the list: what matters most comes first


class Pair(BaseModel):
    """Two examples, most often one of the support set, that show the same or nearly."""

    model_config = ConfigDict(frozen=True)

    first: Literal["test", "support"] = Field(
        default="support", description="Where the first one is."
    )
    support: int = Field(description="Position in the support set, or else in the whole test set.")
    split: Literal["test", "support"] = Field(description="Where the other one is.")
    other: int | None = Field(description="Position there; None where it has left the test set.")
    rows: tuple[int, int] = Field(description="Of the two in their sources, from 0.")
    labels: tuple[int, int] = Field(description="Class indices of the two.")
    how: str = Field(description="'digest', 'image', 'text' (but for spelling) or 'embedding'.")
    similarity: float = Field(description="0 to 1.")
    shown: tuple[str, str] = Field(description="The two as people see them.")

    @property
    def kind(self) -> str:
        """Where the two are, and whether they are the same."""
        if self.split == self.first:
            return "within" if self.first == "support" else "repeat"
        return "exact" if self.how == "digest" else "near"

    @property
    def conflict(self) -> bool:
        """Whether the two have different labels."""
        return self.labels[0] != self.labels[1]

    def named(self, train: str = "task.train", test: str = "task.test") -> str:
        """The two in words, for one line.

        Args:
            train, test: what the sources are called. What is kept calls them by their fields:
                a run on the same data elsewhere reuses it.
        """
        if self.how != "image" and not self.shown[0].startswith("sha256:"):
            one, other = (repr(_cut(text, _NAMED)) for text in self.shown)
            return one if one == other else f"{one} and {other}"
        first, second = (test if each == "test" else train for each in (self.first, self.split))
        return f"row {self.rows[0]} of {first} and row {self.rows[1]} of {second}"


def pair_of(
    support: Split,
    other: Split,
    at: tuple[int, int],
    rows: tuple[int, int],
    *,
    how: str = "digest",
    similarity: float = 1.0,
) -> Pair:
    """The pair at positions `at` of the support set and of `other`, which may be the same."""
    one, two = at
    return Pair(
        support=one,
        split="support" if other is support else "test",
        other=two,
        rows=rows,
        labels=(support.labels[one], other.labels[two]),
        how=how,
        similarity=similarity,
        shown=(_shown(support, one), _shown(other, two)),
    )


def repeats(split: Split, rows: Sequence[int], where: Literal["support", "test"]) -> Iterator[Pair]:
    """Exact copies inside one split: each later one with the first that shows the same.

    Args:
        rows: of the split in its source.
        where: which split it is.
    """
    seen: dict[str, int] = {}
    for at, digest in enumerate(split.digests):
        one = seen.setdefault(digest, at)
        if one != at:
            pair = pair_of(split, split, (one, at), (rows[one], rows[at]))
            yield pair.model_copy(update={"first": where, "split": where})


def same_digests(support: Split, test: Split) -> Iterator[tuple[int, int]]:
    """Positions of support and test examples that show the same."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(test.digests):
        rows[digest].append(row)
    for at, digest in enumerate(support.digests):
        yield from ((at, row) for row in rows[digest])


def _shown(split: Split, row: int) -> str:
    """A text, at most 80 characters of it; an image's digest."""
    example = split.inputs[row]
    if isinstance(example, bytes):
        return f"sha256:{split.digests[row][:12]}"
    return _cut(" ".join(example.split()), _LETTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counts(pairs: Iterable[Pair]) -> dict[str, int]:
    """Support examples that are in the test set, exactly and else nearly; support examples that
    repeat an earlier one; test rows that do; pairs under two labels.
    """
    pairs = list(pairs)
    exact = {pair.support for pair in pairs if pair.kind == "exact"}
    near = {pair.support for pair in pairs if pair.kind == "near"} - exact
    within = {pair.other for pair in pairs if pair.kind == "within"}
    return {
        "exact": len(exact),
        "near": len(near),
        "within": len(within),
        "repeats": sum(pair.kind == "repeat" for pair in pairs),
        "conflicts": sum(pair.conflict for pair in pairs),
    }


def listed(pairs: Iterable[Pair], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The report's entries, at most 50; a pair under two labels is listed as that, too.

    `support` and `other` are rows of task.train's and task.test's sources, counted from 0. Pairs
    inside the test set have no row of task.train: they are counted, not listed.
    """
    entries = [
        (kind, pair)
        for pair in pairs
        if pair.kind != "repeat"
        for kind in ([pair.kind, "conflict"] if pair.conflict else [pair.kind])
    ]
    entries.sort(key=lambda entry: (_ORDER.index(entry[0]), -entry[1].similarity, entry[1].rows))
    return [
        {
            "kind": kind,
            "how": pair.how,
            "support": pair.rows[0],
            "other": pair.rows[1],
            "split": pair.split,
            "similarity": round(pair.similarity, 4),
            "support_label": classes[pair.labels[0]],
            "other_label": classes[pair.labels[1]],
            "shown": pair.shown[0],
            "other_shown": pair.shown[1],
        }
        for kind, pair in entries[:_LISTED]
    ]


def refuse(recipe: Recipe, pairs: Sequence[Pair], support: int, classes: Sequence[str]) -> None:
    """Raise where something was found that the recipe stops for.

    Args:
        support: how many examples the support set has.
    """
    policy, task, found = recipe.leaks, recipe.task, counts(pairs)

    def named(pair: Pair) -> str:
        return pair.named(task.train, task.test)

    if found["exact"] and policy.exact == "stop":
        first = next(pair for pair in pairs if pair.kind == "exact")
        raise DataError(
            f"task.test: {found['exact']} of the support set's {support} examples are also in "
            f"{task.test} (such as {named(first)}); remove them there, or set leaks.exact: "
            "drop to leave them out, or warn"
        )
    if found["conflicts"] and policy.conflicts == "stop":
        first = next(pair for pair in pairs if pair.conflict)
        one, other = (classes[label] for label in first.labels)
        raise DataError(
            f"task.{'test' if first.split == 'test' else 'train'}: {_conflicts(found)} (such as "
            f"{named(first)}: {one!r} and {other!r}); mend the labels, or set "
            "leaks.conflicts: warn"
        )
    if found["near"] and policy.near == "stop":
        first = next(pair for pair in pairs if pair.kind == "near")
        raise DataError(
            f"task.test: {found['near']} of the support set's {support} examples are nearly the "
            f"same as examples of {task.test} (such as {named(first)}); remove them there, "
            "or set leaks.near: drop to leave them out, or warn"
        )
    if found["within"] and policy.near == "stop":
        first = next(pair for pair in pairs if pair.kind == "within")
        raise DataError(
            f"task.train: {found['within']} of the support set's {support} examples repeat another "
            f"one (such as {named(first)}); remove them there, or set leaks.near: warn"
        )


def warnings(
    recipe: Recipe, pairs: Sequence[Pair], dropped: int, support: int, classes: Sequence[str]
) -> list[str]:
    """What was found and does not stop the run, a line a kind."""
    found, lines = counts(pairs), []

    def example(kind: str) -> str:
        return next(pair for pair in pairs if pair.kind == kind).named()

    for kind, words in (("exact", "also in"), ("near", "nearly the same as examples of")):
        if found[kind]:
            line = f"{found[kind]} of the support set's {support} examples are {words} the test set"
            left = getattr(recipe.leaks, kind) != "drop"
            remedy = f"; set leaks.{kind}: drop to leave them out" if left else ""
            lines.append(f"{line} (such as {example(kind)}){remedy}")
    if dropped > found["repeats"]:
        lines.append(f"{dropped - found['repeats']} test examples are left out for it")
    if found["repeats"]:
        lines.append(
            f"{found['repeats']} test examples repeat an earlier one (such as "
            f"{example('repeat')}) and are left out: a copy counts once"
        )
    if found["within"]:
        lines.append(
            f"{found['within']} of the support set's {support} examples repeat another one "
            f"(such as {example('within')})"
        )
    if found["conflicts"]:
        first = next(pair for pair in pairs if pair.conflict)
        one, other = (classes[label] for label in first.labels)
        lines.append(f"{_conflicts(found)} (such as {first.named()}: {one!r} and {other!r})")
    return lines


def require_every_class(
    field: str, labels: Sequence[int], kept: Iterable[int], classes: Sequence[str]
) -> None:
    """Raise where leaving test rows out leaves a class without an example.

    Args:
        field: of the recipe's section `leaks`.
        labels: of the whole test set.
        kept: the rows that stay.
    """
    left = {labels[row] for row in kept}
    empty = [name for index, name in enumerate(classes) if index not in left]
    if empty:
        raise DataError(
            f"leaks.{field}: drop leaves no test example of class {empty[0]!r}; add test examples "
            f"that are not in the support set, or set leaks.{field}: warn"
        )


def _conflicts(found: dict[str, int]) -> str:
    many = found["conflicts"] != 1
    return f"{found['conflicts']} {'examples have' if many else 'example has'} two labels"
