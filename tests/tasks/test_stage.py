"""A stage's key, its reuse, and what it leaves behind, without Prefect (`compute`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import changed, source_digest
from tasks.errors import UserError
from tasks.home import store
from tasks.recipes import parse_recipe
from tasks.stage import stage

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[str]]:
    CALLS.clear()
    yield CALLS


def recipe(**changes: Any) -> Recipe:
    task = {"train": "a", "test": "b"}
    return parse_recipe({"name": "n", "generalist": {"source": "x"}, "task": task, **changes})


@stage(reads=("prune",), outside=lambda recipe: {"name": recipe.name})
def first(recipe: Recipe, *, into: Path, progress: Any) -> dict[str, Any]:
    CALLS.append("first")
    (into / "f").write_text(str(recipe.prune.sparsity))
    return {"sparsity": recipe.prune.sparsity}


@stage(reads=("verify",), when=lambda made: made.stage == "other")
def second(recipe: Recipe, made: Artifact, *, into: Path, progress: Any) -> dict[str, Any]:
    CALLS.append("second")
    (into / "g").write_text((made.folder / "f").read_text())
    return {}


@stage()
def failing(recipe: Recipe, *, into: Path, progress: Any) -> dict[str, Any]:
    (into / "half").touch()
    raise RuntimeError("on purpose")


def test_the_same_is_computed_once() -> None:
    one = first.compute(recipe())
    assert first.compute(recipe()) == one
    assert CALLS == ["first"]
    assert one.metrics == {"sparsity": None} and one.folder.is_dir()


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"prune": {"sparsity": 0.9}}, True),
        ({"name": "m"}, True),
        ({"verify": {"max_drop": 0.5}}, False),
        ({"task": {"train": "elsewhere", "test": "b"}}, False),
    ],
)
def test_only_what_a_stage_names_counts(changes: dict[str, Any], again: bool) -> None:
    first.compute(recipe())
    first.compute(recipe(**changes))
    assert len(CALLS) == 1 + again


def test_what_follows_goes_by_content_not_by_key() -> None:
    made = [first.compute(recipe(name=name)) for name in ("one", "two")]
    assert made[0].key != made[1].key and made[0].sha256 == made[1].sha256
    for artifact in made:
        second.compute(recipe(), artifact)
    assert CALLS == ["first", "first", "second"]


def test_values_count_only_when_they_are_looked_at() -> None:
    made = first.compute(recipe())
    keys = {second.key(recipe(verify={"max_drop": drop}), made) for drop in (0.1, 0.2)}
    assert len(keys) == 1
    other = made.model_copy(update={"stage": "other"})
    assert len({second.key(recipe(verify={"max_drop": x}), other) for x in (0.1, 0.2)}) == 2


def test_a_stage_follows_the_splits_it_reads() -> None:
    @stage(splits=("support",))
    def reader(recipe: Recipe, data: Artifact, *, into: Path, progress: Any) -> dict[str, Any]:
        return {}

    def prepared(**facts: Any) -> Artifact:
        content = {"support": "1", "test": "1", **facts.pop("content", {})}
        metrics = {"classes": ["a"], "modality": "text", "content": content, **facts}
        return Artifact(stage="prepare", path="p", sha256=str(facts), key="k", metrics=metrics)

    before = reader.key(recipe(), prepared())
    assert reader.key(recipe(), prepared(content={"test": "2"})) == before
    assert reader.key(recipe(), prepared(passable_n=9)) == before
    assert reader.key(recipe(), prepared(content={"support": "2"})) != before
    assert reader.key(recipe(), prepared(classes=["b"])) != before
    assert reader.key(recipe(), prepared(modality="image")) != before


def test_what_an_input_tells_counts_as_its_files_do() -> None:
    def made(**metrics: Any) -> Artifact:
        return Artifact(stage="held_out", path="p", sha256="empty", key="k", metrics=metrics)

    keys = {second.key(recipe(), made(**each)) for each in ({}, {"kl": 0.1}, {"kl": 0.2})}
    assert len(keys) == 3
    # but not what tells of the run that made it
    told = {second.key(recipe(), made(kl=0.1, provisional=x)) for x in (True, False)}
    assert told < keys and len(told) == 1


def test_metrics_count_as_they_are_read_back() -> None:
    fresh = Artifact(stage="x", path="p", sha256="s", key="k", metrics={"a": (1, float("nan"))})
    stored = Artifact.model_validate_json(fresh.model_dump_json())
    assert second.key(recipe(), fresh) == second.key(recipe(), stored)


def test_a_failing_stage_leaves_nothing() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        failing.compute(recipe())
    assert list((store() / "failing").iterdir()) == []


def test_a_source_that_changes_while_it_is_read_is_not_published(tmp_path: Path) -> None:
    """Under the key of what was there first it would be reused when that is back."""
    source = tmp_path / "train.csv"
    source.write_text("first")
    during = ["second"]

    def content(recipe: Recipe) -> dict[str, str]:
        return {"task.train": source_digest(recipe.task.train)}

    @stage(outside=content)
    def reader(recipe: Recipe, *, into: Path, progress: Any) -> dict[str, Any]:
        if during:
            source.write_text(during.pop())
        (into / "read").write_text(source.read_text())
        return {}

    asked = recipe(task={"train": str(source), "test": "b"})
    with pytest.raises(UserError, match=r"^task.train changed while it was read .* run again$"):
        reader.compute(asked)
    assert list((store() / "reader").iterdir()) == []
    source.write_text("first")
    assert (reader.compute(asked).folder / "read").read_text() == "first"


def test_an_input_that_is_made_anew_meanwhile_is_not_built_upon() -> None:
    times = iter("123456789")
    during: list[Any] = []

    @stage()
    def timed(recipe: Recipe, *, into: Path, progress: Any) -> dict[str, Any]:
        (into / "table").write_text(next(times))
        return {}

    @stage()
    def chosen(recipe: Recipe, made: Artifact, *, into: Path, progress: Any) -> dict[str, Any]:
        (into / "read").write_text((made.folder / "table").read_text())
        if during:
            during.pop()()
        return {}

    made = timed.compute(recipe())
    during.append(lambda: timed.compute(recipe(cache="off")))
    with pytest.raises(UserError, match=r"^chosen: another run made its timed anew"):
        chosen.compute(recipe(), made)
    assert list((store() / "chosen").iterdir()) == []
    again = timed.compute(recipe())
    assert (chosen.compute(recipe(), again).folder / "read").read_text() == "2"


def test_a_hub_that_does_not_answer_at_one_time_has_not_changed() -> None:
    known, silent, other = (f"name:a/b:{x}" for x in ("c" * 40, None, "d" * 40))
    for before, now, expected in (
        (known, silent, []),
        (silent, known, []),
        (known, other, ["x"]),
        ("a file's", silent, ["x"]),
    ):
        assert changed({"x": before}, {"x": now}) == expected
