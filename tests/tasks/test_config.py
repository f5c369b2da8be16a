"""The recipe: defaults, one-line errors, --set, paths, what a stage reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.recipes import load_recipe, parse_recipe

SMALLEST: dict[str, Any] = {
    "name": "small",
    "generalist": {"source": "timm:resnet18"},
    "task": {"train": "a.csv", "test": "b.csv"},
}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_the_smallest_recipe_has_a_default_for_everything_else() -> None:
    recipe = parse_recipe(SMALLEST)
    assert (recipe.sparsity, recipe.model_name, recipe.cache) == (0.5, "small", "on")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_valid(path: Path) -> None:
    assert load_recipe(path).name


@pytest.mark.parametrize(
    ("changes", "sparsity"),
    [
        ({"prune": {"sparsity": 0.75}}, 0.75),
        ({"prune": {"sparsity": 0}}, 0.0),
        ({"target": {"nonzero_ratio": 4}}, 0.75),
        ({"prune": {"pattern": "2:4"}}, 0.5),
        ({"prune": {"pattern": "1:4"}}, 0.75),
        ({"prune": {"sparsity": 0.9}, "target": {"nonzero_ratio": 10}}, 0.9),
        # where structure is shrunk, it and INT8 meet the budgets; zeros only where they are asked
        ({"target": {"speedup": 4}}, 0.0),
        ({"target": {"bytes": 1000, "nonzero_ratio": 20}}, 0.0),
        ({"target": {"speedup": 4}, "prune": {"sparsity": 0.75}}, 0.75),
        ({"target": {"speedup": 4}, "prune": {"pattern": "2:4"}}, 0.5),
        ({"target": {"speedup": 2}, "shrink": {"kinds": []}}, 0.5),
    ],
)
def test_sparsity_is_given_or_follows(changes: dict[str, Any], sparsity: float) -> None:
    assert parse_recipe(SMALLEST | changes).sparsity == pytest.approx(sparsity)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prune": {"sparsity": 1.5}}, ("prune.sparsity", "1.5", "less than 1")),
        ({"prune": {"pattern": "5:4"}}, ("prune.pattern", "5:4", "0 < N < M")),
        ({"prune": {"sparsty": 0.5}}, ("prune.sparsty", "did you mean sparsity?")),
        ({"tsk": {}}, ("tsk", "did you mean task?")),
        ({"target": {"bytes": -1}}, ("target.bytes", "-1", "greater than 0")),
        ({"target": {"latency_ms": 0}}, ("target.latency_ms", "0")),
        (
            {"target": {"nonzero_ratio": 20}, "prune": {"sparsity": 0.5}},
            ("target.nonzero_ratio", "20", "0.95"),
        ),
        ({"verify": {"max_drop": 0}}, ("verify.max_drop", "0")),
        ({"distill": {"rungs": [0.75, 0.5]}}, ("distill.rungs", "rise")),
        ({"shrink": {"kinds": ["fingers"]}}, ("shrink.kinds.0", "fingers", "heads")),
        ({"shrink": {"rungs": 0}}, ("shrink.rungs", "0", "greater than or equal to 1")),
        ({"shrink": {"search": "random"}}, ("shrink.search", "random", "evolutionary")),
        ({"shrink": {"margin": 0.7}}, ("shrink.margin", "0.7", "less than 0.5")),
        ({"quantize": {"route": "fast"}}, ("quantize.route", "fast", "dynamic")),
        ({"quantize": {"keep_float": {"max_kl": 0}}}, ("quantize.keep_float.max_kl", "0")),
        ({"name": "a/b"}, ("name", "a/b", "letters")),
        ({"task": {"train": "a.csv"}}, ("task.test", "missing")),
        ({"task": {"train": "a", "test": "b", "classes": [3.5]}}, ("task.classes.0", "3.5")),
        ({"generalist": 3}, ("generalist", "3")),
    ],
)
def test_a_fault_is_one_line_with_field_value_and_remedy(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALLEST | changes, "recipe.yaml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("recipe.yaml: ") or words[0] == "target.nonzero_ratio"
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"target": {"speedup": 2}, "quantize": {"format": "none"}, "shrink": {"kinds": []}},
            ("target.speedup: 2", "quantize.format none", "shrink.kinds"),
        ),
        ({"verify": {"tokens": 200}}, ("verify.tokens: 200", "generalist.max_length (128)")),
        ({"distill": {"rungs": [0, 0.5]}}, ("distill.rungs: [0.0, 0.5]", "above 0")),
        ({"prune": {"pattern": "2:4", "sparsity": 0.9}}, ("prune.pattern: 2:4", "0.5", "0.9")),
        ({"prune": {"pattern": "2:4", "sparsity": 0}}, ("prune.pattern: 2:4", "not 0;")),
        (
            {"prune": {"pattern": "2:4"}, "distill": {"rungs": [0.25, 0.5]}},
            ("prune.pattern: 2:4", "0.25, 0.5"),
        ),
        (
            {"target": {"nonzero_ratio": 4}, "prune": {"compensation": "eora"}},
            ("target.nonzero_ratio: 4", "prune.compensation eora", "above 0.75"),
        ),
        (
            {
                "target": {"nonzero_ratio": 4},
                "prune": {"sparsity": 0.75},
                "quantize": {"compensation": "eora"},
            },
            ("target.nonzero_ratio: 4", "quantize.compensation eora", "above 0.75"),
        ),
    ],
)
def test_values_that_contradict_each_other(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALLEST | changes)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "changes",
    [
        {"prune": {"pattern": "2:4", "sparsity": 0.5}},
        {"target": {"nonzero_ratio": 4}, "prune": {"sparsity": 0.8, "compensation": "eora"}},
        # nothing is rounded, so nothing is put beside it
        {"target": {"nonzero_ratio": 4}, "quantize": {"format": "none", "compensation": "eora"}},
    ],
)
def test_values_that_agree(changes: dict[str, Any]) -> None:
    assert parse_recipe(SMALLEST | changes).rungs


@pytest.mark.parametrize(
    ("changes", "shrinks", "trims"),
    [
        ({}, False, False),
        ({"target": {"nonzero_ratio": 4}}, False, False),
        ({"target": {"speedup": 4}}, True, False),
        ({"target": {"latency_ms": 4, "bytes": 4}}, True, True),
        ({"target": {"bytes": 4}, "shrink": {"kinds": ["vocabulary"]}}, False, True),
        ({"target": {"bytes": 4}, "shrink": {"kinds": ["blocks"]}}, True, False),
        ({"target": {"speedup": 4}, "shrink": {"kinds": []}}, False, False),
    ],
)
def test_structure_is_shrunk_where_a_budget_needs_it(
    changes: dict[str, Any], shrinks: bool, trims: bool
) -> None:
    recipe = parse_recipe(SMALLEST | changes)
    assert (recipe.shrinks, recipe.trims) == (shrinks, trims)


def test_a_step_of_shrinking_has_a_recipe_of_its_own() -> None:
    recipe = parse_recipe(SMALLEST | {"target": {"speedup": 4}, "shrink": {"rungs": 3}})
    steps = [recipe.at_step(step) for step in (1, 2, 3)]
    assert [step.shrink_step for step in steps] == [1, 2, 3]
    assert len({str(step.values(["shrink", "shrink_step"])) for step in steps}) == 3
    form = Recipe.model_json_schema()["$defs"]["Shrink"]["properties"]
    assert "rungs" in form and "step" not in form


def test_the_order_of_kinds_does_not_matter() -> None:
    kinds = [["blocks", "heads"], ["heads", "blocks", "heads"]]
    recipes = [parse_recipe(SMALLEST | {"shrink": {"kinds": each}}) for each in kinds]
    assert recipes[0] == recipes[1]


def test_set_changes_fields_and_keeps_the_others(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    recipe = load_recipe(path, ["prune.sparsity=0.75", "task.classes=[card, parcel]", "cache=off"])
    assert recipe.prune.sparsity == 0.75
    assert recipe.prune.samples == 24
    assert recipe.task.classes == ["card", "parcel"]
    assert recipe.cache == "off"
    assert load_recipe(path, ["track.register=false"]).track.register_model is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prune.sparsity", "section.field=value"),
        ("=3", "section.field=value"),
        ("prune..x=3", "section.field=value"),
        ("prune.sparsty=1", "did you mean sparsity?"),
        ("nope.x=1", "no such field"),
        ("name.x=1", "no such field"),
        ("prune.sparsity={", "YAML value"),
    ],
)
def test_a_bad_set_is_one_line(write_recipe: Callable[..., Path], change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=r"^--set") as caught:
        load_recipe(write_recipe(), [change])
    assert words in str(caught.value)


def test_paths_are_found_here_then_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        (folder / "model").mkdir(parents=True)
    (beside / "train.csv").touch()
    (beside / "test.csv").touch()
    (here / "test.csv").touch()
    recipe = "{name: n, generalist: {source: 'hf:model'}, task: {train: train.csv, test: test.csv}}"
    (beside / "r.yaml").write_text(recipe)
    monkeypatch.chdir(here)
    loaded = load_recipe(beside / "r.yaml")
    assert Path(loaded.task.train) == beside / "train.csv"
    assert loaded.task.test == "test.csv"
    assert loaded.generalist.source == "hf:model"
    (here / "model").rmdir()
    assert load_recipe(beside / "r.yaml").generalist.source == f"hf:{beside / 'model'}"


def test_values_are_what_a_stage_names() -> None:
    recipe = parse_recipe(SMALLEST | {"track": {"register": False}})
    values = recipe.values(["task.seed", "sparsity", "track"])
    assert values["task.seed"] == 0
    assert values["sparsity"] == 0.5
    assert values["track"]["register"] is False


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    import yaml

    recipe = parse_recipe(SMALLEST | {"track": {"register": False}, "cache": False})
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe


def test_yaml_s_old_surprises_do_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: n\ngeneralist: {source: timm:x}\n"
        "task: {train: a, test: b, classes: [yes, no, 3, 2024-01-01]}\n"
        "prune: {pattern: 2:4}\ndistill: {lr: 1e-4}\ntarget: {bytes: 5_000_000}\ncache: off\n"
    )
    recipe = load_recipe(path)
    assert recipe.task.classes == ["yes", "no", "3", "2024-01-01"]
    assert recipe.prune.pattern == "2:4"
    assert (recipe.distill.lr, recipe.target.bytes, recipe.cache) == (1e-4, 5_000_000, "off")
    assert load_recipe(path, ["prune.pattern=1:4"]).sparsity == 0.75


def fields(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((f"{model.__name__}.{name}", field.description))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation)
    return found


def test_every_field_is_described() -> None:
    assert [name for name, description in fields(Recipe) if not description] == []
