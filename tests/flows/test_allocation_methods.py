"""The chain with zeros and bits shared unevenly: exact in the file that is served."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exports.onnxfile import attribute, initializers, layers, load_model
from flows.chain import begin, make
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.layout import QUANTIZED
from tasks.recipes import parse_recipe
from tasks.stage import recording, without_prefect
from tests.conftest import QUICK, merged

SEARCH = {"generations": 1, "offspring": 2}


def recipe_of(source: str, data: dict[str, str], **changes: Any) -> Recipe:
    plain = {"name": "tiny", "generalist": {"source": source}, "task": dict(data)}
    return Recipe.model_validate(merged(merged(plain, QUICK), changes))


def run(recipe: Recipe) -> dict[str, Any]:
    """Every stage's artifact by title."""
    with without_prefect(), recording() as stages:
        make(recipe, begin(recipe))
    return {stage.title: stage.artifact for stage in stages}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["global", "dynamic", "integer", "evolutionary"])
def test_zeros_are_shared_and_their_number_is_exact(
    text_task: dict[str, str], text_generalist: str, method: str
) -> None:
    changes = {"prune": {"allocation": method, "sparsity": 0.75, **SEARCH}}
    made = run(recipe_of(text_generalist, text_task, **changes))
    for title, sparsity in (("prune to 0.5", 0.5), ("prune to 0.75", 0.75)):
        facts = made[title].metrics
        assert facts["sparsity"] == pytest.approx(sparsity, abs=1e-4)
        assert facts["allocation"]["method"] == method
        shares = facts["allocation"]["layers"]
        assert len(shares) == facts["layers"] and len(set(shares.values())) > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baq", "integer"])
def test_bits_are_shared_and_served(
    text_task: dict[str, str], text_generalist: str, method: str
) -> None:
    quantize = {"format": "int4", "bits": method, "mean_bits": 5.0}
    made = run(recipe_of(text_generalist, text_task, quantize=quantize))
    bits = made["quantize specialist"].metrics["bits"]
    assert set(bits.values()) <= {2, 4, 8} and len(set(bits.values())) > 1
    graph = made["export specialist"].folder / "model.onnx"
    model = load_model(graph)
    stored = initializers(model)
    served = [x for x in layers(model) if x.node.op_type == "MatMulNBits"]
    assert sorted(attribute(x.node, "bits") for x in served) == sorted(bits.values())
    weights = sum(int(attribute(x.node, "K")) * int(attribute(x.node, "N")) for x in served)  # type: ignore[call-overload]
    held = sum(stored[x.weight].ByteSize() for x in served)
    assert held * 8 / weights <= 5.0 * 1.05
    facts = json.loads((made["export specialist"].folder / QUANTIZED).read_text())
    assert sum(facts["bits"].values()) == len(bits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prune": {"allocation": "dynamic", "pattern": "2:4"}}, ("prune.allocation", "2:4")),
        ({"prune": {"allocation": "even"}}, ("prune.allocation", "uniform, global")),
        ({"quantize": {"bits": "baq"}}, ("quantize.bits", "baq", "int4")),
        ({"quantize": {"mean_bits": 5}}, ("quantize.mean_bits", "5", "int4")),
        ({"quantize": {"format": "int4", "mean_bits": 9}}, ("quantize.mean_bits", "9", "8")),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    plain: dict[str, Any] = {
        "name": "n",
        "generalist": {"source": "hf:x"},
        "task": {"train": "a.csv", "test": "b.csv"},
    }
    with pytest.raises(RecipeError) as told:
        parse_recipe(merged(plain, changes))
    assert "\n" not in str(told.value) and all(word in str(told.value) for word in words)
