from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from exports.preprocess import ImagePreprocess, InputError, TextPreprocess, load_preprocess

SETTINGS = {
    "modality": "image",
    "size": [24, 32],
    "resize": 32,
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "labels": ["a", "b"],
}


@pytest.fixture
def preprocess() -> ImagePreprocess:
    return ImagePreprocess.from_dict(SETTINGS)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A small PNG that claims to be huge."""
    small = png(np.zeros((2, 2), np.uint8))
    header = bytearray(small[12:29])  # b"IHDR", width, height and five bytes
    header[4:12] = side.to_bytes(4, "big") * 2
    return small[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "big") + small[33:]


def test_every_form_of_an_image_gives_the_same_pixels(preprocess, pixels, tmp_path) -> None:
    encoded = png(pixels)
    path = tmp_path / "x.png"
    path.write_bytes(encoded)
    text = base64.b64encode(encoded).decode()
    expected = preprocess.decode(pixels)
    assert expected.shape == (24, 32, 3) and expected.dtype == np.uint8
    raws = (encoded, path, str(path), text, f"data:image/png;base64,{text}")
    for raw in (*raws, base64.encodebytes(encoded).decode(), Image.fromarray(pixels)):
        assert np.array_equal(preprocess.decode(raw), expected)
    assert np.array_equal(preprocess.decode(pixels / np.float32(255)), expected)


def test_resize_crop_and_normalisation_are_pillows_and_numpys(preprocess, pixels) -> None:
    resized = Image.fromarray(pixels).resize((45, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[4:28, 6:38]
    assert np.array_equal(preprocess.decode(pixels), expected)
    batch = preprocess([pixels, pixels])["pixel_values"]
    assert batch.shape == (2, 3, 24, 32) and batch.dtype == np.float32
    channel = (expected[:, :, 1] / 255 - 0.4) / 0.3
    np.testing.assert_allclose(batch[1, 1], channel, atol=1e-6)
    assert preprocess([])["pixel_values"].shape == (0, 3, 24, 32)


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (1, 1), (24, 32)])
def test_any_size_fits(preprocess, shape) -> None:
    assert preprocess.decode(np.zeros(shape, np.uint8)).shape == (24, 32, 3)


def test_other_modes(preprocess, pixels, tmp_path) -> None:
    grey = pixels[:, :, 0]
    same = preprocess.decode(np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(preprocess.decode(grey), same)
    assert np.array_equal(preprocess.decode(grey[:, :, None]), same)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert np.array_equal(preprocess.decode(tmp_path / "deep.png"), same)
    for most in (65535, 4095):  # Pillow opens both as mode I, and scales the second itself
        head = f"P5\n{grey.shape[1]} {grey.shape[0]}\n{most}\n".encode()
        raw = head + np.rint(grey / 255 * most).astype(">u2").tobytes()
        off = preprocess.decode(raw).astype(int) - same
        assert np.abs(off).max() <= (0 if most == 65535 else 1)
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    assert np.array_equal(preprocess.decode(alpha), preprocess.decode(pixels))
    palette = Image.fromarray(pixels).convert("P")
    palette.save(tmp_path / "p.gif", transparency=0)
    assert preprocess.decode(tmp_path / "p.gif").shape == (24, 32, 3)


def test_a_photograph_is_turned_upright(preprocess, tmp_path) -> None:
    image = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "p.jpg", exif=exif)
    square = ImagePreprocess.from_dict({**SETTINGS, "size": [80, 40], "resize": 40})
    assert square.decode(tmp_path / "p.jpg").shape == (80, 40, 3)


def test_numbers_of_unknown_range_are_refused(preprocess, pixels) -> None:
    for dtype, mode in ((np.int32, "I"), (np.float32, "F")):
        deep = Image.fromarray(pixels[:, :, 0].astype(dtype))
        buffer = io.BytesIO()
        deep.save(buffer, "TIFF")
        for raw in (buffer.getvalue(), deep):
            with pytest.raises(InputError, match=f"mode {mode}.*8 or 16 bits") as caught:
                preprocess.decode(raw)
            assert "\n" not in str(caught.value)


def test_bad_images_are_one_line(preprocess, pixels, tmp_path) -> None:
    encoded = png(pixels)
    (tmp_path / "cut.png").write_bytes(encoded[: len(encoded) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    cases = {
        tmp_path / "cut.png": "cut.png: the image is corrupt",
        tmp_path / "text.png": "text.png: not an image",
        tmp_path / "empty.png": "empty.png: the file is empty",
        tmp_path / "gone.png": "gone.png: no such file",
        tmp_path: "is a folder",
        "!" * 80: "neither a file nor base64",
        bomb(20_000): "more than 100,000,000 pixels",
        bomb(11_000): "11000 x 11000 pixels is more than",
        3: "expected bytes",
    }
    for raw, match in cases.items():
        with pytest.raises(InputError, match=match) as caught:
            preprocess.decode(raw)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    large = ImagePreprocess.from_dict({**SETTINGS, "size": [224, 224], "resize": 256})
    for width, height in ((20_000, 1), (1, 20_000)):  # 138 bytes, 4 GB once enlarged
        line = png(np.zeros((height, width, 3), np.uint8))
        with pytest.raises(InputError, match=f"row 0: {width} x {height} pixels is too narrow"):
            large([line])
    for values, match in (
        (np.zeros((3, 4, 5)), "shape"),
        (np.zeros((4, 4, 3)) + 2.0, r"leave \[0, 1\]"),
        (np.full((4, 4), 300), r"leave \[0, 255\]"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.array([["a"]]), "expected uint8"),
    ):
        with pytest.raises(InputError, match=match):
            preprocess.decode(values)
    with pytest.raises(InputError, match="row 1"):
        preprocess([pixels, b"broken"])


def word_tokenizer() -> Tokenizer:
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "my", "card", "lost"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def test_texts_are_cut_and_padded_to_the_longest() -> None:
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(length=64)  # as some files say; the batch decides instead
    text = TextPreprocess.from_dict({"max_length": 5, "pad_id": 9}, tokenizer.to_str())
    assert text.encode(["my card", "my card lost my card lost"]) == [[2, 4, 5, 3], [2, 4, 5, 6, 3]]
    feed = text(["my card", "my card lost my card lost"])
    assert feed["input_ids"].tolist() == [[2, 4, 5, 3, 9], [2, 4, 5, 6, 3]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert feed["input_ids"].dtype == np.int64
    for texts, match in ((["my", "  "], "row 1: the text is empty"), ([3], "row 0: expected text")):
        with pytest.raises(InputError, match=match):
            text.encode(texts)  # type: ignore[arg-type]


def write(folder: Path, settings: object, tokenizer: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocess.json").write_text(json.dumps(settings))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    return folder


def test_load_preprocess_and_its_errors(tmp_path) -> None:
    loaded, labels = load_preprocess(write(tmp_path / "i", SETTINGS))
    assert isinstance(loaded, ImagePreprocess) and labels == ["a", "b"]
    text = {"modality": "text", "max_length": 8, "pad_id": 0, "labels": ["a"]}
    folder = write(tmp_path / "t", text, word_tokenizer().to_str())
    assert isinstance(load_preprocess(folder)[0], TextPreprocess)
    missing = {key: value for key, value in SETTINGS.items() if key != "mean"}
    for folder, match in (
        (tmp_path / "nowhere", "no such file"),
        (write(tmp_path / "a", missing), "'mean' is missing"),
        (write(tmp_path / "b", {**SETTINGS, "modality": "smell"}), "'smell'"),
        (write(tmp_path / "c", {**SETTINGS, "interpolation": "magic"}), "'magic'"),
        (write(tmp_path / "d", text), "tokenizer.json: no such file"),
        (write(tmp_path / "e", text, "{}"), "not a fast tokenizer"),
    ):
        with pytest.raises(InputError, match=match):
            load_preprocess(folder)
    (tmp_path / "a" / "preprocess.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_preprocess(tmp_path / "a")
