from __future__ import annotations

import itertools

import pytest
import timm
import torch
from torch import nn

from models.families.base import blocks_of
from models.units import Branch, Unit, branches, sizes
from tests.models.conftest import pixels
from tests.models.families import CASES, example, family


def made(groups: tuple[int, ...], kind: str = "channels", *, removable: bool = True) -> Branch:
    units = tuple(Unit(f"u{i}", kind, f"u{i}", n, 1, ()) for i, n in enumerate(groups))
    return Branch("b", "mlp", "b", units, removable)


@pytest.mark.parametrize(("name", "folded"), CASES)
def test_units_tile_their_consumers_and_run_in_this_order(name, folded, text_folder):
    bundle = family(name, text_folder, folded=folded)
    model, batch = bundle.model, example(name)
    calls: list[str] = []
    for layer_name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda *_, called=layer_name: calls.append(called))
    with torch.no_grad():
        model(*batch)
    order = list(calls)
    found = branches(model, batch)
    units = [unit for branch in found for unit in branch.units]
    assert len({unit.name for unit in units}) == len(units) > 0
    positions = [order.index(unit.consumer) for unit in units]
    assert positions == sorted(positions)
    for branch in found:
        for unit in branch.units:
            layer = model.get_submodule(unit.consumer)
            assert unit.groups * unit.width == layer.weight.flatten(1).shape[1]
            assert unit.consumer.startswith(f"{branch.block}.")
            for producer in unit.producers:
                assert order.index(producer) < order.index(unit.consumer)
                assert model.get_submodule(producer).weight.shape[0] % unit.groups == 0


def test_folding_changes_no_branch_but_what_it_computes(text_folder):
    for name in ("resnet-bottleneck", "mobilenet"):
        plain = branches(family(name, text_folder).model, pixels())
        folded = branches(family(name, text_folder, folded=True).model, pixels())
        assert [(b.name, b.units, b.removable) for b in plain] == [
            (b.name, b.units, b.removable) for b in folded
        ]
        assert plain[0].layers != folded[0].layers


def test_resnet50_has_the_branches_that_its_paper_draws():
    found = branches(timm.create_model("resnet50", num_classes=2).eval(), pixels())
    stages = zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
    assert [b.size for b in found] == [(w, w) for w, blocks in stages for _ in range(blocks)]
    # the first block of each stage projects its shortcut
    assert [b.name for b in found if not b.removable] == [f"layer{i}.0" for i in range(1, 5)]
    assert {u.width for b in found for u in b.units} == {1, 9}


def test_mobilenetv2_leaves_the_block_without_an_expansion_alone():
    found = branches(timm.create_model("mobilenetv2_100", num_classes=2).eval(), pixels())
    assert len(found) == 16 and "blocks.0.0" not in [b.name for b in found]
    assert sum(b.removable for b in found) == 10
    assert found[0].size == (96,) and found[-1].size == (960,)


@pytest.mark.parametrize(
    ("architecture", "model_args", "size", "expected"),
    [
        ("resnext50_32x4d", {}, 64, []),  # grouped convolutions
        ("test_convnext", {"use_grn": True}, 64, []),  # a norm over all neurons
        ("mobilenetv3_large_100", {}, 64, ["1.0", "1.1", "3.0", "3.1", "3.2", "3.3"]),  # no SE
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}, 64, ["0.mlp"]),  # over all heads
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, 64, ["0.attn"]),  # over all neurons
        ("eva02_tiny_patch14_224", {}, 56, []),  # a block that no family describes
    ],
)
def test_what_does_not_fit_is_left_out(architecture, model_args, size, expected):
    if "patch" in architecture:
        model_args = {**model_args, "img_size": size, "depth": 1}
    model = timm.create_model(architecture, num_classes=2, **model_args).eval()
    found = branches(model, pixels(size=size))
    assert [branch.name.removeprefix("blocks.") for branch in found] == expected


def test_a_blur_pool_has_channels_of_its_own():
    model = timm.create_model("resnet18", num_classes=2, aa_layer=timm.layers.BlurPool2d).eval()
    found = [branch.name for branch in branches(model, pixels())]
    assert "layer1.0" in found and "layer2.0" not in found


def test_heads_are_left_alone_where_the_attention_reshapes_to_its_input():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1).eval()
    del model.blocks[0].attn.attn_dim  # as in timm before it had one
    assert [name for name, _, plans in blocks_of(model) for name in [p.name for p in plans]] == [
        "mlp"
    ]


def test_two_calls_leave_training_as_it_was():
    model = timm.create_model("resnet18", num_classes=2).train()
    before = [module.training for module in model.modules()]
    assert branches(model, pixels()) == branches(model, pixels())
    assert [module.training for module in model.modules()] == before


def test_sizes_fall_by_heads_or_by_shared_fractions():
    heads = made((3,), "heads")
    assert sizes(heads, heads) == [(3,), (2,), (1,), (0,)]
    wide = made((64, 128))
    assert sizes(wide, wide, steps=4) == [(64, 128), (48, 96), (32, 64), (16, 32), (16, 16), (0, 0)]
    assert sizes(wide, wide, steps=4, multiple=8)[-2] == (8, 16)
    # full widths below the multiple stay what they are
    assert sizes(made((8,)), made((8,))) == [(8,), (0,)]
    assert sizes(made((8,), removable=False), made((8,))) == [(8,)]


def test_sizes_of_a_shrunk_branch_are_those_of_the_full_one_below_it():
    full, now = made((64, 128)), made((40, 64))
    assert sizes(now, full, steps=4) == [(40, 64), (32, 64), (16, 32), (16, 16), (0, 0)]
    every = sizes(made((1536,)), made((1536,)))
    assert sizes(made(every[3]), made((1536,))) == every[3:]
    for found in (every, sizes(now, full)):
        assert all(a > b for a, b in itertools.pairwise(found))
