"""What sizes are chosen by: bytes as they are planned against bytes as they are stored."""

from __future__ import annotations

from typing import Any

import pytest

from exports.graph import load_model
from flows.chain import begin
from models.checkpoint import load_bundle
from tasks.batches import blank
from tasks.budgets import dense_costs
from tasks.config import Recipe
from tasks.export import export
from tasks.layout import GRAPH
from tasks.quantize import quantize
from tasks.stage import without_prefect
from tasks.teach import teach
from tests.conftest import QUICK, merged


def stored(path: Any) -> int:
    """Bytes of a graph's initializers."""
    import onnx

    return sum(onnx.numpy_helper.to_array(x).nbytes for x in load_model(path).graph.initializer)


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("text", {"format": "int8"}),
        pytest.param("text", {"format": "int4", "embeddings": "int8"}, marks=pytest.mark.slow),
        ("text", {"format": "int4", "compensation": "eora", "compensation_rank": 4}),
        pytest.param("text", {"format": "none"}, marks=pytest.mark.slow),
        pytest.param("image", {"format": "int8"}, marks=pytest.mark.slow),
    ],
)
def test_the_bytes_of_a_dense_model(
    modality: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    source, task = (request.getfixturevalue(f"{modality}_{x}") for x in ("generalist", "task"))
    plain = {"name": "tiny", "generalist": {"source": source}, "task": dict(task)}
    recipe = Recipe.model_validate(merged(merged(plain, QUICK), {"quantize": changes}))
    with without_prefect():
        begun = begin(recipe)
        teacher = teach(recipe, begun.data, begun.generalist)
        graph = export(recipe, begun.data, quantize(recipe, begun.data, teacher))
    bundle = load_bundle(teacher.folder)
    planned = dense_costs(bundle.model, blank(bundle), recipe.quantize, vocabulary=0)["bytes"]
    assert planned == pytest.approx(stored(graph.folder / GRAPH), rel=0.05)
