"""Reading task data: files, image folders, hub data sets and scikit-learn's digits, one shape out.

Columns are named by the recipe or inferred. Every complaint is a `DataError` that names the field,
the source and, where there is one, the row.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Value
from PIL import Image

from exports.columns import IMAGE_NAMES, TEXT_NAMES
from tasks.digests import IMAGE_SUFFIXES
from tasks.errors import DataError

Modality = Literal["image", "text"]

_TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
_LABEL_NAMES = ("label", "labels", "class", "intent", "category", "target", "topic", "y")
DIGITS = "sklearn:digits"


@dataclass(frozen=True)
class Source:
    """A source of examples: one input column, and label names where they were asked for."""

    field: str
    name: str
    modality: Modality
    column: str
    rows: Dataset
    labels: tuple[str, ...] | None
    label_names: tuple[str, ...]  # the distinct ones, in the source's own order
    folder: Path | None  # relative image paths start here

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Field, source and row, for an error."""
        return f"{self.field}: {self.name}, row {row}"

    def raw(self, row: int) -> bytes | str:
        """The encoded image, or the text, of a row; raises where it is empty or missing."""
        value = self.rows[row][self.column]
        if self.modality == "text":
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{self.where(row)}: empty text; remove the row or fill it in")
            return value
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            path = Path(value)
            path = path if path.is_absolute() or self.folder is None else self.folder / path
            try:
                value = path.read_bytes()
            except OSError:
                raise DataError(f"{self.where(row)}: image file {path} is not readable") from None
        if not value:
            raise DataError(f"{self.where(row)}: no image; remove the row or fill it in")
        return bytes(value)

    def digest(self, row: int) -> str:
        """SHA-256 of what the example shows: decoded pixels, or the text without case and spacing.

        Decoding also finds damaged images before any compute is spent.
        """
        raw = self.raw(row)
        if isinstance(raw, str):
            plain = " ".join(unicodedata.normalize("NFKC", raw).casefold().split())
            return hashlib.sha256(plain.encode()).hexdigest()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                pixels = Image.open(io.BytesIO(raw)).convert("RGB")
        except Exception as error:  # Pillow raises many kinds on damaged files
            reason = str(error).split(" <")[0] or type(error).__name__
            raise DataError(
                f"{self.where(row)}: damaged image ({reason}); replace or remove it"
            ) from None
        return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()


def read_source(
    field: str,
    name: str,
    *,
    split: str,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> Source:
    """Read one source of the recipe.

    Args:
        field: the recipe's field, for errors.
        split: the hub data set's or the digits' split, where `name` names none.
        labelled: whether labels are read; where not, none need to be there.
    """
    # a fresh cache folder each time: datasets' own cache goes by a file's time, not its content
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        table = _load(field, name, split, scratch)
    where = f"{field}: {name}"
    if not len(table):
        raise DataError(f"{where}: holds no examples")
    label = _label_column(where, table, label_column, (image_column, text_column), labelled)
    modality, column = _input_column(where, table, image_column, text_column, label)
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    labels, names = _labels(where, table, label) if label else (None, ())
    folder = Path(name).parent if Path(name).is_file() else None
    return Source(field, name, modality, column, table, labels, names, folder)


def _load(field: str, name: str, split: str, scratch: str) -> Dataset:
    where = f"{field}: {name}"
    if name == DIGITS:
        return _digits(split)
    path = Path(name)
    if not path.exists() and (
        path.suffix in _TABLES or name.startswith((".", "/", "~")) or name.count("/") > 1
    ):
        raise DataError(f"{where}: no such file or folder; give a path that exists")
    datasets.disable_progress_bars()
    memory: dict[str, Any] = {"cache_dir": scratch, "keep_in_memory": True}
    try:
        if path.is_dir():
            return _folder(path, where, memory)
        if path.is_file():
            if path.suffix == ".parquet":
                return Dataset.from_parquet(str(path), **memory)
            if path.suffix in (".csv", ".tsv"):
                mark = "\t" if path.suffix == ".tsv" else ","
                # a class may well be called 'None' or 'NA'
                return Dataset.from_csv(str(path), sep=mark, keep_default_na=False, **memory)
            if path.suffix in (".json", ".jsonl"):
                return Dataset.from_json(str(path), **memory)
            raise DataError(
                f"{where}: a {path.suffix or 'nameless'} file; give {', '.join(_TABLES)}"
            )
        hub, _, chosen = name.partition(":")
        hub, _, config = hub.partition("@")
        return datasets.load_dataset(hub, config or None, split=chosen or split)
    except DataError:
        raise
    except Exception as error:  # datasets wraps pandas, pyarrow, fsspec and the hub
        cause: BaseException = error
        while path.exists() and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        what = (
            "not readable" if path.exists() else "neither a file here nor a hub data set in reach"
        )
        raise DataError(f"{where}: {what} ({reason[:200]})") from None


def _folder(path: Path, where: str, memory: dict[str, Any]) -> Dataset:
    """An image folder of one sub-folder a class."""
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"{where}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder; "
            "give one sub-folder a class, or a .parquet, .csv or .jsonl file"
        )
    # Listed by hand, because the builder reads folder names such as 'test' as splits.
    columns: dict[str, list[str]] = {"image": [str(p.absolute()) for p in files]}
    if all(p.parent != path for p in files):
        columns["label"] = [p.relative_to(path).parts[0] for p in files]
    return Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


def _digits(split: str) -> Dataset:
    """scikit-learn's 1,797 digits; within each class every second image is train, the rest test."""
    # scikit-learn takes a second to import, and only this source needs it
    from sklearn.datasets import load_digits

    data = load_digits()
    take: list[int] = []
    for digit in range(10):
        take += np.flatnonzero(data.target == digit)[0 if split == "train" else 1 :: 2].tolist()
    images = []
    for row in sorted(take):
        stream = io.BytesIO()
        Image.fromarray((data.images[row] * (255 / 16)).round().astype(np.uint8)).save(
            stream, "PNG"
        )
        images.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": ClassLabel(names=[str(d) for d in range(10)]),
        }
    )
    labels = data.target[sorted(take)].tolist()
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def _named(where: str, table: Dataset, option: str, name: str) -> str:
    if name not in table.column_names:
        raise DataError(
            f"{where}: task.{option}: no column {name!r}; columns: {', '.join(table.column_names)}"
        )
    return name


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_image(table: Dataset, name: str) -> bool:
    feature = table.features[name]
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return True
    first = table[0][name] if _is_text(feature) else None
    return isinstance(first, str) and first.lower().endswith(IMAGE_SUFFIXES)


def _preferred(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    """The only candidate, or the one with the most telling name; None where that is open."""
    by_lower = {candidate.lower(): candidate for candidate in reversed(candidates)}
    known = [by_lower[name] for name in names if name in by_lower]
    if known:
        return known[0]
    return candidates[0] if len(candidates) == 1 else None


def _label_column(
    where: str,
    table: Dataset,
    named: str | None,
    inputs: Sequence[str | None],
    labelled: bool,
) -> str | None:
    if not labelled:
        return None
    if named is not None:
        return _named(where, table, "label_column", named)
    classes = [n for n, f in table.features.items() if isinstance(f, ClassLabel)]
    plain = [
        name
        for name, feature in table.features.items()
        if name not in inputs
        and (_is_text(feature) or getattr(feature, "dtype", "").startswith(("int", "uint", "bool")))
        and not _is_image(table, name)
        and name.lower() not in TEXT_NAMES
    ]
    found = _preferred(classes, _LABEL_NAMES) or _preferred(plain, _LABEL_NAMES)
    if found is None:
        raise DataError(
            f"{where}: cannot tell which column holds the labels; set task.label_column to one of: "
            f"{', '.join(table.column_names)}"
        )
    return found


def _input_column(
    where: str, table: Dataset, image: str | None, text: str | None, label: str | None
) -> tuple[Modality, str]:
    if image is not None and text is not None:
        raise DataError("task.image_column and task.text_column: name one of them, not both")
    if image is not None:
        name = _named(where, table, "image_column", image)
        if not _is_image(table, name):
            raise DataError(f"{where}: task.image_column: column {name!r} holds no images")
        return "image", name
    if text is not None:
        name = _named(where, table, "text_column", text)
        if not _is_text(table.features[name]):
            raise DataError(f"{where}: task.text_column: column {name!r} holds no text")
        return "text", name
    others = [name for name in table.column_names if name != label]
    images = [name for name in others if _is_image(table, name)]
    if images:
        found = _preferred(images, IMAGE_NAMES)
        if found is not None:
            return "image", found
    found = _preferred([n for n in others if _is_text(table.features[n])], TEXT_NAMES)
    if found is not None and not images:
        return "text", found
    raise DataError(
        f"{where}: cannot tell which column holds the examples; set task.text_column or "
        f"task.image_column to one of: {', '.join(table.column_names)}"
    )


def _labels(where: str, table: Dataset, column: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    feature, values = table.features[column], list(table[column])
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(f"{where}, row {row}: no label in column {column!r}")
    if isinstance(feature, ClassLabel):
        return tuple(feature.names[value] for value in values), tuple(feature.names)
    if isinstance(values[0], float | dict | list | bytes):
        raise DataError(
            f"{where}: column {column!r} holds {type(values[0]).__name__}s, not class names or "
            "numbers; set task.label_column"
        )
    order = sorted(set(values))
    return tuple(map(str, values)), tuple(map(str, order))
