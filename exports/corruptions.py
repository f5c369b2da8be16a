"""Inputs made worse in the ways they get worse in use: blur, noise and JPEG; typing errors.

The kinds for images are those of Hendrycks and Dietterich (2019, arXiv:1903.12261), whose strengths
are in pixels of a 224 px image. Here a strength means the same for an image of any size: the blur
is a share of the shorter side, and noise and JPEG are computed on the image shrunk to `GRID` px
(smaller images as they are) and what they change is enlarged and added. A photograph of 500 px and
its 64 px thumbnail thus lose the same parts of what they show.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from exports.preprocess import as_rgb

GRID = 64  # px of the shorter side that noise has its grain and JPEG its blocks on
LARGEST = (
    512  # px of the shorter side: no model here looks at more, and large photographs cost time
)
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHIFT = (0.0, 0.25, 0.75)  # of each row of keys against the first, in keys
Kind = Literal["blur", "noise", "jpeg", "typos"]


@dataclass(frozen=True)
class Corruption:
    """One way of making an input worse, at one of two levels.

    Attributes:
        kind: 'blur', 'noise', 'jpeg' or 'typos'.
        level: 1 (a person hardly minds it) or 2 (a person sees it at once).
        strength: blur: standard deviation as a share of the shorter side; noise: standard deviation
            as a share of full brightness; jpeg: quality; typos: share of the letters.
    """

    kind: Kind
    level: int
    strength: float

    @property
    def what(self) -> str:
        """What is done, for a person."""
        percent = f"{100 * self.strength:g}%"
        return {
            "blur": f"Gaussian blur, {percent} of the shorter side",
            "noise": f"Gaussian noise, {percent} of full brightness at {GRID} px",
            "jpeg": f"JPEG at quality {self.strength:g} at {GRID} px",
            "typos": f"typing errors in {percent} of the letters",
        }[self.kind]

    def __call__(self, shown: Image.Image | str, *, seed: int, row: int) -> np.ndarray | str:
        """Return the input made worse: uint8 (H, W, 3), or text.

        The same seed and row give the same result, whatever other rows are asked for.

        Args:
            shown: an upright RGB image (see `upright`), or a text.
            seed: of the whole measurement.
            row: number of the example.

        Raises:
            TypeError: an image where a text is wanted, or the other way round.
        """
        random = np.random.default_rng([seed, row, self.level, *self.kind.encode()])
        if isinstance(shown, str) != (self.kind == "typos"):
            raise TypeError(f"{self.kind}: cannot be done to {type(shown).__name__}")
        if isinstance(shown, str):
            return typos(shown, self.strength, random)
        match self.kind:
            case "blur":
                return blur(shown, self.strength)
            case "noise":
                return noise(shown, self.strength, random)
            case _:
                return jpeg(shown, round(self.strength))


_STRENGTHS: dict[Kind, tuple[float, float]] = {
    "blur": (0.0075, 0.0125),
    "noise": (0.03, 0.08),
    "jpeg": (30, 10),
    "typos": (0.04, 0.1),
}


def corruptions(modality: str) -> tuple[Corruption, ...]:
    """Return what is tried on inputs of a modality ('image' or 'text'), level by level."""
    kinds: tuple[Kind, ...] = ("typos",) if modality == "text" else ("blur", "noise", "jpeg")
    return tuple(
        Corruption(kind, level, strength)
        for kind in kinds
        for level, strength in enumerate(_STRENGTHS[kind], 1)
    )


def upright(raw: bytes) -> Image.Image:
    """Return the picture in encoded bytes as RGB, upright, its shorter side at most `LARGEST`.

    Raises:
        InputError: see `exports.preprocess.as_rgb`.
    """
    image: Image.Image = Image.open(io.BytesIO(raw))
    image.draft("RGB", (LARGEST, LARGEST))  # a JPEG is read at a half, a quarter or an eighth
    return _shrunk(as_rgb(image, "the image"), LARGEST)


def blur(image: Image.Image, share: float) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), under a Gaussian of `share` of its shorter side.

    A smaller image than `GRID` is blurred as if it had that: a share of 8 px would show nothing.
    """
    deviation = share * max(min(image.size), GRID)
    # on whole pixels a Gaussian of less than one does next to nothing, so they are cut up first
    parts = max(1, min(8, 4 * GRID // min(image.size)))
    size = (image.width * parts, image.height * parts)
    fine = image.resize(size, Image.Resampling.NEAREST)
    spread = fine.filter(ImageFilter.GaussianBlur(deviation * parts))
    return np.asarray(spread.resize(image.size, Image.Resampling.BOX))


def noise(image: Image.Image, share: float, random: np.random.Generator) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), with Gaussian noise of `share` of full brightness."""
    width, height = _shrunk_size(image, GRID)
    grain = random.normal(0.0, 255 * share, (height, width, 3))
    return _added(image, grain)


def jpeg(image: Image.Image, quality: int) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), with what JPEG at `quality` does to it at `GRID` px."""
    small, stream = _shrunk(image, GRID), io.BytesIO()
    small.save(stream, "JPEG", quality=quality, subsampling=0)  # colours as fine as the rest
    packed = np.asarray(Image.open(stream).convert("RGB"), np.float64)
    return _added(image, packed - np.asarray(small, np.float64))


def typos(text: str, rate: float, random: np.random.Generator) -> str:
    """Return the text with typing errors in `rate` of its letters, in one at least.

    Each is one of four with the same chance: the letter is swapped with the next, left out, typed
    twice, or replaced by its neighbour on a QWERTY keyboard. Words stay apart, no word vanishes;
    a text without letters gets its other signs mistyped.
    """
    places = [at for at, sign in enumerate(text) if sign.isalpha()]
    places = places or [at for at, sign in enumerate(text) if not sign.isspace()]
    if not places:
        return text
    count = max(1, round(rate * len(places)))
    signs = list(text)
    # from the end, so that a change does not move the places still to come
    for at in sorted(random.choice(places, count, replace=False).tolist(), reverse=True):
        before, after = "".join(signs[:at][-1:]), "".join(signs[at + 1 : at + 2])
        alone = not (before + after).strip()
        tried = (_mistyped(signs[at], after, error, alone, random) for error in _order(random))
        typed, replaced = next(one for one in tried if one is not None)
        signs[at : at + replaced] = typed
    typed = "".join(signs)
    # two errors may undo each other ('aab': the second a typed twice, the first left out)
    return typed if typed != text else typos(text, rate, random)


def _order(random: np.random.Generator) -> list[int]:
    """Return the four errors in a random order."""
    return random.permutation(4).tolist()


def _mistyped(
    sign: str, after: str, error: int, alone: bool, random: np.random.Generator
) -> tuple[str, int] | None:
    """Return what is typed and how many signs it replaces; None where it would change nothing."""
    if error == 0:
        swaps = after.isalnum() and after.casefold() != sign.casefold()
        return (after + sign, 2) if swaps else None
    if error == 1:
        return None if alone else ("", 1)
    if error == 2:
        return sign * 2, 1
    near = _NEIGHBOURS.get(sign.lower())
    if near is None:
        return None
    typed = near[int(random.integers(len(near)))]
    return (typed.upper() if sign.isupper() else typed), 1


def _neighbours() -> dict[str, str]:
    """Return, for each letter, those whose key touches its key."""
    spots = {
        key: (row, column + _SHIFT[row])
        for row, keys in enumerate(_ROWS)
        for column, key in enumerate(keys)
    }
    return {
        key: "".join(
            other
            for other, (row, column) in spots.items()
            if other != key and abs(row - y) <= 1 and abs(column - x) <= 1
        )
        for key, (y, x) in spots.items()
    }


_NEIGHBOURS = _neighbours()


def _shrunk_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at most `side`."""
    scale = min(1.0, side / min(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Return the image with its shorter side at most `side`: each pixel the mean of its area."""
    size = _shrunk_size(image, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)


def _added(image: Image.Image, change: np.ndarray) -> np.ndarray:
    """Return the image, uint8 (H, W, 3), plus `change` (h, w, 3) enlarged to it, cell by cell."""
    rows = np.arange(image.height) * change.shape[0] // image.height
    columns = np.arange(image.width) * change.shape[1] // image.width
    pixels = np.asarray(image, np.float64) + change[rows[:, None], columns]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
