"""The database of levels, stitching, the choice under budgets and the removal that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compression.allocate import allocate
from compression.database import Stitcher
from compression.errors import UnreachableBudget
from compression.levels import build_levels
from compression.search import SearchSettings
from compression.shrink import remove_structure
from tests.compression.shapes import Block, Branch, Piece, Unit

CPU = torch.device("cpu")


@pytest.fixture
def made():
    torch.manual_seed(0)
    model = nn.Sequential(Block(6, 12), Block(6, 12), nn.Linear(6, 4)).eval()
    branches = [Branch(str(i), (Unit(f"{i}.mlp", f"{i}.fc2", 12),)) for i in range(2)]
    pieces = [Piece(str(i), model[i]) for i in range(2)]
    batches = [(torch.randn(64, 6) @ torch.randn(6, 6),) for _ in range(3)]
    sizes = {"0": [(12,), (8,), (4,), (0,)], "1": [(12,), (8,), (4,), (0,)]}
    return model, branches, pieces, batches, sizes


@torch.no_grad()
def test_levels_leave_the_model_alone_and_their_losses_rise_to_one(made, tmp_path: Path):
    model, branches, pieces, batches, sizes = made
    before = [p.clone() for p in model.parameters()]
    found = build_levels(model, pieces, lambda: iter(batches), branches, sizes, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for losses in found.losses.values():
        assert losses[0] == 0 and losses == sorted(losses)
        assert losses[-1] == pytest.approx(1.0)


@torch.no_grad()
def test_stitching_is_exact_both_ways(made, tmp_path: Path):
    model, branches, pieces, batches, sizes = made
    (x,) = batches[0]
    dense = model(x)
    found = build_levels(model, pieces, lambda: iter(batches), branches, sizes, tmp_path)
    stitcher = Stitcher(model, branches, found)
    stitcher.set((2, 0))
    columns = model[0].fc2.weight.abs().sum(dim=0)
    assert int((columns == 0).sum()) == 8
    assert not torch.allclose(model(x), dense)
    stitcher.set((0, 0))
    torch.testing.assert_close(model(x), dense)


@torch.no_grad()
def test_what_is_chosen_keeps_the_budget_and_is_what_is_removed(made, tmp_path: Path):
    model, branches, pieces, batches, sizes = made
    teacher = nn.Sequential(Block(6, 12), Block(6, 12), nn.Linear(6, 4)).eval()
    teacher.load_state_dict(model.state_dict())
    found = build_levels(model, pieces, lambda: iter(batches), branches, sizes, tmp_path)
    costs = {"milliseconds": [[3.0, 2.0, 1.0, 0.0]] * 2, "bytes": [[12.0, 8.0, 4.0, 0.0]] * 2}

    def choose(budgets: dict[str, float], search: SearchSettings | None):
        return allocate(
            model,
            teacher,
            branches,
            found,
            {name: costs[name] for name in budgets},
            budgets,
            batches,
            search=search,
            device=CPU,
            autocast_bf16=False,
        )

    settings = SearchSettings(generations=10, offspring=6)
    one = choose({"milliseconds": 3.0}, settings)
    assert one.costs["milliseconds"] <= 3.0 and one.kl <= one.kl_start
    both = choose({"milliseconds": 4.0, "bytes": 12.0}, None)
    assert both.costs["bytes"] <= 12 and both.costs["milliseconds"] <= 4
    with pytest.raises(UnreachableBudget, match="milliseconds"):
        choose({"milliseconds": -1.0}, None)

    kept, losses = remove_structure(model, pieces, lambda: iter(batches), branches, one.sizes)
    for branch in branches:
        (count,) = one.sizes[branch.name]
        alive = model.get_submodule(branch.units[0].consumer).weight.abs().sum(dim=0) > 0
        assert int(alive.sum()) == count
        if count < 12:
            assert kept[branch.units[0].name].tolist() == torch.nonzero(alive).flatten().tolist()
            assert losses[branch.units[0].consumer] > 0
