"""Scores of heads, neurons and channels, from the recipe to what is left of the structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression.scores import METHODS
from flows.chain import begin, export_dense, shrink_to
from models.checkpoint import load_bundle
from models.units import branches
from tasks.artifacts import Artifact
from tasks.batches import blank
from tasks.config import Recipe
from tasks.profile import profile
from tasks.stage import without_prefect
from tasks.teach import teach
from tests.conftest import QUICK, merged


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def shared(stores: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One teacher and one profile for all."""
    monkeypatch.setenv("WINNOW_HOME", str(stores))


def shrunk(source: str, task: dict[str, str], **shrink: Any) -> Artifact:
    plain = {
        "name": "tiny",
        "generalist": {"source": source},
        "task": dict(task),
        "target": {"nonzero_ratio": 2, "bytes": 10_000_000},
        "prune": {"sparsity": None},
        "shrink": {"rungs": 1, "steps": 0, "search": "dynamic", "kinds": ["heads", "neurons",
                                                                          "channels"], **shrink},
        "quantize": {"format": "none"},
        "verify": {"repeats": 5},
    }  # fmt: skip
    recipe = Recipe.model_validate(merged(merged(plain, QUICK), {"prune": {"sparsity": None}}))
    with without_prefect():
        begun = begin(recipe)
        teacher = teach(recipe, begun.data, begun.generalist)
        dense = export_dense(recipe, begun.data, begun.generalist, teacher)
        profiled = profile(recipe, begun.data, teacher, *dense)
        return shrink_to(recipe, 1, begun.data, teacher, teacher, profiled)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["obs", "none"])
@pytest.mark.parametrize("score", METHODS)
def test_a_text_model_shrinks_by_any_score(
    text_task: dict[str, str], text_generalist: str, score: str, update: str
) -> None:
    found = shrunk(text_generalist, text_task, score=score, update=update)
    left = load_bundle(found.folder)
    have = {branch.name: list(branch.size) for branch in branches(left.model, blank(left))}
    told = {row["branch"]: row["size"] for row in found.metrics["structure"]}
    assert have == {name: size for name, size in told.items() if any(size)}
    fewer = [row for row in found.metrics["structure"] if row["size"] != row["full"]]
    assert fewer, "the budget asks for half of the weights"


@pytest.mark.slow
@pytest.mark.parametrize("score", [name for name in METHODS if name != "obs"])
def test_an_image_model_shrinks_by_any_score(
    image_task: dict[str, str], image_generalist: str, score: str
) -> None:
    found = shrunk(image_generalist, image_task, score=score)
    assert any(row["size"] != row["full"] for row in found.metrics["structure"])
