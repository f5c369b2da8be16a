"""Which weights of a layer go, and what the others become.

A method is a module with

    prune(problem: LayerProblem, rule: MaskRule) -> Solved

`rule` holds the asked count or pattern and the weights that are zero already (see
compression.masks); counts are exact. Nothing is written to the layer.
"""

from compression.registry import Registry

METHODS = Registry(
    "prune.method",
    "prune",
    {
        "sweep": "compression.pruners.sweep",
        "magnitude": "compression.pruners.magnitude",
        "wanda": "compression.pruners.wanda",
        "obs": "compression.pruners.obs",
    },
)
