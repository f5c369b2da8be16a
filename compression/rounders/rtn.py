"""Round to nearest: every weight by itself, nothing compensated.

The baseline of every study of rounding; Nagel et al. 2021, "A White Paper on Neural Network
Quantization" (arXiv 2106.08295), equations 4 to 7. Ours: symmetric, the clipping that is nearest
to the weights in squared error, a row or a block of columns at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.grids import BlockwiseGrid, Grid
from compression.problem import LayerProblem, Solved


def round_weights(problem: LayerProblem, kept: Tensor, grid: Grid | BlockwiseGrid) -> Solved:
    """Round a layer; the Hessian is not looked at and the bias stays."""
    weight = problem.weight.to(grid.scale.dtype).masked_fill(~kept, 0.0)
    grid.fit(0, weight, torch.ones_like(weight[:, :1]))
    return Solved(grid.nearest(weight), problem.bias, kept)
