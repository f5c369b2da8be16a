"""The target at once, then one recovery.

No paper of its own: what gradual pruning is compared with, as in SparseGPT (Frantar & Alistarh
2023, arXiv 2301.00774), which prunes in one step.
"""

from __future__ import annotations


def rungs(sparsity: float, count: int = 0) -> tuple[float, ...]:
    """The target alone; ``count`` plays no part."""
    return (sparsity,)
