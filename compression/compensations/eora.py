"""The best low-rank stand-in for the pruning error, as the layer's own inputs weigh it.

EoRA (Liu et al. 2024, "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace
Low-Rank Approximation", arXiv 2410.21271, section 3): with the inputs' covariance H = Q Lambda Q^T
and dW the error, the B A of rank r that minimises ||(dW - B A) Q Lambda^(1/2)||_F is the truncated
SVD of dW Q Lambda^(1/2), its right factor multiplied by (Q Lambda^(1/2))^-1.

Ours differs in how that is computed. With P the first r left singular vectors, the product is
P P^T dW, and P are the first eigenvectors of dW H dW^T, so that no root of H is taken and none is
inverted. H is damped as it is for pruning. Where the layer has a bias, that is solved with the
factors: what is left then is weighed by the covariance about the mean, H less h h^T / d, with h
and d the column and the corner of the constant input. Singular values are split evenly between B
and A, which training and 8-bit grids take better than all of them in B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.compensate import Factors
from compression.hessian import damp
from compression.problem import LayerProblem


def compensate(problem: LayerProblem, error: Tensor, rank: int) -> Factors:
    """Factors of rank ``rank``, or of as many as the error has rows and columns."""
    h, _ = damp(problem.hessian, problem.rel_damp)
    columns = error.shape[-1]
    error = error.to(h.dtype)
    gram = error @ h[..., :columns, :columns] @ error.mT  # (G, R, R)
    if problem.bias is not None:
        mean = error @ h[..., :columns, -1:]  # (G, R, 1)
        gram = gram - mean @ mean.mT / h[..., -1:, -1:]
    squared, vectors = torch.linalg.eigh((gram + gram.mT) / 2)  # rising
    r = min(rank, *error.shape[-2:])
    p = vectors[..., -r:].flip(-1)  # (G, R, r)
    s = squared[..., -r:].flip(-1).clamp_min(0).sqrt()  # singular values (G, r), falling
    # an error of lower rank leaves vectors that stand for nothing
    some = s > s[..., :1] * torch.finfo(s.dtype).eps
    split = torch.where(some, s, 1.0).sqrt()
    up = torch.where(some, split, 0.0)[..., None, :] * p
    down = (p.mT @ error) / split[..., None]
    return Factors(up, down)
