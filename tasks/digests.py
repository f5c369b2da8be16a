"""SHA-256 of content: of files, of folders, of what a recipe names as a source."""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.fences import there
from tasks.hub import commit_of_data

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MANIFEST = "artifact.json"
DIGITS = "sklearn:digits"

# times of files are told in steps, of two seconds on some file systems: within one step a file may
# change again unseen
_SETTLED_NS = 3_000_000_000

_LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is met by any long text beside an image

# a row of a table: by column, a text, or the 'path' and 'bytes' of an image
_Row = dict[str, Any]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content (hex).

    Not read again while the file is as it was: a stage looks at what it read a second time before
    it publishes. A time of change, unlike one of writing, cannot be set back.
    """
    state = path.stat()
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _SETTLED_NS:
        return _digest_of(path)
    return _known_digest(
        path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    )


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.lru_cache(maxsize=1 << 16)
def _known_digest(path: Path, *_: int) -> str:
    return _digest_of(path)


def folder_digest(folder: Path, suffixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 over the sorted relative names and contents of a folder, its manifest left out.

    Args:
        suffixes: ends, in small letters, of the names that count; left out: all of them.
    """
    total = hashlib.sha256()
    for path in sorted(files_below(folder)):
        if not path.is_file():  # a link to nothing
            continue
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and name.lower().endswith(suffixes):
            line = f"{name}\0{file_digest(path)}\n"
            total.update(line.encode(errors="surrogateescape"))  # a name may be any bytes
    return total.hexdigest()


def source_digest(name: str) -> str:
    """A digest of what a source of a recipe holds, wherever it lies.

    Of an image folder its images count, by class and name; of a table its bytes and those of the
    image files that its rows name; of a hub's data set the commit that its name stands for now.
    """
    path = Path(name)
    if there(path) and path.is_dir():
        return folder_digest(path, IMAGE_SUFFIXES)
    if not _is_file(path):
        return f"name:{name}:{commit_of_data(name)}"
    total = hashlib.sha256(f"{path.suffix} {file_digest(path)}".encode())
    for image in _images_named_in(path):
        if _is_file(image):
            total.update(file_digest(image).encode())
    return total.hexdigest()


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what has another digest now.

    A hub that answers at one time only tells of no change.
    """

    def same(one: str, other: str) -> bool:
        silent = any(each.endswith(":None") for each in (one, other))
        return one == other or (silent and all(x.startswith("name:") for x in (one, other)))

    return [name for name, digest in before.items() if not same(digest, now.get(name, ""))]


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, linked folders included; a loop of links is walked once.

    Links to nothing are among them: whoever reads them says so.
    """
    seen: set[str] = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort()  # of two names for one folder the same one is walked everywhere
        yield from (Path(here, name) for name in names)


def _images_named_in(table: Path) -> Iterator[Path]:
    """The files that the rows of a table name, in the columns that hold images.

    As in `tasks.sources`: a column of texts holds images where its first one names an image, a
    column of structures, whatever its first one is, where a row has a path and no bytes.
    """
    try:
        for value in _images(table):
            if isinstance(value, dict):
                value = None if value.get("bytes") else value.get("path")
            if isinstance(value, str) and value and "\0" not in value:
                yield table.parent / value
    except (ValueError, csv.Error, OSError, RecursionError):
        return  # not a table after all: whoever reads it says what is wrong


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a file's name may be
        return False


def _images(table: Path) -> Iterator[Any]:
    """What the rows of a table have in columns that hold images: texts, structures or nothing."""
    if table.suffix == ".parquet":
        yield from _parquet_images(table)
    elif table.suffix in (".csv", ".tsv"):
        rows = _csv_rows(table)
        first = next(rows, {})
        named = _names_of_images(first)
        if named:
            yield from (row.get(key) for row in itertools.chain([first], rows) for key in named)
    elif table.suffix in (".json", ".jsonl"):
        yield from _json_images(table)


def _names_of_images(first: _Row) -> list[str]:
    """The columns of texts that hold images, by the first row."""
    return [
        key
        for key, value in first.items()
        if isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)
    ]


def _csv_rows(table: Path) -> Iterator[_Row]:
    mark = "\t" if table.suffix == ".tsv" else ","
    csv.field_size_limit(_LONGEST_CELL)
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        yield from csv.DictReader(stream, delimiter=mark)


def _json_images(table: Path) -> Iterator[Any]:
    named: list[str] | None = None
    for row in _json_rows(table):
        named = _names_of_images(row) if named is None else named
        yield from (row.get(key) for key in named)
        yield from (value for value in row.values() if isinstance(value, dict))


def _json_rows(table: Path) -> Iterator[_Row]:
    """Rows of JSON: one object a line, or one list of objects."""
    with table.open(encoding="utf-8", errors="replace") as stream:
        start = stream.read(64).lstrip("\ufeff \t\r\n")
        stream.seek(0)
        if start.startswith("["):
            yield from (row for row in json.load(stream) if isinstance(row, dict))
            return
        for line in stream:
            row = json.loads(line) if line.strip() else None
            if isinstance(row, dict):
                yield row


def _parquet_images(table: Path) -> Iterator[Any]:
    # pyarrow takes half a second to import, and only these tables need it
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(table)
    schema = opened.schema_arrow
    texts = [
        x.name for x in schema if pa.types.is_string(x.type) or pa.types.is_large_string(x.type)
    ]
    wanted = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("path") >= 0
    ]
    first = next(opened.iter_batches(batch_size=1, columns=texts), None) if texts else None
    if first is not None and first.num_rows:
        wanted += _names_of_images(first.to_pylist()[0])
    if wanted:
        for batch in opened.iter_batches(batch_size=128, columns=wanted):
            for column in batch.columns:
                yield from column.to_pylist()
