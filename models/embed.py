"""Embeddings of texts by the generalist itself, for telling which texts are neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.heads import features
from models.samples import TextSamples

__all__ = ["embeddings"]

_BATCH = 64


@torch.inference_mode()
def embeddings(model: nn.Module, texts: TextSamples, *, device: torch.device) -> Tensor:
    """Return what the head reads of each of N > 0 texts, of length one: float32 (N, D) on the CPU.

    Texts of like length go through together, so that little is computed on padding.
    """
    model = model.to(device).eval()
    lengths = torch.tensor([len(ids) for ids in texts.ids])
    rows: list[Tensor] = []
    order = lengths.argsort(stable=True)
    for batch in order.split(_BATCH):
        found = features(model, texts.batch(batch, device=device))
        rows.append(F.normalize(found.float(), dim=-1).cpu())
    return torch.cat(rows)[order.argsort()]
