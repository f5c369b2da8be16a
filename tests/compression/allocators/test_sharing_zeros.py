"""Zeros shared among layers: exact totals, optimal where it can be known, the same after a kill."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compression.allocation import integer_program, settled, uniform
from compression.allocators import METHODS, dynamic
from compression.allocators.threshold import scores_of
from compression.errors import CompressionError
from compression.hessian import HessianAccumulator
from compression.judge import spread_rows
from compression.ladder import LadderSettings, climb, frozen_copy
from compression.losses import temperature_kl
from compression.problem import LayerProblem
from compression.prune import prune_layers
from compression.request import AllocationSettings, Request
from compression.share import share_zeros, told
from compression.zero_levels import counts_around
from tests.compression.shapes import Piece
from tests.compression.test_keeping import RECOVERY, Net
from tests.interrupted import limp, same

CPU = torch.device("cpu")
LAYERS = ("0", "2", "4")
SEARCHED = [name for name in METHODS if name != "uniform"]


@dataclass
class Made:
    """Three layers of which the first sees inputs that nearly lie in a plane."""

    model: nn.Sequential
    teacher: nn.Sequential
    batches: list[tuple[torch.Tensor]]

    def request(self, folder: Path, method: str = "dynamic", **changes: Any) -> Request:
        plain: dict[str, Any] = {
            "model": self.model,
            "teacher": self.teacher,
            "segments": [Piece(name, self.model.get_submodule(name)) for name in LAYERS],
            "calibration": lambda: iter(self.batches),
            "sizes": {name: self.model.get_submodule(name).weight.numel() for name in LAYERS},
            "dense": (),
            "sparsity": 0.75,
            "settings": AllocationSettings(method=method, generations=4, offspring=6, seed=3),
            "solver": "sweep",
            "rel_damp": 0.01,
            "rows_per_column": None,
            "device": CPU,
            "autocast_bf16": False,
            "folder": folder,
        }
        return Request(**{**plain, **changes})


@pytest.fixture
def make() -> Callable[[], Made]:
    def made() -> Made:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8)
            ).eval()
            flat = torch.randn(8, 2) @ torch.randn(2, 8)
            batches = [(torch.randn(32, 8) @ flat + 0.1 * torch.randn(32, 8),) for _ in range(4)]
        with torch.no_grad():
            model[4].weight.mul_(4)
        return Made(model, copy.deepcopy(model), batches)

    return made


def share(made: Made, folder: Path | None, method: str, keeper: Any = None, **changes: Any):
    """`share_zeros` as the ladder calls it."""
    request = made.request(folder or Path(), method, **changes)
    return share_zeros(
        request.model,
        request.teacher,
        request.segments,
        request.calibration,
        sizes=request.sizes,
        dense=request.dense,
        sparsity=request.sparsity,
        settings=request.settings,
        solver=request.solver,
        rel_damp=request.rel_damp,
        rows_per_column=request.rows_per_column,
        device=CPU,
        autocast_bf16=False,
        folder=folder,
        keeper=keeper,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, 0.65])
def test_totals_are_exact_and_the_model_is_left_alone(
    make: Any, tmp_path: Path, method: str, sparsity: float
) -> None:
    made = make()
    with torch.no_grad():
        made.model[2].weight[:4] = 0  # 64 of 256 are zero already
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    zeros = share(made, tmp_path / "f", method, sparsity=sparsity, dense=("0",)).zeros
    assert same(dict(made.model.state_dict()), before)
    assert list(zeros) == list(LAYERS) and zeros["0"] == 0
    assert sum(zeros.values()) == round(sparsity * 512)
    assert method == "uniform" or zeros["2"] >= 64
    assert not (tmp_path / "f").exists(), "the solved levels are still there"
    request = made.request(tmp_path)
    prune_layers(made.model, request.segments, request.calibration, zeros)
    reached = sum(int((made.model.get_submodule(n).weight == 0).sum()) for n in LAYERS)
    assert reached == round(sparsity * 512)


def test_uniform_is_what_it_was(make: Any) -> None:
    made = make()
    request = made.request(Path())
    found = share(made, None, "uniform", dense=("4",))
    assert found.zeros == uniform(request.sizes, 0.75, dense=("4",)) and not found.facts
    assert METHODS.load("uniform")(request) == uniform(request.sizes, 0.75)


def brute_force(costs: Any, kept: Any, budget: int) -> float:
    return min(
        sum(cost[at] for cost, at in zip(costs, levels, strict=True))
        for levels in itertools.product(*(range(len(cost)) for cost in costs))
        if sum(k[at] for k, at in zip(kept, levels, strict=True)) <= budget
    )


def test_additive_methods_find_the_brute_force_optimum_of_three_layers(
    make: Any, tmp_path: Path
) -> None:
    request = make().request(tmp_path, "integer")
    levels = request.levels
    for costs in (request.costs_alone, request.costs_around(levels.even, 0)):
        best = brute_force(costs, levels.kept, levels.budget)
        for picked in (
            dynamic.program(costs, levels),
            integer_program(costs, {"": levels.kept}, {"": levels.budget}),
        ):
            assert levels.fits(tuple(picked))
            cost = sum(cost[at] for cost, at in zip(costs, picked, strict=True))
            assert cost == pytest.approx(best, abs=1e-9 + 1e-3 * abs(best))


def test_the_dynamic_answer_is_no_worse_than_the_even_one_or_one_threshold(
    make: Any, tmp_path: Path
) -> None:
    request = make().request(tmp_path)
    found = dynamic.solve(request)
    assert request.levels.fits(found)
    by_threshold = request.nearest(METHODS.load("global")(request))
    assert request.levels.fits(by_threshold)
    others = (request.levels.even, by_threshold)
    assert request.judge(found) <= min(map(request.judge, others))
    assert dynamic.solve(request) is found  # once is enough


def test_where_all_is_lost_each_layer_is_judged_by_itself(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make().request(tmp_path)
    told = torch.cat([target.softmax(-1) for target in request.judge.targets])
    constant = told.mean(0).log().expand_as(told)
    blind = float(temperature_kl(constant, told.log(), 1.0))
    assert request.judge.blind == pytest.approx(blind, rel=1e-5)
    around = dynamic.solve(request)
    assert request.judge(around) < 0.5 * blind, "this model is not lost"
    monkeypatch.setattr(dynamic, "_LOST", 0.0)  # now any model is
    request.additive = None
    assert dynamic.solve(request) == dynamic.program(request.costs_alone, request.levels)


def test_evolution_is_never_worse_than_where_it_starts(make: Any, tmp_path: Path) -> None:
    found = share(make(), tmp_path / "f", "evolutionary").facts
    assert found["kl_chosen"] <= found["kl_start"] <= found["kl_even"]
    additive = share(make(), tmp_path / "g", "dynamic").facts
    assert found["kl_start"] <= additive["kl_chosen"] + 1e-12


def test_probing_around_the_even_share_costs_nothing_there(make: Any, tmp_path: Path) -> None:
    request = make().request(tmp_path)
    levels = request.levels
    costs = request.costs_around(levels.even, 0)
    for cost, at, losses in zip(costs, levels.even, levels.database.losses.values(), strict=True):
        assert cost[at] == pytest.approx(0, abs=1e-12)
        assert cost == sorted(cost) and losses == sorted(losses)
        assert losses[0] == 0 and losses[-1] <= 1


def test_one_threshold_matches_counting_by_hand(make: Any, tmp_path: Path) -> None:
    made = make()
    request = made.request(tmp_path, "global")
    every: list[tuple[float, str]] = []

    def look(problem: LayerProblem) -> None:
        inverse = torch.linalg.inv(problem.factor.damped.double())[0].diagonal()
        for row in problem.weight[0].double():
            every.extend((float(w**2 / inverse[c] / 2), problem.name) for c, w in enumerate(row))

    request.each(look)
    normalised = []
    for name in LAYERS:
        mine = sorted(score for score, owner in every if owner == name)
        normalised += [(mine[i] / sum(mine[i:]), name) for i in range(len(mine))]
    gone = [name for _, name in sorted(normalised)[: request.total]]
    assert METHODS.load("global")(request) == {name: gone.count(name) for name in LAYERS}


def test_the_threshold_does_not_see_the_scale_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 6)
    seen = HessianAccumulator(layer)
    seen.add(torch.randn(50, 12))
    one = scores_of(LayerProblem.of("a", layer, seen, 0.01))
    with torch.no_grad():
        layer.weight.mul_(10)
    torch.testing.assert_close(one, scores_of(LayerProblem.of("a", layer, seen, 0.01)))
    assert float(one[-1]) == 1.0  # the last weight is all that is left: no layer loses it first


def test_levels_step_by_one_number_of_weights() -> None:
    counts = counts_around(800, 0, 720)
    assert counts[0] == 0 and 720 in counts and counts == sorted(set(counts))
    kept = [800 - count for count in counts[1:]]
    assert all(number % 10 == 0 for number in kept)
    # a layer that holds more than its share can only lose more
    assert counts_around(800, 760, 760) == [760, *(800 - 5 * k for k in (7, 6, 5, 4, 3, 2, 1))]


@pytest.mark.parametrize("seed", range(30))
def test_settled_is_exact_and_within_bounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [str(i) for i in range(5)]
    least = {n: int(random.integers(0, 20)) for n in names}
    most = {n: least[n] + int(random.integers(0, 50)) for n in names}
    total = int(random.integers(sum(least.values()), sum(most.values()) + 1))
    found = settled(
        {n: float(random.uniform(-10, 90)) for n in names}, least=least, most=most, total=total
    )
    assert sum(found.values()) == total
    assert all(least[n] <= found[n] <= most[n] for n in names)


def test_settled_leaves_a_right_total_alone_and_refuses_an_impossible_one() -> None:
    wanted = {"a": 3, "b": 7}
    assert settled(wanted, least={"a": 0, "b": 0}, most={"a": 9, "b": 9}, total=10) == wanted
    with pytest.raises(CompressionError, match="20 zeros"):
        settled(wanted, least={"a": 0, "b": 0}, most={"a": 9, "b": 9}, total=20)


@pytest.mark.parametrize("method", SEARCHED)
def test_a_killed_choice_ends_the_same(make: Any, tmp_path: Path, method: str) -> None:
    whole = share(make(), None, method)

    def work(keeper: Any) -> Any:
        return share(make(), tmp_path / "levels", method, keeper)

    found, kills = limp(work, tmp_path / "kept")
    assert (found.zeros, found.facts) == (whole.zeros, whole.facts)
    # three layers solved, three probed at least once, four generations, the answer
    assert kills == 1 if method == "global" else kills >= 7 + 4 * (method == "evolutionary")


def test_what_is_told_names_every_layer(make: Any) -> None:
    shared = share(make(), None, "dynamic")
    sizes = make().request(Path()).sizes
    facts = told(shared, sizes, "dynamic")
    assert facts["method"] == "dynamic" and set(facts["layers"]) == set(LAYERS)
    assert sum(facts["layers"][n] * sizes[n] for n in LAYERS) == pytest.approx(384, abs=0.1)


def climbing(folder: Path, keeper: Any = None, **changes: Any) -> tuple[Any, Any]:
    """A ladder of two rungs on a small net; its report and its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
        batches = [(torch.randint(20, (64,)),) for _ in range(3)]
    settings = LadderSettings(
        **{
            "sparsity": 0.75,
            "pattern": "unstructured",
            "method": "sweep",
            "rungs": (0.5, 0.75),
            "rel_damp": 0.01,
            "rows_per_column": None,
            "recovery": replace(RECOVERY, steps=0),
            "allocation": AllocationSettings(method="evolutionary", generations=2, offspring=4),
            **changes,
        }
    )
    report = climb(
        net,
        frozen_copy(net),
        [Piece(f"blocks.{i}", block) for i, block in enumerate(net.blocks)],
        layers=[f"blocks.{i}.{name}" for i in range(3) for name in ("fc1", "fc2")],
        dense={"blocks.0.fc1"},
        taps=(),
        calibration=lambda: iter(batches),
        draw=lambda generator: (batches[0], batches[0][0] % 4),
        holdout=batches[:1],
        settings=settings,
        device=CPU,
        keeper=keeper,
        folder=folder,
    )
    return report, dict(net.state_dict())


def test_a_ladder_shares_every_rung_and_survives_kills(tmp_path: Path) -> None:
    report, weights = whole = climbing(tmp_path / "whole")
    for rung, sparsity in zip(report, (0.5, 0.75), strict=True):
        assert rung["sparsity"] == sparsity
        shares = rung["allocation"]["layers"]
        assert shares["blocks.0.fc1"] == 0 and len(set(shares.values())) > 2
        assert rung["allocation"]["kl_chosen"] <= rung["allocation"]["kl_even"]
    first, second = (rung["allocation"]["layers"] for rung in report)
    assert all(first[name] <= second[name] for name in first), "zeros came back"
    assert int((weights["blocks.0.fc1.weight"] == 0).sum()) == 0

    def work(keeper: Any) -> Any:
        return climbing(tmp_path / "levels", keeper)

    found, kills = limp(work, tmp_path / "kept")
    assert same(found, whole) and kills > 20
    assert not (tmp_path / "levels").exists()


def test_a_pattern_refuses_to_be_shared_unevenly(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="allocation evolutionary: pattern 2:4"):
        climbing(tmp_path, pattern="2:4")


def test_what_is_judged_is_drawn_from_all_batches() -> None:
    batches = [(torch.full((4, 1), float(at)),) for at in range(50)]
    found = spread_rows(lambda: iter(batches), 30, 1)
    values = sorted(float(value) for batch in found for value in batch[0])
    assert [len(batch[0]) for batch in found] == [4] * 8 and max(values) > 25
    assert values == sorted([*set(values)] * 4), "whole batches are drawn, no row twice"
    assert all(len(set(batch[0].flatten().tolist())) > 1 for batch in found), "and mixed"
    again = spread_rows(lambda: iter(batches), 30, 1)
    assert all(same(a, b) for a, b in zip(found, again, strict=True))
    assert len(spread_rows(lambda: iter(batches), 1000, 1)) == 50
