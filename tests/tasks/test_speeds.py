"""Which speeds a sweep asks for, from what the latency table says is in reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.family import Family
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.profile import speeds_of


def profiled(generalist_ms: float, dense_ms: float, least_ms: float) -> Artifact:
    metrics: dict[str, Any] = {
        "generalist_ms": generalist_ms,
        "dense_ms": {"float32": generalist_ms, "int8": dense_ms},
        "least_ms": {"float32": generalist_ms / 2, "int8": least_ms},
    }
    return Artifact(stage="profile", path="profile/x", sha256="x", key="x", metrics=metrics)


def recipe(**sweep: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "generalist": {"source": "hf:/nowhere"},
            "task": {"train": "a.jsonl", "test": "b.jsonl"},
            "shrink": {"margin": 0},
            "sweep": sweep,
        }
    )


def test_speeds_that_no_size_reaches_are_left_out() -> None:
    assert speeds_of(recipe(speedups=[2, 4, 8]), profiled(8, 4, 1.5)) == [2, 4]


def test_where_none_is_in_reach_the_fastest_is_told() -> None:
    with pytest.raises(RecipeError, match=r"sweep\.speedups: 8 cannot be reached.* 5\.33 times"):
        speeds_of(recipe(speedups=[8, 9]), profiled(8, 4, 1.5))


def test_left_out_they_go_from_the_format_alone_to_three_times_that_in_equal_ratios() -> None:
    assert speeds_of(recipe(structures=3), profiled(8, 4, 0.1)) == [2.0, 3.46, 6.0]
    assert speeds_of(recipe(structures=2), profiled(8, 4, 2)) == [2.0, 4.0]  # less is in reach


def test_an_adaptive_search_adds_speeds_where_none_are_named() -> None:
    wanted = recipe(structures=5, search="adaptive")
    speeds = speeds_of(wanted, profiled(8, 4, 0.1))
    assert speeds == [2.0, 3.46, 6.0]
    nothing: Any = None
    family, climbed = Family(wanted, nothing, nothing, nothing, nothing), list[float]()
    family.students = dict.fromkeys(speeds, nothing)

    def climb(speed: float) -> None:
        climbed.append(speed)
        family.students[speed] = nothing

    def point(name: str) -> Any:
        agreement = 1.0 if float(name.partition("x")[0]) < 4 else 0.5
        return SimpleNamespace(held_out=SimpleNamespace(metrics={"agreement": agreement}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "climb", climb)
        patch.setattr(family, "point", point)
        family.refine()
    # between the last that is as good as the teacher and the first that is not
    assert climbed == [4.56, 3.97]
    # few are the ends alone
    for count, found in ((3, [2.0, 6.0]), (2, [2.0, 6.0]), (1, [2.0])):
        assert speeds_of(recipe(structures=count, search="adaptive"), profiled(8, 4, 0.1)) == found


def test_parts_that_add_up_to_more_than_the_whole_leave_everything_in_reach() -> None:
    assert speeds_of(recipe(speedups=[2, 50]), profiled(8, 4, -1)) == [2, 50]
