"""Nothing is trained: what pruning, and compensation where it is asked for, leave is the answer.

No paper: the case without retraining, such as SparseGPT's (Frantar & Alistarh 2023, arXiv
2301.00774). Recovery then takes no step and only tells how far the student is from the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compression.trainable import Trainable, only


def choose(student: nn.Module, kept: Mapping[str, Tensor], *, rank: int, seed: int) -> Trainable:
    """No parameter."""
    return Trainable(only(student, []))
