"""What malloc does with memory that tensors give back: it keeps it for the next ones.

glibc returns large blocks to the kernel, which clears each page anew before it gives it out again.
Where the environment asks for that sooner than glibc would by itself, as Dask does for its workers
(MALLOC_TRIM_THRESHOLD_=65536), training spends much of its time there: benchmarks/fleet.md.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM, _MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_MAPPED_BYTES = 32 << 20  # the most that glibc takes
_TRIM_BYTES = 512 << 20  # free at the end of the heap before any of it is returned


@cache
def keep_freed() -> bool:
    """Set both thresholds, once a process; False where its C library has none (musl, macOS)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MAPPED, _MAPPED_BYTES)) and bool(mallopt(_TRIM, _TRIM_BYTES))
