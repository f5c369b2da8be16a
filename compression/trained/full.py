"""Every parameter but the embedding tables, with the mask held.

TACO (Kurtic, Hoefler, Alistarh 2023, arXiv 2303.14409) and the gradual pruning before it fine-tune
all weights between two steps of pruning; the pruned ones are put back to zero after every step of
the optimiser. Ours leaves the embedding tables as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from compression.prune import hold
from compression.trainable import Trainable, only, outside_embeddings


def choose(student: nn.Module, kept: Mapping[str, Tensor], *, rank: int, seed: int) -> Trainable:
    """All but embedding tables; ``rank`` and ``seed`` play no part."""
    return Trainable(only(student, outside_embeddings(student)), partial(hold, student, kept))
