"""Where inputs outside the task come from, and what is never among them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import DataError
from tasks.examples import sort_examples
from tasks.home import store
from tasks.outside import outside_inputs, outside_source
from tasks.prepare import prepare, require_outside
from tasks.recipes import parse_recipe
from tasks.sources import DIGITS, read_source
from tasks.splits import Split
from tasks.verify import verify
from tests.conftest import FILLERS, text_rows, write_rows


def prepared(sources: dict[str, str], classes: list[str]) -> Artifact:
    """The part of a prepared task that is looked at: its examples with digests."""
    folder = store() / "prepare" / "x"
    folder.mkdir(parents=True, exist_ok=True)
    modality = "text"
    for field, name in (("train", "support"), ("test", "test")):
        source = read_source(f"task.{field}", sources[field], split=field)
        modality = source.modality
        rows = [row for row, label in enumerate(source.labels or ()) if label in classes]
        labels = tuple(classes.index((source.labels or ())[row]) for row in rows)
        digests = tuple(map(source.digest, rows))
        inputs = tuple(map(source.raw, rows))
        Split(inputs, labels, digests).save(folder / f"{name}.parquet", modality)
    facts = {"modality": modality, "classes": classes}
    return Artifact(stage="prepare", path="prepare/x", sha256="", key="x", metrics=facts)


def recipe_of(sources: dict[str, Any], seed: int = 0, **limits: Any) -> Recipe:
    task = {**sources, "seed": seed}
    return parse_recipe(
        {"name": "x", "generalist": {"source": "hf:/nowhere"}, "task": task, "limits": limits}
    )


def test_other_classes_of_the_test_set_come_first(text_task: dict[str, str]) -> None:
    data = prepared(text_task, ["card", "parcel"])
    source, found = outside_inputs(recipe_of(text_task), data)
    assert source == "the other class of test.jsonl"
    test = read_source("task.test", text_task["test"], split="test")
    others = {test.raw(r) for r, label in enumerate(test.labels or ()) if label == "refund"}
    assert set(found) == others and len(found) == len(others)
    _, few = outside_inputs(recipe_of(text_task, samples=5), data)
    assert len(set(few)) == 5 and set(few) < others
    assert few == outside_inputs(recipe_of(text_task, samples=5), data)[1]
    assert set(few) != set(outside_inputs(recipe_of(text_task, seed=1, samples=5), data)[1])


def test_what_the_task_shows_and_what_is_broken_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"{name} {at}", "label": name} for name in ("a", "b") for at in range(4)]
    train = write_rows(tmp_path / "train.jsonl", [*rows, {"text": "Both", "label": "a"}])
    strange = [{"text": text, "label": "c"} for text in ("both", " ", "new", "NEW ", "other")]
    test = write_rows(
        tmp_path / "test.jsonl", [{**r, "text": r["text"] + "!"} for r in rows] + strange
    )
    sources = {"train": str(train), "test": str(test)}
    _, found = outside_inputs(recipe_of(sources), prepared(sources, ["a", "b"]))
    assert sorted(str(text).strip().lower() for text in found) == ["new", "other"]


def test_damaged_images_of_other_classes_do_not_stop_a_run(
    tmp_path: Path, image_task: dict[str, str]
) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    Image.new("RGB", (9, 8)).save(folder / "c.png")
    (folder / "b.png").write_bytes(b"\x89PNG broken")
    data = prepared(image_task, ["red", "green", "blue"])
    source, found = outside_inputs(recipe_of(image_task, outside=str(folder)), data)
    assert (source, len(found)) == ("grey", 2)
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"^limits\.outside: .*has 1 readable .* or leave it out$"):
        outside_inputs(recipe_of(image_task, outside=str(folder)), data)
    with pytest.raises(DataError, match=r"^limits\.outside: .*has 1 readable .* or leave it out$"):
        require_outside(recipe_of(image_task, outside=str(folder)), data)  # before any compute
    one = recipe_of(image_task, outside=str(folder), samples=1)
    require_outside(one, data)
    assert len(outside_inputs(one, data)[1]) == 1


def test_the_test_set_itself_holds_nothing_from_outside(text_task: dict[str, str]) -> None:
    """Left out, its other classes would be shown, or another domain: it has another key."""
    plain = recipe_of(text_task)
    named = recipe_of(text_task, outside=text_task["test"])
    data = prepared(text_task, ["card", "parcel", "refund"])
    require_outside(plain, data)
    with pytest.raises(DataError, match=r"limits\.outside: .*has 0 readable"):
        require_outside(named, data)
    assert verify.key(plain, data) != verify.key(named, data)


@pytest.fixture
def beside(tmp_path: Path) -> dict[str, str]:
    """Tables whose images lie in a folder beside theirs, as the recipe allows."""
    random = np.random.default_rng(0)
    (tmp_path / "tables").mkdir()
    (tmp_path / "images").mkdir()
    sources = {}
    for split in ("train", "test", "other"):
        lines = ["image,label"]
        for at in range(4):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{split}-{at}.png")
            lines.append(f"../images/{split}-{at}.png,{'ab'[at % 2]}")
        path = tmp_path / "tables" / f"{split}.csv"
        path.write_text("\n".join(lines) + "\n")
        sources[split] = str(path)
    return sources


def test_files_outside_their_folder_are_read_where_the_recipe_allows_it(
    beside: dict[str, str],
) -> None:
    other = beside.pop("other")
    allowed = recipe_of({**beside, "allow_outside_files": True, "shots": 2}, outside=other)
    data = prepare.compute(allowed)
    require_outside(allowed, data)
    assert len(outside_inputs(allowed, data)[1]) == 4
    with pytest.raises(DataError, match=r"limits\.outside: .*has 0 readable"):
        require_outside(recipe_of({**beside, "shots": 2}, outside=other), data)
    served: Any = SimpleNamespace(recipe=allowed, specialist=SimpleNamespace(modality="image"))
    reference: Any = SimpleNamespace(classes=("a", "b"), learnt=frozenset(), known={})
    assert sort_examples(served, reference, None).fresh == [0, 1, 2, 3]


def test_a_named_source_needs_no_labels_but_the_right_modality(
    tmp_path: Path, text_task: dict[str, str], image_task: dict[str, str]
) -> None:
    chat = write_rows(tmp_path / "chat.jsonl", [{"text": f"hello {at}"} for at in range(3)])
    recipe = recipe_of(text_task, outside=str(chat))
    source, found = outside_inputs(recipe, prepared(text_task, ["card", "parcel"]))
    assert (source, sorted(found)) == ("chat.jsonl", ["hello 0", "hello 1", "hello 2"])
    with pytest.raises(DataError, match=r"limits\.outside: .* holds texts, task\.train images"):
        outside_source(recipe, "image")
    with pytest.raises(DataError, match=r"limits\.outside: .*no such file"):
        outside_source(recipe_of(text_task, outside="./nowhere.csv"), "text")
    assert outside_source(recipe_of(text_task), "text") is None
    assert outside_source(recipe_of(text_task, outside="./nowhere.csv", samples=0), "text") is None


def test_without_other_classes_texts_come_from_the_python_manual(tmp_path: Path) -> None:
    rows = text_rows(30, 1)  # six words each
    long = [{**row, "text": " ".join([row["text"], *FILLERS[:4]])} for row in text_rows(10, 2)]
    sources = {
        "train": str(write_rows(tmp_path / "a.jsonl", rows)),
        "test": str(write_rows(tmp_path / "b.jsonl", [*rows[:40], *long])),
    }
    data = prepared(sources, ["card", "parcel", "refund"])
    source, found = outside_inputs(recipe_of(sources, samples=100), data)
    assert source == "sentences of the Python manual"
    assert len(set(found)) == 100
    assert {len(str(text).split()) for text in found} <= set(range(6, 11))
    assert all(str(text)[0].isupper() and str(text)[-1] in ".!?" for text in found)
    assert any("class" in str(text) or "function" in str(text) for text in found)


def sizes(images: list[bytes | str]) -> list[tuple[int, int]]:
    return [Image.open(io.BytesIO(image)).size for image in images if isinstance(image, bytes)]


def test_without_other_classes_images_come_from_scikit_learn(image_task: dict[str, str]) -> None:
    data = prepared(image_task, ["red", "green", "blue"])
    source, found = outside_inputs(recipe_of(image_task, samples=21), data)
    assert "photographs" in source and "digits" in source
    assert len(found) == 21 == len(set(found))
    assert sizes(found).count((8, 8)) == 10
    tiles = [size for size in sizes(found) if size != (8, 8)]
    assert len(set(tiles)) > 4 and all(w == h and 427 // 6 <= w <= 427 // 2 for w, h in tiles)
    assert found == outside_inputs(recipe_of(image_task, samples=21), data)[1]


def test_a_task_of_digits_is_not_shown_digits() -> None:
    sources = {"train": DIGITS, "test": DIGITS}
    every = prepared(sources, [str(digit) for digit in range(10)])
    source, found = outside_inputs(recipe_of(sources, samples=12), every)
    assert "digits" not in source and (8, 8) not in sizes(found) and len(found) == 12
    some = prepared(sources, ["0", "1", "2"])
    source, found = outside_inputs(recipe_of(sources, samples=12), some)
    assert source == "the 7 other classes of sklearn:digits"
    assert sizes(found) == [(8, 8)] * 12
    own = read_source("task.test", DIGITS, split="test")
    assert not {own.raw(r) for r, y in enumerate(own.labels or ()) if y in "012"} & set(found)


def test_the_draw_does_not_follow_the_order_of_the_source(text_task: dict[str, str]) -> None:
    data = prepared(text_task, ["card"])  # two other classes, one after the other in the file
    _, found = outside_inputs(recipe_of(text_task, samples=30), data)
    money = np.mean(["refund" in str(text) or "money" in str(text) for text in found])
    assert 0.1 < money < 0.6
