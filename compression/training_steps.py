"""How many steps each rung of a ladder is trained; free of torch, since recipes are read with it.

Kurtic, Hoefler, Alistarh 2023, "How to Prune Your Language Model: Recovering Accuracy on the
'Sparsity May Cry' Benchmark" (arXiv 2312.13547), answer Liu et al. 2023, "Sparsity May Cry" (arXiv
2303.02141), with training that grows with the target sparsity. Ours: in proportion to 1/density,
because what is left to recover grows with what was taken; their rates and durations were found for
fine-tuning of many epochs.

Two schedules are comparable when their rungs are trained as many steps together: give ``total``.
Without it a rung depends on itself alone, so that ladders share the rungs they have in common, and
a ladder with more rungs trains longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def rung_steps(
    rungs: Sequence[float],
    *,
    steps: int,
    density_scaled: bool = True,
    total: int | None = None,
) -> tuple[int, ...]:
    """Steps of every rung, in order.

    Args:
        rungs: their sparsities, each below 1.
        steps: of a half-dense rung; of every rung, where they are not scaled.
        density_scaled: whether steps are in proportion to 1/density: a tenth as dense a rung gets
            five times those of a half-dense one.
        total: steps of all rungs together, divided in the same proportion (and rounded so that
            the sum is exact); None: as ``steps`` says.
    """
    if total is None:
        return tuple(round(steps * 0.5 / (1 - rung)) if density_scaled else steps for rung in rungs)
    shares = [1 / (1 - rung) if density_scaled else 1.0 for rung in rungs]
    whole = sum(shares)
    ends = [round(total * part / whole) for part in accumulate(shares)]
    return tuple(end - begin for begin, end in pairwise([0, *ends]))
