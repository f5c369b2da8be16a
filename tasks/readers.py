"""Reading files of examples into `datasets` tables: whole, bounded in memory, nothing unpacked.

Every file is looked at before a library reads it: a table that is an archive, holds NUL bytes, has
a column twice, or unfolds to more than fits in memory is refused by name.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.utils.extract import Extractor

from tasks.digests import IMAGE_SUFFIXES, files_below
from tasks.errors import DataError, first_line
from tasks.fences import MAX_COLUMNS, require_folded, require_inside, require_room

TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
_CHUNK = 1 << 20
_BATCH_ROWS = 128  # decoded at once: a dictionary can make a megabyte of every row
_IN_MEMORY = 4  # bytes in memory a byte of CSV or JSON lines, about
_NESTED_IN_MEMORY = 12  # of one JSON array, which is parsed whole
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def read_file(path: Path, where: str, scratch: str) -> Dataset:
    """A table from a .parquet, .csv, .tsv, .json or .jsonl file, all of it in memory.

    Args:
        where: field and source, for errors.
        scratch: a folder for what `datasets` writes on the way.

    Raises:
        DataError: another kind of file, an archive, or more than fits; or any error of the
            libraries that read.
    """
    kind = path.suffix
    if kind not in TABLES:
        raise DataError(f"{where}: a {kind or 'nameless'} file; give {', '.join(TABLES)}")
    packed = Extractor.infer_extractor_format(path)
    if packed is not None:  # `datasets` would unpack it, whatever its size
        raise DataError(f"{where}: holds a {packed} archive; unpack it first")
    if kind == ".parquet":
        return _parquet(path, where)
    memory: dict[str, Any] = {"cache_dir": scratch, "keep_in_memory": True}
    if kind in (".csv", ".tsv"):
        mark = "\t" if kind == ".tsv" else ","
        _look_at_csv(path, mark, where)
        # a class may well be called 'None' or 'NA'
        return Dataset.from_csv(str(path), sep=mark, keep_default_na=False, **memory)
    _look_at_json(path, where)
    return Dataset.from_json(str(path), **memory)


def read_folder(path: Path, where: str, *, allow_outside: bool) -> Dataset:
    """An image folder of one sub-folder a class: columns `image` and, so arranged, `label`."""
    # as its digest sees it: Path.rglob would leave a linked class out
    files = sorted(p for p in files_below(path) if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"{where}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder; "
            "give one sub-folder a class, or a .parquet, .csv or .jsonl file"
        )
    if not allow_outside:
        require_inside(path, files, where)
    # Listed by hand, because the builder reads folder names such as 'test' as splits.
    columns: dict[str, list[str]] = {"image": [str(p.absolute()) for p in files]}
    if all(p.parent != path for p in files):
        columns["label"] = [p.relative_to(path).parts[0] for p in files]
    for name in columns["image"]:
        if not name.isascii():
            _require_unicode(name, where)
    return Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


def read_hub(name: str, split: str, where: str) -> Dataset:
    """A hub data set NAME[@CONFIG][:SPLIT]; `split` where the name has none."""
    hub, _, chosen = name.partition(":")
    hub, _, config = hub.partition("@")
    if not _HUB_NAME.fullmatch(hub):
        raise DataError(f"{where}: neither a file here nor the name of a hub data set")
    if hub.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{hub}"):
        raise DataError(f"{where}: {hub} is a file format of datasets, no data set; name a file")
    return datasets.load_dataset(hub, config or None, split=chosen or split)


def _require_unicode(name: str, where: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: file name {name!r} is not UTF-8; rename it") from None


def _require_columns(names: Sequence[str], where: str) -> None:
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{where}: {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: column {twice!r} is there twice; rename one")


def _parquet(path: Path, where: str) -> Dataset:
    """Read batch by batch: the sizes that a file states need not be those that it unfolds to."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        facts = file.metadata
        _require_columns(file.schema_arrow.names, where)
        groups = (facts.row_group(index) for index in range(facts.num_row_groups))
        require_room(sum(group.total_byte_size for group in groups), where)
        batches, total = [], 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            total += batch.nbytes
            require_folded(total, path.stat().st_size, where)
            require_room(total, where)
            batches.append(batch)
        table = pa.Table.from_batches(batches, file.schema_arrow)
    return Dataset(datasets.table.InMemoryTable(table))


def _look_at_csv(path: Path, mark: str, where: str) -> None:
    require_room(_IN_MEMORY * path.stat().st_size, where)
    with path.open("rb") as stream:
        first = stream.readline(_CHUNK)
        chunk = first
        while chunk:
            if b"\0" in chunk:
                raise DataError(
                    f"{where}: holds NUL bytes, so it is no UTF-8 text; save it as UTF-8"
                )
            chunk = stream.read(_CHUNK)
    try:
        names = next(csv.reader([first.decode("utf-8-sig")], delimiter=mark), [])
    except (UnicodeDecodeError, csv.Error):
        return  # the reader says what is wrong with it, with its place
    _require_columns(names, where)


def _look_at_json(path: Path, where: str) -> None:
    """Parse row by row: pyarrow gives every name of any row a column, and follows any nesting."""
    size = path.stat().st_size
    names: set[str] = set()

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            _require_columns([name for name, _ in pairs], f"{where}{at}")
        names.update(row)
        if len(names) > MAX_COLUMNS:
            raise DataError(f"{where}: more than {MAX_COLUMNS:,} names of values{at}")
        return row

    at = ""
    with path.open(encoding="utf-8-sig") as stream:
        start = stream.read(_CHUNK).lstrip()[:1]
        stream.seek(0)
        whole = path.suffix == ".json" and start == "["
        require_room((_NESTED_IN_MEMORY if whole else _IN_MEMORY) * size, where)
        rows: Iterable[str] = [stream.read()] if whole else stream
        number = -1
        for number, line in enumerate(row for row in rows if row.strip()):
            at = "" if whole else f", row {number}"
            try:
                found = json.loads(line, object_pairs_hook=noted)
            except RecursionError:
                raise DataError(f"{where}{at}: nested too deep") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{where}{at}: not JSON ({first_line(error)})") from None
            for row in found if whole else [found]:
                if not isinstance(row, dict):
                    raise DataError(f"{where}{at}: not an object of named values")
        if number < 0 or (whole and not found):
            raise DataError(f"{where}: holds no examples")
