"""A pair of examples that are nearly the same."""

from __future__ import annotations

from typing import NamedTuple


class Near(NamedTuple):
    """Rows of two examples, what decided that they are alike, and how alike they are."""

    first: int
    second: int
    how: str  # 'image', 'text' (equal but for spelling) or 'embedding'
    similarity: float  # 0 to 1
