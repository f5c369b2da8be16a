"""Ways of recovery and compensation, from the recipe to the graph that is served."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from exports.census import census
from flows.chain import begin, prune_to
from models.checkpoint import load_bundle
from models.low_rank import is_factor
from models.structure import prunable_layers
from tasks.artifacts import Artifact
from tasks.batches import blank
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.export import export
from tasks.held_out import held_out
from tasks.layout import GRAPH
from tasks.measure import logits_of
from tasks.quantize import quantize
from tasks.reference import torch_logits
from tasks.splits import load_split
from tasks.stage import recording, without_prefect
from tasks.teach import teach
from tests.conftest import QUICK, merged


def recipe_of(source: str, task: dict[str, str], **changes: Any) -> Recipe:
    plain = {"name": "tiny", "generalist": {"source": source}, "task": dict(task)}
    return Recipe.model_validate(merged(merged(plain, QUICK), changes))


def climbed(recipe: Recipe) -> list[Artifact]:
    """The teacher and every rung."""
    with without_prefect():
        begun = begin(recipe)
        found = [teach(recipe, begun.data, begun.generalist)]
        for rung in recipe.rungs:
            found.append(prune_to(recipe, rung, begun.data, found[0], found[-1]))
    return found


EORA = {"compensation": "eora", "compensation_rank": 4}
WAYS: list[dict[str, Any]] = [
    {"prune": EORA, "distill": {"trained": "low_rank"}},
    {"distill": {"trained": "none", "schedule": "cubic", "rung_count": 3, "total_steps": 7}},
]
MORE: list[dict[str, Any]] = [
    {"distill": {"trained": "norms"}},
    {"distill": {"trained": "low_rank", "rank": 4}},
    {"distill": {"schedule": "one_shot", "density_scaled": False}},
    {"prune": EORA, "distill": {"trained": "none"}},
    {"prune": EORA, "distill": {"trained": "full"}},
]


@pytest.mark.parametrize(
    "changes",
    [*WAYS, *(pytest.param(changes, marks=pytest.mark.slow) for changes in MORE)],
    ids=json.dumps,
)
def test_a_ladder_to_75_percent(
    text_task: dict[str, str], text_generalist: str, changes: dict[str, Any]
) -> None:
    changes = merged({"prune": {"sparsity": 0.75}}, changes)
    recipe = recipe_of(text_generalist, text_task, **changes)
    teacher, *rungs = climbed(recipe)
    assert len(rungs) == len(recipe.rungs)
    for asked, rung in zip(recipe.rungs, rungs, strict=True):
        assert rung.metrics["sparsity"] == pytest.approx(asked, abs=1e-4)
        bundle = load_bundle(rung.folder)
        layers = prunable_layers(bundle.model, blank(bundle))
        zero = sum(int((layer.weight == 0).sum()) for layer in layers.values())  # type: ignore[arg-type]
        every = sum(layer.weight.numel() for layer in layers.values())  # type: ignore[operator]
        assert zero / every == pytest.approx(rung.metrics["sparsity"])
    if recipe.distill.trained == "none":
        assert rungs[-1].metrics["kl_before"] == rungs[-1].metrics["kl_after"]
    first, last = load_bundle(teacher.folder).model, load_bundle(rungs[-1].folder).model
    tables = [
        model.get_parameter("encoder.embeddings.word_embeddings.weight") for model in (first, last)
    ]
    assert torch.equal(*tables)


def test_ladders_share_the_rungs_they_have_in_common(
    text_task: dict[str, str], text_generalist: str
) -> None:
    def run(**distill: Any) -> list[str]:
        changes = {"distill": distill, "prune": {"sparsity": 0.75}}
        with recording() as stages:
            climbed(recipe_of(text_generalist, text_task, **changes))
        return [stage.title for stage in stages if stage.title[:5] == "prune" and not stage.reused]

    assert run() == ["prune to 0.5", "prune to 0.75"]
    assert run(rungs=[0.5, 0.6, 0.75]) == ["prune to 0.6", "prune to 0.75"]
    assert run(schedule="cubic", rung_count=2) == ["prune to 0.6562", "prune to 0.75"]
    # the same total in the same proportion is the same ladder
    assert run(total_steps=4 + 8) == []
    assert run(total_steps=20) == ["prune to 0.5", "prune to 0.75"]


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("form", ["int8", "int4", "none"])
def test_what_is_compensated_is_served_and_counted(
    modality: str, form: str, request: pytest.FixtureRequest
) -> None:
    source, task = (request.getfixturevalue(f"{modality}_{x}") for x in ("generalist", "task"))
    if (modality, form) == ("image", "int4"):
        pytest.skip("the image generalist has no Linear layers")
    changes = {"prune": {"sparsity": 0.75, **EORA}, "quantize": {"format": form}}
    recipe = recipe_of(source, task, **changes)
    with without_prefect():
        data = begin(recipe).data
        pruned = climbed(recipe)[-1]
        graphs = [export(recipe, data, pruned)]
        if form != "none":
            graphs.append(export(recipe, data, quantize(recipe, data, pruned)))
        held = held_out(recipe, data, *graphs[:1], graphs[-1])
    counts = [census(graph.folder / GRAPH, graph.json_file("prunable.json")) for graph in graphs]
    bundle = load_bundle(pruned.folder)
    plain = prunable_layers(bundle.model, blank(bundle))
    every = prunable_layers(bundle.model, blank(bundle), factors=True)
    assert len(every) > len(plain)
    sizes, filled = (
        {name: count(layer.weight) for name, layer in every.items()}  # type: ignore[arg-type]
        for count in (torch.numel, torch.count_nonzero)
    )
    assert all(count["prunable"] == sum(sizes.values()) for count in counts)
    assert counts[0]["prunable_nonzero"] == sum(int(x) for x in filled.values())
    added = sum(size for name, size in sizes.items() if name not in plain)
    assert pruned.metrics["factors"] == added > 0
    # small integers round to zero
    assert 0.9 <= counts[-1]["prunable_nonzero"] / counts[0]["prunable_nonzero"] <= 1
    assert held.metrics["agreement"] > 0.9
    texts = load_split(data.folder / "support.parquet").rows(list(range(8)))
    logits = logits_of({"model": graphs[0].folder}, texts.inputs)["model"]
    np.testing.assert_allclose(logits, torch_logits(recipe, texts, pruned), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("modality", "form", "prune"),
    [
        ("text", "int4", {}),
        pytest.param("text", "int8", EORA, marks=pytest.mark.slow),
        pytest.param("image", "int8", {}, marks=pytest.mark.slow),
    ],
)
def test_what_rounding_took_is_made_good_served_and_counted(
    modality: str, form: str, prune: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    source, task = (request.getfixturevalue(f"{modality}_{x}") for x in ("generalist", "task"))
    changes = {"prune": {"sparsity": 0.5, **prune}, "quantize": {"format": form}}
    with without_prefect():
        plain = recipe_of(source, task, **changes)
        data, pruned = begin(plain).data, climbed(plain)[-1]
        found = {}
        for name, extra in (("none", {}), ("eora", {**EORA, "compensation_rank": 6})):
            recipe = recipe_of(source, task, **merged(changes, {"quantize": extra}))
            rounded = quantize(recipe, data, pruned)
            found[name] = rounded, export(recipe, data, rounded)
        whole = export(plain, data, pruned)
        far = {
            name: held_out(plain, data, whole, graph).metrics["kl"]
            for name, (_, graph) in found.items()
        }
    rounded, graph = found["eora"]
    bundle = load_bundle(rounded.folder)
    every = prunable_layers(bundle.model, blank(bundle), factors=True)
    beside = [layer for name, layer in every.items() if is_factor(bundle.model, name)]
    added = sum(layer.weight.numel() for layer in beside)  # type: ignore[operator]
    assert rounded.metrics["factors"] == added > 0
    assert rounded.metrics["layers"] == found["none"][0].metrics["layers"] + len(beside) * (
        not prune
    )
    counted = [
        census(x.folder / GRAPH, x.json_file("prunable.json")) for x in (graph, found["none"][1])
    ]
    assert counted[0]["prunable"] - counted[1]["prunable"] == (0 if prune else added)
    # zeros of the pruned weights are zeros still
    before = load_bundle(pruned.folder).model
    for name in prunable_layers(bundle.model, blank(bundle)):
        zero = before.get_submodule(name).weight == 0
        assert not bundle.model.get_submodule(name).weight[zero].any()
    # at 8 bits the activations' rounding is most of what is left, and factors have their own
    assert far["eora"] < (far["none"] if form == "int4" else 1.1 * far["none"] + 1e-6)


def test_a_rank_that_saves_nothing_is_refused(
    text_task: dict[str, str], text_generalist: str
) -> None:
    changes = {"prune": {"compensation": "eora", "compensation_rank": 64}}
    with pytest.raises(RecipeError, match=r"prune.compensation_rank: 64 saves no weight"):
        climbed(recipe_of(text_generalist, text_task, **changes))
