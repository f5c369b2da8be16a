"""Pictures that show nearly the same: tiles of two photographs, edited in known ways."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from tasks import near_images as near
from tasks.near_images import near_images

SIDE = 120


def silent(*_: object) -> None:
    """No progress."""


def write(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def tiles() -> list[Image.Image]:
    """Squares of 120 pixels that do not overlap; plain sky has nothing to be told by."""
    found = []
    for pixels in load_sample_images().images:
        for y, x in product(range(3), range(5)):
            square = pixels[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
            if near._square(Image.fromarray(square).convert("L")).std() > 20:
                found.append(Image.fromarray(square))
    return found


def box(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    edges = (left * width, top * height, width - right * width, height - bottom * height)
    return image.crop(tuple(round(edge) for edge in edges))


EDITS: dict[str, Callable[[Image.Image], bytes]] = {
    "as it is": write,
    "jpeg 30": lambda image: write(image, "JPEG", quality=30),
    "webp 30": lambda image: write(image, "WEBP", quality=30),
    "half": lambda image: write(image.resize((SIDE // 2, SIDE // 2))),
    "twice": lambda image: write(image.resize((SIDE * 2, SIDE * 2))),
    "stretched": lambda image: write(image.resize((SIDE * 2, SIDE))),
    "8 % off all sides": lambda image: write(box(image, 0.08, 0.08, 0.08, 0.08)),
    "8 % off two sides": lambda image: write(box(image, 0.08, 0, 0, 0.08)),
    "cropped, back, jpeg": lambda image: write(
        box(image, 0.05, 0.01, 0, 0.07).resize((SIDE, SIDE)), "JPEG", quality=50
    ),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("turned", [False, True])
def test_copies_are_found_and_nothing_else(
    tiles: list[Image.Image], edit: str, turned: bool
) -> None:
    plain, edited = [write(tile) for tile in tiles[::2]], [EDITS[edit](tile) for tile in tiles[::2]]
    sides = (edited, plain) if turned else (plain, edited)
    across, within = near_images(*sides, silent)
    pairs = {(pair.first, pair.second) for pair in across}
    assert pairs == {(row, row) for row in range(len(plain))}
    assert all(pair.how == "image" and 0.75 <= pair.similarity <= 1 for pair in across)
    assert within == []


def test_copies_inside_the_support_set_are_found_once(tiles: list[Image.Image]) -> None:
    support = [write(tile) for tile in tiles[:4]]
    support.append(EDITS["jpeg 30"](tiles[2]))
    across, within = near_images(support, [write(tiles[7])], silent)
    assert across == []
    assert [(pair.first, pair.second) for pair in within] == [(2, 4)]


@pytest.mark.parametrize(
    "other",
    [
        lambda tile: ImageOps.invert(tile),
        lambda tile: Image.merge("RGB", tile.split()[::-1]),  # another product's colour
        lambda tile: box(tile, 0.3, 0.3, 0, 0),
    ],
    ids=["inverted", "recoloured", "a part"],
)
def test_what_shows_something_else_is_not_a_copy(
    tiles: list[Image.Image], other: Callable[[Image.Image], Image.Image]
) -> None:
    row = max(range(len(tiles)), key=lambda at: np.ptp(np.asarray(tiles[at]), -1).mean())
    assert near_images([write(tiles[row])], [write(other(tiles[row]))], silent) == ([], [])


def test_noise_and_flat_pictures_have_no_copies() -> None:
    random = np.random.default_rng(0)
    flat = [Image.new("RGB", (40, 40), (level,) * 3) for level in (0, 120, 121, 255)]
    noise = [random.integers(0, 255, (40, 36, 3), dtype=np.uint8) for _ in range(40)]
    raws = [write(image) for image in [*flat, *map(Image.fromarray, noise)]]
    assert near_images(raws[:22], raws[22:], silent) == ([], [])


def test_a_photograph_is_read_upright_and_small() -> None:
    image = Image.fromarray(load_sample_images().images[0])  # 640 x 427
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to be upright
    turned = write(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=80, exif=exif)
    assert near.small(turned).size == (128, 86)
    across, _ = near_images([write(image)], [turned], silent)
    assert [(pair.first, pair.second) for pair in across] == [(0, 0)]


def test_candidates_are_what_comparing_all_hashes_finds(tiles: list[Image.Image]) -> None:
    images = [*tiles[:12], *(box(tile, 0.06, 0, 0.03, 0.05) for tile in tiles[:12])]
    signs = near._hashes([write(image) for image in images], silent)
    whole = imagehash.phash(near._cut(near.small(write(images[3])).convert("L"), near._WHOLE))
    assert ((signs[3, 0] > 0) == whole.hash.ravel()).all()
    expected = set()
    for one, other in product(range(12), range(24)):
        apart = [(signs[one, at] != signs[other, 0]).sum() for at in range(16)]
        apart += [(signs[one, 0] != signs[other, at]).sum() for at in range(16)]
        if min(apart) <= near._BITS_APART:
            expected.add((one, other))
    found = [candidate[:2] for candidate in near._candidates(signs[:12], signs)]
    assert set(found) == expected and len(found) == len(expected)
    assert {(row, row + 12) for row in range(12)} <= expected


def test_the_window_that_fits_is_found(tiles: list[Image.Image]) -> None:
    left = box(tiles[8], 0.1, 0, 0, 0)
    astray = near._correlation(near._square(tiles[8].convert("L")), near._square(left.convert("L")))
    detail, colour = near.likeness(tiles[8], left, near._WHOLE)
    assert astray < 0.9 and detail > 0.97 and colour < 0.01
