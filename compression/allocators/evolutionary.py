"""Evolutionary search with the stitched model's divergence from the teacher as fitness.

EvoPress (Sieberling et al. 2024, arXiv 2410.14649, algorithm 1), see `compression.search`. Ours
differs: it starts from the dynamic program's solution, which is no worse than the even share that
EvoPress starts from, but where both have lost the task.
"""

from __future__ import annotations

from compression.allocators import dynamic
from compression.keeping import part_of
from compression.request import Request
from compression.search import SearchSettings, evolve


def allocate(request: Request) -> dict[str, int]:
    """Zeros a layer; on what is judged, never worse levels than the dynamic program's."""
    levels, asked = request.levels, request.settings
    picked, history = evolve(
        dynamic.solve(request),
        [len(kept) for kept in levels.kept],
        levels.fits,
        request.judge,
        SearchSettings(generations=asked.generations, offspring=asked.offspring, seed=asked.seed),
        request.part(1, 2),
        part_of(request.keeper, "search"),
    )
    request.facts["kl_start"] = history[0]
    return request.chosen(picked)
