"""What a group's removal costs the layer once all others have taken up its work.

score_g = tr(W_:g [(H^-1)_gg]^-1 W_:g^T), twice the loss of removing it: Optimal Brain Surgeon in
the block form of ZipLM (Kurtic, Frantar and Alistarh, arXiv 2302.04089, equation 3). Ours differs:
where a layer has more than 64 groups, several leave a round (`compression.structured`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.groups import Score, Standing, UnitLike

if TYPE_CHECKING:
    from compression.sequential import Batch, SegmentLike


def scorer(
    model: nn.Module,
    segments: Sequence[SegmentLike],
    calibration: Callable[[], Iterable[Batch]],
    units: Sequence[UnitLike],
) -> Score:
    """The score of structured OBS, from the layer's own Hessian alone."""
    return score


def score(standing: Standing) -> Tensor:
    """tr(W_:g [(H^-1)_gg]^-1 W_:g^T) of every group, (groups,)."""
    W, V, groups, width = standing.weight, standing.inverse, standing.groups, standing.width
    n = groups * width
    if width == 1:
        return W[:, :n].square().sum(dim=0) / V.diagonal()[:n]
    index = torch.arange(groups, device=W.device)
    blocks = V[:n, :n].unflatten(0, (groups, width)).unflatten(2, (groups, width))
    inner = blocks[index, :, index]  # (groups, width, width): (H^-1)_gg
    # eliminated groups hold zeros: give them any invertible block, their score is not looked at
    gone = inner.diagonal(dim1=-2, dim2=-1).amin(dim=-1) <= 0
    inner = torch.where(gone[:, None, None], torch.eye(width).to(inner), inner)
    parts = W[:, :n].unflatten(1, (groups, width)).permute(1, 2, 0)  # (groups, width, R)
    return (parts * torch.linalg.solve(inner, parts)).sum(dim=(1, 2))
