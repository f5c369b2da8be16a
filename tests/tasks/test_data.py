"""Reading sources, drawing shots, digests, pools."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import data
from tasks.config import Task
from tasks.errors import DataError
from tasks.sources import DIGITS, Source, read_source
from tasks.splits import Split, load_split
from tests.conftest import text_rows, write_rows

ROWS = [{"text": f"{word} number {at}", "kind": word} for at in range(5) for word in ("b", "a")]


def silent(*_: object) -> None:
    """No progress."""


def png(seed: int = 0, size: tuple[int, int] = (6, 5)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def read(path: Path | str, **options: Any) -> Source:
    return read_source("task.train", str(path), split="train", **options)


def test_text_formats_read_alike(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_json(tmp_path / "t.jsonl")
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    for name in ("t.parquet", "t.csv", "t.jsonl", "t.tsv"):
        source = read(tmp_path / name)
        assert (source.modality, source.column, len(source)) == ("text", "text", 10)
        assert source.label_names == ("a", "b")
        assert source.labels == ("b", "a") * 5
        assert source.raw(0) == "b number 0"


def test_images_are_read_from_folders_bytes_and_paths(tmp_path: Path) -> None:
    rows = []
    for at, name in enumerate(("test", "train")):  # class names that look like splits
        (tmp_path / "f" / name).mkdir(parents=True)
        (tmp_path / "f" / name / "x.png").write_bytes(png(at))
        rows.append({"image": {"bytes": png(at), "path": None}, "label": at})
    folder = read(tmp_path / "f")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["test", "train"])}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "i.parquet")
    (tmp_path / "i.csv").write_text("file,label\nf/test/x.png,test\nf/train/x.png,train\n")
    sources = [folder, read(tmp_path / "i.parquet"), read(tmp_path / "i.csv")]
    for source in sources:
        assert (source.modality, source.labels) == ("image", ("test", "train"))
        assert [source.digest(0), source.digest(1)] == [folder.digest(0), folder.digest(1)]
        assert source.raw(1) == png(1)


def test_content_read_twice_is_the_files_not_a_cached_copy(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", ROWS)
    before = path.stat()
    assert read(path).raw(1) == "a number 0"
    write_rows(path, [{**row, "text": row["text"].replace("number", "NUMBER")} for row in ROWS])
    import os

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path).raw(1) == "a NUMBER 0"


def test_labels_keep_their_words(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\none,None\ntwo,NA\nthree,1\n")
    assert read(tmp_path / "t.csv").labels == ("None", "NA", "1")
    write_rows(tmp_path / "n.jsonl", [{"text": "x", "label": n} for n in (10, 9, 10)])
    assert read(tmp_path / "n.jsonl").label_names == ("9", "10")


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"sentence": "x", "topic": "a"}, {}, ("sentence", "a")),
        ({"body": "x", "note": "y", "label": "a"}, {"text_column": "body"}, ("body", "a")),
        ({"text": "x", "a": "p", "b": "q"}, {"label_column": "b"}, ("text", "q")),
        ({"text": "x", "intent": "p", "id": 3}, {}, ("text", "p")),
        ({"text": "x", "score": 3}, {}, ("text", "3")),
    ],
)
def test_columns_are_inferred_or_named(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], expected: tuple[str, str]
) -> None:
    source = read(write_rows(tmp_path / "t.jsonl", [columns]), **options)
    assert (source.column, source.labels and source.labels[0]) == expected


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (
            [{"text": "x", "label": "a"}],
            {"label_column": "lbl"},
            ("task.label_column", "'lbl'", "text, label"),
        ),
        ([{"text": "x", "label": "a"}], {"text_column": "t"}, ("task.text_column", "'t'")),
        (
            [{"text": "x", "label": "a"}],
            {"image_column": "text"},
            ("task.image_column", "no images"),
        ),
        ([{"n": 1, "label": "a"}], {"text_column": "n"}, ("task.text_column", "no text")),
        ([{"a": "x", "b": "y", "c": "z"}], {}, ("task.label_column", "a, b, c")),
        ([{"p": "x", "q": "y", "label": "z"}], {}, ("task.text_column", "p, q, label")),
        ([{"text": "x", "label": None}], {"label_column": "label"}, ("row 0", "no label")),
        ([{"text": "x", "label": 0.5}], {"label_column": "label"}, ("float",)),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        read(write_rows(tmp_path / "t.jsonl", rows), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("strange", [-1, 2])
def test_an_index_that_is_no_class_is_no_label(tmp_path: Path, strange: int) -> None:
    """-1 is what `datasets` writes where it has no label; counted from the end it is a class."""
    kind = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    facts = features.arrow_schema.metadata  # the names; `datasets` itself would refuse a 2
    table = pa.table({"text": ["x", "y", "z"], "label": pa.array([0, 1, strange], pa.int64())})
    pq.write_table(table.replace_schema_metadata(facts), tmp_path / "t.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "t.parquet")
    told = str(caught.value)
    for words in ("row 2: no label", f"{strange} is none of its 2", "task.unlabelled"):
        assert words in told
    assert read(tmp_path / "t.parquet", labelled=False).raw(2) == "z"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, "no such file"),
        ("t.jsonl", b"{not json", "row 0: not JSON"),
        ("t.parquet", b"not parquet", "not readable"),
        ("t.csv", b"text,label\n", "no data"),
        ("t.xlsx", b"x", ".xlsx file"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name)


def test_a_hub_name_out_of_reach_is_one_line() -> None:
    with pytest.raises(DataError, match="nor a hub data set in reach") as caught:
        read("somebody/something")
    assert "\n" not in str(caught.value)


def test_the_digits_split_is_even_and_disjoint() -> None:
    train = read_source("task.train", DIGITS, split="train")
    test = read_source("task.test", DIGITS, split="test")
    assert (len(train), len(test), len(train.label_names)) == (901, 896, 10)
    assert train.label_names == tuple("0123456789")
    shared = {train.digest(row) for row in range(901)} & {test.digest(row) for row in range(896)}
    assert shared == set()


@pytest.fixture
def rows(tmp_path: Path) -> Source:
    return read(write_rows(tmp_path / "train.jsonl", text_rows(12, 3)))


def task(**changes: Any) -> Task:
    return Task(train="train", test="test", **changes)


def test_shots_are_stratified_seeded_and_stable(rows: Source) -> None:
    drawn, numbers = data.draw_shots(task(shots=4), rows, ("card", "refund"))
    assert drawn.labels == (0,) * 4 + (1,) * 4
    assert [rows.raw(number) for number in numbers] == list(drawn.inputs)
    assert drawn == data.draw_shots(task(shots=4), rows, ("card", "refund"))[0]
    assert drawn != data.draw_shots(task(shots=4, seed=1), rows, ("card", "refund"))[0]
    more, _ = data.draw_shots(task(shots=8), rows, ("card", "refund", "parcel"))
    assert set(drawn.digests) < set(more.digests)  # more shots, more classes: the same ones first


def test_a_repeated_example_is_not_two_shots(tmp_path: Path) -> None:
    twice = [{"text": text, "label": "a"} for text in ("One  thing", "one thing", "other")]
    source = read(write_rows(tmp_path / "t.jsonl", [*twice, {"text": "z", "label": "b"}]))
    with pytest.raises(DataError, match=r"task.shots: 3 asked, but class 'a' has 2 distinct"):
        data.draw_shots(task(shots=3), source, ("a", "b"))


def test_the_test_set_keeps_its_order_and_says_its_rows(rows: Source) -> None:
    split, numbers = data.labelled_split(rows, ("parcel", "card"), silent)
    assert numbers == sorted(numbers) and len(numbers) == len(split) == 24
    assert list(split.inputs) == [rows.raw(number) for number in numbers]
    assert rows.labels is not None
    assert [("parcel", "card")[label] for label in split.labels] == [
        rows.labels[number] for number in numbers
    ]


def test_classes_must_be_there_and_two(rows: Source) -> None:
    assert data.choose_classes(task(), rows, rows) == ("card", "parcel", "refund")
    assert data.choose_classes(task(classes=["refund", "card"]), rows, rows) == ("refund", "card")
    for classes, words in (
        (["card", "boat"], "'boat' has no example"),
        (["card"], "one class only"),
        (["card", "card"], "named twice"),
    ):
        with pytest.raises(DataError, match=words):
            data.choose_classes(task(classes=classes), rows, rows)


def test_equal_pixels_are_equal_whatever_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.open(io.BytesIO(png()))
    image.save(tmp_path / "a" / "x.png")
    image.save(tmp_path / "a" / "y.bmp")
    image.save(tmp_path / "a" / "z.webp", lossless=True)
    source = read(tmp_path / "a", labelled=False)
    assert len({source.digest(row) for row in range(3)}) == 1


@pytest.mark.parametrize("damage", ["cut", "not an image", "empty"])
def test_a_damaged_image_names_its_row(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a").mkdir()
    content = {"cut": png()[:60], "not an image": b"hello", "empty": b""}[damage]
    (tmp_path / "a" / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"task.train: .* row 0: (damaged image|no image)"):
        read(tmp_path / "a", labelled=False).digest(0)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_text_names_its_row(tmp_path: Path, text: str) -> None:
    source = read(
        write_rows(
            tmp_path / "t.jsonl", [{"text": "x", "label": "a"}, {"text": text, "label": "b"}]
        )
    )
    with pytest.raises(DataError, match="row 1: empty text"):
        source.digest(1)


def test_the_rest_is_a_pool_without_support_and_test(rows: Source) -> None:
    classes = ("card", "refund")
    support, _ = data.draw_shots(task(shots=4), rows, classes)
    held = {rows.digest(0)} - set(support.digests)
    pool = data.unlabelled_pool(
        task(unlabelled="rest"), rows, classes, (*support.digests, *held), silent
    )
    assert pool is not None
    assert len(pool) == 24 - 8 - len(held)
    assert set(pool.labels) == {-1}
    assert not set(pool.digests) & (set(support.digests) | held)
    assert data.unlabelled_pool(task(), rows, classes, (), silent) is None


def test_generic_inputs_are_of_other_classes(rows: Source) -> None:
    pool = data.generic_pool(task(), rows, ("card", "refund"), 5, (), silent)
    assert len(pool) == 5
    assert all(rows.labels and rows.labels[at] == "parcel" for at in where(rows, pool))
    with pytest.raises(DataError, match=r"set task.generic"):
        data.generic_pool(task(), rows, ("card", "refund", "parcel"), 5, (), silent)


def where(rows: Source, pool: Split) -> list[int]:
    by_digest = {rows.digest(at): at for at in range(len(rows))}
    return [by_digest[digest] for digest in pool.digests]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_split_survives_its_file(tmp_path: Path, modality: str) -> None:
    inputs: tuple[Any, ...] = ("a", "b") if modality == "text" else (b"1", b"2")
    split = Split(inputs, (0, -1), ("x", "y"))
    split.save(tmp_path / "s.parquet", modality)
    assert load_split(tmp_path / "s.parquet") == split
    assert split.sha256() != split.rows([1, 0]).sha256()
