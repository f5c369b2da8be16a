"""What each way of recovery may change, what it must leave, and that it goes on after a kill."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compression.ladder import frozen_copy
from compression.prune import hold, masks_of
from compression.recovery import RecoverySettings, divergence, recover
from compression.trained import METHODS
from tests.interrupted import limp, same

CPU = torch.device("cpu")
SETTINGS = RecoverySettings(
    steps=12, lr=1e-2, weight_decay=0.0, warmup=0.2, temperature=2.0, ce=0.5, kl=1.0,
    square_head=1.0, ema_decay=0.5, autocast_bf16=False, check_every=4, seed=3, rank=2,
)  # fmt: skip
PRUNED = ["conv", "blocks.0.one", "blocks.0.two", "blocks.1.one", "blocks.1.two"]
VECTORS = {
    "conv.bias", "head.bias", *(f"blocks.{i}.{each}" for i in range(2) for each in
    ("norm.weight", "norm.bias", "one.bias", "two.bias", "gamma")),
}  # fmt: skip


class Block(nn.Module):
    """A residual branch with a norm and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gamma = nn.LayerNorm(6), nn.Parameter(torch.full((6,), 0.5))
        self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.two(torch.relu(self.one(self.norm(x))))


class Net(nn.Module):
    """A table, a convolution, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.conv = nn.Conv2d(3, 6, 2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).view(-1, 3, 2, 2)).flatten(1)  # (N, 6)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def draw(generator: torch.Generator) -> tuple[tuple[Tensor], Tensor]:
    ids = torch.randint(9, (16,), generator=generator)
    return (ids,), ids % 4


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def pruned(net: Net) -> tuple[Net, dict[str, Tensor]]:
    student = copy.deepcopy(net)
    with torch.no_grad():
        for name in PRUNED:
            student.get_submodule(name).weight[:, ::2] = 0  # type: ignore[operator]
    return student, masks_of(student, PRUNED)


def recovered(
    net: Net, trained: str, *, holdout: bool = True, keeper: Any = None, **changes: Any
) -> tuple[Net, dict[str, float], Mapping[str, Tensor]]:
    student, kept = pruned(net)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    held = [(torch.arange(9),)] if holdout else []
    metrics = recover(
        student, frozen_copy(net), kept, taps=["blocks.0", "blocks.1"], draw=draw, holdout=held,
        settings=dataclasses.replace(SETTINGS, trained=trained, **changes), device=CPU,
        keeper=keeper,
    )  # fmt: skip
    return student, metrics, before


def changed(student: Net, before: Mapping[str, Tensor]) -> set[str]:
    after = student.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


MATRICES = {f"{name}.weight" for name in (*PRUNED, "head")}
CHANGES = {
    "full": MATRICES | VECTORS,
    "norms": VECTORS,
    "low_rank": MATRICES | VECTORS,
    "none": set(),
}


@pytest.mark.parametrize("trained", METHODS)
@pytest.mark.parametrize("holdout", [True, False])
def test_what_is_trained_and_nothing_else_changes(net: Net, trained: str, holdout: bool) -> None:
    student, metrics, before = recovered(net, trained, holdout=holdout)
    assert list(student.state_dict()) == list(before) or trained == "low_rank"
    assert set(student.state_dict()) == set(before)
    assert changed(student, before) == CHANGES[trained]
    assert {type(module) for module in student.modules()} == {type(m) for m in net.modules()}
    if holdout and trained != "none":
        assert metrics["kl_after"] < metrics["kl_before"]
        held = [(torch.arange(9),)]
        assert divergence(student, net, held) == pytest.approx(metrics["kl_after"], rel=1e-4)


@pytest.mark.parametrize("trained", METHODS)
def test_zeros_stay_exact_zeros(net: Net, trained: str) -> None:
    student, _, _ = recovered(net, trained)
    kept = masks_of(student, PRUNED)
    for name in PRUNED:
        weight = student.get_parameter(f"{name}.weight")
        assert not weight[:, ::2].any() and kept[name][:, 1::2].all()
    after = {name: value.clone() for name, value in student.state_dict().items()}
    hold(student, pruned(net)[1])
    assert not changed(student, after)


def test_full_is_what_recovery_always_did(net: Net) -> None:
    """The loop of before, written out: AdamW over all but the table, mask after every step."""
    student, kept = pruned(net)
    parameters = [p for name, p in student.named_parameters() if not name.startswith("table")]
    student.table.weight.requires_grad_(False)
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(3)
    teacher = frozen_copy(net)
    average: list[Tensor] = []
    for step in range(12):
        warm, done = 2, step
        share = (done + 1) / warm if done < warm else 0.5 * (
            1 + torch.cos(torch.tensor(torch.pi * (done - warm) / 10, dtype=torch.float64)).item()
        )  # fmt: skip
        (ids,), labels = draw(generator)
        logits, target = student(ids), teacher(ids)
        kl = 4 * nn.functional.kl_div(
            (logits / 2).log_softmax(-1), (target / 2).softmax(-1), reduction="batchmean"
        )
        loss = 0.5 * nn.functional.cross_entropy(logits, labels) + kl
        optimiser.param_groups[0]["lr"] = 1e-2 * share
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        hold(student, kept)
        now = [parameter.detach().clone() for parameter in parameters]
        average = now if not average else [
            a.lerp(b, 0.5) for a, b in zip(average, now, strict=True)
        ]  # fmt: skip
    ours, _, _ = recovered(net, "full", holdout=False, square_head=0.0)
    found = [p for name, p in ours.named_parameters() if not name.startswith("table")]
    for a, b in zip(average, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_merged_change_is_masked_and_of_the_rank_asked_for(net: Net) -> None:
    student, _, before = recovered(net, "low_rank")
    change = student.head.weight - before["head.weight"]  # not pruned: plain LoRA
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
    name = "blocks.0.one.weight"
    seen = (student.get_parameter(name) - before[name])[:, 1::2]
    assert torch.linalg.matrix_rank(seen, rtol=1e-3) == 2


def test_factors_of_the_full_rank_reach_what_full_training_reaches(net: Net) -> None:
    _, best, _ = recovered(net, "full", steps=300, check_every=50)
    _, found, _ = recovered(net, "low_rank", steps=300, check_every=50, rank=64)
    assert found["kl_after"] < 2 * best["kl_after"] + 1e-3


def test_without_a_step_nothing_changes(net: Net) -> None:
    for trained in METHODS:
        student, metrics, before = recovered(net, trained, steps=0)
        assert not changed(student, before) and metrics["kl_after"] == metrics["kl_before"]


def test_none_tells_how_far_it_is(net: Net) -> None:
    _, metrics, _ = recovered(net, "none")
    _, trained, _ = recovered(net, "full")
    assert metrics["kl_after"] == metrics["kl_before"] == trained["kl_before"] > 0


@pytest.mark.parametrize("trained", ["norms", "low_rank"])
@pytest.mark.parametrize("holdout", [True, False])
def test_it_goes_on_after_a_kill_with_the_same_bits(
    net: Net, trained: str, holdout: bool, tmp_path: Path
) -> None:
    def work(keeper: Any) -> Any:
        student, metrics, _ = recovered(net, trained, holdout=holdout, keeper=keeper)
        return metrics, student.state_dict()

    found, kills = limp(work, tmp_path)
    assert kills == SETTINGS.steps - 1
    assert same(found, work(None))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
