"""What is found between and inside the splits, and what each policy makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import DataError
from tasks.leaks import kept_rows, leaks, say_what_was_found
from tasks.load import load
from tasks.prepare import prepare
from tasks.recipes import parse_recipe
from tests.conftest import write_rows

# rows 0 to 5; every one is a shot
TRAIN = [
    ("where is my card", "card"),
    ("my chip is not read by the machine", "card"),
    ("plastic card with a lost pin", "card"),
    ("the courier left my parcel in the rain", "parcel"),
    ("where is my card?", "parcel"),
    ("a van drove off with my box", "parcel"),
]
TEST = [
    ("please help with the pin today", "card"),
    ("my chip is not read by the MACHINE", "card"),  # exact: case and spacing do not count
    ("The courier left my parcel, in the rain!", "parcel"),  # near
    ("is the box late", "parcel"),
    ("a van drove off with my box.", "card"),  # near, and under another label
]
POLICY = {"exact": "drop", "near": "drop", "conflicts": "warn"}

Run = Callable[..., tuple[Artifact, Artifact]]


def rows(examples: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": text, "intent": label} for text, label in examples]


@pytest.fixture
def run(tmp_path: Path, text_generalist: str) -> Run:
    """Prepares a task and looks for leaks in it; returns both artifacts."""

    def run(
        test: list[tuple[str, str]] = TEST, train: list[tuple[str, str]] = TRAIN, **policy: str
    ) -> tuple[Artifact, Artifact]:
        recipe = text_recipe(tmp_path, text_generalist, train, test, {**POLICY, **policy})
        data = prepare.compute(recipe)
        return data, leaks.compute(recipe, data, load.compute(recipe))

    return run


def text_recipe(
    folder: Path,
    generalist: str,
    train: list[tuple[str, str]],
    test: list[tuple[str, str]],
    policy: dict[str, str],
) -> Recipe:
    task = {
        "train": str(write_rows(folder / "train.jsonl", rows(train))),
        "test": str(write_rows(folder / "test.jsonl", rows(test))),
        "shots": 3,
    }
    source = {"source": generalist}
    return parse_recipe({"name": "n", "generalist": source, "task": task, "leaks": policy})


def test_everything_is_found_counted_and_listed(run: Run) -> None:
    data, leaked = run()
    report = leaked.json_file("leaks.json")
    assert (data.metrics["leaks"], data.metrics["dropped"], data.metrics["test"]["n"]) == (1, 1, 4)
    counts = {key: report[key] for key in ("exact", "near", "within", "conflicts", "dropped")}
    assert counts == {"exact": 1, "near": 2, "within": 1, "conflicts": 2, "dropped": 3}
    assert report["policy"] == POLICY
    found = [
        (row["kind"], row["how"], row["support"], row["other"], row["split"])
        for row in report["found"]
    ]
    assert sorted(found) == [
        ("conflict", "text", 0, 4, "support"),
        ("conflict", "text", 5, 4, "test"),
        ("exact", "digest", 1, 1, "test"),
        ("near", "text", 3, 2, "test"),
        ("near", "text", 5, 4, "test"),
        ("within", "text", 0, 4, "support"),
    ]
    assert [row["kind"] for row in report["found"]][:3] == ["conflict", "conflict", "exact"]
    last = report["found"][-1]
    assert (last["support_label"], last["other_label"]) == ("card", "parcel")
    assert (last["shown"], last["other_shown"]) == ("where is my card", "where is my card?")
    # of the four rows that are left after the exact one went, the near two go
    assert leaked.json_file("dropped.json") == [1, 3]
    assert kept_rows(leaked, 4) == [0, 2]


def test_a_clean_task_has_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    train = [row for row in TRAIN if row[0] != "where is my card?"]
    train.append(("late delivery of the parcel", "parcel"))
    _, leaked = run(TEST[:1] + TEST[3:4], train)
    report = leaked.json_file("leaks.json")
    assert report["found"] == [] and kept_rows(leaked, 2) == [0, 1]
    assert not any(report[key] for key in ("exact", "near", "within", "conflicts", "dropped"))
    say_what_was_found(leaked)
    assert capsys.readouterr().err.count("!") == 0


def test_a_warning_tells_each_kind_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    data, leaked = run(exact="warn", near="warn")
    assert data.metrics["test"]["n"] == 5 and kept_rows(leaked, 5) == [0, 1, 2, 3, 4]
    assert leaked.json_file("leaks.json")["dropped"] == 0
    say_what_was_found(leaked)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("! ")]
    assert len(lines) == 4
    for line, words in zip(
        lines,
        (
            ("1 of the support set's 6", "also in the test set", "'my chip", "leaks.exact: drop"),
            ("2 of", "nearly the same", "'the courier", "'The courier", "leaks.near: drop"),
            ("1 of", "repeat another", "'where is my card?'"),
            ("2 examples have two labels", "'parcel' and 'card'"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_what_was_left_out_is_told(run: Run) -> None:
    warnings = run()[1].metrics["warnings"]
    assert "3 test examples are left out for it" in warnings
    assert not any("set leaks.near" in line for line in warnings)


def test_near_ones_are_not_looked_for_where_ignored(run: Run) -> None:
    report = run(near="ignore")[1].json_file("leaks.json")
    assert (report["exact"], report["near"], report["within"]) == (1, 0, 0)
    assert {row["how"] for row in report["found"]} == {"digest"}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"exact": "stop"}, ("task.test: 1 of", "also in", "'my chip", "leaks.exact: drop")),
        ({"near": "stop"}, ("task.test: 2 of", "nearly the same", "leaks.near: drop")),
        ({"conflicts": "stop"}, ("2 examples have two labels", "'parcel' and 'card'", "mend")),
    ],
)
def test_a_stop_is_one_line(run: Run, policy: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        run(**policy)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_repeat_inside_the_support_set_stops_where_near_ones_do(run: Run) -> None:
    with pytest.raises(DataError, match=r"task.train: 1 of .*'where is my card' and .*leaks.near"):
        run(TEST[:1] + TEST[3:4], near="stop")


def test_an_exact_copy_with_two_labels_is_a_conflict(run: Run) -> None:
    test = [*TEST[:1], *TEST[3:4], ("Where is  my card", "parcel")]
    report = run(test, near="ignore")[1].json_file("leaks.json")
    assert (report["exact"], report["conflicts"]) == (1, 1)
    twice = [*TRAIN[:4], ("Where is my card", "parcel"), TRAIN[5]]
    report = run(TEST[:1] + TEST[3:4], twice, near="ignore")[1].json_file("leaks.json")
    assert (report["within"], report["conflicts"]) == (1, 1)


@pytest.mark.parametrize("field", ["exact", "near"])
def test_dropping_a_class_s_last_example_is_refused(run: Run, field: str) -> None:
    copy = TRAIN[3] if field == "exact" else TEST[2]
    with pytest.raises(DataError, match=rf"leaks.{field}: drop leaves .* class 'parcel'"):
        run([*TEST[:1], copy])


def test_the_list_ends_at_fifty(run: Run) -> None:
    endings = [f"The courier left my parcel in the rain{'!' * (n + 1)}" for n in range(60)]
    test = [*TEST[:1], TEST[3], *((text, "parcel") for text in endings)]
    report = run(test)[1].json_file("leaks.json")
    assert len(report["found"]) == 50
    assert (report["near"], report["dropped"]) == (1, 60)


def test_other_policies_and_other_data_are_looked_at_again(run: Run) -> None:
    _, first = run()
    assert run()[1] == first
    assert run(near="warn")[1].key != first.key
    assert run(TEST[:4])[1].key != first.key


def test_pictures_need_no_generalist_and_are_named_by_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for row in range(3):
                noise = gaussian_filter(random.normal(size=(48, 48, 3)), (2, 2, 0))
                pixels = np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{row}.png")
    copied = Image.open(tmp_path / "train" / "a" / "1.png").crop((2, 0, 48, 46))
    copied.save(tmp_path / "test" / "b" / "9.jpg", quality=60)
    task = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test"), "shots": 3}
    raw: dict[str, Any] = {"name": "n", "generalist": {"source": "x"}, "task": task}
    recipe = parse_recipe(raw)
    data = prepare.compute(recipe)
    leaked = leaks.compute(recipe, data, data)
    entries = leaked.json_file("leaks.json")["found"]
    assert [(e["kind"], e["how"], e["support"], e["other"]) for e in entries] == [
        ("conflict", "image", 1, 6),
        ("near", "image", 1, 6),
    ]
    assert entries[0]["similarity"] > 0.9 and entries[0]["shown"].startswith("sha256:")
    assert "row 1 of" in leaked.metrics["warnings"][0]
    stopped = parse_recipe({**raw, "leaks": {"near": "stop"}})
    with pytest.raises(DataError, match=r"task.test: 1 of .* \(such as row 1 of .*row 6 of "):
        leaks.compute(stopped, data, data)


def test_copies_inside_the_test_set_count_once(run: Run) -> None:
    """An interval over every example twice would be narrower by a third than it may be."""
    once, _ = run(near="ignore")
    again = [(text.upper(), label) for text, label in TEST]
    twice, leaked = run([*TEST, *again], near="ignore")
    assert twice.metrics["test"] == once.metrics["test"]
    assert twice.metrics["content"] == once.metrics["content"]
    assert (once.metrics["dropped"], twice.metrics["dropped"]) == (1, 6)
    for name in ("test.parquet", "support.parquet"):
        assert (twice.folder / name).read_bytes() == (once.folder / name).read_bytes()
    assert twice.json_file("rows.json")["test"] == [0, 2, 3, 4]
    report = leaked.json_file("leaks.json")
    assert (report["repeats"], report["conflicts"], report["dropped"]) == (5, 0, 6)
    told = leaked.metrics["warnings"]
    assert any("5 test examples repeat an earlier one (such as 'please help" in t for t in told)
    assert "1 test examples are left out for it" in told


def test_a_copy_inside_the_test_set_under_another_label_is_a_conflict(run: Run) -> None:
    clean = [TEST[0], TEST[3]]
    _, leaked = run([*clean, (TEST[0][0], "parcel")], near="ignore")
    report = leaked.json_file("leaks.json")
    assert (report["repeats"], report["conflicts"], report["exact"]) == (1, 1, 0)
    assert report["found"] == []  # its rows would be read as rows of task.train
    assert any("1 example has two labels" in line for line in leaked.metrics["warnings"])
    with pytest.raises(DataError, match=r"task.test: .*two labels .*'please help with the pin "):
        run([*clean, (TEST[0][0], "parcel")], near="ignore", conflicts="stop")
    with pytest.raises(DataError, match=r"task.test: every example of class 'parcel' .*mend"):
        run([TEST[0], (TEST[0][0], "parcel")], near="ignore")


def test_source_rows_are_written_beside_the_splits(run: Run) -> None:
    data, _ = run()
    rows = json.loads((data.folder / "rows.json").read_text())
    assert sorted(rows["support"]) == [0, 1, 2, 3, 4, 5]
    assert rows["test"] == [0, 2, 3, 4]
    assert [pair["rows"] for pair in rows["exact"]] == [[1, 1]]
