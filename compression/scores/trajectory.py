"""How far the network's later features move once a group is silent.

OPTIN (Khaki and Plataniotis, ICLR 2024, arXiv 2403.17921, section 3): the importance of a unit is
the distance between the features of the layers after it (its trajectory) with and without it, plus
that of the answers; one shot, no training. Here, for the features F_k of every later segment and
the logits,

    T_g = sum_k ||F_k(g masked) - F_k||^2 / ||F_k||^2

Ours differs: a normalised squared error, SquareHead's, in place of the relational (manifold) loss
and of the weighted KL; the first examples of the calibration set only. Units of few groups (heads)
are masked one group after the other, as there. A pass for each neuron or channel would cost
thousands: T is zero, and so least, where nothing is masked, so that with s a mask of ones

    T_g ~ sum_k ||dF_k / ds_g||^2 / ||F_k||^2 = E_v (sum_k <v_k, dF_k / ds_g> / ||F_k||)^2

for v of random signs (Gauss-Newton, Hutchinson's estimator): every group of every unit from one
backward pass a probe, the square taken for each example apart. It is exact in expectation where
the features are linear in the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.errors import CompressionError
from compression.groups import Score, Standing, UnitLike

if TYPE_CHECKING:
    from compression.sequential import Batch, SegmentLike

_EXACT = 16  # groups up to which each is masked by itself
_EXAMPLES = 64
_PROBES = 16
_SEED = 0


def scorer(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    units: Sequence[UnitLike],
) -> Score:
    """Scores of every unit from the model as it is now.

    Raises:
        CompressionError: the calibration gives no example, or a unit is not reached.
    """
    scores = trajectories(model, segments, calibration, units)

    def score(standing: Standing) -> Tensor:
        return scores[standing.consumer].to(standing.weight)

    return score


def trajectories(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    units: Sequence[UnitLike],
    *,
    exact: int = _EXACT,
    probes: int = _PROBES,
) -> dict[str, Tensor]:
    """T_g by consumer, (groups,) float64 on the CPU.

    Args:
        exact: groups up to which a unit's are masked one by one, a pass a group.
        probes: random vectors for the others.
    """
    batches = list(_first_examples(calibration()))
    if not batches:
        raise CompressionError("calibration gives no batch: at least one example is needed")
    found = {unit.consumer: torch.zeros(unit.groups, dtype=torch.float64) for unit in units}
    few = [unit for unit in units if unit.groups <= exact]
    many = [unit for unit in units if unit.groups > exact]
    generator = torch.Generator().manual_seed(_SEED)
    for batch in batches:
        share = len(batch[0]) / sum(len(each[0]) for each in batches)
        with torch.no_grad():
            whole = _features(model, segments, batch, [])
        for unit in few:
            for group in range(unit.groups):
                keep = torch.ones(1, unit.groups, device=batch[0].device)
                keep[0, group] = 0.0
                with torch.no_grad():
                    masked = _features(model, segments, batch, [(unit, keep)])
                found[unit.consumer][group] += share * _distance(masked, whole)
        if many:
            for consumer, part in _linearised(model, segments, batch, many, probes, generator):
                found[consumer] += share * part
    return found


def _first_examples(batches: Iterable[Batch]) -> Iterator[Batch]:
    left = _EXAMPLES
    for batch in batches:
        yield tuple(part[:left] for part in batch)
        left -= len(batch[0])
        if left <= 0:
            return


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    parts = [
        (a - b).square().sum() / b.square().sum().clamp_min(1e-30)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(parts).double().sum())


def _linearised(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    batch: Batch,
    units: Sequence[UnitLike],
    probes: int,
    generator: torch.Generator,
) -> Iterator[tuple[str, Tensor]]:
    """E_v (d/ds_g sum_k <v_k, F_k> / ||F_k||)^2, summed over the examples of the batch."""
    with torch.enable_grad():
        masks = [
            torch.ones(len(batch[0]), unit.groups, device=batch[0].device, requires_grad=True)
            for unit in units
        ]
        features = _features(model, segments, batch, list(zip(units, masks, strict=True)))
        found = [torch.zeros(unit.groups, dtype=torch.float64) for unit in units]
        norms = [feature.detach().norm().clamp_min(1e-15) for feature in features]
        for _ in range(probes):
            total = torch.zeros((), device=batch[0].device)
            for feature, norm in zip(features, norms, strict=True):
                signs = torch.randint(2, feature.shape, generator=generator) * 2.0 - 1
                total = total + (feature * signs.to(feature)).sum() / norm
            # a unit's own segment always depends on it, so none is unused
            for sums, slope in zip(
                found, torch.autograd.grad(total, masks, retain_graph=True), strict=True
            ):
                sums += slope.double().square().sum(dim=0).cpu() / probes
    return iter([(unit.consumer, sums) for unit, sums in zip(units, found, strict=True)])


def _features(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    batch: Batch,
    masks: Sequence[tuple[UnitLike, Tensor]],
) -> list[Tensor]:
    """Outputs of all segments and of the model, inputs of the units' consumers masked.

    Segments before a unit give the same as without its mask, so they add nothing to a distance.
    """
    seen: list[Tensor] = []
    with _hooked(model, segments, masks, seen):
        seen.append(_first(model(*batch)).float())
    return seen


@contextmanager
def _hooked(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    masks: Sequence[tuple[UnitLike, Tensor]],
    seen: list[Tensor],
) -> Iterator[None]:
    handles = []
    for unit, mask in masks:

        def silence(
            layer: nn.Module, args: tuple[Any, ...], unit: UnitLike = unit, mask: Tensor = mask
        ) -> tuple[Any, ...]:
            return (_masked(layer, args[0], unit, mask), *args[1:])

        layer = model.get_submodule(unit.consumer)
        handles.append(layer.register_forward_pre_hook(silence))
    for segment in segments:

        def look(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            seen.append(_first(out).float())

        handles.append(segment.module.register_forward_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(layer: nn.Module, x: Tensor, unit: UnitLike, mask: Tensor) -> Tensor:
    """The consumer's input with each group times its mask, (n, groups); n divides x's rows."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    inputs = x.shape[axis]  # a group of a convolution covers a channel's kernel
    if inputs % unit.groups or x.shape[0] % len(mask):
        raise CompressionError(
            f"layer {unit.consumer!r}: its input of shape {tuple(x.shape)} cannot be cut into "
            f"{unit.groups} groups for {len(mask)} examples; use another shrink.score"
        )
    wide = mask.repeat_interleave(inputs // unit.groups, dim=1)  # (n, inputs)
    wide = wide.repeat_interleave(x.shape[0] // len(mask), dim=0)  # windows of one example
    ones = [1] * (x.dim() - 2)
    shape = (len(wide), inputs, *ones) if axis == 1 else (len(wide), *ones, inputs)
    return x * wide.reshape(shape).to(x.dtype)


def _first(value: Any) -> Tensor:
    found = value[0] if isinstance(value, tuple | list) else value
    assert isinstance(found, Tensor)
    return found
