"""The sparsities a ladder passes on its way; free of torch, since recipes are read with it."""

from __future__ import annotations


def halving_rungs(sparsity: float) -> tuple[float, ...]:
    """Sparsities that halve what remains down to the target; the last step may be up to 2.6 times.

    0.5 -> (0.5,); 0.75 -> (0.5, 0.75); 0.9 -> (0.5, 0.75, 0.9); 0.95 -> (0.5, 0.75, 0.875, 0.95).
    """
    density, rungs = 1.0, []
    while density / 2 > 1.3 * (1 - sparsity):
        density /= 2
        rungs.append(1 - density)
    return (*rungs, sparsity)
