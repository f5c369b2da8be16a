"""From a recipe to the settings of recovery."""

from __future__ import annotations

import torch

from compression.recovery import RecoverySettings
from tasks import batches
from tasks.config import Recipe

# a rung's usual peak learning rate; here and not in the recipe's sections, so that it is part of
# the source that the keys of the stages that recover cover
_LR = {"image": 5e-4, "text": 2e-4}
# by distill.trained, how many times that: PERP (arXiv 2312.15230) tunes the rate for each; these
# are a first choice that no study has tuned yet
_TIMES = {"full": 1.0, "norms": 10.0, "low_rank": 10.0, "none": 1.0}


def recovery_settings(
    recipe: Recipe, modality: str, at: torch.device, *, steps: int, seed: int
) -> RecoverySettings:
    """How a rung or a step is recovered on this device."""
    distill = recipe.distill
    return RecoverySettings(
        steps=steps,
        lr=distill.lr or _LR[modality] * _TIMES[distill.trained],
        weight_decay=distill.weight_decay,
        warmup=distill.warmup,
        temperature=distill.temperature,
        ce=distill.ce,
        kl=distill.kl,
        square_head=distill.square_head,
        ema_decay=distill.ema_decay,
        autocast_bf16=batches.bfloat16(recipe, at),
        check_every=distill.check_every,
        seed=seed,
        trained=distill.trained,
        rank=distill.rank,
    )
