"""How a layer's weights are brought onto a grid.

A method is a module with

    round_weights(problem: LayerProblem, kept: Tensor, grid: Grid | BlockwiseGrid) -> Solved

`kept` (G, R, C) are the weights that are not zero and stay so; the others stay exact zeros.
"""

from compression.registry import Registry

METHODS = Registry(
    "quantize.method",
    "round_weights",
    {
        "gptq": "compression.rounders.gptq",
    },
)
