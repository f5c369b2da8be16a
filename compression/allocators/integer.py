"""An integer program over what each level costs by itself.

Hubara et al. 2020 (arXiv 2006.10518, section 4): one binary variable a layer and level, the sum of
the degradations that each causes alone as the objective, the resources as constraints; there for
bit widths, here for nonzeros. Solved exactly by scipy's HiGHS. A level's degradation is its
divergence from the teacher while all other layers are as they are, measured at two levels and
between them in proportion to the layer loss.
"""

from __future__ import annotations

from compression.allocation import integer_program
from compression.request import Request


def allocate(request: Request) -> dict[str, int]:
    """Zeros a layer; raises UnreachableBudget where no choice of levels has so few nonzeros."""
    levels = request.levels
    costs = request.costs_alone
    picked = integer_program(costs, {"nonzeros": levels.kept}, {"nonzeros": levels.budget})
    return request.chosen(tuple(picked))
