"""Copies of examples as leaks come: the same file, re-encoded, resized, cropped, re-punctuated."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Random = np.random.Generator
Edit = Callable[[Any, Random], Any]

_FILTERS = tuple(Image.Resampling(number) for number in (1, 2, 3, 4))
_ENDS = ("?", "!", ".", "...", "!!", " ?", ";")
_GREETINGS = ("please ", "hey, ", "ok so ", "hi ")
_ARTICLES = ("the", "a", "an", "my", "please", "so")


def _read(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw)).convert("RGB")


def _write(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def lossless(raw: bytes, _: Random) -> bytes:
    """As PNG."""
    return _write(_read(raw), "PNG")


def lossy(form: str) -> Edit:
    """In another format, at a quality from 30 to 90."""
    return lambda raw, random: _write(_read(raw), form, quality=int(random.integers(30, 91)))


def resized(raw: bytes, random: Random) -> bytes:
    """To half to twice the size, by any of four filters."""
    image, factor = _read(raw), 2 ** random.uniform(-1, 1)
    size = [max(1, round(side * factor)) for side in image.size]
    return _write(image.resize((size[0], size[1]), _FILTERS[random.integers(4)]), "PNG")


def cropped(raw: bytes, random: Random) -> bytes:
    """Up to 8 % lost at each side."""
    return _write(_crop(_read(raw), random.uniform(0, 0.08, 4)), "PNG")


def cropped_most(raw: bytes, _: Random) -> bytes:
    """8 % lost at every side."""
    return _write(_crop(_read(raw), np.full(4, 0.08)), "PNG")


def cropped_and_back(raw: bytes, random: Random) -> bytes:
    """Cropped, then to its old size, then as JPEG."""
    image = _read(raw)
    smaller = _crop(image, random.uniform(0, 0.08, 4)).resize(image.size, _FILTERS[2])
    return _write(smaller, "JPEG", quality=int(random.integers(30, 91)))


def _crop(image: Image.Image, shares: np.ndarray) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = (shares * [width, height, width, height]).round().astype(int)
    return image.crop((left, top, width - right, height - bottom))


def re_encoded(text: str, random: Random) -> str:
    """Other code points for the same letters: decomposed, full-width, curly quotes, odd spaces."""
    kind = random.integers(4)
    if kind == 0:
        return unicodedata.normalize("NFD", text).replace("'", "\u2019")
    if kind == 1:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    if kind == 2:
        return text.replace(" ", "\u00a0").upper()
    return f"\ufeff{text.replace(' ', '  ')}\n"


def re_punctuated(text: str, random: Random) -> str:
    """Two of: another end, no apostrophes or curly ones, another case, a comma, none, quotes."""
    for kind in random.permutation(6)[:2]:
        if kind == 0:
            text = text.rstrip("?!.") + _ENDS[random.integers(len(_ENDS))]
        elif kind == 1:
            text = text.replace("'", "\u2019" if random.random() < 0.5 else "")
        elif kind == 2:
            text = text.upper() if random.random() < 0.5 else text.capitalize()
        elif kind == 3:
            words = text.split()
            words[random.integers(len(words))] += ","
            text = " ".join(words)
        elif kind == 4:
            text = re.sub(r"[,.?!]", "", text)
        else:
            text = f'"{text}"'
    return text


def mistyped(text: str, random: Random) -> str:
    """Two letters swapped, one dropped or one doubled in a longer word."""
    words = text.split()
    longer = [row for row, word in enumerate(words) if len(word) > 3] or list(range(len(words)))
    row = longer[random.integers(len(longer))]
    word = words[row]
    at, kind = int(random.integers(max(1, len(word) - 1))), random.integers(3)
    middle = (word[at : at + 2][::-1], word[at + 1 : at + 2], word[at] + word[at : at + 2])[kind]
    words[row] = word[:at] + middle + word[at + 2 :]
    return " ".join(words)


def inflected(text: str, _: Random) -> str:
    """The longest word with an s more or less."""
    words = text.split()
    row = max(range(len(words)), key=lambda at: len(words[at]))
    words[row] = words[row][:-1] if words[row].endswith("s") else words[row] + "s"
    return " ".join(words)


def reordered(text: str, random: Random) -> str:
    """The end put first."""
    words = text.split()
    at = int(random.integers(1, len(words))) if len(words) > 1 else 0
    return " ".join(words[at:] + words[:at])


def without_article(text: str, random: Random) -> str:
    """One small word less; a 'please' more where there is none to lose."""
    words = text.split()
    small = [row for row, word in enumerate(words) if word in _ARTICLES]
    if small and len(words) > 1:
        del words[small[random.integers(len(small))]]
    else:
        words.append("please")
    return " ".join(words)


def greeted(text: str, random: Random) -> str:
    """With a greeting before it."""
    return _GREETINGS[random.integers(len(_GREETINGS))] + text


def same(example: Any, _: Random) -> Any:
    """As it is."""
    return example


# kind: the edit, and the least recall that is asked; None where the figure is only told
IMAGE_EDITS: dict[str, tuple[Edit, float | None]] = {
    "exact": (same, 0.95),
    "re-encoded, lossless": (lossless, 0.95),
    "re-encoded, JPEG 30-90": (lossy("JPEG"), 0.95),
    "re-encoded, WebP 30-90": (lossy("WEBP"), 0.95),
    "resized, 0.5-2x": (resized, 0.8),
    "cropped, 0-8 % a side": (cropped, 0.8),
    "cropped, 8 % at every side": (cropped_most, 0.8),
    "cropped, old size, JPEG": (cropped_and_back, 0.8),
}
TEXT_EDITS: dict[str, tuple[Edit, float | None]] = {
    "exact": (same, 0.95),
    "re-encoded (code points, spaces, case)": (re_encoded, 0.95),
    "re-punctuated": (re_punctuated, 0.8),
    "re-worded: typing error": (mistyped, None),
    "re-worded: another form of a word": (inflected, None),
    "re-worded: end put first": (reordered, None),
    "re-worded: a small word less": (without_article, None),
    "re-worded: a greeting more": (greeted, None),
}
