"""Which column of a table holds the inputs, and what a cell of it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.preprocess import InputError

TEXT_NAMES = ("text", "sentence", "utterance", "query", "question", "message", "content", "review")
IMAGE_NAMES = ("image", "img", "picture", "photo", "file_name", "file", "path")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def input_column(row: Mapping[str, Any], modality: str, named: str | None, where: str) -> str:
    """Return the column that holds the inputs: the named one, or the only likely one.

    Args:
        row: one row of the table, its first.
        modality: 'text' or 'image'.
        named: what the caller asked for, None where that is open.
        where: what an error calls the table.

    Raises:
        InputError: no such column, or none or several that could be meant.
    """
    if named is not None:
        if named not in row:
            raise InputError(f"{where}: no column {named!r}; columns: {', '.join(row)}")
        return named
    fits, telling = (shows_image, IMAGE_NAMES) if modality == "image" else (_is_text, TEXT_NAMES)
    found = [name for name, value in row.items() if fits(value)]
    by_lower = {name.lower(): name for name in reversed(found)}
    known = [by_lower[name] for name in telling if name in by_lower]
    if known:
        return known[0]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{where}: cannot tell which column holds the {modality}s; name one of: {', '.join(row)}"
    )


def shows_image(value: Any) -> bool:
    """Return whether a cell holds an image, or the name of an image file."""
    if isinstance(value, str):
        return value.lower().endswith(IMAGE_SUFFIXES) or value.startswith("data:image/")
    if isinstance(value, Mapping):  # how `datasets` stores what it has not decoded
        return "bytes" in value
    return isinstance(value, bytes | bytearray) or hasattr(value, "convert")


def raw_of(value: Any) -> Any:
    """Return what a cell shows in the form that a specialist takes."""
    if isinstance(value, Mapping) and "bytes" in value:
        return value["bytes"] or value.get("path")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
