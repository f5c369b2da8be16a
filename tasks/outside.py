"""Inputs of no class of the task: of the test set's other classes, or of another domain."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.data import read_task_source
from tasks.errors import DataError
from tasks.sources import DIGITS, Source, read_source
from tasks.splits import load_split

Raws = list[bytes | str]
_FEWEST = 32  # of the installed sentences that are as long as the task's
_STREAM = 4  # of the draws from task.seed


def outside_source(recipe: Recipe, modality: str) -> Source | None:
    """`limits.outside` read without labels, None where it is not set.

    Raises:
        DataError: it cannot be read or is of another modality; call this before compute is spent.
    """
    name, task = recipe.limits.outside, recipe.task
    if name is None or not recipe.limits.samples:
        return None
    source = read_source(
        "limits.outside",
        name,
        split="test",
        image_column=task.image_column,
        text_column=task.text_column,
        labelled=False,
        allow_outside=task.allow_outside_files,
    )
    if source.modality != modality:
        raise DataError(
            f"limits.outside: {name} holds {source.modality}s, task.train {modality}s; name "
            f"{modality}s or leave it out"
        )
    return source


def named_inputs(recipe: Recipe, data: Artifact, count: int) -> tuple[Source, Raws] | None:
    """At most `count` inputs of `limits.outside` and their source, None where it is not set.

    Args:
        data: the prepared task.

    Raises:
        DataError: it cannot be read, is of another modality or has fewer than two inputs, where
            two are asked for.
    """
    source = outside_source(recipe, data.metrics["modality"])
    if source is None:
        return None
    random = np.random.default_rng([recipe.task.seed, _STREAM])
    drawn = _drawn(source, range(len(source)), data, random, count)
    if len(drawn) < min(2, count):
        raise DataError(
            f"limits.outside: {source.name} has {len(drawn)} readable examples that are not "
            "the task's own; two are needed, or leave it out"
        )
    return source, drawn


def outside_inputs(recipe: Recipe, data: Artifact) -> tuple[str, Raws]:
    """At most `limits.samples` inputs outside the task, drawn with `task.seed`, and their source.

    `limits.outside` if it is set; else rows of `task.test`'s source whose class is none of the
    task's; else texts or images of another domain that installed packages carry. What the task
    itself shows (support and test set) and what cannot be read is left out.

    Args:
        data: the prepared task.

    Returns:
        (where they are from, for a person; encoded images or texts, none where nothing is there).
    """
    modality, count = data.metrics["modality"], recipe.limits.samples
    random = np.random.default_rng([recipe.task.seed, _STREAM])
    named = named_inputs(recipe, data, count)
    if named is not None:
        return _told(named[0]), named[1]
    test, known = read_task_source(recipe.task, "test"), set(data.metrics["classes"])
    others = [row for row, name in enumerate(test.labels or ()) if name not in known]
    drawn = _drawn(test, others, data, random, count)
    if len(drawn) > 1:
        classes = len({(test.labels or ())[row] for row in others})
        many = "other class" if classes == 1 else f"{classes} other classes"
        return f"the {many} of {_told(test)}", drawn
    if modality == "text":
        own = [str(text) for text in load_split(data.folder / "test.parquet").inputs]
        return "sentences of the Python manual", _sentences(own, random, count)
    tiles: Raws = list(_tiles(random, count if _is_digits(recipe, known) else -(-count // 2)))
    if len(tiles) == count:
        return "pieces of scikit-learn's sample photographs", tiles
    digits = read_source("limits.outside", DIGITS, split="test")
    return (
        "pieces of scikit-learn's sample photographs, and its handwritten digits",
        [*tiles, *_drawn(digits, range(len(digits)), data, random, count - len(tiles))],
    )


def _told(source: Source) -> str:
    """A source's name for a card: of a path, its end; where it lay is nobody's concern."""
    return Path(source.name).name if Path(source.name).exists() else source.name


def _drawn(
    source: Source, rows: range | list[int], data: Artifact, random: np.random.Generator, count: int
) -> Raws:
    """At most `count` distinct readable examples that the task does not show."""
    taken = set()
    for name in ("support", "test"):
        taken |= set(load_split(data.folder / f"{name}.parquet").digests)
    found: Raws = []
    for row in random.permutation(rows).tolist():
        if len(found) == count:
            break
        try:
            digest = source.digest(row)
        except DataError:  # an empty or damaged row of a class that nobody asked for
            continue
        if digest not in taken:
            taken.add(digest)
            found.append(source.raw(row))
    return found


def _sentences(own: list[str], random: np.random.Generator, count: int) -> Raws:
    """Sentences of Python's language reference, of the lengths that the task's texts have.

    Sentences of another length would be told apart by their length alone.
    """
    try:  # some distributions leave Python's manual out
        from pydoc_data.topics import topics
    except ImportError:
        return []
    every = dict.fromkeys(
        sentence
        for topic in sorted(topics)
        for sentence in _plain_sentences(topics[topic])
        if 3 <= len(sentence.split()) <= 60
    )
    low, high = np.quantile([len(text.split()) for text in own], (0.05, 0.95))
    alike = [text for text in every if low <= len(text.split()) <= high]
    usable = alike if len(alike) >= min(_FEWEST, count) else list(every)
    return [usable[row] for row in random.permutation(len(usable))[:count].tolist()]


def _plain_sentences(text: str) -> Iterator[str]:
    """The sentences of a topic: paragraphs at the margin, without code, headings and marks."""
    for paragraph in re.split(r"\n\s*\n", text):
        if not re.match(r"(?!Changed in|New in)[A-Z]", paragraph) or re.search(
            r"\n\s|[*=\-]{4}|::", paragraph
        ):
            continue
        joined = re.sub(r'["`*]|\(see section[^)]*\)', "", " ".join(paragraph.split()))
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined):
            if sentence.endswith((".", "!", "?")):
                yield sentence


def _is_digits(recipe: Recipe, classes: set[str]) -> bool:
    """Whether the task itself is about digits."""
    return DIGITS in (recipe.task.train, recipe.task.test) or all(map(str.isdigit, classes))


def _tiles(random: np.random.Generator, count: int) -> Iterator[bytes]:
    """Square pieces of scikit-learn's two photographs, of a sixth to a half of their height."""
    # scikit-learn takes a second to import, and only this draw needs it
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for at in range(count):
        image = photographs[at % len(photographs)]
        side = int(random.integers(image.height // 6, image.height // 2 + 1))
        left = int(random.integers(image.width - side + 1))
        top = int(random.integers(image.height - side + 1))
        stream = io.BytesIO()
        image.crop((left, top, left + side, top + side)).save(stream, "PNG")
        yield stream.getvalue()
