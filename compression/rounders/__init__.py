"""How a layer's weights are brought onto a grid.

A method is a module with

    round_weights(problem: LayerProblem, kept: Tensor, grid: Grid | BlockwiseGrid) -> Solved

`kept` (G, R, C) are the weights that are not zero and stay so; the others stay exact zeros. The
answer's weights lie on `grid`, whose scales may be chosen or moved by then: a blockwise grid's
are fitted by the method (`grid.fit`).
"""

from compression.registry import Registry

METHODS = Registry(
    "quantize.method",
    "round_weights",
    {
        "gptq": "compression.rounders.gptq",
        "rtn": "compression.rounders.rtn",
        "adaquant": "compression.rounders.adaquant",
    },
)
