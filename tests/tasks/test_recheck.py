"""Examining champions made by hand: what is new, what it is compared with, what is decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from exports.unpaired import miettinen_nurminen
from exports.verdict import paired_interval
from tasks import registry
from tasks.errors import DataError, RecipeError
from tasks.recheck import examine
from tasks.registry import Version, champions, find_version
from tests.conftest import FILLERS, WORDS, text_rows, write_rows
from tests.quiet import QUIET
from tests.tasks.lines import (
    ALL,
    FEW,
    MOST,
    NAME,
    SOME,
    add_version,
    copied_home,
    crown,
    make_task,
    recipe_of,
    rows_of,
)

pytestmark = QUIET


@dataclass
class Line:
    """The model of the tests: version 1 knows most words, 2 some, 3 few, 4 remembers nothing."""

    task: dict[str, str]
    folder: Path

    def new(self, rows: list[dict[str, str]]) -> str:
        return str(write_rows(self.folder / "new.jsonl", rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A home with four versions, made once: registering takes a second each."""
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        task = make_task(folder / "task")
        recipe = recipe_of(task)
        for at, known in enumerate((MOST, SOME, FEW)):
            add_version(folder / f"made-{at}", recipe, known, teacher=ALL if at < 2 else None)
        listed = recipe_of(task, task={"classes": sorted(WORDS)})
        add_version(folder / "made-3", listed, {"card": SOME["card"]}, remembers=False)
    yield folder / "home", task


@pytest.fixture
def line(made: tuple[Path, dict[str, str]], home: Path, tmp_path: Path) -> Line:
    copied_home(made[0], home)
    return Line(made[1], tmp_path)


def version(number: str, *before: str) -> Version:
    return crown(find_version(NAME, number), *before)


def answers(known: dict[str, tuple[str, ...]], rows: list[dict[str, str]]) -> list[bool]:
    """By hand: the class with most of its known words, the first where they are equal."""
    found = []
    for row in rows:
        words = row["text"].split()
        points = [sum(word in known[label] for word in words) for label in WORDS]
        found.append(list(WORDS)[points.index(max(points))] == row["intent"])
    return found


def test_nothing_new_holds(line: Line) -> None:
    found = examine(version("2"))
    assert found["decision"] == "hold" and found["labelled"]["n_fresh"] == 0
    assert "no example of" in found["reasons"][0]
    rows = rows_of(60, 2, text_rows(20, 1))
    assert found["first"]["n"] == len(rows)
    assert found["first"]["right"] == sum(answers(SOME, rows))


def test_an_unchanged_test_set_is_not_read_and_a_changed_one_is(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, path = version("2"), Path(line.task["test"])
    before = path.read_text()

    def read(*_: object) -> None:
        raise AssertionError("read")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.recheck.sort_examples", read)
        assert examine(champion)["decision"] == "hold"
    new = rows_of(20, 55, [*rows_of(60, 2), *text_rows(20, 1)])
    try:
        path.write_text(before + "".join(json.dumps(row) + "\n" for row in new))
        assert examine(champion)["labelled"]["fresh"]["n"] == len(new)
    finally:
        path.write_text(before)


def test_new_examples_are_told_from_known_ones_and_counted_once(line: Line) -> None:
    known = [json.loads(text) for text in Path(line.task["test"]).read_text().splitlines()]
    learnt = [json.loads(text) for text in Path(line.task["train"]).read_text().splitlines()]
    new = rows_of(40, 50, [*known, *learnt])
    found = examine(version("2"), line.new([*new, *known[:30], *new[:10]]))
    fresh, first = found["labelled"]["fresh"], found["first"]
    right = answers(SOME, new)
    assert (fresh["n"], fresh["right"]) == (len(new), sum(right))
    bounds = miettinen_nurminen(first["right"], first["n"], sum(right), len(new))
    assert fresh["drop_ci"] == pytest.approx(bounds)
    teacher = found["labelled"]["teacher"]
    assert teacher["drop"] == pytest.approx(paired_interval(answers(ALL, new), right)[0])
    # the shots that it was learnt from tell nothing; the rest of train's rows would
    shots = examine(version("2"), line.new(learnt))["labelled"]["n_fresh"]
    assert shots == len(learnt) - 3 * 8


def test_an_accuracy_that_has_fallen_asks_for_a_new_one(line: Line) -> None:
    """Words of the last two places only, of which version 2 knows none."""
    rows = [
        {"text": f"{FILLERS[a]} {FILLERS[b]} {word} {FILLERS[c]}", "intent": label}
        for label, words in WORDS.items()
        for word in words[3:]
        for a, b, c in ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (2, 5, 7), (1, 8, 3))
    ]
    found = examine(version("2"), line.new(rows))
    assert found["decision"] == "respecialize"
    assert "below what it had at first" in found["reasons"][0]
    assert "below its teacher" in found["reasons"][1]
    assert found["labelled"]["fresh"]["accuracy"] == pytest.approx(1 / 3)


def test_too_few_new_examples_are_inconclusive_and_the_number_is_told(line: Line) -> None:
    rows = rows_of(40, 50, rows_of(60, 2))
    wrong = [row for row, right in zip(rows, answers(SOME, rows), strict=True) if not right][:1]
    right = [row for row, fine in zip(rows, answers(SOME, rows), strict=True) if fine][:4]
    found = examine(version("2"), line.new([*wrong, *right]))
    assert found["decision"] == "inconclusive"
    assert "new examples" in found["labelled"]["fresh"]["needed_text"]


def test_an_earlier_champion_that_is_better_comes_back(line: Line) -> None:
    rows = rows_of(60, 60, [*rows_of(60, 2), *text_rows(20, 1)])
    found = examine(version("3", "2", "1"), line.new(rows))
    assert (found["decision"], found["to"]) == ("rollback", "1")
    gains = {row["version"]: row for row in found["labelled"]["earlier"]}
    assert list(gains) == ["2", "1"]
    expected = paired_interval(answers(MOST, rows), answers(FEW, rows), 1 - 0.05 / 2)
    assert gains["1"]["n"] == len(rows)
    assert gains["1"]["gain_ci"] == pytest.approx(expected[1:3])


def test_the_pool_that_it_was_distilled_on_is_not_new(line: Line, tmp_path: Path) -> None:
    train = Path(line.task["train"]).read_text().splitlines()
    for pool, known, fresh in (("rest", ALL, 0), (None, {"card": ALL["card"]}, len(train) - 24)):
        recipe = recipe_of(line.task, task={"unlabelled": pool})
        made = add_version(tmp_path / str(pool), recipe, known)
        found = examine(crown(made), line.task["train"])["labelled"]
        assert found["n_fresh"] == fresh  # 24: eight shots of each of three classes
    other = str(write_rows(tmp_path / "generic.jsonl", text_rows(9, 90)))
    changes = {"task": {"generic": other}, "prune": {"calibration": "generic", "samples": 100}}
    recipe = recipe_of(line.task, **changes)
    made = add_version(tmp_path / "other", recipe, {"refund": ALL["refund"]})
    # as many as there are shots were drawn of the 27
    assert examine(crown(made), other)["labelled"]["n_fresh"] == 3


def test_equal_promotions_may_not_add_up(line: Line) -> None:
    """Nothing is new, but the first of the line was better on the very test set."""
    champion = version("3", "2", "1")
    found = examine(champion)
    assert (found["decision"], found["to"]) == ("rollback", "1")
    rows = rows_of(60, 2, text_rows(20, 1))
    expected = paired_interval(answers(MOST, rows), answers(FEW, rows))
    assert found["line"]["n"] == len(rows)
    assert found["line"]["gain_ci"] == pytest.approx(expected[1:3])
    # a version never changes: the second recheck takes the figure from its tag
    tagged = find_version(NAME, "3")
    assert json.loads(tagged.tags["winnow.line"]) == found["line"]
    assert examine(crown(tagged, "2", "1"))["line"] == found["line"]
    # one promotion was compared when it was made
    assert examine(version("3", "2"))["line"] is None


def test_labels_that_have_changed(line: Line) -> None:
    known = [json.loads(text) for text in Path(line.task["test"]).read_text().splitlines()]
    names = dict(zip(sorted(WORDS), [*sorted(WORDS)[1:], sorted(WORDS)[0]], strict=True))
    half = [{**row, "intent": names[row["intent"]]} for row in known[::2]]
    found = examine(version("1"), line.new([*half, *known[1::2]]))
    assert found["decision"] == "respecialize" and "changed labels" in found["reasons"][0]
    row = found["labelled"]["relabelled"]
    assert (row["n"], row["changed"]) == (len(known), len(half))
    now = answers(MOST, [*known[1::2], *half])
    then = answers(MOST, [*known[1::2], *known[::2]])
    assert row["drop"] == pytest.approx((sum(then) - sum(now)) / len(known))


def test_classes_that_it_does_not_know(line: Line) -> None:
    rows = rows_of(10, 70, rows_of(60, 2))
    new = line.new([*rows, {"text": "a stolen wallet", "intent": "fraud"}])
    found = examine(version("1"), new)
    assert found["decision"] == "respecialize"
    assert found["labelled"]["unknown"] == {"fraud": 1}
    assert found["labelled"]["n_fresh"] == len(rows)


def test_inputs_without_labels(line: Line) -> None:
    champion = version("1")
    same = line.new([{"text": row["text"]} for row in rows_of(80, 80, rows_of(60, 2))])
    found = examine(champion, unlabelled=same)
    assert not found["unlabelled"]["drift"]["drifted"] and found["decision"] == "hold"
    one = [row for row in rows_of(200, 81, rows_of(60, 2)) if row["intent"] == "card"]
    found = examine(champion, unlabelled=line.new([{"text": row["text"]} for row in one]))
    assert found["unlabelled"]["drift"]["drifted"]
    shares = {row["class"]: row["now"] for row in found["unlabelled"]["drift"]["shares"]}
    assert shares["card"] > 0.8
    few = examine(champion, unlabelled=line.new([{"text": "my pin"}]))
    assert (
        few["unlabelled"] is None and "drift was not looked for: 1 new inputs" in few["reasons"][-1]
    )


def test_a_broken_champion_gives_way_to_one_that_is_sound(line: Line, made: object) -> None:
    champion = version("2", "1")
    broken = Version(NAME, "2", {**champion.tags, registry.DIGEST: "0" * 64})
    found = examine(broken)
    assert (found["decision"], found["to"]) == ("rollback", "1")
    assert "broken" in found["reasons"][0] and "not those that were registered" in found["broken"]
    alone = Version(NAME, "2", {**broken.tags, registry.BEFORE: "[]"})
    with pytest.raises(RecipeError, match="not those that were registered"):
        examine(alone)


def test_what_is_gone_is_passed_over(line: Line) -> None:
    champion = version("2", "1")
    with registry.pointed():
        mlflow.MlflowClient().delete_model_version(NAME, "1")
    rows = rows_of(30, 60, rows_of(60, 2))
    found = examine(champion, line.new(rows))
    assert found["labelled"]["earlier"] == []
    assert any("passed over 1" in reason for reason in found["reasons"])


def test_faults_a_user_can_mend(line: Line, image_task: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="does not remember its examples; run its recipe again"):
        examine(version("4"))
    with pytest.raises(DataError, match=r"--labelled: .*holds images, tiny/2 takes texts"):
        examine(version("2"), image_task["test"])
    with pytest.raises(DataError, match=r"--unlabelled: .*holds images, tiny/2 takes texts"):
        examine(version("2"), unlabelled=image_task["test"])
    with pytest.raises(DataError, match=r"--labelled: nowhere\.jsonl: no such file"):
        examine(version("2"), "nowhere.jsonl")


def test_every_champion_is_found(line: Line) -> None:
    assert champions() == []
    version("2")
    assert [(each.name, each.number) for each in champions()] == [(NAME, "2")]
