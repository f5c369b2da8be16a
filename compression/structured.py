"""Whole groups of input columns leave a layer; in structured OBS the others take up their work.

Groups are attention heads, neurons or channels: consecutive columns of the layer that reads them.
For a group g of the columns of W, with H the damped Hessian of the layer's inputs,

    score_g = tr(W_:g [(H^-1)_gg]^-1 W_:g^T)            twice the loss of removing it
    W      -= W_:g [(H^-1)_gg]^-1 (H^-1)_g:             optimal update of what stays
    H^-1   -= (H^-1)_:g [(H^-1)_gg]^-1 (H^-1)_g:        H^-1 of what stays (block elimination)

(Optimal Brain Surgeon, Hassibi and Stork 1993, in the block form of Kurtic et al., "ZipLM",
arXiv 2302.04089, equations 3 and 4.) The bias is a last column that is never removed, so that the
mean of what was removed goes into it. Which groups leave may be told by another score than OBS's
(`compression.scores`), and what stays may be left as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.errors import CompressionError
from compression.groups import Score, Standing, columns_of_groups
from compression.hessian import layer_loss
from compression.scores.obs import score as obs_score


@dataclass(frozen=True)
class Removed:
    """One stage of a removal.

    Attributes:
        kept: indices of the groups that stay, rising, int64 (k,).
        weight: (R, D), zero in the removed columns, optimal in the others, or as they were where
            no update was asked for.
        loss: 1/2 tr(dW H dW^T) against the layer as it was, with the damped H.
    """

    kept: Tensor
    weight: Tensor
    loss: float


@torch.no_grad()
def remove_groups(
    weight: Tensor,
    hessian: Tensor,
    *,
    groups: int,
    width: int,
    keep: Sequence[int],
    rounds: int = 64,
    score: Score = obs_score,
    update: bool = True,
    name: str = "",
    undamped: Tensor | None = None,
) -> list[Removed]:
    """Remove groups until each count of ``keep`` is reached in turn, by structured OBS if not said.

    Args:
        weight: (R, D); its first ``groups * width`` columns are the groups, in order; further
            columns (the bias) always stay.
        hessian: (D, D), damped, so positive definite.
        keep: counts of groups that stay, falling, between 0 and ``groups``.
        rounds: the groups leave in about this many rounds, each with the scores of what is left;
            all groups of a round are eliminated together and exactly. Where there are no more
            groups than rounds, they leave one at a time.
        score: the groups of its lowest values leave first; asked anew every round.
        update: whether what stays is solved anew; the groups that leave are the same either way.
        name, undamped: of the layer, and its Hessian without damping, for ``score``.

    Returns:
        one :class:`Removed` a count, in the dtype of ``hessian``.

    Raises:
        CompressionError: the shapes do not fit, the counts do not fall, or ``hessian`` is not
            positive definite.
    """
    columns = groups * width
    if columns > weight.shape[-1] or hessian.shape != (weight.shape[-1],) * 2:
        raise CompressionError(
            f"{groups} groups of {width} columns do not fit a weight of shape "
            f"{tuple(weight.shape)} with a Hessian of shape {tuple(hessian.shape)}"
        )
    counts = list(keep)
    falling = all(a >= b for a, b in itertools.pairwise(counts))
    if not counts or counts[0] > groups or counts[-1] < 0 or not falling:
        raise CompressionError(f"keep {counts}: must fall and lie between {groups} and 0")
    original = weight.to(hessian.dtype)
    W = original.clone()
    lower, info = torch.linalg.cholesky_ex(hessian)
    if bool(info.any()) or not bool(torch.isfinite(lower).all()):
        raise CompressionError("the damped Hessian is not positive definite; raise rel_damp")
    V = torch.cholesky_inverse(lower)  # H^-1, (D, D)
    alive = torch.ones(groups, dtype=torch.bool, device=W.device)
    inputs = hessian if undamped is None else undamped
    most = max(1, groups // rounds)
    loss = 0.0
    found = []
    for count in counts:
        while (left := int(alive.sum())) > count:
            standing = Standing(name, groups, width, original, inputs, W, V)
            scores = score(standing).masked_fill(~alive, torch.inf)
            leaving = scores.argsort(stable=True)[: min(most, left - count)]
            loss += _eliminate(W, V, columns_of_groups(leaving, width))
            alive[leaving] = False
        kept = torch.nonzero(alive).flatten().cpu()
        if update:
            found.append(Removed(kept, W.clone(), loss))
        else:
            found.append(_removed_alone(original, hessian, kept, alive, width))
    return found


def _removed_alone(
    weight: Tensor, hessian: Tensor, kept: Tensor, alive: Tensor, width: int
) -> Removed:
    """The weight as it was, but for zeros in the columns of the groups that left."""
    plain = weight.clone()
    plain[:, columns_of_groups(torch.nonzero(~alive).flatten(), width)] = 0.0
    return Removed(kept, plain, float(layer_loss((plain - weight)[None], hessian[None])))


def _eliminate(W: Tensor, V: Tensor, columns: Tensor) -> float:
    """Remove columns in place from W (R, D) and V = H^-1 (D, D); returns the loss it adds."""
    rows = V[columns]  # (n, D)
    lower = torch.linalg.cholesky(rows[:, columns])
    solved = torch.cholesky_solve(rows, lower)  # [(H^-1)_gg]^-1 (H^-1)_g:, (n, D)
    leaving = W[:, columns].clone()  # (R, n)
    added = 0.5 * float((leaving * torch.cholesky_solve(leaving.mT, lower).mT).sum())
    W -= leaving @ solved
    V -= rows.mT @ solved
    W[:, columns] = 0.0
    V[columns] = 0.0
    V[:, columns] = 0.0
    return added


@torch.no_grad()
def least_squares(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """The best weight that uses the columns ``kept`` alone, solved from scratch.

    Minimises tr((W' - W) H (W' - W)^T): W'_S = (W H)_:S (H_SS)^-1, zero elsewhere. The oracle of
    :func:`remove_groups`, and what other choices of groups are completed with.

    Args:
        weight: (R, D). hessian: (D, D), damped. kept: column indices (s,).
    """
    W = weight.to(hessian.dtype)
    solved = torch.zeros_like(W)
    lower = torch.linalg.cholesky(hessian[kept][:, kept])
    solved[:, kept] = torch.cholesky_solve((W @ hessian[:, kept]).mT, lower).mT
    return solved
