"""One width for all layers: the widest that the mean allows.

No paper: what is done without an allocation, and what others are held against.
"""

from __future__ import annotations

from compression.widths import WidthRequest


def assign(request: WidthRequest) -> dict[str, int]:
    """Bits a layer."""
    widest = max(width for width in request.widths if width <= request.mean_bits)
    return dict.fromkeys(request.sizes, widest)
