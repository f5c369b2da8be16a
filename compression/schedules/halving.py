"""TACO's ladder: half of what remains goes at every rung.

Kurtic, Hoefler, Alistarh 2023, "TACO" (arXiv 2303.14409), prune gradually and fine-tune between.
Ours differs: the steps are halvings down to the target, whatever it is, so that ladders to
different targets share their first rungs; the last step may take up to 2.6 times instead.
"""

from __future__ import annotations


def rungs(sparsity: float, count: int = 0) -> tuple[float, ...]:
    """Sparsities that halve what remains down to the target; ``count`` plays no part.

    0.5 -> (0.5,); 0.75 -> (0.5, 0.75); 0.9 -> (0.5, 0.75, 0.9); 0.95 -> (0.5, 0.75, 0.875, 0.95).
    """
    density, found = 1.0, []
    while density / 2 > 1.3 * (1 - sparsity):
        density /= 2
        found.append(1 - density)
    return (*found, sparsity)
