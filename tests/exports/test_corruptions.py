"""Corruptions are what they say, of any size alike, and the same for a seed and a row."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from exports.corruptions import (
    GRID,
    LARGEST,
    Corruption,
    blur,
    corruptions,
    jpeg,
    noise,
    typos,
    upright,
)
from exports.preprocess import InputError

TEXT = "My card was swallowed by the machine outside the station, what now?"
IMAGE_KINDS = corruptions("image")


def photograph(side: int) -> Image.Image:
    china = Image.fromarray(load_sample_images().images[0])
    return china.crop((100, 0, 520, 420)).resize((side, side), Image.Resampling.BOX)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def harm(corruption: Corruption, image: Image.Image) -> float:
    """Root mean square of the change as it is seen at 64 px."""

    def seen(pixels: np.ndarray) -> np.ndarray:
        small = Image.fromarray(pixels).resize((GRID, GRID), Image.Resampling.BOX)
        return np.asarray(small, np.float64)

    worse = corruption(image, seed=0, row=0)
    assert isinstance(worse, np.ndarray)
    assert worse.dtype == np.uint8 and worse.shape == (image.height, image.width, 3)
    return float(np.sqrt(((seen(worse) - seen(np.asarray(image))) ** 2).mean()))


def distance(a: str, b: str) -> int:
    """Fewest insertions, deletions, replacements and swaps of neighbours from one to the other."""
    cost = {(i, -1): i + 1 for i in range(-1, len(a))} | {(-1, j): j + 1 for j in range(-1, len(b))}
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            ways = [cost[i - 1, j] + 1, cost[i, j - 1] + 1, cost[i - 1, j - 1] + (x != y)]
            if i and j and x == b[j - 1] and a[i - 1] == y:
                ways.append(cost[i - 2, j - 2] + 1)
            cost[i, j] = min(ways)
    return cost[len(a) - 1, len(b) - 1]


@pytest.mark.parametrize("corruption", IMAGE_KINDS, ids=lambda c: f"{c.kind}{c.level}")
def test_large_and_small_images_suffer_alike(corruption: Corruption) -> None:
    small, large = harm(corruption, photograph(64)), harm(corruption, photograph(420))
    assert small > 1
    assert large / small == pytest.approx(1, abs=0.25)


def test_the_second_level_is_worse() -> None:
    image = photograph(200)
    for mild, strong in zip(IMAGE_KINDS[::2], IMAGE_KINDS[1::2], strict=True):
        assert (mild.level, strong.level) == (1, 2)
        assert harm(strong, image) > 1.3 * harm(mild, image)


def test_blur_is_a_gaussian_of_the_asked_width() -> None:
    pixels = np.zeros((129, 200, 3), np.uint8)
    pixels[64] = 255  # a line, so that rounding to whole grey levels does not matter
    spread = blur(Image.fromarray(pixels), 0.02)[:, 100, 0].astype(float)
    deviation = np.sqrt((spread * (np.arange(129) - 64) ** 2).sum() / spread.sum())
    assert deviation == pytest.approx(0.02 * 129, rel=0.05)


def test_noise_has_the_asked_strength_and_grain() -> None:
    grey = Image.new("RGB", (256, 128), (128, 128, 128))
    change = noise(grey, 0.08, np.random.default_rng(0)).astype(float) - 128
    assert change.std() == pytest.approx(0.08 * 255, rel=0.03)
    assert abs(change.mean()) < 0.3
    cells = change.reshape(64, 2, 128, 2, 3)
    assert np.ptp(cells, axis=(1, 3)).max() == 0  # 2 px a cell: 64 cells on the shorter side
    assert len(np.unique(cells[:, 0, :, 0, 0])) > 50


def test_jpeg_of_a_small_image_is_a_jpeg() -> None:
    small = photograph(GRID)
    truth = np.asarray(Image.open(io.BytesIO(encoded(small, "JPEG", quality=10, subsampling=0))))
    assert np.array_equal(jpeg(small, 10), truth)
    assert not np.array_equal(jpeg(small, 30), truth)


@pytest.mark.parametrize("corruption", IMAGE_KINDS, ids=lambda c: f"{c.kind}{c.level}")
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 90), (130, 5)])
def test_tiny_and_narrow_images_keep_their_size(
    corruption: Corruption, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    worse = corruption(Image.fromarray(pixels), seed=0, row=0)
    assert isinstance(worse, np.ndarray) and worse.shape == pixels.shape
    assert size == (1, 1) or not np.array_equal(worse, pixels)


def test_a_seed_and_a_row_tell_the_result() -> None:
    image = photograph(64)
    for corruption in (*IMAGE_KINDS, *corruptions("text")):
        shown: Any = TEXT if corruption.kind == "typos" else image
        first = corruption(shown, seed=3, row=5)
        corruption(shown, seed=3, row=6)
        assert np.array_equal(first, corruption(shown, seed=3, row=5))
        if corruption.kind in ("noise", "typos"):
            assert not np.array_equal(first, corruption(shown, seed=3, row=6))
            assert not np.array_equal(first, corruption(shown, seed=4, row=5))


def test_upright_reads_what_cameras_and_scanners_write() -> None:
    halves = np.zeros((40, 20, 3), np.uint8)
    halves[:20] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = upright(encoded(Image.fromarray(halves), "JPEG", exif=exif))
    assert np.asarray(turned)[-5:].mean() > 250 > 5 > np.asarray(turned)[:5].mean()
    deep = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    assert np.asarray(upright(encoded(deep, "PNG"))).tolist() == [[[100] * 3] * 8] * 8
    deep_pgm = b"P5\n8 8\n65535\n" + np.full((8, 8), 257 * 100, ">u2").tobytes()
    assert np.asarray(upright(deep_pgm)).tolist() == [[[100] * 3] * 8] * 8
    for dtype in (np.int32, np.float32):  # what is white in these is anyone's guess
        with pytest.raises(InputError, match="8 or 16 bits"):
            upright(encoded(Image.fromarray(np.full((8, 8), 100, dtype)), "TIFF"))
    palette = Image.fromarray(halves).convert("P")
    assert upright(encoded(palette, "PNG", transparency=b"\0\1")).mode == "RGB"
    assert upright(encoded(Image.fromarray(halves).convert("CMYK"), "JPEG")).mode == "RGB"
    for kind in ("JPEG", "PNG"):
        huge = upright(encoded(Image.new("RGB", (3 * LARGEST, 2 * LARGEST)), kind))
        assert huge.size == (LARGEST * 3 // 2, LARGEST)


def test_typos_are_as_many_as_asked() -> None:
    letters = sum(map(str.isalpha, TEXT))
    for rate in (0.04, 0.1):
        count = round(rate * letters)
        made = [distance(TEXT, typos(TEXT, rate, np.random.default_rng(s))) for s in range(60)]
        # errors beside each other may count as one, or (a swap past a doubled letter) as three
        assert 0.85 * count < np.mean(made) < 1.05 * count
        assert 1 <= min(made) <= max(made) <= 1.5 * count


def test_all_four_kinds_of_typo_occur_and_words_stay_words() -> None:
    kinds = {"shorter": 0, "longer": 0, "swapped": 0, "replaced": 0}
    for seed in range(200):
        typed = typos(TEXT, 1 / 60, np.random.default_rng(seed))
        assert distance(TEXT, typed) == 1
        assert len(typed.split()) == len(TEXT.split())
        if len(typed) != len(TEXT):
            kinds["shorter" if len(typed) < len(TEXT) else "longer"] += 1
        else:
            kinds["swapped" if sorted(typed) == sorted(TEXT) else "replaced"] += 1
    assert min(kinds.values()) > 20, kinds


def test_a_replaced_letter_is_a_neighbour_on_the_keyboard() -> None:
    truth = {"a": "qwsz", "g": "tyfhvb", "p": "ol", "m": "njk", "Q": "WA"}
    for sign, near in truth.items():
        typed = {typos(sign, 1.0, np.random.default_rng(seed)) for seed in range(100)}
        assert typed == {sign * 2, *near}


@pytest.mark.parametrize(
    "text", ["a", "7", "?", "a b c", "aab", "12 345", "Ünï çödé", "你好", "🙂"]
)
def test_every_text_changes_and_no_word_vanishes(text: str) -> None:
    for seed in range(50):
        for rate in (0.01, 0.5, 1.0):
            typed = typos(text, rate, np.random.default_rng(seed))
            assert typed != text
            assert len(typed.split()) == len(text.split())
    assert typos("  ", 0.5, np.random.default_rng(0)) == "  "


def test_each_modality_has_its_kinds_and_no_other() -> None:
    assert [(c.kind, c.level) for c in corruptions("text")] == [("typos", 1), ("typos", 2)]
    assert {c.kind for c in IMAGE_KINDS} == {"blur", "noise", "jpeg"}
    assert corruptions("text")[0].what == "typing errors in 4% of the letters"
    with pytest.raises(TypeError, match="typos"):
        corruptions("text")[0](photograph(8), seed=0, row=0)
    with pytest.raises(TypeError, match="blur"):
        IMAGE_KINDS[0](TEXT, seed=0, row=0)
