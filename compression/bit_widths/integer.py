"""An integer program over what each width costs by itself.

Hubara et al. 2020 (arXiv 2006.10518, section 4): one binary variable a layer and width, the sum of
the measured degradations as the objective, the bits as the constraint. Solved exactly by scipy's
HiGHS. A width's degradation is the divergence from the float model's answers with that layer alone
rounded to it.
"""

from __future__ import annotations

from compression.allocation import integer_program
from compression.widths import WidthRequest


def assign(request: WidthRequest) -> dict[str, int]:
    """Bits a layer."""
    costs = request.degradations()
    bits = [[size * width for width in request.widths] for size in request.sizes.values()]
    budget = request.mean_bits * sum(request.sizes.values())
    picked = integer_program(costs, {"bits": bits}, {"bits": budget})
    # the solver may spend a hair more than the budget
    left = max(0.0, budget - sum(row[at] for row, at in zip(bits, picked, strict=True)))
    for item, (row, cost) in enumerate(zip(bits, costs, strict=True)):
        now = picked[item]
        # more bits at no more cost: what is left of the budget may as well be spent
        better = [at for at in range(len(row)) if cost[at] <= cost[now]]
        picked[item] = max(
            (at for at in better if row[at] - row[now] <= left), key=lambda at: row[at]
        )
        left -= row[picked[item]] - row[now]
    return {name: request.widths[at] for name, at in zip(request.sizes, picked, strict=True)}
