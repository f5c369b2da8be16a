"""What an allocator is given: the layers, the zeros asked of them, and ways to tell their cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from compression.allocation import settled, uniform
from compression.database import Database, Stitcher
from compression.hessian import HessianAccumulator
from compression.judge import Judge, probe, spread_rows
from compression.keeping import Keeper, part_of
from compression.layers import Layer
from compression.problem import LayerProblem
from compression.search import Levels
from compression.sequential import Batch, Progress, SegmentLike, walk
from compression.zero_levels import LayerItem, build_zero_levels, counts_around

# examples that an allocation is judged on at most
_JUDGED = {"cpu": 256, "cuda": 512}


@dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """Which method chooses the zeros of each layer, and how long it may search."""

    method: str = "uniform"  # of compression.allocators
    generations: int = 40
    offspring: int = 16
    seed: int = 0
    judged: int | None = None  # examples that levels are judged on; None: as the device allows


@dataclass(kw_only=True)
class Request:
    """Zeros wanted of a model's layers.

    Attributes:
        model: as it is now; changed while levels are tried, and put back.
        teacher: what its answers are held against.
        sizes: weights of each layer, all of them counted.
        dense: layers that take no zeros.
        sparsity: share of zeros in all weights, exact where what is held allows it.
        solver: of compression.pruners, that levels are solved with.
        folder: for the database's files.
        facts: what a method tells about its choice; goes into the stage's metrics.
        additive: the dynamic program's levels, once they are known.
    """

    model: nn.Module
    teacher: nn.Module
    segments: Sequence[SegmentLike]
    calibration: Callable[[], Iterable[Batch]]
    sizes: Mapping[str, int]
    dense: Collection[str]
    sparsity: float
    settings: AllocationSettings
    solver: str
    rel_damp: float
    rows_per_column: float | None
    device: torch.device
    autocast_bf16: bool
    folder: Path
    progress: Progress | None = None
    keeper: Keeper | None = None
    facts: dict[str, float] = field(default_factory=dict)
    additive: Levels | None = None

    @cached_property
    def open(self) -> dict[str, int]:
        """Weights of the layers that may take zeros."""
        return {name: size for name, size in self.sizes.items() if name not in self.dense}

    @cached_property
    def held(self) -> dict[str, int]:
        """Zeros that these layers have already, and keep."""
        found = {}
        for name in self.open:
            weight = self.model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            found[name] = int((weight == 0).sum())
        return found

    @property
    def total(self) -> int:
        """Zeros asked of the layers that may take any."""
        return max(round(self.sparsity * sum(self.sizes.values())), sum(self.held.values()))

    def part(self, at: int, parts: int) -> Progress | None:
        """Progress of one of the equal parts of the work."""
        tell = self.progress
        if tell is None:
            return None
        return lambda done, total, note: tell(at * total + done, parts * total, note)

    def even(self) -> dict[str, int]:
        """The same share everywhere; what is above it already stays so."""
        found = uniform(self.sizes, self.sparsity, dense=self.dense)
        return {name: max(found[name], held) for name, held in self.held.items()}

    def exact(self, wanted: Mapping[str, float]) -> dict[str, int]:
        """Zeros of all layers near those wanted: whole, none given back, the total as asked."""
        found = settled(wanted, least=self.held, most=self.open, total=self.total)
        return {name: found.get(name, 0) for name in self.sizes}

    def each(self, look: Callable[[LayerProblem], None]) -> None:
        """Show the problem of every layer that may take zeros, with the inputs it has now."""

        self.put_back()

        def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
            look(LayerProblem.of(name, layer, accumulator, self.rel_damp))

        walk(
            self.model,
            self.segments,
            self.calibration,
            list(self.open),
            visit,
            rows_per_column=self.rows_per_column,
            progress=self.part(0, 1),
        )

    @cached_property
    def levels(self) -> ZeroLevels:
        """Every layer solved at several sparsities around its even share."""
        even = self.even()
        counts = {
            name: counts_around(self.open[name], self.held[name], even[name]) for name in even
        }
        database = build_zero_levels(
            self.model,
            self.segments,
            self.calibration,
            counts,
            self.folder,
            method=self.solver,
            rel_damp=self.rel_damp,
            rows_per_column=self.rows_per_column,
            progress=self.part(0, 2),
            keeper=part_of(self.keeper, "levels"),
        )
        return ZeroLevels(
            database,
            [LayerItem(name) for name in counts],
            list(counts.values()),
            [[self.open[name] - count for count in counts[name]] for name in counts],
            sum(self.open.values()) - self.total,
            tuple(counts[name].index(even[name]) for name in counts),
        )

    @cached_property
    def judge(self) -> Judge:
        """The divergence from the teacher of the model stitched from levels."""
        levels = self.levels
        return Judge(
            Stitcher(self.model, levels.items, levels.database),
            self.teacher,
            spread_rows(
                self.calibration,
                self.settings.judged or _JUDGED[self.device.type],
                self.settings.seed,
            ),
            self.device,
            self.autocast_bf16,
            self.segments,
        )

    @cached_property
    def costs_alone(self) -> list[list[float]]:
        """The divergence that each level adds while all other layers are as they are, in nats.

        Measured at the middle and the last level; see :func:`compression.judge.probe`.
        """
        levels = self.levels
        return probe(levels.database, levels.items, self.judge, part_of(self.keeper, "probe"))

    def costs_around(self, base: Levels, turn: int) -> list[list[float]]:
        """The same while all others have levels of ``base``: what it costs to leave that.

        Measured at about half and one and a half times what a layer keeps there.

        Args:
            turn: counts the calls, for what is kept of each.
        """
        shown = [
            [_closest(kept, 0.5 * kept[at]), _closest(kept, 1.5 * kept[at])]
            for kept, at in zip(self.levels.kept, base, strict=True)
        ]
        return probe(
            self.levels.database,
            self.levels.items,
            self.judge,
            part_of(self.keeper, f"probe{turn}"),
            base=base,
            shown=shown,
        )

    def put_back(self) -> None:
        """Leave the model as it was before levels were tried."""
        if "judge" in self.__dict__:
            self.judge.stitcher.set((0,) * len(self.levels.items))

    def nearest(self, wanted: Mapping[str, int]) -> Levels:
        """Levels near the wanted zeros that keep the total."""
        levels = self.levels
        picked = [
            next((at for at, count in enumerate(zeros) if count >= wanted[item.name]), last)
            for zeros, item in zip(levels.zeros, levels.items, strict=True)
            for last in (len(zeros) - 1,)
        ]
        # rounding up cost every layer something: give back where it was most
        lost = [
            zeros[at] - wanted[item.name]
            for zeros, at, item in zip(levels.zeros, picked, levels.items, strict=True)
        ]
        for i in sorted(range(len(picked)), key=lambda i: -lost[i]):
            larger = [*picked[:i], max(picked[i] - 1, 0), *picked[i + 1 :]]
            if levels.fits(tuple(larger)):
                picked = larger
        return tuple(picked)

    def chosen(self, picked: Levels) -> dict[str, int]:
        """The exact zeros of a choice of levels; the model is put back as it was."""
        levels = self.levels
        self.facts["kl_even"] = self.judge(levels.even)
        self.facts["kl_chosen"] = self.judge(picked)
        self.put_back()
        names = [item.name for item in levels.items]
        return self.exact(
            {name: zeros[at] for name, zeros, at in zip(names, levels.zeros, picked, strict=True)}
        )


@dataclass(frozen=True)
class ZeroLevels:
    """Levels of all layers.

    Attributes:
        database: their solved weights, and their layer losses.
        items: the layers, in order. zeros: of each level, rising from what the layer holds.
        kept: nonzeros of each level. budget: nonzeros in all. even: the even share's levels.
    """

    database: Database
    items: list[LayerItem]
    zeros: list[list[int]]
    kept: list[list[int]]
    budget: int
    even: Levels

    def fits(self, picked: Levels) -> bool:
        """Whether a choice keeps no more nonzeros than asked."""
        return sum(k[at] for k, at in zip(self.kept, picked, strict=True)) <= self.budget


def _closest(values: Sequence[float], wanted: float) -> int:
    """Where the value lies that is nearest to the wanted one."""
    return min(range(len(values)), key=lambda at: abs(values[at] - wanted))
