"""Several draws of the shots: each is a run of its own, the first is served, all are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.specialize import specialize
from tasks.config import Recipe
from tests.conftest import QUICK, merged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_the_spread_over_draws_is_told_and_the_first_is_served(
    tmp_path: Path, text_task: dict[str, str], text_generalist: str
) -> None:
    plain = {"name": "tiny", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    changes = {"task": {"seeds": 2}, "limits": {"samples": 0}, "verify": {"repeats": 5}}
    recipe = Recipe.model_validate(merged(merged(plain, QUICK), changes))
    both = specialize(recipe, tmp_path / "both")
    alone = recipe.task.model_copy(update={"seeds": 1})
    one = specialize(recipe.model_copy(update={"task": alone}), tmp_path / "one")
    served = [(tmp_path / name / "specialist.onnx").read_bytes() for name in ("both", "one")]
    assert served[0] == served[1]
    assert both["accuracy"] == one["accuracy"] and both["verdict"] == one["verdict"]
    first, second = both["seeds"]["rows"]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["drop"] == both["accuracy"]["drop"]
    other = specialize(recipe.with_seed(1), tmp_path / "other")
    assert second["drop"] == other["accuracy"]["drop"]
    assert both["seeds"]["drop_mean"] == pytest.approx((first["drop"] + second["drop"]) / 2)
    low, high = both["seeds"]["drop_ci"]
    assert low < both["seeds"]["drop_mean"] < high
    assert "seed 1: teach" in both["seconds"]
    card = (tmp_path / "both" / "card.md").read_text()
    assert "draw" in card and json.dumps(both, allow_nan=False)
