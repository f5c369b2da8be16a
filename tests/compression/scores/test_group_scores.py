"""Scores of groups against closed forms, masked passes and least squares; updates beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compression.hessian import layer_loss
from compression.levels import build_levels
from compression.scores import METHODS
from compression.scores.trajectory import trajectories
from compression.shrink import remove_structure
from compression.structured import least_squares, remove_groups
from tests.compression.shapes import Block, Branch, Piece, Unit


def problem(generator: torch.Generator, groups: int, width: int, rows: int = 5):
    """A weight with a bias column, its undamped and its damped Hessian, and the inputs."""
    size = groups * width + 1
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, size, generator=generator, dtype=torch.float64) @ mixing
    inputs[:, -1] = 1
    hessian = 2 / 200 * inputs.T @ inputs
    weight = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return weight, hessian, hessian + 0.1 * torch.eye(size, dtype=torch.float64), inputs


def scoring(name: str):
    return METHODS.load(name)(nn.Identity(), [], lambda: iter(()), [])


def kept_by(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True)[:count].tolist())


@pytest.mark.parametrize("width", [1, 3])
def test_magnitude_keeps_the_largest_columns_and_completes_them_by_least_squares(generator, width):
    weight, _, damped, _ = problem(generator, 8, width)
    norms = weight[:, : 8 * width].unflatten(1, (8, width)).square().sum(dim=(0, 2))
    (found,) = remove_groups(
        weight, damped, groups=8, width=width, keep=[3], score=scoring("magnitude")
    )
    assert found.kept.tolist() == kept_by(norms, 3)
    columns = (found.kept[:, None] * width + torch.arange(width)).flatten()
    columns = torch.cat([columns, torch.tensor([8 * width])])
    torch.testing.assert_close(found.weight, least_squares(weight, damped, columns))


@pytest.mark.parametrize("width", [1, 3])
def test_activation_keeps_the_groups_of_largest_mean_square(generator, width):
    weight, hessian, damped, inputs = problem(generator, 8, width)
    power = inputs[:, : 8 * width].unflatten(1, (8, width)).square().sum(dim=2).mean(dim=0)
    score = scoring("activation")
    seen = []

    def spy(standing):
        seen.append(score(standing))
        return seen[-1]

    (found,) = remove_groups(
        weight, damped, groups=8, width=width, keep=[3], score=spy, undamped=hessian
    )
    torch.testing.assert_close(seen[0], power)
    assert found.kept.tolist() == kept_by(power, 3)


def test_a_group_that_never_speaks_leaves_first_by_activation():
    torch.manual_seed(0)
    block = Block(6, 12, nn.ReLU())
    model = nn.Sequential(block, nn.Linear(6, 4)).eval()
    with torch.no_grad():
        block.fc1.weight[5], block.fc1.bias[5] = 0.0, -1.0
        block.fc1.weight.mul_(0.01)  # whose damping would weigh more than the others' inputs
    batches = [(torch.randn(64, 6),)]
    branch = Branch("0", (Unit("0.mlp", "0.fc2", 12),))
    kept, _ = remove_structure(
        model,
        [Piece("0", model[0])],
        lambda: iter(batches),
        [branch],
        {"0": (11,)},
        score="activation",
    )
    assert 5 not in kept["0.mlp"]


@pytest.mark.parametrize("name", ["obs", "magnitude"])
def test_without_an_update_the_same_groups_leave_and_the_rest_stays_as_it_was(generator, name):
    weight, _, damped, _ = problem(generator, 10, 2)
    asked = {"groups": 10, "width": 2, "keep": [7, 3, 0], "score": scoring(name)}
    with_update = remove_groups(weight, damped, **asked)
    without = remove_groups(weight, damped, **asked, update=False)
    for solved, plain in zip(with_update, without, strict=True):
        assert torch.equal(solved.kept, plain.kept)
        gone = plain.weight == 0
        assert torch.equal(plain.weight[~gone], weight[~gone])
        assert gone.any(dim=0).sum() == 2 * (10 - len(plain.kept))
        change = (plain.weight - weight)[None]
        assert plain.loss == pytest.approx(float(layer_loss(change, damped[None])), rel=1e-9)
        assert solved.loss <= plain.loss * (1 + 1e-9)


@pytest.fixture
def made():
    torch.manual_seed(0)
    model = nn.Sequential(
        Block(6, 8, nn.Identity()), Block(6, 40, nn.Identity()), nn.Linear(6, 4)
    ).eval()
    units = [Unit("0.mlp", "0.fc2", 8), Unit("1.mlp", "1.fc2", 40)]
    pieces = [Piece(str(i), model[i]) for i in range(2)]
    batches = [(torch.randn(40, 6),), (torch.randn(9, 6),)]
    return model, pieces, batches, units


@torch.no_grad()
def moved(model, batches, consumer, group):
    """T_g by zeroing the consumer's column: what masking its input does."""
    total, rows = 0.0, sum(len(x) for (x,) in batches)
    for (x,) in batches:
        whole = [model[0](x), model[:2](x), model(x)]
        weight = model.get_submodule(consumer).weight
        column = weight[:, group].clone()
        weight[:, group] = 0
        masked = [model[0](x), model[:2](x), model(x)]
        weight[:, group] = column
        parts = zip(masked, whole, strict=True)
        total += len(x) / rows * sum(float((a - b).norm() ** 2 / b.norm() ** 2) for a, b in parts)
    return total


def test_trajectories_of_few_groups_are_those_of_masked_passes(made):
    model, pieces, batches, units = made
    found = trajectories(model, pieces, lambda: iter(batches), units[:1])["0.fc2"]
    wanted = [moved(model, batches, "0.fc2", g) for g in range(8)]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=1e-4, atol=1e-9)


def test_linearised_trajectories_of_a_linear_network_are_exact_in_expectation(made):
    model, pieces, batches, units = made
    exact = trajectories(model, pieces, lambda: iter(batches), units, exact=64)
    near = trajectories(model, pieces, lambda: iter(batches), units, exact=0, probes=600)
    for unit in units:
        assert exact[unit.consumer].argmin() == near[unit.consumer].argmin()
        torch.testing.assert_close(near[unit.consumer], exact[unit.consumer], rtol=0.1, atol=1e-7)


def test_trajectories_are_the_same_each_time_and_leave_no_hook(made):
    model, pieces, batches, units = made
    first = trajectories(model, pieces, lambda: iter(batches), units)
    second = trajectories(model, pieces, lambda: iter(batches), units)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_convolutions_groups_are_channels_and_windows_belong_to_their_example():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 4, 3, padding=1)
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            x = self.conv2(self.conv1(x))  # (N, 4, 4, 4)
            x = x.permute(0, 2, 3, 1).reshape(-1, 8, 4)  # two windows an example
            return self.fc2(self.fc1(x)).reshape(-1, 16, 4).mean(dim=1)

    model = Net().eval()
    batches = [(torch.randn(5, 3, 4, 4),)]
    units = [Unit("c", "conv2", 20, 9), Unit("l", "fc2", 6)]
    exact = trajectories(model, [], lambda: iter(batches), units, exact=64)
    near = trajectories(model, [], lambda: iter(batches), units, exact=0, probes=1000)
    for name, value in exact.items():
        torch.testing.assert_close(near[name], value, rtol=0.2, atol=1e-6)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("update", [True, False])
def test_every_score_removes_exactly_what_is_asked(made, tmp_path: Path, name, update):
    model, pieces, batches, units = made
    found = [Branch(str(i), (unit,)) for i, unit in enumerate(units)]
    sizes = {"0": [(8,), (5,), (2,), (0,)], "1": [(40,), (20,), (3,), (0,)]}
    asked = {"score": name, "update": update}
    levels = build_levels(model, pieces, lambda: iter(batches), found, sizes, tmp_path, **asked)
    for losses in levels.losses.values():
        assert losses[0] == 0 and losses == sorted(losses)
    smaller = {"0": (2,), "1": (3,)}
    kept, _ = remove_structure(model, pieces, lambda: iter(batches), found, smaller, **asked)
    for unit, count in zip(units, (2, 3), strict=True):
        weight = dict(model.named_parameters())[f"{unit.consumer}.weight"]
        alive = weight.abs().sum(dim=0) > 0
        assert torch.equal(torch.nonzero(alive).flatten(), kept[unit.name])
        assert len(kept[unit.name]) == count
