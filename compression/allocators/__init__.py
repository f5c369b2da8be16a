"""How many zeros each layer takes, of an asked share of zeros in all.

A method is a module with

    allocate(request: Request) -> dict[str, int]

from layer to zeros (see `compression.request`). The request knows sizes, zeros held already and the
total, and offers, computed when first asked for: each layer's problem, a database of layers solved
at several sparsities, what each of those costs, and the stitched model's divergence from the
teacher. What is answered is solved afterwards, block after block, by `compression.prune`.
"""

from compression.registry import Registry

METHODS = Registry(
    "prune.allocation",
    "allocate",
    {
        "uniform": "compression.allocators.uniform",
        "global": "compression.allocators.threshold",
        "dynamic": "compression.allocators.dynamic",
        "integer": "compression.allocators.integer",
        "evolutionary": "compression.allocators.evolutionary",
    },
)
