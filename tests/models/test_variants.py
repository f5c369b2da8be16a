from __future__ import annotations

import pytest
import torch

from models.errors import GeneralistError
from models.shrinking import shrink
from models.units import branches, sizes
from models.variants import block_inputs, variant, variant_key
from tests.models.conftest import pixels
from tests.models.families import CASES, example, family


@torch.no_grad()
@pytest.mark.parametrize(("name", "folded"), CASES)
def test_a_variant_is_its_block_in_the_shrunk_model(name, folded, text_folder):
    bundle, batch = family(name, text_folder, folded=folded), example(name)
    if name in ("bert", "roberta", "distilbert"):
        batch = (batch[0][:1], batch[1][:1])  # without padding, as variants have no mask
    found = branches(bundle.model, batch)
    inputs = block_inputs(bundle.model, batch)
    for branch in found[:2] + found[-1:]:
        x = inputs[branch.block]
        siblings = [b for b in found if b.block == branch.block and b != branch]
        for size in {sizes(branch, branch)[0], sizes(branch, branch)[-1]}:
            kept = {u.name: range(n) for u, n in zip(branch.units, size, strict=True)}
            kept |= {u.name: [] for b in siblings for u in b.units}
            block = shrink(bundle, kept).model.get_submodule(branch.block)
            made = variant(bundle.model, branch, size)
            assert torch.equal(made(x.clone()), block(x.clone()))
            assert not made.training
    shared = {id(p) for p in made.parameters()} & {id(p) for p in bundle.model.parameters()}
    assert not shared


@torch.no_grad()
def test_inputs_are_what_the_blocks_read(text_folder):
    bundle = family("resnet-basic", text_folder)
    inputs = block_inputs(bundle.model, pixels())
    model = bundle.model
    x = model.maxpool(model.act1(model.bn1(model.conv1(*pixels()))))
    for name in ("layer1.0", "layer1.1", "layer2.0"):
        torch.testing.assert_close(inputs[name], x)
        x = model.get_submodule(name)(x)


def keys(bundle, batch):
    found = branches(bundle.model, batch)
    inputs = block_inputs(bundle.model, batch)
    return {
        (branch.name, size): variant_key(branch, size, inputs[branch.block].shape[1:])
        for branch in found
        for size in sizes(branch, branch)
    }


def test_equal_blocks_share_keys_and_others_do_not(text_folder):
    made = keys(family("resnet-bottleneck", text_folder, folded=True), pixels())
    # resnet26: two blocks a stage, the first of another shape; no two stages alike
    assert len(set(made.values())) == len(made)
    made = keys(family("vit", text_folder), pixels())
    assert made["blocks.0.attn", (2,)] == made["blocks.1.attn", (2,)]
    assert made["blocks.0.attn", (2,)] != made["blocks.0.attn", (1,)]
    assert len(set(made.values())) == len(made) // 2
    made = keys(family("mobilenet", text_folder, folded=True), pixels())
    assert made["blocks.3.1", (32,)] == made["blocks.3.2", (32,)]


def test_a_key_holds_numbers_and_no_names_of_blocks(text_folder):
    key = keys(family("resnet-bottleneck", text_folder, folded=True), pixels())
    assert key["layer2.0", (64, 64)] == (
        "bottleneck in 256x16x16 | u0x256 relu u1xu0k3x3s2x2p1x1 relu 512xu1 relu "
        "512x256s2x2 | u0=64,u1=64"
    )


def test_keys_outlive_a_shrink(text_folder):
    bundle, batch = family("bert", text_folder), example("bert")
    before = keys(bundle, batch)
    first = branches(bundle.model, batch)[0]
    after = keys(shrink(bundle, {first.units[0].name: [1]}), batch)
    assert set(after) < set(before)
    assert all(before[name] == key for name, key in after.items())


def test_sizes_that_a_branch_cannot_take_are_refused(text_folder):
    bundle = family("resnet-bottleneck", text_folder)
    found = branches(bundle.model, pixels())
    with pytest.raises(GeneralistError, match="has 1 numbers, expected 2"):
        variant(bundle.model, found[0], (16,))
    with pytest.raises(GeneralistError, match="does not exist"):
        variant(bundle.model, found[0], (65, 64))
    gone = shrink(bundle, {unit.name: [] for unit in found[1].units})
    with pytest.raises(GeneralistError, match="not one of this model's"):
        variant(gone.model, found[1], (16, 16))


@pytest.mark.parametrize("name", ["vit", "bert", "distilbert"])
def test_a_removed_sibling_does_not_change_a_branch_s_key(name, text_folder):
    bundle, batch = family(name, text_folder), example(name)
    before = branches(bundle.model, batch)
    inputs = block_inputs(bundle.model, batch)
    keys = {b.name: variant_key(b, b.size, tuple(inputs[b.block].shape[1:])) for b in before}
    gone = before[0]
    smaller = shrink(bundle, {unit.name: [] for unit in gone.units})
    after = branches(smaller.model, batch)
    assert len(after) == len(before) - 1
    for branch in after:
        shape = tuple(inputs[branch.block].shape[1:])
        assert variant_key(branch, branch.size, shape) == keys[branch.name]
