"""SHA-256 of content: of files, of folders, of what a recipe names as a source."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.fences import there
from tasks.hub import commit_of_data

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MANIFEST = "artifact.json"
DIGITS = "sklearn:digits"

# a row of a table: by column, a text, or the 'path' and 'bytes' of an image
_Row = dict[str, Any]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content (hex)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path, suffixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 over the sorted relative names and contents of a folder, its manifest left out.

    Args:
        suffixes: ends, in small letters, of the names that count; left out: all of them.
    """
    total = hashlib.sha256()
    for path in sorted(_files(folder)):
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


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, linked folders included; a loop of links is walked once."""
    seen: set[str] = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(here, name)).is_file())


def _images_named_in(table: Path) -> Iterator[Path]:
    """The files that the rows of a table name, in the columns that hold images.

    As in `tasks.sources`: a column of texts holds images where its first one names an image, a
    column of structures where its rows have a path and no bytes.
    """
    try:
        rows = iter(_rows(table))
        first = next(rows, {})
        columns = [key for key, value in first.items() if _holds_images(value)]
        if columns:
            for row in itertools.chain([first], rows):
                for key in columns:
                    value = row.get(key)
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


def _holds_images(value: Any) -> bool:
    if isinstance(value, dict):
        return "path" in value
    return isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)


def _rows(table: Path) -> Iterable[_Row]:
    """The rows of a table, as far as texts and structures go."""
    if table.suffix == ".parquet":
        return _parquet_rows(table)
    if table.suffix in (".csv", ".tsv"):
        return _csv_rows(table)
    return _json_rows(table) if table.suffix in (".json", ".jsonl") else ()


def _csv_rows(table: Path) -> Iterator[_Row]:
    mark = "\t" if table.suffix == ".tsv" else ","
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        yield from csv.DictReader(stream, delimiter=mark)


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


def _parquet_rows(table: Path) -> Iterator[_Row]:
    # pyarrow takes half a second to import, and only these tables need it
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(table)
    wanted = [
        field.name
        for field in opened.schema_arrow
        if pa.types.is_string(field.type)
        or pa.types.is_large_string(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("path") >= 0)
    ]
    if wanted:
        for batch in opened.iter_batches(batch_size=128, columns=wanted):
            yield from batch.to_pylist()
