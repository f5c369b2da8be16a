"""Fast at first, slower the fewer weights are left.

Zhu & Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1:

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Delta t))^3,  t = t_0 + k Delta t, k = 0 .. n

with s_i = 0. Ours differs: n is small (``distill.rung_count``), since every rung solves its layers
and is recovered, where theirs masks by magnitude every hundred steps or so; and k begins at 1,
since s_i is the dense model that is there.
"""

from __future__ import annotations


def rungs(sparsity: float, count: int) -> tuple[float, ...]:
    """``count`` sparsities of the cubic, the last the target itself."""
    return (*(sparsity * (1 - (1 - k / count) ** 3) for k in range(1, count)), sparsity)
