"""Reading task data: files, image folders, hub data sets and scikit-learn's digits, one shape out.

Columns are named by the recipe or inferred. Every complaint is a `DataError` that names the field,
the source and, where there is one, the row.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Value
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from exports.columns import IMAGE_NAMES, TEXT_NAMES
from exports.preprocess import InputError, open_image
from tasks.digests import DIGITS, IMAGE_SUFFIXES
from tasks.errors import DataError, first_line
from tasks.fences import MAX_IMAGE_BYTES, MAX_NAME, MAX_TEXT, inside, is_one_line, there
from tasks.readers import TABLES, read_file, read_folder, read_hub

Modality = Literal["image", "text"]

_LABEL_NAMES = ("label", "labels", "class", "intent", "category", "target", "topic", "y")


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
    fences: tuple[Path, ...] = ()  # image files lie in one of these; empty: anywhere

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
            if len(value) > MAX_TEXT:
                raise DataError(
                    f"{self.where(row)}: a text of {len(value):,} characters; cut it to "
                    f"{MAX_TEXT:,} or fewer"
                )
            return value
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = self._file(value, row)
        if not value:
            raise DataError(f"{self.where(row)}: no image; remove the row or fill it in")
        return bytes(value)

    def _file(self, name: str, row: int) -> bytes:
        """The content of the image file that a cell names."""
        path = Path(name)
        path = path if path.is_absolute() or self.folder is None else self.folder / path
        if self.fences and not any(inside(fence, path) for fence in self.fences):
            raise DataError(
                f"{self.where(row)}: image file {name} lies outside {self.fences[0]}; copy it "
                "there, or set task.allow_outside_files: true"
            )
        try:
            if path.is_file() and path.stat().st_size <= MAX_IMAGE_BYTES:
                return path.read_bytes()
        except (OSError, ValueError):
            pass
        raise DataError(f"{self.where(row)}: image file {path} is not readable")

    def digest(self, row: int) -> str:
        """SHA-256 of what the example shows: decoded pixels, or the text without case and spacing.

        Decoding also finds damaged images before any compute is spent.
        """
        raw = self.raw(row)
        if isinstance(raw, str):
            plain = " ".join(unicodedata.normalize("NFKC", raw).casefold().split())
            return hashlib.sha256(plain.encode()).hexdigest()
        try:
            pixels = open_image(raw).convert("RGB")
        except InputError as error:
            reason = str(error).removeprefix("the image: ")
            what = "image too large" if "pixels" in reason else "damaged image"
            raise DataError(f"{self.where(row)}: {what} ({reason}); replace or remove it") from None
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
    allow_outside: bool = False,
) -> Source:
    """Read one source of the recipe.

    Args:
        field: the recipe's field, for errors.
        split: the hub data set's or the digits' split, where `name` names none.
        labelled: whether labels are read; where not, none need to be there.
        allow_outside: whether cells and links may name image files outside the source's folder.
    """
    # a fresh cache folder each time: datasets' own cache goes by a file's time, not its content
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        table = _load(field, name, split, scratch, allow_outside)
    where = f"{field}: {name}"
    if not len(table):
        raise DataError(f"{where}: holds no examples")
    label = _label_column(where, table, label_column, (image_column, text_column), labelled)
    modality, column = _input_column(where, table, image_column, text_column, label)
    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    labels, names = _labels(where, table, label) if label else (None, ())
    path = Path(name)
    folder = path.parent if there(path) and path.is_file() else None
    fences = () if allow_outside else _fences(path, folder)
    return Source(field, name, modality, column, table, labels, names, folder, fences)


def _fences(path: Path, folder: Path | None) -> tuple[Path, ...]:
    """Where a source's image files may lie: its own folder, or the hub's caches."""
    if folder is not None:
        return (folder,)
    if there(path):  # an image folder, whose files were listed and checked
        return ()
    caches = (
        HF_HUB_CACHE,
        datasets.config.HF_DATASETS_CACHE,
        datasets.config.DOWNLOADED_DATASETS_PATH,
    )
    return tuple(Path(cache) for cache in caches)


def _load(field: str, name: str, split: str, scratch: str, allow_outside: bool) -> Dataset:
    where = f"{field}: {name}"
    if name == DIGITS:
        return _digits(split)
    path = Path(name)
    here = there(path)
    if not here and (
        path.suffix in TABLES or name.startswith((".", "/", "~")) or name.count("/") > 1
    ):
        raise DataError(f"{where}: no such file or folder; give a path that exists")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what its readers log is raised as well
    try:
        if here and path.is_dir():
            return read_folder(path, where, allow_outside=allow_outside)
        if here and path.is_file():
            return read_file(path, where, scratch)
        if here:
            raise DataError(f"{where}: neither a file nor a folder; give one")
        return read_hub(name, split, where)
    except DataError:
        raise
    except Exception as error:  # datasets wraps pandas, pyarrow, fsspec and the hub
        cause: BaseException = error
        while here and cause.__cause__ is not None:
            cause = cause.__cause__
        what = "not readable" if here else "neither a file here nor a hub data set in reach"
        raise DataError(f"{where}: {what} ({first_line(cause)[:200]})") from None


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
        if isinstance(value, str) and (len(value) > MAX_NAME or not is_one_line(value)):
            raise DataError(
                f"{where}, row {row}: column {column!r} holds {value[:40]!r}, no name of a class; "
                f"a name is one line of at most {MAX_NAME} characters"
            )
    if isinstance(feature, ClassLabel):
        for row, value in enumerate(values):
            if not 0 <= value < len(feature.names):  # `datasets` writes -1 where it has no label
                raise DataError(
                    f"{where}, row {row}: no label in column {column!r} ({value} is none of its "
                    f"{len(feature.names)} classes); leave the row out, or move rows without "
                    "labels to task.unlabelled"
                )
        return tuple(feature.names[value] for value in values), tuple(feature.names)
    if isinstance(values[0], float | dict | list | bytes):
        raise DataError(
            f"{where}: column {column!r} holds {type(values[0]).__name__}s, not class names or "
            "numbers; set task.label_column"
        )
    order = sorted(set(values))
    return tuple(map(str, values)), tuple(map(str, order))
