"""What an allocation costs: the stitched model's divergence from the teacher, level by level."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from compression.database import Database, ItemLike, Stitcher
from compression.keeping import Keeper
from compression.losses import temperature_kl
from compression.prefix import Prefix
from compression.search import Levels
from compression.sequential import Batch, SegmentLike


def spread_rows(calibration: Callable[[], Iterable[Batch]], rows: int, seed: int) -> list[Batch]:
    """Batches drawn from all of them, until they hold ``rows`` examples or more, then mixed.

    Neighbours may be all of one kind: texts come by length, shots by class.
    """
    sizes = [len(batch[0]) for batch in calibration()]
    taken: list[int] = []
    for at in random.Random(seed).sample(range(len(sizes)), len(sizes)):
        if sum(sizes[known] for known in taken) >= rows:
            break
        taken.append(at)
    found = {at: batch for at, batch in enumerate(calibration()) if at in taken}
    return _mixed([found[at] for at in taken], seed)


def _mixed(batches: Sequence[Batch], seed: int) -> list[Batch]:
    """Batches of the same sizes whose rows are drawn from all batches of their shape."""
    shapes: dict[tuple[torch.Size, ...], list[int]] = {}
    for at, batch in enumerate(batches):
        shapes.setdefault(tuple(part.shape[1:] for part in batch), []).append(at)
    found = list(batches)
    generator = torch.Generator().manual_seed(seed)
    for places in shapes.values():
        sizes = [len(batches[at][0]) for at in places]
        order = torch.randperm(sum(sizes), generator=generator)
        parts = [
            torch.cat(part)[order.to(part[0].device)].split(sizes)
            for part in zip(*(batches[at] for at in places), strict=True)
        ]
        for at, batch in zip(places, zip(*parts, strict=True), strict=True):
            found[at] = batch
    return found


def _merged(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Neighbouring batches joined up to ``rows``: fewer launches on a GPU.

    Images of one size; texts (ids and mask, both (n, T)) padded to the longest of them.
    """
    found: list[Batch] = []
    for batch in batches:
        last = found[-1] if found else None
        if last is not None and len(last[0]) + len(batch[0]) <= rows and _alike(last, batch):
            longest = max(last[0].shape[1], batch[0].shape[1])
            found[-1] = tuple(
                torch.cat([_padded(part, longest) for part in pair])
                for pair in zip(last, batch, strict=True)
            )
        else:
            found.append(batch)
    return found


def _alike(one: Batch, other: Batch) -> bool:
    texts = all(len(batch) == 2 and batch[0].shape == batch[1].shape for batch in (one, other))
    return texts or all(a.shape[1:] == b.shape[1:] for a, b in zip(one, other, strict=True))


def _padded(part: Tensor, longest: int) -> Tensor:
    """Zeros, which a mask leaves out, behind what is shorter."""
    missing = longest - part.shape[1]
    return nn.functional.pad(part, (0, missing)) if missing and part.ndim == 2 else part


class Judge:
    """Mean KL(teacher || stitched student) on fixed batches, at temperature 1.

    With the model's segments, in order, what single layers cost is told without running those
    before them each time.
    """

    def __init__(
        self,
        stitcher: Stitcher,
        teacher: nn.Module,
        batches: Sequence[Batch],
        device: torch.device,
        autocast_bf16: bool,
        segments: Sequence[SegmentLike] = (),
    ) -> None:
        self.stitcher = stitcher
        self.prefix = Prefix(stitcher.model, segments)
        self.batches = _merged(batches, 128) if device.type == "cuda" else list(batches)
        self.kind, self.bf16 = device.type, autocast_bf16
        self.targets = [self._run(teacher, batch) for batch in self.batches]

    @cached_property
    def blind(self) -> float:
        """Of a model that sees nothing: one that always gives the teacher's mean answer."""
        told = torch.cat([target.softmax(dim=-1) for target in self.targets]).double()
        mean = told.mean(dim=0)
        return float(
            (torch.special.xlogy(told, told) - torch.special.xlogy(told, mean)).sum(-1).mean()
        )

    @torch.no_grad()
    def _run(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.bf16):
            return model(*batch).float()

    def __call__(self, levels: Levels, share: float = 1.0) -> float:
        """Of an allocation, on the first ``share`` of the batches."""
        model = self.stitcher.set(levels)
        count = max(1, round(share * len(self.batches)))
        total = torch.zeros((), device=self.targets[0].device)
        for batch, target in zip(self.batches[:count], self.targets[:count], strict=True):
            total += temperature_kl(self._run(model, batch), target, 1.0) * len(target)
        return float(total) / sum(len(target) for target in self.targets[:count])

    def changed(
        self, base: Levels, changes: Sequence[tuple[int, int]], keeper: Keeper | None = None
    ) -> tuple[float, list[float]]:
        """Of ``base``, and of it with one item at another level, for each (item, level).

        Args:
            keeper: where the sums over finished batches are kept; None keeps nothing.
        """
        kept = None if keeper is None else keeper.load()
        device = self.targets[0].device
        done = 0 if kept is None else int(kept["done"])
        sums = torch.zeros(1 + len(changes)) if kept is None else kept["sums"]
        sums = sums.to(device)
        begins = [
            min(self.prefix.place(unit.consumer) for unit in self.stitcher.items[item].units)
            for item, _ in changes
        ]
        at = list(zip(self.batches, self.targets, strict=True))
        for count, (batch, target) in enumerate(at[done:], done + 1):
            self.stitcher.set(base)
            costs = [temperature_kl(self.prefix.record(self._run, batch), target, 1.0)]
            for (item, level), begin in zip(changes, begins, strict=True):
                self.stitcher.set((*base[:item], level, *base[item + 1 :]))
                answer = self.prefix.answer(self._run, batch, begin)
                costs.append(temperature_kl(answer, target, 1.0))
            sums += torch.stack(costs) * len(target)
            if keeper is not None and (keeper.due() or count == len(at)):
                keeper.save({"done": count, "sums": sums.cpu()})
        self.prefix.forget()
        rows = sum(len(target) for target in self.targets)
        middle, *rest = (float(total) / rows for total in sums.cpu())
        return middle, rest


def probe(
    database: Database,
    items: Sequence[ItemLike],
    judge: Judge,
    keeper: Keeper | None = None,
    *,
    base: Levels | None = None,
    shown: Sequence[Sequence[int]] | None = None,
) -> list[list[float]]:
    """The divergence that each level of each item adds by itself, in nats.

    Measured at a few levels; between them, and beyond, linear in the layer loss.

    Args:
        base: the levels of all the others; None for every item as it is. At its own an item adds
            nothing; what costs more layer loss than that adds no less, and the other way round.
        shown: the levels that are measured; None for each item's middle and smallest.
        keeper: where finished batches are kept; None keeps nothing.
    """
    base = (0,) * len(items) if base is None else base
    lasts = [len(database.losses[item.name]) - 1 for item in items]
    if shown is None:
        shown = [((last + 1) // 2, last) for last in lasts]
    changes = [
        (at, level)
        for at, levels in enumerate(shown)
        for level in sorted(set(levels))
        if level != base[at]
    ]
    level_base, costs = judge.changed(base, changes, keeper)
    added: dict[int, list[tuple[float, float]]] = {}
    for (at, level), cost in zip(changes, costs, strict=True):
        loss = database.losses[items[at].name][level]
        added.setdefault(at, []).append((loss, cost - level_base))
    judge.stitcher.set((0,) * len(items))
    found = []
    for at, item in enumerate(items):
        losses = database.losses[item.name]
        points = _monotone([(losses[base[at]], 0.0), *added.get(at, ())])
        found.append([_interpolated(points, loss) for loss in losses])
    return found


def _monotone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(loss, divergence) rising in both from the first point, which is not moved."""
    (middle, still), *others = points
    found = [(middle, still)]
    for loss, value in sorted(point for point in others if point[0] >= middle):
        found.append((loss, max(value, found[-1][1])))
    for loss, value in sorted((point for point in others if point[0] < middle), reverse=True):
        found.insert(0, (loss, min(value, found[0][1])))
    return found


def _interpolated(points: Sequence[tuple[float, float]], loss: float) -> float:
    """The line through the two points around a loss, or through the nearest two beyond them."""
    if len(points) == 1:
        return points[0][1]
    pairs = list(itertools.pairwise(points))
    (a, low), (b, high) = next((pair for pair in pairs if loss <= pair[1][0]), pairs[-1])
    if b <= a:
        return low if loss <= a else high
    return low + (high - low) * (loss - a) / max(b - a, 1e-30)
