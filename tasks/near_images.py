"""Pictures that show nearly the same: perceptual hashes find candidates, registration decides.

pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions") hardly
changes when a picture is re-encoded or resized, but does when it is cropped. So every picture is
hashed whole and in fifteen windows that leave out a strip at one or more sides, and a window of one
is compared with the whole of the other. What the hashes take for alike is then laid over each other
and compared in its details and its colours: hashes alone take one photograph of a kind for another.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from tasks.near import Near
from tasks.progress import Callback

# The bounds were set on one half of Tiny-ImageNet's classes (benchmarks/leaks.py judges them by
# the other): edited copies reach 0.9 and stay below 0.02, other photographs 0.5 and above 0.07.
DETAIL = 0.75  # least correlation of details
COLOUR = 0.04  # largest root mean square difference of colours, of 1
_BITS_APART = 12  # of 64: most that a candidate's hashes differ by

# left, top, right, bottom: the shares of width and height that a window leaves out
Window = tuple[float, float, float, float]
_WHOLE: Window = (0.0, 0.0, 0.0, 0.0)
_STRIP, _WIDEST = 0.06, 0.12
# the first is the whole picture
_WINDOWS: tuple[Window, ...] = tuple(itertools.product((0.0, _STRIP), repeat=4))  # type: ignore[arg-type]
# of the search for the window that fits best: a step, and the likeness that it takes to go on
_STEPS = ((0.03, -1.0, 0.12), (0.015, 0.5, 0.08), (0.0075, 0.5, 0.06))

_SMALL = 128  # pixels of the longer side: more tells nothing, and costs time
_SIDE = 32  # pixels of the squares that are compared
_FLAT = 2.0  # of 255: a picture with less contrast shows nothing to compare
_ROWS_AT_ONCE = 256  # of the first side: bounds the table of distances


def near_images(
    support: Sequence[bytes],
    test: Sequence[bytes],
    progress: Callback,
    *,
    least_detail: float = DETAIL,
) -> tuple[list[Near], list[Near]]:
    """Pairs of a support and a test picture, and pairs of two support pictures.

    Pictures are encoded files that can be decoded. Re-encoded, resized (by half to twice) and
    cropped (up to 8 % a side) copies are found; mirrored, rotated and recoloured ones are not.
    Pictures below about 32 pixels have few details: of those, only closer copies are found.
    """
    hashed = len(support) + len(test)
    signs = _hashes([*support, *test], progress)
    ours, theirs = np.split(signs, [len(support)])
    across = [*_candidates(ours, theirs)]
    within = [found for found in _candidates(ours, ours) if found.first < found.second]
    total = hashed + len(across) + len(within)
    read = lru_cache(maxsize=2048)(small)

    def decide(candidates: Sequence[_Candidate], other: Sequence[bytes], start: int) -> list[Near]:
        found = []
        for row, (first, second, turned, window) in enumerate(candidates):
            progress(start + row, total, "comparing")
            one, two = read(support[first]), read(other[second])
            if turned:
                one, two = two, one
            # where the hashes of both whole pictures fit best, either may be the crop
            tries = likeness(one, two, window), likeness(two, one, _WHOLE)
            detail, colour = max(tries)
            if detail >= least_detail and colour <= COLOUR:
                found.append(Near(first, second, "image", min(detail, 1.0)))
        return found

    return decide(across, test, hashed), decide(within, support, hashed + len(across))


def small(raw: bytes) -> Image.Image:
    """Decode upright, in colour, at most 128 pixels long: enough for everything here."""
    image = Image.open(io.BytesIO(raw))
    image.draft("RGB", (_SMALL, _SMALL))  # a JPEG is decoded at a fraction of its size
    upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    return upright


def likeness(whole: Image.Image, crop: Image.Image, window: Window) -> tuple[float, float]:
    """Correlation of the details of a picture and a crop of another, and how their colours differ.

    The window of `whole` that fits `crop` best is searched from `window` on (Hooke & Jeeves 1961),
    as long as there is hope. Details are what is left without the picture blurred (Gaussian, 1/16
    of a side), so that a bright sky above dark ground is not what two photographs have in common;
    colours are compared as means of 64 squares, of 1.
    """
    grey, target = whole.convert("L"), _square(crop.convert("L"))
    details, colours = _details(target), _means(_square(crop))

    def apart() -> float:
        return float(np.sqrt(np.mean((_means(_square(whole, window)) - colours) ** 2)) / 255)

    detail, colour = -1.0, apart()
    reached = _correlation(_square(grey, window), target)
    for step, least_detail, most_colour in _STEPS:
        if detail < least_detail or colour > most_colour:
            break
        centre = None
        while centre != window:
            centre = window
            for moved in _around(centre, step):
                score = _correlation(_square(grey, moved), target)
                if score > reached:
                    window, reached = moved, score
        detail, colour = _correlation(_details(_square(grey, window)), details), apart()
    return detail, colour


def _around(window: Window, step: float) -> Iterator[Window]:
    """Windows that differ on one side by one step."""
    for side, change in itertools.product(range(4), (step, -step)):
        moved = list(window)
        moved[side] = min(_WIDEST, max(0.0, moved[side] + change))
        yield moved[0], moved[1], moved[2], moved[3]


def _cut(image: Image.Image, window: Window) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = window
    box = (left * width, top * height, width - right * width, height - bottom * height)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box=box)


def _square(image: Image.Image, window: Window = _WHOLE) -> np.ndarray:
    """A window's pixels, float32 (32, 32) of a grey picture and (32, 32, 3) of another."""
    return np.asarray(_cut(image, window), np.float32)


def _details(pixels: np.ndarray) -> np.ndarray:
    return pixels - gaussian_filter(pixels, _SIDE / 16)


def _means(pixels: np.ndarray) -> np.ndarray:
    """Means of 8 by 8 squares: (32, 32, 3) to (8, 8, 3)."""
    return pixels.reshape(8, _SIDE // 8, 8, _SIDE // 8, 3).mean((1, 3))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt(np.vdot(one, one) * np.vdot(other, other)))
    return float(np.vdot(one, other)) / scale if scale else 0.0


def _hashes(raws: Sequence[bytes], progress: Callback) -> np.ndarray:
    """Every window's pHash as signs, int8 (N, 16, 64); of a flat picture, zeros."""
    signs = np.zeros((len(raws), len(_WINDOWS), 64), np.int8)
    for row, raw in enumerate(raws):
        progress(row, len(raws), "hashes")
        grey = small(raw).convert("L")
        if _square(grey).std() >= _FLAT:
            bits = [imagehash.phash(_cut(grey, window)).hash.ravel() for window in _WINDOWS]
            signs[row] = np.where(bits, 1, -1)
    return signs


class _Candidate(NamedTuple):
    """Two pictures of which a window of one has nearly the hash of the other."""

    first: int
    second: int
    turned: bool  # whether the window is one of the second picture
    window: Window


def _candidates(ours: np.ndarray, theirs: np.ndarray) -> Iterator[_Candidate]:
    """Pairs whose hashes are nearly one, with the window that fits best.

    A scalar product of signs is 64 minus twice the Hamming distance, so that one matrix product a
    window compares everything; a flat picture's is zero, as if half of the bits differed.
    """
    columns = theirs.astype(np.float32).transpose(1, 2, 0)  # (16, 64, M)
    for start in range(0, len(ours), _ROWS_AT_ONCE):
        rows = ours[start : start + _ROWS_AT_ONCE].astype(np.float32)  # (n, 16, 64)
        best = rows[:, 0] @ columns[0]  # (n, M)
        which = np.zeros(best.shape, np.int8)
        for at in range(1, len(_WINDOWS)):
            for turned in (False, True):
                alike = rows[:, 0] @ columns[at] if turned else rows[:, at] @ columns[0]
                better = alike > best
                best[better] = alike[better]
                which[better] = -at if turned else at
        for one, other in np.argwhere(best >= 64 - 2 * _BITS_APART).tolist():
            at = int(which[one, other])
            yield _Candidate(start + one, other, at < 0, _WINDOWS[abs(at)])
