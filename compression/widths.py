"""What chooses bit widths is given: sizes, the mean, and what each width costs each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from compression.bit_widths import METHODS
from compression.database import Database, Stitcher, with_bias
from compression.grids import BlockwiseGrid
from compression.hessian import HessianAccumulator
from compression.judge import Judge, probe, spread_rows
from compression.keeping import Keeper, part_of
from compression.layers import Layer
from compression.problem import LayerProblem, Solved
from compression.rounders import METHODS as ROUNDERS
from compression.sequential import Batch, Progress, SegmentLike
from compression.zero_levels import LayerItem

_JUDGED = {"cpu": 256, "cuda": 512}  # examples that a width is judged on at most
FLOAT = 32


@dataclass(kw_only=True)
class WidthRequest:
    """Bits wanted of a model's layers.

    Attributes:
        model: float; changed while widths are tried, and put back.
        sizes: weights of the layers that are rounded.
        widths: that the runtime serves, falling.
        mean_bits: most bits a weight, in the mean over all of them.
        rounder: of compression.rounders, that widths are tried with. block: columns a scale.
        folder: for the database's files.
    """

    model: nn.Module
    segments: Sequence[SegmentLike]
    calibration: Callable[[], Iterable[Batch]]
    sizes: Mapping[str, int]
    widths: Sequence[int]
    mean_bits: float
    rounder: str
    block: int
    rel_damp: float
    rows_per_column: float | None
    device: torch.device
    folder: Path
    progress: Progress | None = None
    keeper: Keeper | None = None

    @cached_property
    def levels(self) -> Database:
        """Every layer rounded to every width; level 0 is the layer as it is.

        Losses are relative to losing the layer.
        """
        database, solve = Database(self.folder), ROUNDERS.load(self.rounder)
        for name in self.sizes:
            database.sizes[name] = [(FLOAT,), *((width,) for width in self.widths)]
            database.losses[name] = [0.0] * (1 + len(self.widths))
        keeper = part_of(self.keeper, "levels")
        begin = database.resume(keeper)

        def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
            problem = LayerProblem.of(name, layer, accumulator, self.rel_damp)
            weight = problem.weight
            nothing = Solved(torch.zeros_like(weight), problem.bias, weight != 0)
            everything = max(problem.loss(nothing), 1e-30)
            database.put(name, FLOAT, with_bias(layer))
            for at, width in enumerate(self.widths, 1):
                grid = BlockwiseGrid(weight.to(problem.hessian.dtype), bits=width, block=self.block)
                found = solve(problem, weight != 0, grid)
                database.losses[name][at] = problem.loss(found) / everything
                whole = found.weight
                bias = problem.bias if found.bias is None else found.bias
                if bias is not None:
                    whole = torch.cat([whole, bias.to(whole.dtype)[..., None]], dim=-1)
                database.put(name, width, whole)

        if not set(self.sizes) <= set(database.shapes):
            database.fill(
                self.model,
                self.segments,
                self.calibration,
                list(self.sizes),
                visit,
                begin=begin,
                rows_per_column=self.rows_per_column,
                progress=self.progress,
                keeper=keeper,
            )
        return database

    def degradations(self) -> list[list[float]]:
        """By layer and width: the divergence from the float answers with that layer alone so."""
        items = [LayerItem(name) for name in self.sizes]
        stitcher = Stitcher(self.model, items, self.levels)
        shown = spread_rows(self.calibration, _JUDGED[self.device.type], seed=0)
        judge = Judge(stitcher, self.model, shown, self.device, False, self.segments)
        every = [range(1, 1 + len(self.widths))] * len(items)
        costs = probe(self.levels, items, judge, part_of(self.keeper, "probe"), shown=every)
        return [cost[1:] for cost in costs]


def assign_widths(method: str, request: WidthRequest) -> dict[str, int]:
    """Bits a layer by a method of :data:`compression.bit_widths.METHODS`; the model is put back."""
    widths: dict[str, int] = METHODS.load(method)(request)
    return widths
