"""Every long loop, killed at each of its checkpoints, ends as if it had never been."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compression.allocate import allocate
from compression.ladder import LadderSettings, climb, frozen_copy
from compression.levels import build_levels
from compression.prune import hold, masks_of, prune_layers
from compression.quantize import quantize_weights
from compression.recovery import RecoverySettings, recover
from compression.search import SearchSettings, evolve
from compression.shrink import remove_structure
from models.low_rank import add_low_rank
from tasks.partial import Partial
from tests.compression.shapes import Block, Branch, Piece, Unit
from tests.interrupted import limp, same

CPU = torch.device("cpu")
RECOVERY = RecoverySettings(
    steps=7,
    lr=1e-2,
    weight_decay=0.01,
    warmup=0.2,
    temperature=2.0,
    ce=0.5,
    kl=1.0,
    square_head=1.0,
    ema_decay=0.9,
    autocast_bf16=False,
    check_every=3,
    seed=5,
)


class Net(nn.Module):
    """Words, three residual blocks, a head: embeddings stay as they are in recovery."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList(Block(6, 12) for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)  # (N, 6)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@dataclass
class Made:
    """A model, its pieces and what it is shown."""

    model: Net
    batches: list[tuple[torch.Tensor]]

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(f"blocks.{i}", block) for i, block in enumerate(self.model.blocks)]

    @property
    def branches(self) -> list[Branch]:
        return [Branch(f"blocks.{i}", (Unit(f"{i}.mlp", f"blocks.{i}.fc2", 12),)) for i in range(3)]

    def calibration(self) -> Iterator[tuple[torch.Tensor]]:
        return iter(self.batches)

    def draw(self, generator: torch.Generator) -> tuple[tuple[torch.Tensor], torch.Tensor]:
        ids = torch.randint(20, (16,), generator=generator)
        return (ids,), ids % 4

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def make() -> Any:
    """A function that gives the same untouched model each time."""

    def made() -> Made:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Made(Net().eval(), [(torch.randint(20, (64,)),) for _ in range(3)])

    return made


SIZES = {f"blocks.{i}": [(12,), (8,), (4,), (0,)] for i in range(3)}
LAYERS = [f"blocks.{i}.{name}" for i in range(3) for name in ("fc1", "fc2")]


def test_levels(make: Any, tmp_path: Path) -> None:
    def work(keeper: Any, folder: Path = tmp_path / "levels") -> Any:
        folder.mkdir(exist_ok=True)
        made = make()
        found = build_levels(
            made.model, made.pieces, made.calibration, made.branches, SIZES, folder, keeper=keeper
        )
        weights = {key: found.get(*key).clone() for key in found.checksums}
        return found.losses, weights, made.state()

    whole = work(None, tmp_path / "whole")
    found, kills = limp(work, tmp_path / "kept")
    assert kills == 3 and same(found, whole)


def test_damaged_levels_are_solved_again(make: Any, tmp_path: Path) -> None:
    made, folder = make(), tmp_path / "levels"
    folder.mkdir()

    def work() -> Any:
        keeper = Partial(tmp_path / "kept", every=0)
        found = build_levels(
            made.model, made.pieces, made.calibration, made.branches, SIZES, folder, keeper=keeper
        )
        return {key: found.get(*key).clone() for key in found.checksums}

    whole = work()
    (path,) = folder.glob("blocks.0.fc2.4")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(work(), whole)


def test_allocation(make: Any, tmp_path: Path) -> None:
    made = make()
    teacher = frozen_copy(make().model)
    database = build_levels(
        made.model, made.pieces, made.calibration, made.branches, SIZES, tmp_path
    )
    search = SearchSettings(generations=6, offspring=5, seed=3)

    def work(keeper: Any) -> Any:
        fresh = make()
        found = allocate(
            fresh.model,
            teacher,
            fresh.branches,
            database,
            {"milliseconds": [[3.0, 2.0, 1.0, 0.0]] * 3},
            {"milliseconds": 4.0},
            fresh.batches,
            search=search,
            device=CPU,
            autocast_bf16=False,
            keeper=keeper,
        )
        return vars(found), fresh.state()

    found, kills = limp(work, tmp_path / "kept")
    assert kills == len(make().batches) + search.generations  # probes by batch, and generations
    assert same(found, work(None))


def test_search_alone_goes_on_with_its_draws(tmp_path: Path) -> None:
    """An objective with many levels, so that the draws decide where the search ends."""

    def work(keeper: Any) -> Any:
        return evolve(
            [4] * 12,
            [9] * 12,
            lambda levels: sum(levels) >= 48,
            lambda levels, share: sum(
                (i * level) % 7 + 0.1 * level for i, level in enumerate(levels)
            ),
            SearchSettings(generations=12, offspring=4, seed=1),
            keeper=keeper,
        )

    found, kills = limp(work, tmp_path)
    assert kills == 12 and found == work(None)
    assert len(set(found[1])) > 3


@pytest.mark.parametrize("what", ["removed", "pruned", "quantized", "compensated"])
def test_walks(what: str, make: Any, tmp_path: Path) -> None:
    def work(keeper: Any) -> Any:
        made = make()
        shown = made.model, made.pieces, made.calibration
        if what == "removed":
            sizes = {"blocks.0": (8,), "blocks.2": (4,)}
            found: Any = remove_structure(*shown, made.branches, sizes, keeper=keeper)
        elif what == "pruned":
            found = prune_layers(*shown, dict.fromkeys(LAYERS, 40), keeper=keeper)
        elif what == "quantized":
            found = quantize_weights(*shown, LAYERS, keeper=keeper)
        else:  # factors come back as well, and with them what later layers see
            add_low_rank(made.model, dict.fromkeys(LAYERS, 2))
            found = quantize_weights(*shown, LAYERS, compensation="eora", bits=4, keeper=keeper)
        return found, made.state()

    found, kills = limp(work, tmp_path)
    assert kills == (2 if what == "removed" else 3)
    assert same(found, work(None))
    assert not same(found[1], make().state())


@pytest.mark.parametrize("holdout", [True, False])
def test_recovery(holdout: bool, make: Any, tmp_path: Path) -> None:
    def work(keeper: Any) -> Any:
        made = make()
        teacher = frozen_copy(made.model)
        with torch.no_grad():
            for name in LAYERS:
                weight = made.model.get_submodule(name).weight
                weight[:, ::2] = 0
        kept = masks_of(made.model, LAYERS)
        metrics = recover(
            made.model,
            teacher,
            kept,
            taps=["blocks.0", "blocks.1"],
            draw=made.draw,
            holdout=made.batches[:1] if holdout else [],
            settings=RECOVERY,
            device=CPU,
            keeper=keeper,
        )
        before = made.state()
        hold(made.model, kept)
        assert same(before, made.state())
        return metrics, before

    found, kills = limp(work, tmp_path)
    assert kills == RECOVERY.steps - 1
    assert same(found, work(None))


def test_a_ladder_of_two_rungs(make: Any, tmp_path: Path) -> None:
    def work(keeper: Any) -> Any:
        made = make()
        done: list[tuple[int, int]] = []
        report = climb(
            made.model,
            frozen_copy(copy.deepcopy(made.model)),
            made.pieces,
            layers=LAYERS,
            dense=(),
            taps=["blocks.0"],
            calibration=made.calibration,
            draw=made.draw,
            holdout=made.batches[:1],
            settings=LadderSettings(
                sparsity=0.75,
                pattern="unstructured",
                method="sweep",
                rungs=(0.5, 0.75),
                rel_damp=0.01,
                rows_per_column=None,
                recovery=RECOVERY,
            ),
            device=CPU,
            progress=lambda at, total, _: done.append((at, total)),
            keeper=keeper,
        )
        assert done[-1] == (3 + 7 + 3 + 14,) * 2
        return report, made.state()

    found, kills = limp(work, tmp_path)
    assert kills == (3 + 6) + 1 + (3 + 13)
    assert same(found, work(None))
