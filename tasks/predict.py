"""Use a finished specialist, of a folder or of the registry: for a few inputs, or for millions.

What is read, answered and written is a chunk at a time: memory does not grow with the input.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from exports.columns import IMAGE_SUFFIXES, input_column, raw_of
from exports.hosts import HostWarning
from exports.preprocess import InputError
from exports.specialist import Specialist
from tasks.errors import DataError, RecipeError
from tasks.fences import there
from tasks.progress import watching
from tasks.tables import (
    TABLES,
    Row,
    Table,
    answer_names,
    plain_row,
    require_writable_table,
    writing,
)

# rows that are in memory at once: enough for texts of equal length to find each other
_CHUNK = 1024
Answer = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One input: what the specialist takes, what is printed of it, and its row for `--out`."""

    raw: Any
    shown: str
    row: Row
    names: tuple[str, str] = ("label", "probability")  # of the columns that the answer goes to


@dataclass(frozen=True)
class Batch:
    """How `winnow predict` reads, runs and writes.

    Attributes:
        column: of tables; None: inferred.
        out: .csv or .jsonl to write; None: answers are only returned.
        provider: 'cpu' or 'cuda'.
    """

    column: str | None = None
    out: Path | None = None
    batch_size: int = 32
    provider: str = "cpu"
    threads: int = 1


def predict(model: str, inputs: Sequence[str]) -> list[Answer]:
    """Label and probability of each input: texts, or paths of images."""
    with opened(model) as specialist:
        return specialist.predict(list(inputs))


def predict_all(
    model: str, inputs: Sequence[str], how: Batch, tell: Callable[[Answer, str], None]
) -> int:
    """`winnow predict`: answer texts, images, folders of images and tables, in order.

    Args:
        tell: called with each answer and what its input is called, where nothing is written.

    Returns:
        The number of inputs.

    Raises:
        InputError, DataError: a source or a row that cannot be read; nothing is written then.
    """
    if how.out is not None:
        require_writable_table(how.out)
    if how.batch_size < 1:
        raise RecipeError(f"--batch-size: {how.batch_size}; at least 1 is needed")
    done, reporter = 0, watching()
    with opened(model, threads=how.threads, provider=how.provider) as specialist:
        written = how.out is not None
        total = sum(_count(specialist, source) for source in inputs) if written else 0
        with (
            writing(how.out) if how.out is not None else nullcontext() as writer,
            reporter.stage("predict") if written else nullcontext() as progress,
        ):
            for table, sources in groupby(inputs, _table):
                items = chain.from_iterable(_items(specialist, s, how.column) for s in sources)
                start = 0
                while chunk := list(islice(items, _CHUNK)):
                    answers = _answers(specialist, chunk, how.batch_size, start, table)
                    start, done = start + len(chunk), done + len(chunk)
                    if writer is not None:
                        writer.write(map(_joined, chunk, answers))
                    else:
                        for item, answer in zip(chunk, answers, strict=True):
                            tell(answer, item.shown)
                    if progress is not None:
                        progress(done, total, f"{done:,} of {total:,}")
    return done


@contextmanager
def opened(model: str, *, threads: int = 1, provider: str = "cpu") -> Iterator[Specialist]:
    """The specialist of a run's folder, or of a registered model that is fetched for the block.

    What is to be expected of another host than the verified one is said in a line to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        folder = Path(model)
        if not there(folder) or not folder.is_dir():
            if not model.startswith(("models:/", "runs:/")):
                raise RecipeError(
                    f"MODEL: {model} is neither a run's folder nor a registered model; "
                    "give one, such as runs/demo or models:/NAME@champion"
                )
            # MLflow takes two seconds to import, and a folder needs none of it
            from tasks.registry import fetch_model

            folder = fetch_model(model, Path(scratch))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", HostWarning)
            specialist = Specialist.load(folder, threads, provider)
        for warning in caught:
            if issubclass(warning.category, HostWarning):
                watching().say(f"! {warning.message}", "yellow")
        yield specialist


def _items(specialist: Specialist, source: str, column: str | None) -> Iterator[Item]:
    """The inputs behind one argument, one at a time."""
    table = _table(source)
    if table is not None:
        yield from _table_items(specialist, table, column)
    elif specialist.modality == "image":
        for path in _image_paths(source):
            yield Item(Path(path), path, {"input": path})
    else:
        yield Item(source, source, {"input": source})


def _table_items(specialist: Specialist, table: Table, column: str | None) -> Iterator[Item]:
    name, names = None, ("", "")
    for number, row in enumerate(table.rows()):
        if name is None:
            name = input_column(row, specialist.modality, column, str(table.path))
            names = answer_names(list(row))
        if name not in row:
            raise DataError(f"{table.path}, row {number}: no {name!r}")
        raw = raw_of(row[name])
        if isinstance(raw, str) and specialist.modality == "image" and _is_file_name(raw):
            raw = table.path.parent / raw  # an absolute name stays what it is
        shown = row[name] if isinstance(row[name], str) else f"{table.path}, row {number}"
        yield Item(raw, shown, plain_row(row), names)


def _image_paths(source: str) -> list[str]:
    folder = Path(source)
    if not there(folder) or not folder.is_dir():
        return [source]
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{source}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return [str(path) for path in found]


def _table(source: str) -> Table | None:
    """The table that an argument names, None where it is an input itself."""
    path = Path(source)
    if path.suffix.lower() not in TABLES or len(source) > 4096:
        return None
    if not there(path) or not path.is_file():
        # a text may end in .csv; a lone word that does is a file name
        if " " not in source.strip():
            raise DataError(f"{source}: no such file; give a table that exists")
        return None
    return Table(path)


def _is_file_name(raw: str) -> bool:
    return not raw.startswith("data:") and raw.lower().endswith(IMAGE_SUFFIXES)


def _count(specialist: Specialist, source: str) -> int:
    table = _table(source)
    if table is not None:
        return table.count()
    return len(_image_paths(source)) if specialist.modality == "image" else 1


def _answers(
    specialist: Specialist,
    chunk: Sequence[Item],
    batch_size: int,
    start: int,
    table: Table | None,
) -> list[Answer]:
    try:
        return specialist.predict([item.raw for item in chunk], batch_size, start)
    except InputError as error:
        raise InputError(f"{table.path}, {error}" if table else str(error)) from None


def _joined(item: Item, answer: Answer) -> Row:
    """The input's row with the answer in its last two columns."""
    return {**item.row, **dict(zip(item.names, answer.values(), strict=True))}
