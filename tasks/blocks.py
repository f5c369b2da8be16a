"""How many numbers of a 4-bit matrix share a scale: stored so, and planned so.

Here and not in the recipe's sections, so that it is part of the source that the keys of the stages
that round and shrink cover.
"""

from __future__ import annotations

BLOCK = 32  # columns
