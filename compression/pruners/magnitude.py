"""Magnitude: the smallest weights go, the others stay as they are.

Han et al. 2015, "Learning both Weights and Connections" (arXiv 1506.02626), section 3. Ours
differs: the layer is given its exact number of zeros instead of a threshold in its deviations,
and what retrains it is the ladder's distillation.
"""

from __future__ import annotations

from compression.masks import MaskRule
from compression.problem import LayerProblem, Solved


def prune(problem: LayerProblem, rule: MaskRule) -> Solved:
    """Mask a layer by |w|; the Hessian is not looked at."""
    score = problem.weight.abs()
    rule.prepare(problem.weight, score)
    kept = rule.keep(0, score.shape[-1], score)
    return Solved(problem.weight.masked_fill(~kept, 0.0), problem.bias, kept)
