"""Turn raw texts and raw images into a graph's inputs; this is what a served model runs.

Needs numpy, Pillow and tokenizers only: a host that serves has no torch.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer

RawImage: TypeAlias = bytes | str | Path | np.ndarray | Image.Image
MAX_PIXELS = 100_000_000  # about four times what a large camera takes
MAX_BYTES = 500_000_000  # of a file; as many pixels without compression take 300 MB
MAX_CHARACTERS = 1_000_000  # of a text: a long book; models read its first pages
# No others: Pillow would hand PostScript, whatever the file's name, to a Ghostscript of the host.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
_SIXTEEN_BITS = ("PPM", "PNG")  # formats whose greyscale of mode I ends at 65535
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class InputError(ValueError):
    """Input that cannot be read; one line that names the file or row, and the reason."""


def _field(settings: Mapping[str, Any], name: str) -> Any:
    """Return one field of preprocess.json or say which is missing."""
    if name not in settings:
        raise InputError(f"preprocess.json: field {name!r} is missing")
    return settings[name]


@dataclass(frozen=True)
class ImagePreprocess:
    """Shorter side to `resize`, centre crop to `size`, scale to [0, 1], normalise.

    Attributes:
        size: (height, width) in pixels.
        resize: the shorter side in pixels before the crop.
        interpolation: 'bicubic', 'bilinear', 'lanczos' or 'nearest'.
        mean, std: of the three channels, for pixels in [0, 1].
    """

    size: tuple[int, int]
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ImagePreprocess:
        """Read the fields of preprocess.json."""
        height, width = (int(side) for side in _field(settings, "size"))
        interpolation = str(settings.get("interpolation", "bicubic"))
        if interpolation not in _INTERPOLATION:
            raise InputError(
                f"preprocess.json: interpolation {interpolation!r} is not one of "
                f"{', '.join(_INTERPOLATION)}"
            )
        resize = int(settings.get("resize", min(height, width)))
        if min(height, width, resize) < 1 or max(height * width, resize * resize) > MAX_PIXELS:
            raise InputError(
                f"preprocess.json: size {height} x {width}, resize {resize}: expected sides of 1 "
                f"or more and at most {MAX_PIXELS:,} pixels"
            )
        mean, std = (
            tuple(float(value) for value in _field(settings, name)) for name in ("mean", "std")
        )
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise InputError("preprocess.json: mean and std: expected three numbers each, no std 0")
        return cls((height, width), resize, interpolation, mean, std)

    def decode(self, raw: RawImage, name: str | None = None) -> np.ndarray:
        """Read one image and bring it to size.

        Args:
            raw: encoded bytes; a path; a base64 text (with or without `data:` prefix); an array
                (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1]; or a PIL image.
            name: what an error calls it; the path otherwise.

        Returns:
            uint8 (H, W, 3).

        Raises:
            InputError: not an image, broken off, of an unknown range of brightness, or larger than
                `MAX_PIXELS`, as it is or once its shorter side is `resize`.
        """
        label = name or _label(raw)
        image = _open(raw, label)
        _require_size(image, label)
        return np.asarray(self._fit(as_rgb(image, label), label))

    def _fit(self, image: Image.Image, label: str) -> Image.Image:
        """Resize the shorter side, then crop the centre (growing first where it is too small)."""
        height, width = self.size
        scale = max(self.resize / min(image.size), width / image.size[0], height / image.size[1])
        target = (
            max(width, round(image.size[0] * scale)),
            max(height, round(image.size[1] * scale)),
        )
        if target[0] * target[1] > MAX_PIXELS:  # a line of 20,000 pixels would fill the memory
            raise InputError(
                f"{label}: {image.size[0]} x {image.size[1]} pixels is too narrow: enlarged to "
                f"{target[0]} x {target[1]} it is more than {MAX_PIXELS:,} pixels; crop it first"
            )
        if target != image.size:
            image = image.resize(target, _INTERPOLATION[self.interpolation])
        left, top = (target[0] - width) // 2, (target[1] - height) // 2
        return image.crop((left, top, left + width, top + height))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Turn uint8 (N, H, W, 3) into the graph's input, float32 (N, 3, H, W)."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def __call__(self, raws: Iterable[RawImage]) -> dict[str, np.ndarray]:
        """Return {"pixel_values": float32 (N, 3, H, W)}."""
        images = [self.decode(raw, _row(raw, row)) for row, raw in enumerate(raws)]
        if not images:
            return {"pixel_values": np.zeros((0, 3, *self.size), np.float32)}
        return {"pixel_values": self.normalise(np.stack(images))}


@dataclass(frozen=True)
class TextPreprocess:
    """Tokenise, cut to `max_length`, pad to the longest of the batch."""

    tokenizer: Tokenizer
    max_length: int
    pad_id: int

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], tokenizer_json: str) -> TextPreprocess:
        """Read the fields of preprocess.json and the text of tokenizer.json."""
        try:
            tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as problem:  # tokenizers raises bare Exception
            raise InputError(f"tokenizer.json: not a fast tokenizer ({problem})") from None
        tokenizer.no_padding()
        length = int(_field(settings, "max_length"))
        tokenizer.enable_truncation(length)
        return cls(tokenizer, length, int(settings.get("pad_id", 0)))

    def encode(self, texts: Iterable[str], first_row: int = 0) -> list[list[int]]:
        """Return token ids of each text, special tokens included, at most `max_length`.

        Args:
            first_row: what an error calls the first text.

        Raises:
            InputError: a row is not text or is empty.
        """
        rows: list[str] = []
        for row, text in enumerate(texts, first_row):
            if not isinstance(text, str):
                raise InputError(f"row {row}: expected text, got {type(text).__name__}")
            if not text.strip():
                raise InputError(f"row {row}: the text is empty")
            if not text.isascii() and not _is_unicode(text):
                raise InputError(f"row {row}: the text is not valid Unicode")
            if len(text) > MAX_CHARACTERS:
                raise InputError(
                    f"row {row}: {len(text):,} characters; cut the text to {MAX_CHARACTERS:,}"
                )
            rows.append(text)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(rows)]

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Return int64 (N, T) ids and mask, T the longest of the rows."""
        longest = max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), longest), self.pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Return {"input_ids", "attention_mask"}, int64 (N, T) each."""
        return self.pad(self.encode(texts))


def load_preprocess(directory: Path) -> tuple[ImagePreprocess | TextPreprocess, list[str]]:
    """Read preprocess.json (and tokenizer.json) of a folder; returns it with the label names.

    Raises:
        InputError: a file or a field is missing.
    """
    directory = Path(directory)
    source = directory / "preprocess.json"
    try:
        settings = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{source}: no such file; name a folder that winnow wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{source}: not JSON ({problem})") from None
    except RecursionError:
        raise InputError(f"{source}: not JSON (nested too deep)") from None
    if not isinstance(settings, dict):
        raise InputError(f"{source}: not an object of named values")
    try:
        return _built(directory, settings)
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, AttributeError) as problem:
        raise InputError(f"{source}: a field is not what winnow writes ({problem})") from None


def _built(
    directory: Path, settings: Mapping[str, Any]
) -> tuple[ImagePreprocess | TextPreprocess, list[str]]:
    """Return the preprocessing and the label names that preprocess.json describes."""
    source = directory / "preprocess.json"
    labels = [str(label) for label in _field(settings, "labels")]
    modality = _field(settings, "modality")
    if modality == "image":
        return ImagePreprocess.from_dict(settings), labels
    if modality != "text":
        raise InputError(f"{source}: modality {modality!r} is neither 'image' nor 'text'")
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise InputError(f"{tokenizer}: no such file; it belongs beside preprocess.json")
    try:
        text = tokenizer.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as problem:
        raise InputError(f"{tokenizer}: not a fast tokenizer ({problem})") from None
    return TextPreprocess.from_dict(settings, text), labels


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(raw: RawImage) -> str:
    """Return what an error calls this input."""
    if isinstance(raw, Path):
        return str(raw)
    if isinstance(raw, str):
        return raw if len(raw) <= 200 else f"{raw[:40]}..."
    return type(raw).__name__


def _row(raw: RawImage, row: int) -> str:
    """Return what an error calls a row of a batch."""
    named = isinstance(raw, str | Path)
    return f"row {row} ({_label(raw)})" if named else f"row {row}"


def _open(raw: RawImage, label: str) -> Image.Image:
    """Return an image whose size is known; its pixels may not be read yet."""
    if isinstance(raw, Image.Image):
        return raw
    if isinstance(raw, np.ndarray):
        return _from_array(raw, label)
    if isinstance(raw, bytes | bytearray | memoryview):
        data = bytes(raw)
    elif isinstance(raw, str | Path):
        data = _read(raw, label)
    else:
        raise InputError(f"{label}: expected bytes, a path or an array, got {type(raw).__name__}")
    return open_image(data, label)


def open_image(data: bytes, label: str = "the image") -> Image.Image:
    """Open an encoded image without reading its pixels.

    Raises:
        InputError: empty, not one of `FORMATS`, or of more pixels than `MAX_PIXELS`.
    """
    if not data:
        raise InputError(f"{label}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit holds
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"{label}: more than {MAX_PIXELS:,} pixels; shrink it first") from None
    except Exception:  # a damaged file raises UnidentifiedImageError, OSError, struct.error, ...
        raise InputError(f"{label}: not an image that can be read") from None
    _require_size(image, label)
    return image


def _require_size(image: Image.Image, label: str) -> None:
    """Raise where an image has no pixels or too many."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{label}: {width} x {height} pixels is more than {MAX_PIXELS:,}; shrink it first"
        )
    if min(width, height) < 1:
        raise InputError(f"{label}: the image is empty")


def _read(raw: str | Path, label: str) -> bytes:
    """Return the bytes behind a path, a `data:` address or base64 text."""
    text = str(raw)
    if isinstance(raw, str) and text.startswith("data:"):
        return from_base64(text.partition(",")[2], label)
    try:
        path = Path(text)
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{label}: larger than {MAX_BYTES:,} bytes; shrink it first")
        if path.is_file():  # reading a device or a pipe might never end
            return path.read_bytes()
        kind = "folder" if path.is_dir() else "device or a pipe"
        raise InputError(f"{label}: is a {kind}, expected an image file")
    except InputError:
        raise
    except (OSError, ValueError):  # too long for a path, or not there
        if isinstance(raw, str) and len(text) >= 64:
            return from_base64(text, label)
        raise InputError(f"{label}: no such file") from None


def from_base64(text: str, label: str) -> bytes:
    """Decode base64 text; raises `InputError` where it is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # often broken into lines
    except (binascii.Error, ValueError):
        raise InputError(f"{label}: neither a file nor base64 of an image") from None


def _from_array(values: np.ndarray, label: str) -> Image.Image:
    """Return an image of an array's pixels."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise InputError(
            f"{label}: array of shape {values.shape}, expected (H, W), (H, W, 3) or (H, W, 4)"
        )
    if 0 in values.shape:
        raise InputError(f"{label}: array of shape {values.shape} is empty")
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(f"{label}: float pixels leave [0, 1]; pass uint8 or scale them")
        values = np.rint(values * 255)
    elif np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_:
        values = values.astype(np.int64) * (255 if values.dtype == np.bool_ else 1)
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"{label}: integer pixels leave [0, 255]")
    else:
        raise InputError(f"{label}: array of {values.dtype}, expected uint8 or float in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))


def as_rgb(image: Image.Image, label: str) -> Image.Image:
    """Read the pixels: upright, three channels of 8 bits.

    Raises:
        InputError: the image is broken off, or holds numbers whose range is not known.
    """
    form = image.format  # lost in turning it upright
    try:
        image = ImageOps.exif_transpose(image)
        # 16-bit greyscale would be cut off at 255, not scaled; some formats give it 32 bits of room
        if image.mode.startswith("I;16") or (image.mode == "I" and form in _SIXTEEN_BITS):
            values = np.asarray(image).astype(np.float32) / 257
            return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise InputError(
                f"{label}: 32-bit pixels (mode {image.mode}) do not tell what is white; save it "
                "with 8 or 16 bits a channel"
            )
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(f"{label}: the image is corrupt ({reason})") from None
