"""The moving average of a model's weights that recovery keeps, judges and ends with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of what is trained of a model; the first one is the model.

    torch's AveragedModel counts its updates in a tensor, for which a GPU is waited for at every
    step, and averages what is not trained as well: a mean of equal numbers, which is that number.

    Attributes:
        module: a copy of the model, its trained parameters averaged. taken: updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.taken = copy.deepcopy(model), 0
        self._model, self._step = model, get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model as it is now."""
        pairs = [
            (mean.detach(), now.detach())
            for mean, now in zip(self.module.parameters(), self._model.parameters(), strict=True)
            if now.requires_grad
        ]
        means: list[Tensor | None] = [mean for mean, _ in pairs]
        values: list[Tensor | None] = [now for _, now in pairs]
        if self.taken == 0:
            for mean, now in pairs:
                mean.copy_(now)
        else:
            self._step(means, values, self.taken)
        self.taken += 1
