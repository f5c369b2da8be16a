"""Long loops say from time to time how far they are, and go on from there after a crash.

What is kept is all that the rest of the loop depends on (weights, optimiser, averages, random
generators), so that a resumed run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compression.average import Average
from compression.sequential import Batch, Progress, SegmentLike, Visit, layers_of, walk

State = Mapping[str, Any]  # a nest of dictionaries, lists, tuples, plain values and tensors


class Keeper(Protocol):
    """Where one loop keeps its state; whoever calls the loop decides where that is."""

    def load(self) -> dict[str, Any] | None:
        """What was saved last, its tensors on the CPU; None where nothing was."""
        ...

    def due(self, size: int = 0) -> bool:
        """Whether saving so many bytes is worth its time now."""
        ...

    def save(self, state: State) -> None:
        """Replace what was saved last."""
        ...

    def part(self, name: str) -> Keeper:
        """The keeper of a loop inside."""
        ...


def part_of(keeper: Keeper | None, name: str) -> Keeper | None:
    """The keeper of a loop inside; None where nothing is kept."""
    return None if keeper is None else keeper.part(name)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write kept parameters back, in place: an optimiser goes on holding them."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        parameters[name].copy_(value)


def walk_on(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    wanted: Sequence[str],
    visit: Visit,
    found: dict[str, dict[str, Any]],
    *,
    rows_per_column: float | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> None:
    """:func:`walk`, that after a crash goes on with the segment it was in.

    Args:
        found: by name, what ``visit`` fills by layer; kept beside the weights that it wrote, and
            filled again where the walk is resumed.
        keeper: None keeps nothing.
    """
    begin = 0
    kept = None if keeper is None else keeper.load()
    if kept is not None:
        begin = kept["begin"]
        restore(model, kept["parameters"])
        for name, entries in kept["found"].items():
            found[name].update(entries)
    layers = [layers_of(segment, wanted) for segment in segments]
    last = max((at for at, inside in enumerate(layers) if inside), default=-1)

    def finished(at: int) -> None:
        assert keeper is not None
        solved = {
            f"{name}.{inner}": parameter
            for inside in layers[: at + 1]
            for name, layer in inside.items()
            for inner, parameter in layer.named_parameters()
        }
        # the last one is kept whatever it costs: what follows is not to begin with a walk again
        if at == last or keeper.due(bytes_of(solved.values())):
            keeper.save({"begin": at + 1, "parameters": solved, "found": found})

    if begin > last:
        return
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


@dataclass
class Training:
    """All that recovery's steps change, but for the best state: what it is resumed with.

    Parameters that are not trained are left out: they, and their average, are what they were.
    """

    student: nn.Module
    average: Average
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        trained = {name for name, p in self.student.named_parameters() if p.requires_grad}
        return {name: p for name, p in model.named_parameters() if name in trained}

    @property
    def size(self) -> int:
        """Bytes of a state, the best one included: weights, two moments, average, best."""
        return 5 * bytes_of(self._trained(self.student).values())

    def moved(self, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """What of a whole state training may change."""
        trained = self._trained(self.student)
        return {} if state is None else {name: state[name] for name in trained}

    def state(self, steps: int) -> dict[str, Any]:
        """After so many steps."""
        return {
            "steps": steps,
            "student": self._trained(self.student),
            "average": self._trained(self.average.module),
            "averaged": self.average.taken,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }

    def resume(self, state: Mapping[str, Any]) -> int:
        """Go back to a state; returns the steps that were taken."""
        restore(self.student, state["student"])
        restore(self.average.module, state["average"])
        self.average.taken = int(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        return int(state["steps"])
