"""The database of levels: every branch solved at every size, so that a model can be stitched.

SPDY (Frantar and Alistarh 2022, arXiv 2201.13096, section 3) and ZipLM (arXiv 2302.04089) allocate
over such a database: a layer's weights at each level are solved once, and any allocation is then a
matter of copying. Here a level is a size of one residual branch; what it changes is the weight and
bias of the layers that read the removed groups, which are kept in files, mapped when needed, so
that memory does not grow with depth or with the number of levels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.hessian import HessianAccumulator, damp
from compression.keeping import Keeper
from compression.layers import Layer, matrix_of, store
from compression.sequential import Batch, Progress, SegmentLike, walk
from compression.structured import Removed, remove_groups

Size = tuple[int, ...]
_EXACT = 2048  # columns up to which the elimination runs in float64


class UnitLike(Protocol):
    """Equal groups that one layer reads: ``groups`` times ``width`` consecutive columns."""

    @property
    def name(self) -> str: ...
    @property
    def consumer(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def width(self) -> int: ...


class BranchLike(Protocol):
    """A residual branch whose size is one decision."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> Sequence[UnitLike]: ...


def augmented(layer: Layer) -> Tensor:
    """The layer's weight with its bias as a last column, (R, C) or (R, C + 1)."""
    weight = matrix_of(layer)
    if len(weight) != 1:
        raise CompressionError("a grouped convolution cannot lose single groups of columns")
    if layer.bias is None:
        return weight[0]
    return torch.cat([weight[0], layer.bias.detach()[:, None]], dim=-1)


def solve_unit(
    name: str,
    layer: Layer,
    accumulator: HessianAccumulator,
    unit: UnitLike,
    keep: Sequence[int],
    rel_damp: float,
) -> tuple[list[Removed], float]:
    """:func:`remove_groups` for one consumer layer; also the loss of removing everything."""
    assert accumulator.hessian is not None
    hessian = accumulator.hessian
    if hessian.shape[-1] <= _EXACT:
        hessian = hessian.double()
    damped, _ = damp(hessian, rel_damp)
    try:
        found = remove_groups(
            augmented(layer), damped[0], groups=unit.groups, width=unit.width, keep=keep
        )
    except CompressionError as problem:
        raise CompressionError(
            f"layer {name!r}: {problem} (rel_damp {rel_damp:g}, {accumulator.samples} samples)"
        ) from None
    return found, found[-1].loss


def write_back(layer: Layer, weight: Tensor) -> None:
    """Store an augmented (R, D) weight."""
    columns = matrix_of(layer).shape[-1]
    bias = weight[None, :, columns] if layer.bias is not None else None
    store(layer, weight[None, :, :columns], bias)


@dataclass
class Database:
    """Solved levels of every branch.

    Attributes:
        folder: holds one file a consumer and count, float32.
        sizes: of each branch, falling; the first is the branch as it is.
        losses: relative to losing all groups, so 0 to 1 a unit, summed over a branch's units.
    """

    folder: Path
    sizes: dict[str, list[Size]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    checksums: dict[tuple[str, int], int] = field(default_factory=dict)

    def _file(self, consumer: str, count: int) -> Path:
        return self.folder / f"{consumer}.{count}"

    def put(self, consumer: str, count: int, weight: Tensor) -> None:
        """Keep an augmented weight (R, D)."""
        self.shapes[consumer] = (weight.shape[0], weight.shape[1])
        content = weight.float().cpu().contiguous().numpy()
        content.tofile(self._file(consumer, count))
        self.checksums[consumer, count] = zlib.crc32(content.data)

    def get(self, consumer: str, count: int) -> Tensor:
        """The kept weight (R, D), mapped from its file."""
        rows, columns = self.shapes[consumer]
        flat = torch.from_file(str(self._file(consumer, count)), size=rows * columns)
        return flat.reshape(rows, columns)

    def intact(self) -> bool:
        """Whether every file holds what was put there."""
        try:
            return all(
                zlib.crc32(self._file(*key).read_bytes()) == checksum
                for key, checksum in self.checksums.items()
            )
        except OSError:
            return False


def build_levels(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    branches: Sequence[BranchLike],
    sizes: Mapping[str, Sequence[Size]],
    folder: Path,
    *,
    rel_damp: float = 0.01,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Database:
    """Solve every branch at every size against the inputs it has now; ``model`` is not changed.

    Args:
        sizes: by branch, falling from the branch as it is.
        folder: where the database's files lie; the same one where an earlier attempt is resumed.
        keeper: where it is kept which segments are finished; None keeps nothing.

    Raises:
        CompressionError: a consumer lies in no segment, or a Hessian is not positive definite.
    """
    database = Database(folder)
    units = {
        unit.consumer: (branch, i) for branch in branches for i, unit in enumerate(branch.units)
    }
    for branch in branches:
        database.sizes[branch.name] = [tuple(size) for size in sizes[branch.name]]
        database.losses[branch.name] = [0.0] * len(sizes[branch.name])
    begin = _resumed(database, None if keeper is None else keeper.load())

    def visit(name: str, layer: Layer, accumulator: HessianAccumulator) -> None:
        branch, i = units[name]
        counts = [size[i] for size in database.sizes[branch.name]]
        # down to nothing, which tells how much there is to lose
        found, everything = solve_unit(
            name, layer, accumulator, branch.units[i], [*counts, 0], rel_damp
        )
        for at, (count, level) in enumerate(zip(counts, found, strict=False)):
            database.losses[branch.name][at] += level.loss / max(everything, 1e-30)
            weight = augmented(layer) if count == branch.units[i].groups else level.weight
            database.put(name, count, weight)

    def finished(at: int) -> None:
        assert keeper is not None  # a few numbers: the weights are in files of their own
        keeper.save(
            {
                "begin": at + 1,
                "losses": database.losses,
                "shapes": database.shapes,
                "checksums": database.checksums,
            }
        )

    if not set(units) <= set(database.shapes):
        walk(
            model,
            segments,
            calibration,
            list(units),
            visit,
            rows_per_column=rows_per_column,
            progress=progress,
            begin=begin,
            finished=None if keeper is None else finished,
        )
    return database


def _resumed(database: Database, kept: dict[str, Any] | None) -> int:
    """Take over what an earlier attempt solved; returns the segment to begin with."""
    if kept is None:
        return 0
    found = Database(database.folder, checksums=kept["checksums"])
    if not found.intact():
        return 0
    database.losses, database.shapes = kept["losses"], kept["shapes"]
    database.checksums = kept["checksums"]
    return int(kept["begin"])


class Stitcher:
    """Sets a model to allocations by copying solved levels; only what differs is copied."""

    def __init__(
        self, model: nn.Module, branches: Sequence[BranchLike], database: Database
    ) -> None:
        self.model, self.branches, self.database = model, list(branches), database
        self.now = [0] * len(self.branches)

    @torch.no_grad()
    def set(self, levels: Sequence[int]) -> nn.Module:
        """Bring the model to one level a branch (indices into its sizes)."""
        for at, (branch, level) in enumerate(zip(self.branches, levels, strict=True)):
            if level == self.now[at]:
                continue
            size = self.database.sizes[branch.name][level]
            for unit, count in zip(branch.units, size, strict=True):
                layer = self.model.get_submodule(unit.consumer)
                weight = self.database.get(unit.consumer, count)
                write_back(layer, weight.to(layer.weight.device))  # type: ignore[arg-type]
            self.now[at] = level
        return self.model
