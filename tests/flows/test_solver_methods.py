"""Solvers, rounders and smoothing, from the recipe to the graph that is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compression import pruners, rounders, smoothing
from compression.rounders import adaquant
from flows.chain import begin, make, prune_to
from models.checkpoint import load_bundle
from models.structure import prunable_layers
from tasks.artifacts import Artifact
from tasks.batches import blank
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.layout import GRIDS
from tasks.quantize import quantize
from tasks.smooth import smoothed
from tasks.stage import without_prefect
from tasks.teach import teach
from tests.conftest import QUICK, merged


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def shared(stores: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One teacher for all: what one test has computed the next one finds."""
    monkeypatch.setenv("WINNOW_HOME", str(stores))


def recipe_of(source: str, task: dict[str, str], **changes: Any) -> Recipe:
    plain = {"name": "tiny", "generalist": {"source": source}, "task": dict(task)}
    return Recipe.model_validate(merged(merged(plain, QUICK), changes))


@pytest.fixture(scope="session")
def vit_generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """timm's smallest vision transformer with random weights."""
    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, img_size=32, patch_size=16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.logspace(-1, 1, len(parameter)))  # loud channels
    folder = tmp_path_factory.mktemp("vit-generalist")
    told = {
        "label_names": ["red", "green", "blue", "grey"],
        "input_size": [3, 32, 32],
        "model_args": {"img_size": 32, "patch_size": 16},
    }
    timm.models.save_for_hf(model, str(folder), model_config=told, safe_serialization=True)
    return f"timm:local-dir:{folder}"


def pruned(recipe: Recipe) -> tuple[Artifact, Artifact]:
    """The task's data and the student after the last rung."""
    with without_prefect():
        begun = begin(recipe)
        teacher = student = teach(recipe, begun.data, begun.generalist)
        for rung in recipe.rungs:
            student = prune_to(recipe, rung, begun.data, teacher, student)
    return begun.data, student


@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("2:4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", pruners.METHODS)
def test_a_pruner_by_name(
    text_task: dict[str, str], text_generalist: str, method: str, pattern: str
) -> None:
    changes = {"prune": {"method": method, "pattern": pattern, "sparsity": None}}
    recipe = recipe_of(text_generalist, text_task, **changes, distill={"steps": 0})
    _, student = pruned(recipe)
    bundle = load_bundle(student.folder)
    layers = prunable_layers(bundle.model, blank(bundle))
    zero = sum(int((layer.weight == 0).sum()) for layer in layers.values())  # type: ignore[arg-type]
    if pattern == "2:4":
        for name, layer in layers.items():
            groups = (layer.weight != 0).reshape(-1, 4)  # type: ignore[operator]
            assert bool((groups.sum(1) == (4 if name in student.metrics["dense"] else 2)).all())
    else:
        every = sum(layer.weight.numel() for layer in layers.values())  # type: ignore[operator]
        assert zero == round(0.5 * every)


@pytest.mark.parametrize("form", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", rounders.METHODS)
def test_a_rounder_by_name(
    monkeypatch: pytest.MonkeyPatch,
    text_task: dict[str, str],
    text_generalist: str,
    method: str,
    form: str,
) -> None:
    monkeypatch.setattr(adaquant, "_STEPS", 20)
    changes = {"quantize": {"method": method, "format": form}, "distill": {"steps": 0}}
    recipe = recipe_of(text_generalist, text_task, **changes)
    data, student = pruned(recipe)
    with without_prefect():
        rounded = quantize(recipe, data, student)
    before, after = load_bundle(student.folder).model, load_bundle(rounded.folder).model
    grids = load_file(rounded.folder / GRIDS)
    names = [key.split(" ")[1] for key in grids if key.endswith("scale")]
    assert len(names) == rounded.metrics["layers"] == 12
    for name in names:
        integers = grids[f"weight {name} integers"].float()
        scale = grids[f"weight {name} scale"]
        spread = scale[:, None] if form == "int8" else scale.repeat_interleave(32, dim=1)
        weight = after.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        assert torch.equal(integers * spread[:, : weight.shape[1]], weight)
        zeros = before.get_submodule(name).weight == 0
        assert bool((integers[zeros] == 0).all())


@pytest.mark.parametrize("name", [name for name in smoothing.METHODS if name != "none"])
def test_a_smoothing_by_name(image_task: dict[str, str], vit_generalist: str, name: str) -> None:
    changes = {"quantize": {"smooth": name}, "distill": {"steps": 0}}
    recipe = recipe_of(vit_generalist, image_task, **changes)
    data, student = pruned(recipe)
    with without_prefect():
        served = smoothed(recipe, data, student, title="smooth")
    before, after = load_bundle(student.folder).model, load_bundle(served.folder).model
    told = served.metrics
    depth = len(before.blocks)  # type: ignore[arg-type]
    assert (told["norms"], told["of"]) == (2 * depth, 2 * depth + 1)
    assert told["change"] < 1e-4
    for at in range(depth):
        norm = f"blocks.{at}.norm1.weight"
        assert not torch.equal(before.get_parameter(norm), after.get_parameter(norm))


def test_a_text_encoder_whose_residual_reads_its_norms_is_left_as_it_is(
    text_task: dict[str, str], text_generalist: str
) -> None:
    changes = {"quantize": {"smooth": "smoothquant"}, "distill": {"steps": 0}}
    recipe = recipe_of(text_generalist, text_task, **changes)
    data, student = pruned(recipe)
    with without_prefect():
        served = smoothed(recipe, data, student, title="smooth")
    told = {key: served.metrics[key] for key in ("norms", "of", "change")}
    assert told == {"norms": 0, "of": 5, "change": 0.0}
    before, after = (load_bundle(each.folder).model.state_dict() for each in (student, served))
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("changes", [{"smooth": "none"}, {"smooth": "repq", "format": "none"}])
def test_where_nothing_is_smoothed_there_is_no_stage(
    text_task: dict[str, str], text_generalist: str, changes: dict[str, str]
) -> None:
    recipe = recipe_of(text_generalist, text_task, quantize=changes, distill={"steps": 0})
    data, student = pruned(recipe)
    assert smoothed(recipe, data, student, title="smooth") is student


@pytest.mark.parametrize(
    ("section", "field"), [("prune", "method"), ("quantize", "method"), ("quantize", "smooth")]
)
def test_a_name_that_there_is_not(
    text_task: dict[str, str], tmp_path: Path, section: str, field: str
) -> None:
    with pytest.raises((ValueError, RecipeError), match="must be one of"):
        recipe_of("hf:/nowhere", text_task, **{section: {field: "best"}})


WHOLE: list[dict[str, Any]] = [
    {"quantize": {}},
    {"quantize": {"smooth": "smoothquant", "method": "adaquant"}, "prune": {"method": "wanda"}},
    {"quantize": {"smooth": "repq", "method": "rtn"}, "prune": {"method": "magnitude"}},
    {"quantize": {"smooth": "repq", "route": "dynamic"}, "prune": {"method": "obs"}},
    {"quantize": {"smooth": "smoothquant", "format": "int4"}},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", WHOLE, ids=json.dumps)
def test_a_whole_run(
    image_task: dict[str, str], vit_generalist: str, changes: dict[str, Any]
) -> None:
    """Parity along the chain is the stage's own: a form that departs is told in `parity`."""
    recipe = recipe_of(vit_generalist, image_task, **merged({"limits": {"samples": 0}}, changes))
    with without_prefect():
        made = make(recipe, begin(recipe))
    report = made.verified.json_file("report.json")
    assert not [hop for hop in report["parity"] if hop.get("broken")]
