"""One threshold over the OBS scores of all layers, each score weighed by what is left of its layer.

The loss of removing weight w_rc by itself is w_rc^2 / (2 [H^-1]_cc) (Optimal Brain Surgeon, Hassibi
and Stork 1993, doi 10.1109/ICNN.1993.298572). Those of two layers are not of one scale, so each is
divided by the sum of the scores that are not below it in its own layer, which is the share of what
the layer still has that goes with it (LAMP, Lee et al. 2021, arXiv 2010.07931, equation 4, for
squared weights). Ours differs: OBS scores instead of squared weights; only how many weights a layer
loses is taken from it, which ones is solved anew. A layer never loses all.

One float a weight is held, as much as the model itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.masks import kth_lowest
from compression.problem import LayerProblem
from compression.request import Request


def scores_of(problem: LayerProblem) -> Tensor:
    """LAMP-normalised OBS scores of the weights that are not zero, rising, (n,)."""
    columns = problem.weight.shape[-1]
    # [H^-1]_cc = sum_k U_kc^2
    inverse = problem.factor.upper.square().sum(dim=-2)[:, None, :columns]  # (G, 1, C)
    loss = 0.5 * problem.original[..., :columns].square() / inverse
    ranked = loss[problem.weight != 0].double().sort().values
    left = ranked.flip(0).cumsum(0).flip(0)  # what the layer has, from this weight upwards
    return (ranked / left.clamp_min(1e-300)).float()


def allocate(request: Request) -> dict[str, int]:
    """Zeros a layer below one threshold; raises CholeskyError where a Hessian is singular."""
    scores: dict[str, Tensor] = {}

    def look(problem: LayerProblem) -> None:
        scores[problem.name] = scores_of(problem)

    request.each(look)
    more = request.total - sum(request.held.values())
    if more <= 0:
        return request.exact(request.held)
    threshold = kth_lowest(torch.cat(list(scores.values())), more)
    below = {name: int((found <= threshold).sum()) for name, found in scores.items()}
    return request.exact({name: request.held[name] + below[name] for name in scores})
