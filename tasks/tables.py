"""Rows in and rows out, a chunk at a time: CSV, TSV, JSONL and Parquet in; CSV and JSONL out."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from exports.columns import shows_image
from tasks.errors import DataError, first_line
from tasks.fences import require_folded, there

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_WRITTEN = (".csv", ".jsonl")
_MARKS = {".csv": ",", ".tsv": "\t"}
# csv's own limit (128 kB) is less than an image as base64 text
_LONGEST_CELL = 2**31 - 1
_LONGEST_FILE_NAME = 200  # bytes; what file systems take, less a temporary name's ending
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A file of rows that is read as often as it is asked for, never whole."""

    path: Path

    def rows(self) -> Iterator[Row]:
        """Every row, in order; raises `DataError` where the file is not what its name says."""
        read = {".jsonl": self._jsonl, ".parquet": self._parquet}.get(
            self.path.suffix.lower(), self._csv
        )
        try:
            yield from read()
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: not UTF-8; save it as UTF-8") from None
        except (OSError, csv.Error) as error:
            raise DataError(f"{self.path}: not readable ({str(error).splitlines()[0]})") from None

    def count(self) -> int:
        """How many rows there are; reads the file once where it does not tell."""
        if self.path.suffix.lower() == ".parquet":
            return self._opened().metadata.num_rows
        return sum(1 for _ in self.rows())

    def _csv(self) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_CELL)
        with self.path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=_MARKS[self.path.suffix.lower()])
            names = reader.fieldnames
            if not names:
                raise DataError(f"{self.path}: is empty; its first line must name the columns")
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    raise DataError(
                        f"{self.path}, row {number}: not the {len(names)} columns of the first line"
                    )
                yield dict(row)

    def _jsonl(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(line for line in stream if line.strip()):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{self.path}, row {number}: not JSON ({error})") from None
                except RecursionError:
                    raise DataError(f"{self.path}, row {number}: nested too deep") from None
                if not isinstance(row, dict):
                    raise DataError(f"{self.path}, row {number}: not an object of named values")
                yield row

    def _parquet(self) -> Iterator[Row]:
        import pyarrow as pa

        try:
            self._require_sane()
            file = self._opened()
            # few at once: a dictionary can make a megabyte of every row
            for batch in file.iter_batches(batch_size=128, use_threads=False):
                yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{self.path}: damaged Parquet ({first_line(error)})") from None

    def _require_sane(self) -> None:
        """Refuse a small file that unfolds to what nobody could mean, before a row is used."""
        total, size = 0, self.path.stat().st_size
        for batch in self._opened().iter_batches(batch_size=128, use_threads=False):
            total += sum(_unfolded(column) for column in batch.columns)
            require_folded(total, size, str(self.path))

    def _opened(self) -> Any:
        # pyarrow takes half a second to import, and only this kind of file needs it
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: not Parquet ({first_line(error)})") from None


def _unfolded(column: Any) -> int:
    """Bytes of a column of pyarrow, those of a dictionary as often as they are pointed at."""
    folded = hasattr(column, "dictionary_decode")
    return int((column.dictionary_decode() if folded else column).nbytes)


class Writer(Protocol):
    """Takes rows of the same columns, in order."""

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows."""
        ...


class _Lines:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


class _Commas:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.names: list[str] | None = None

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        writer = csv.writer(self.stream)
        for row in rows:
            if self.names is None:
                self.names = list(row)
                writer.writerow(self.names)
            if list(row) != self.names and set(row) != set(self.names):
                raise DataError(
                    f"--out: columns {', '.join(row)} after {', '.join(self.names)}; a .csv has "
                    "one set of columns: write a .jsonl, or give the tables one by one"
                )
            writer.writerow([_cell(row[name]) for name in self.names])


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A writer whose file is there, whole, when the block ends well, and not at all otherwise.

    Raises:
        DataError: neither .csv nor .jsonl.
    """
    kind = require_writable_table(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        # the name of an input's file may be any bytes
        with os.fdopen(
            handle, "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as stream:
            yield _Lines(stream) if kind == ".jsonl" else _Commas(stream)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_writable_table(path: Path) -> str:
    """The kind of file that `--out` names; raises `DataError` where it is none that we write."""
    kind = path.suffix.lower()
    if kind not in _WRITTEN:
        raise DataError(f"--out: {path} is neither .csv nor .jsonl; name such a file")
    if len(os.fsencode(path.name)) > _LONGEST_FILE_NAME or not path.name.isprintable():
        raise DataError(f"--out: {path.name[:40]!r}... is no name of a file; name a shorter one")
    if there(path) and path.is_dir():
        raise DataError(f"--out: {path} is a folder; name a file in it")
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        why = "not writable" if folder.is_dir() else "not there"
        raise DataError(f"--out: {folder} is {why}; name a folder that can be written to")
    return kind


def answer_names(columns: Sequence[str]) -> tuple[str, str]:
    """Names of the two columns that are appended: a table's own `label` is never overwritten."""
    names = ("label", "probability")
    if not set(names) & set(columns):
        return names
    own = ("predicted_label", "predicted_probability")
    taken = sorted(set(own) & set(columns))
    if taken:
        raise DataError(f"column {taken[0]!r} is already there; rename it")
    return own


def plain_row(row: Mapping[str, Any]) -> Row:
    """A row without the content of images: their file's name instead, where there is one."""
    found = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and "bytes" in value and shows_image(value):
            value = value.get("path")
        found[name] = None if isinstance(value, bytes | bytearray) else value
    return found


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
