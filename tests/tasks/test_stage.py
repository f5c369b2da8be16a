"""A stage's key, its reuse, and what it leaves behind, without Prefect (`compute`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Artifact
from tasks.config import Recipe
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
