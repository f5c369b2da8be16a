"""What was solved is what is served: the exported integers answer as the quantized torch model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exports.onnxfile import load_model
from tasks.config import Recipe
from tasks.layout import GRAPH, QUANTIZED
from tests.conftest import QUICK, merged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], text_generalist: str
) -> Any:
    """A home with a taught tiny BERT; gives it, the plain recipe and the artifacts."""
    from tasks.load import load
    from tasks.prepare import prepare
    from tasks.teach import teach

    home = tmp_path_factory.mktemp("lower-home")
    plain = {"name": "tiny", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    plain = merged(plain, QUICK)
    recipe = Recipe.model_validate(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        data, generalist = prepare.compute(recipe), load.compute(recipe)
        return home, plain, data, teach.compute(recipe, data, generalist)


@pytest.mark.parametrize(
    ("wanted", "operators"),
    [
        ({"format": "int8", "route": "static"}, {"QuantizeLinear", "DequantizeLinear"}),
        ({"format": "int8", "route": "fused", "activation": "int8"}, {"MatMulIntegerToFloat"}),
        ({"format": "int8", "route": "dynamic"}, {"DynamicQuantizeMatMul"}),
        ({"format": "int4"}, {"MatMulNBits"}),
        ({"format": "none", "embeddings": "int8"}, {"MatMul"}),
    ],
    ids=["static", "fused", "dynamic", "int4", "tables"],
)
def test_a_form_that_is_asked_for_is_the_one_that_is_served(
    taught: Any, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str], operators: set[str]
) -> None:
    import torch

    from exports.runtime import run_logits, session
    from models.checkpoint import load_bundle
    from tasks.export import export
    from tasks.quantize import quantize

    home, plain, data, teacher = taught
    monkeypatch.setenv("WINNOW_HOME", str(home))
    recipe = Recipe.model_validate(merged(plain, {"quantize": wanted}))
    solved = quantize.compute(recipe, data, teacher)
    exported = export.compute(recipe, data, solved)
    facts = exported.json_file(QUANTIZED)
    assert facts["format"] == wanted["format"]
    assert facts.get("route") == wanted.get("route")
    if "activation" in wanted:
        assert facts["activation"] == wanted["activation"]
    graph = exported.folder / GRAPH
    assert operators <= {node.op_type for node in load_model(graph).graph.node}
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = load_bundle(solved.folder).model(ids, mask).numpy()
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    # the weights are the same numbers: what differs is the rounding of activations
    scale = np.abs(expected).max()
    np.testing.assert_allclose(run_logits(session(graph), feed), expected, atol=0.05 * scale)


def test_four_bits_need_linear_layers(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    image_task: dict[str, str],
    image_generalist: str,
) -> None:
    from tasks.errors import RecipeError
    from tasks.load import load
    from tasks.prepare import prepare
    from tasks.quantize import quantize
    from tasks.teach import teach

    monkeypatch.setenv("WINNOW_HOME", str(tmp_path_factory.mktemp("int4-home")))
    plain = {"name": "tiny", "generalist": {"source": image_generalist}, "task": image_task}
    recipe = Recipe.model_validate(merged(plain, merged(QUICK, {"quantize": {"format": "int4"}})))
    data = prepare.compute(recipe)
    teacher = teach.compute(recipe, data, load.compute(recipe))
    with pytest.raises(RecipeError, match=r"quantize\.format: int4 is for Linear layers"):
        quantize.compute(recipe, data, teacher)
