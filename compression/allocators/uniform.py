"""The same share of zeros in every layer.

No paper: what is done without an allocation, and what others are held against.
"""

from __future__ import annotations

from compression import allocation
from compression.request import Request


def allocate(request: Request) -> dict[str, int]:
    """Zeros a layer; layers that are kept dense take none, the others their share."""
    return allocation.uniform(request.sizes, request.sparsity, dense=request.dense)
