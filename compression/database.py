"""Solved levels in files, and a model stitched together from them.

A layer's weights at each level are solved once; any allocation is then a matter of copying (SPDY,
arXiv 2201.13096, section 3). What a level is, `compression.levels` (sizes of branches) and
`compression.zero_levels` (zeros of layers) say. The files are mapped when needed, so that memory
does not grow with depth or with the number of levels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from compression.keeping import Keeper
from compression.layers import Layer, as_layer, matrix_of, store
from compression.sequential import Batch, Progress, SegmentLike, Visit, walk

Size = tuple[int, ...]


class ConsumerLike(Protocol):
    """One layer whose weights a level decides."""

    @property
    def consumer(self) -> str: ...


class ItemLike(Protocol):
    """What gets one level: its name, and the layers that the level's counts are of."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> Sequence[ConsumerLike]: ...


def with_bias(layer: Layer) -> Tensor:
    """The layer's weight with its bias as a last column: (G, R, C), or (G, R, C + 1)."""
    weight = matrix_of(layer)
    if layer.bias is None:
        return weight
    bias = layer.bias.detach().reshape(weight.shape[:2])
    return torch.cat([weight, bias[..., None]], dim=-1)


def write_back(layer: Layer, weight: Tensor) -> None:
    """Store a weight with its bias, (G, R, D), or (R, D) where the layer has one group."""
    whole = weight if weight.ndim == 3 else weight[None]
    columns = matrix_of(layer).shape[-1]
    bias = whole[..., columns] if layer.bias is not None else None
    store(layer, whole[..., :columns], bias)


@dataclass
class Database:
    """Solved levels of every item.

    Attributes:
        folder: holds one file a consumer and count, float32.
        sizes: of each item, its counts a level; the first is the item as it is.
        losses: relative to losing everything, so 0 to 1 a consumer, summed over an item's.
    """

    folder: Path
    sizes: dict[str, list[Size]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    checksums: dict[tuple[str, int], int] = field(default_factory=dict)

    def _file(self, consumer: str, count: int) -> Path:
        return self.folder / f"{consumer}.{count}"

    def put(self, consumer: str, count: int, weight: Tensor) -> None:
        """Keep a weight with its bias, (R, D) or (G, R, D)."""
        self.shapes[consumer] = tuple(weight.shape)
        content = weight.float().cpu().contiguous().numpy()
        content.tofile(self._file(consumer, count))
        self.checksums[consumer, count] = zlib.crc32(content.data)

    def get(self, consumer: str, count: int) -> Tensor:
        """The kept weight, mapped from its file."""
        shape = self.shapes[consumer]
        return torch.from_file(str(self._file(consumer, count)), size=prod(shape)).reshape(shape)

    def intact(self) -> bool:
        """Whether every file holds what was put there."""
        try:
            return all(
                zlib.crc32(self._file(*key).read_bytes()) == checksum
                for key, checksum in self.checksums.items()
            )
        except OSError:
            return False

    def resume(self, keeper: Keeper | None) -> int:
        """Take over what an earlier attempt solved; returns the segment to begin with."""
        kept = None if keeper is None else keeper.load()
        if kept is None:
            return 0
        if not Database(self.folder, checksums=kept["checksums"]).intact():
            return 0
        self.losses, self.shapes = kept["losses"], kept["shapes"]
        self.checksums = kept["checksums"]
        return int(kept["begin"])

    def fill(
        self,
        model: nn.Module,
        segments: Sequence[SegmentLike],
        calibration: Callable[[], Iterable[Batch]],
        wanted: Sequence[str],
        visit: Visit,
        *,
        begin: int,
        rows_per_column: float | None,
        progress: Progress | None,
        keeper: Keeper | None,
    ) -> None:
        """:func:`walk`, with how far it is kept after every segment."""

        def finished(at: int) -> None:
            assert keeper is not None  # a few numbers: the weights are in files of their own
            keeper.save(
                {
                    "begin": at + 1,
                    "losses": self.losses,
                    "shapes": self.shapes,
                    "checksums": self.checksums,
                }
            )

        walk(
            model,
            segments,
            calibration,
            wanted,
            visit,
            rows_per_column=rows_per_column,
            progress=progress,
            begin=begin,
            finished=None if keeper is None else finished,
        )


class Stitcher:
    """Sets a model to allocations by copying solved levels; only what differs is copied."""

    def __init__(self, model: nn.Module, items: Sequence[ItemLike], database: Database) -> None:
        self.model, self.items, self.database = model, list(items), database
        self.now = [0] * len(self.items)

    @torch.no_grad()
    def set(self, levels: Sequence[int]) -> nn.Module:
        """Bring the model to one level an item (indices into its sizes)."""
        for at, (item, level) in enumerate(zip(self.items, levels, strict=True)):
            if level == self.now[at]:
                continue
            size = self.database.sizes[item.name][level]
            for unit, count in zip(item.units, size, strict=True):
                layer = as_layer(unit.consumer, self.model.get_submodule(unit.consumer))
                weight = self.database.get(unit.consumer, count)
                write_back(layer, weight.to(layer.weight.device))
            self.now[at] = level
        return self.model
