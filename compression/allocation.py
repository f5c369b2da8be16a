"""Levels for all layers: how many zeros each one takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from compression.errors import CompressionError


def uniform(
    sizes: Mapping[str, int], sparsity: float, *, dense: Collection[str] = ()
) -> dict[str, int]:
    """The same share of zeros in every layer that is not kept ``dense``; the total is exact.

    Dense layers count: the others take their share, so that ``round(sparsity * all weights)``
    weights are zero. Remainders go to the layers with the largest fractions.

    Args:
        sizes: weights a layer. sparsity: 0 to 1, of all weights together.

    Returns:
        zeros a layer (0 for the dense ones).

    Raises:
        CompressionError: when the layers that may be pruned cannot hold that many zeros.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise CompressionError(f"sparsity {sparsity} is not between 0 and 1")
    total = round(sparsity * sum(sizes.values()))
    open_sizes = {name: size for name, size in sizes.items() if name not in dense}
    room = sum(open_sizes.values())
    if total > room:
        raise CompressionError(
            f"sparsity {sparsity:g} needs {total} zeros, but only {room} weights lie outside the "
            "layers kept dense; lower the sparsity or keep fewer layers dense"
        )
    shares = {name: total * size / room if room else 0.0 for name, size in open_sizes.items()}
    zeros = {name: int(share) for name, share in shares.items()}
    left = total - sum(zeros.values())
    for name in sorted(shares, key=lambda n: (zeros[n] - shares[n], n))[:left]:
        zeros[name] += 1
    return {name: zeros.get(name, 0) for name in sizes}
