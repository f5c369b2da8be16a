"""Embeddings for neighbours: each text's own, whatever it is batched with."""

from __future__ import annotations

import torch

from models.embed import embeddings
from models.samples import TextSamples


class Bag(torch.nn.Module):
    """Means of token vectors where the mask says so: no head, so its output is the feature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.unsqueeze(-1).float()
        return (self.table(ids) * weights).sum(1) / weights.sum(1)


def test_rows_keep_their_order_and_have_length_one() -> None:
    generator = torch.Generator().manual_seed(1)
    ids = [
        torch.randint(1, 50, (length,), generator=generator).tolist()
        for length in torch.randint(1, 20, (150,), generator=generator).tolist()
    ]
    model = Bag()
    found = embeddings(model, TextSamples(ids, None, 0), device=torch.device("cpu"))
    expected = torch.stack([model.table(torch.tensor(row)).mean(0) for row in ids]).detach()
    expected /= expected.norm(dim=1, keepdim=True)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected)
