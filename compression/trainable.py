"""What recovery trains of a student, what holds its zeros, and what makes it plain again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn


def _nothing() -> None:
    """Nothing has to be done."""


@dataclass(frozen=True)
class Trainable:
    """The answer of a method of :data:`compression.trained.METHODS`.

    Attributes:
        parameters: what the optimiser gets, each once, in the student's order.
        hold: called after every step of the optimiser: pruned weights become zero again. Where a
            pruned weight takes no step, nothing.
        merge: called once, with the best state loaded: what was put around the layers to train
            them goes into their weights.
    """

    parameters: list[nn.Parameter]
    hold: Callable[[], None] = _nothing
    merge: Callable[[], None] = _nothing


def only(student: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters as a list; they alone require gradients afterwards."""
    chosen = list(parameters)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def outside_embeddings(student: nn.Module) -> list[nn.Parameter]:
    """Every parameter that is not an embedding table's, in the student's order.

    Few rows of a table occur in the shots, and an optimiser over all of them costs more than the
    rest of the step.
    """
    return [
        parameter
        for module in student.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    ]
