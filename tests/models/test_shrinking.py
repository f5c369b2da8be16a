from __future__ import annotations

import random
from collections import Counter

import onnx
import pytest
import torch

from exports.graph import export_onnx
from models.checkpoint import Bundle, load_bundle, save_bundle
from models.errors import GeneralistError
from models.folding import fold_batchnorm
from models.heads import with_head
from models.shrinking import shrink
from models.structure import prunable_layers, segments
from models.units import Branch, branches, sizes
from tests.models.conftest import image_bundle, pixels
from tests.models.families import CASES, example, family


def draw(found: list[Branch], seed: int = 0, *, last: bool = False) -> dict[str, list[int]]:
    """Random groups at a random size of every branch; ``last``: every second one at its least."""
    rng = random.Random(seed)
    kept = {}
    for number, branch in enumerate(found):
        options = sizes(branch, branch)
        size = options[-1] if last and number % 2 else rng.choice(options)
        for unit, count in zip(branch.units, size, strict=True):
            kept[unit.name] = sorted(rng.sample(range(unit.groups), count))
    return kept


@torch.no_grad()
def masked(bundle: Bundle, found: list[Branch], kept: dict[str, list[int]]) -> Bundle:
    """The same groups taken away by zeroing the columns that read them."""
    copied = bundle.copy()
    for unit in (unit for branch in found for unit in branch.units):
        weight = copied.model.get_submodule(unit.consumer).weight
        columns = weight.view(weight.shape[0], unit.groups, unit.width)
        gone = [group for group in range(unit.groups) if group not in kept[unit.name]]
        columns[:, gone] = 0
    return copied


@torch.no_grad()
@pytest.mark.parametrize(("name", "folded"), CASES)
def test_shrunk_is_masked_and_survives_a_checkpoint(name, folded, text_folder, tmp_path):
    bundle, batch = family(name, text_folder, folded=folded), example(name)
    before = bundle.model(*batch)
    found = branches(bundle.model, batch)
    kept = draw(found, last=True)
    expected = masked(bundle, found, kept).model(*batch)
    shrunk = shrink(bundle, kept)
    got = shrunk.model(*batch)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-3)  # the oracle itself has an effect
    assert torch.equal(bundle.model(*batch), before)

    left = {unit.name: unit.groups for b in branches(shrunk.model, batch) for unit in b.units}
    assert left == {unit: len(groups) for unit, groups in kept.items() if groups}
    layers = prunable_layers(shrunk.model, batch)
    names = [segment.name for segment in segments(shrunk.model, batch)]
    assert all(any(layer == n or layer.startswith(f"{n}.") for n in names) for layer in layers)

    save_bundle(shrunk, tmp_path / "saved")
    loaded = load_bundle(tmp_path / "saved")
    assert torch.equal(loaded.model(*batch), got) and loaded.delta == shrunk.delta


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "resnet-bottleneck", "distilbert"])
def test_shrinking_twice_is_shrinking_once(name, text_folder, tmp_path):
    bundle, batch = family(name, text_folder), example(name)
    first = draw(branches(bundle.model, batch), 1)
    once = shrink(bundle, first)
    second = draw(branches(once.model, batch), 2)
    twice = shrink(once, second)
    both = {u: [g[i] for i in second[u]] if u in second else g for u, g in first.items()}
    direct = shrink(bundle, both)
    torch.testing.assert_close(twice.model(*batch), direct.model(*batch))
    records = [record for record in twice.delta if record["op"] == "shrink"]
    assert records == [record for record in direct.delta if record["op"] == "shrink"]
    assert len(records) == 1
    save_bundle(twice, tmp_path / "saved")
    assert torch.equal(load_bundle(tmp_path / "saved").model(*batch), twice.model(*batch))


@torch.no_grad()
def test_other_changes_before_and_after_a_shrink_replay(text_folder, tmp_path):
    bundle, batch = family("resnet-bottleneck", text_folder), pixels()
    shrunk = shrink(bundle, draw(branches(bundle.model, batch), last=True))
    headed = with_head(shrunk, ["x", "y"], torch.randn(2, 2048))
    folded = fold_batchnorm(headed, batch)
    again = shrink(folded, draw(branches(folded.model, batch), 5))
    save_bundle(again, tmp_path / "saved")
    assert torch.equal(load_bundle(tmp_path / "saved").model(*batch), again.model(*batch))
    assert [record["op"] for record in again.delta] == ["head", "fold_batchnorm", "shrink"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "bert", "distilbert"])
def test_a_removed_branch_passes_its_constant_on(name, text_folder):
    bundle, batch = family(name, text_folder), example(name)
    found = branches(bundle.model, batch)
    nothing = {unit.name: [] for branch in found for unit in branch.units}
    empty = shrink(bundle, nothing)
    assert branches(empty.model, batch) == []
    expected = masked(bundle, found, nothing).model(*batch)
    torch.testing.assert_close(empty.model(*batch), expected, rtol=1e-4, atol=1e-5)
    values = [value for key, value in empty.model.state_dict().items() if key.endswith(".value")]
    assert len(values) == len(found) and all(value.abs().max() > 0 for value in values)


def operators(bundle: Bundle, batch: tuple[torch.Tensor, ...], path) -> Counter[str]:
    names = ["pixels"] if bundle.modality == "image" else ["input_ids", "attention_mask"]
    export_onnx(bundle.model, batch, path, input_names=names)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("name", "removed", "gone"),
    [
        # the attention of block 0 and the MLP of block 1: their norms go with them
        ("vit", (0, 3), {"LayerNormalization": 2, "MatMul": 6, "Softmax": 1, "Gelu": 1}),
        # post-norm: LayerNorm(x + c) stays
        ("bert", (0, 3), {"LayerNormalization": 0, "MatMul": 8, "Softmax": 1, "Gelu": 1}),
        pytest.param(
            "convnext-test",
            (1,),
            {"LayerNormalization": 1, "Conv": 1, "MatMul": 2, "Gelu": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_graph_of_a_removed_branch_is_one_addition(name, removed, gone, text_folder, tmp_path):
    if name == "convnext-test":
        bundle, batch = image_bundle("test_convnext", ls_init_value=0.5, conv_mlp=False), pixels()
    else:
        bundle, batch = family(name, text_folder), example(name)
    whole = operators(bundle, batch, tmp_path / "whole.onnx")
    found = branches(bundle.model, batch)
    shrunk = shrink(bundle, {unit.name: [] for number in removed for unit in found[number].units})
    left = operators(shrunk, batch, tmp_path / "left.onnx")
    assert {op: whole[op] - left[op] for op in gone} == gone
    assert set(left) <= set(whole)
    # a Linear's bias is an addition too; what stays of a branch is the residual's, by a constant
    biases = sum(
        layer.bias is not None
        for layer_name, layer in bundle.model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and any(layer_name.startswith(f"{found[number].name}.") for number in removed)
    )
    assert left["Add"] <= whole["Add"] - biases


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"layer9.0.conv2": [0]}, "unit 'layer9.0.conv2' is not one of this model's 16"),
        ({"layer1.0.conv2": [64]}, "group 64 does not exist; it has 64"),
        ({"layer1.0.conv2": [-1]}, "group -1 does not exist"),
        ({"layer1.0.conv2": [1, 1]}, "named twice"),
        ({"layer1.0.conv2": [], "layer1.0.conv3": []}, "its branch cannot go"),
        ({"layer1.1.conv2": []}, "empty every unit of the branch"),
    ],
)
def test_what_cannot_be_kept_is_refused(kept, message, text_folder):
    bundle = family("resnet-bottleneck", text_folder)
    with pytest.raises(GeneralistError, match=message) as caught:
        shrink(bundle, kept)
    assert "\n" not in str(caught.value)


def test_keeping_everything_records_nothing(text_folder):
    bundle = family("resnet-basic", text_folder)
    unit = branches(bundle.model, pixels())[0].units[0]
    assert shrink(bundle, {unit.name: range(unit.groups)}).delta == []


def test_what_is_left_trains(text_folder):
    bundle = family("vit", text_folder)
    found = branches(bundle.model, pixels())
    shrunk = shrink(bundle, {"blocks.0.mlp": [], **{found[0].units[0].name: [1]}})
    shrunk.model(*pixels()).sum().backward()
    value = shrunk.model.blocks[0].mlp.value
    assert value.grad is not None and value.grad.abs().max() > 0
    assert all(p.requires_grad for p in shrunk.model.parameters())
