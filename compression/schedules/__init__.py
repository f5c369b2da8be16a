"""The sparsities that a ladder passes on its way, each followed by its recovery.

A method is a module with

    rungs(sparsity: float, count: int) -> tuple[float, ...]

rising, the last exactly ``sparsity``; a method whose steps follow from the target alone looks at
no ``count``. Free of torch, methods included: recipes are read with it.
"""

from compression.registry import Registry

METHODS = Registry(
    "distill.schedule",
    "rungs",
    {
        "halving": "compression.schedules.halving",
        "one_shot": "compression.schedules.one_shot",
        "cubic": "compression.schedules.cubic",
    },
)
