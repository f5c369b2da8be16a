"""The points of a sweep, and that a point alone goes the way it went in the sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.from_sweep import recipe_from_sweep
from tasks.points import between, laddered, points, recipe_of, require_points, unshrunk
from tasks.recipes import parse_recipe
from tasks.sweep import wanted_between

PLAIN: dict[str, Any] = {
    "name": "tiny",
    "generalist": {"source": "hf:/nowhere"},
    "task": {"train": "a.jsonl", "test": "b.jsonl"},
    "shrink": {"steps": 90},
    "sweep": {"speedups": [2, 3], "sparsities": [0.5, 0.75]},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**PLAIN, **changes})


def test_every_structure_is_there_in_every_format() -> None:
    names = [point.name for point in points(recipe(), [2.0, 3.0])]
    assert names == [
        "2x-float32", "2x-int8", "3x-float32", "3x-int8",
        "50%-float32", "50%-int8", "75%-float32", "75%-int8",
    ]  # fmt: skip


def test_a_rung_of_a_path_knows_nothing_of_the_rungs_after_it() -> None:
    short, long = laddered(recipe(), [2.0]), laddered(recipe(), [2.0, 3.0])
    assert short.at_step(1) == long.at_step(1)
    assert short.at_step(1).target.speedup == 2
    assert long.at_step(2).target.speedup == 3
    assert long.at_step(2).shrink.steps == 30  # a third of a run's


def test_a_float_point_alone_plans_with_the_same_latencies_as_in_the_sweep() -> None:
    sweep = recipe()
    by_name = {point.name: point for point in points(sweep, [2.0, 3.0])}
    alone = recipe_of(sweep, [2.0, 3.0], by_name["3x-float32"])
    together = recipe_of(sweep, [2.0, 3.0], by_name["3x-int8"])
    assert alone.quantize.format == "none" and together.quantize.format == "int8"
    assert alone.planned().at_step(2) == together.planned().at_step(2)
    assert alone.shrinks and alone.steps == 2


def test_a_point_of_zeros_prunes_as_in_the_sweep_and_shrinks_nothing() -> None:
    sweep = recipe(target={"speedup": 4})
    by_name = {point.name: point for point in points(sweep, [2.0])}
    alone = recipe_of(sweep, [], by_name["75%-int8"])
    assert alone.rungs == (0.5, 0.75) and not alone.shrinks
    assert alone.at_rung(0.75).values(("prune", "distill")) == unshrunk(sweep).at_rung(0.75).values(
        ("prune", "distill")
    )
    half = recipe_of(sweep, [], by_name["50%-int8"])
    assert half.rungs == (0.5,)


def test_recipes_of_points_can_be_written_and_read_again() -> None:
    sweep = recipe(target={"nonzero_ratio": 1.5})
    for point in points(sweep, [2.0, 3.0]):
        alone = recipe_of(sweep, [2.0, 3.0][: 1 if point.speedup == 2 else 2], point)
        assert parse_recipe(alone.model_dump(mode="json")) == alone


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speedups", [3, 2]),
        ("speedups", [2, 2]),
        ("speedups", [0, 1]),
        ("sparsities", [0.75, 0.5]),
        ("sparsities", [0.5, 1.0]),
    ],
)
def test_what_does_not_rise_is_refused(field: str, value: list[float]) -> None:
    with pytest.raises(RecipeError, match=rf"sweep\.{field}.*rising order"):
        parse_recipe({**PLAIN, "sweep": {field: value}})


def test_a_sweep_over_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"sweep\.speedups: \[\]"):
        require_points(recipe(sweep={"speedups": [], "sparsities": []}))


def test_an_adaptive_search_looks_where_agreement_falls_through() -> None:
    held = [(1.5, 1.0), (2.0, 0.99), (4.0, 0.95), (5.0, 0.9)]
    assert wanted_between(held, 0.02) == (2.0, 4.0)
    assert wanted_between(held, 0.07) == (4.0, 5.0)
    # nowhere: the widest gap in ratio
    assert wanted_between(held, 0.5) == (2.0, 4.0)
    assert between(2.0, 8.0) == 4.0


def test_no_sweep_in_the_folder_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match=r"--from-sweep: .*sweep\.json is not there"):
        recipe_from_sweep(tmp_path)


ROW = {"point": "2x-int8", "path": [1.5, 2], "speedup_asked": 2, "sparsity_asked": None}
SWEPT = {"schema": 1, "picked": "2x-int8", "picked_why": "", "points": [ROW | {"format": "int8"}]}


def altered(**changes: Any) -> str:
    """A sweep of one point, in which this is another."""
    return json.dumps({**SWEPT, "points": [ROW | {"format": "int8"} | changes]})


def test_a_sweep_of_one_point_is_read(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SWEPT))
    (tmp_path / "recipe.yaml").write_text(
        "{name: n, generalist: {source: 'hf:x'}, task: {train: a, test: b}}"
    )
    found = recipe_from_sweep(tmp_path)
    assert found.shrink.path == [1.5, 2.0] and found.quantize.format == "int8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 1, "points": [3]}',
        '{"schema": 2}',
        "[" * 100_000,
        json.dumps(SWEPT | {"schema": 2}),
        json.dumps(SWEPT | {"picked": 7}),
        altered(format="fp8"),
        altered(path=None),
        altered(path=5),
        altered(path=["x"]),
        altered(path=[]),
        altered(path=[2, 3]),
        altered(point=["x"]),
        altered(speedup_asked=None, path=[]),
    ],
)
def test_what_is_no_sweep_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RecipeError, match=r"sweep\.json is not a sweep of this version"):
        recipe_from_sweep(tmp_path)


@pytest.mark.parametrize("text", [None, "name: [", "7", "name: x"])
def test_a_sweep_without_a_sound_recipe_is_one_line(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SWEPT))
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        recipe_from_sweep(tmp_path)
