"""Bits in closed form, from the assumption that a bit less makes four times the loss.

BAQ (Zhang et al. 2025, arXiv 2506.05664): with the loss of part l modelled as c_l 2^(-2 b_l), the
convex program  min sum_l c_l 2^(-2 b_l)  subject to  sum_l n_l b_l = b sum_l n_l  has the solution

    b_l = b + 1/2 log2((c_l / n_l) / g),   g = exp(sum_l n_l ln(c_l / n_l) / sum_l n_l)

so that every weight bears the same loss ("equal loss"); c_l is taken from the loss that the
rounding makes at a width of reference. There a part is a column of a matrix, here it is a layer
(n_l weights), because the runtime has one width a matrix; c_l is the layer's loss relative to its
output, measured at 4 bits. Ours differs further: no layer leaves the widths that the runtime
serves. Layers beyond the ends are held there and the rest solved again, which stays optimal; then
all are rounded down, and what is left of the budget goes where a step takes most off the modelled
loss for its bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compression.widths import WidthRequest

_REFERENCE = 4  # bits


def closed_form(
    coefficients: Mapping[str, float], sizes: Mapping[str, int], mean: float, ends: tuple[int, int]
) -> dict[str, float]:
    """Real bits a layer: the optimum of the convex program between the two ends.

    Args:
        coefficients: c_l, at least 0. sizes: n_l. mean: b, between the ends.
    """
    low, high = ends
    density = {name: max(c, 1e-30) / sizes[name] for name, c in coefficients.items()}
    # water filling: b_l = clip(1/2 log2(density_l / level)); the level by bisection
    bottom = math.log2(min(density.values())) - 2 * high
    top = math.log2(max(density.values())) - 2 * low
    wanted = mean * sum(sizes[name] for name in density)

    def at(level: float) -> dict[str, float]:
        return {
            name: min(max(0.5 * (math.log2(d) - level), low), high) for name, d in density.items()
        }

    for _ in range(200):
        middle = (bottom + top) / 2
        spent = sum(sizes[name] * bits for name, bits in at(middle).items())
        bottom, top = (middle, top) if spent > wanted else (bottom, middle)
    return at(top)


def rounded(
    bits: Mapping[str, float],
    coefficients: Mapping[str, float],
    sizes: Mapping[str, int],
    widths: Sequence[int],
    mean: float,
) -> dict[str, int]:
    """Whole widths whose mean is at most ``mean``: down, then up where it pays most."""
    steps = sorted(widths)
    found = {name: max(w for w in steps if w <= max(b, steps[0])) for name, b in bits.items()}
    left = mean * sum(sizes.values()) - sum(sizes[name] * w for name, w in found.items())

    def gain(name: str) -> float:
        now, then = found[name], steps[steps.index(found[name]) + 1]
        saved = coefficients[name] * (2.0 ** (-2 * now) - 2.0 ** (-2 * then))
        return saved / (sizes[name] * (then - now))

    while True:
        able = []
        for name, width in found.items():
            if width < steps[-1]:
                then = steps[steps.index(width) + 1]
                if sizes[name] * (then - width) <= left + 1e-6:
                    able.append(name)
        if not able:
            return found
        best = max(able, key=gain)
        then = steps[steps.index(found[best]) + 1]
        left -= sizes[best] * (then - found[best])
        found[best] = then


def assign(request: WidthRequest) -> dict[str, int]:
    """Bits a layer."""
    at = request.widths.index(_REFERENCE)
    losses = request.levels.losses
    coefficients = {name: losses[name][1 + at] * 2.0 ** (2 * _REFERENCE) for name in request.sizes}
    ends = min(request.widths), max(request.widths)
    bits = closed_form(coefficients, request.sizes, request.mean_bits, ends)
    return rounded(bits, coefficients, request.sizes, request.widths, request.mean_bits)
