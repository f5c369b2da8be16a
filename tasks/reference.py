"""What verify still needs of torch: the teacher's own logits, and whose classes a head knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.checkpoint import load_bundle
from models.heads import head_rows
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.splits import Split

_BATCH = 64


@torch.no_grad()
def torch_logits(recipe: Recipe, test: Split, model: Artifact) -> np.ndarray:
    """Logits (N, K) in torch, on the CPU in float32, of the examples in order."""
    bundle = load_bundle(model.folder)
    cpu = torch.device("cpu")
    shown = batches.samples(test, bundle, recipe)
    parts = [
        bundle.model(*shown.batch(rows, device=cpu)).numpy()
        for rows in torch.arange(len(test)).split(_BATCH)
    ]
    return np.concatenate(parts)


def known_rows(generalist: Artifact, classes: Sequence[str]) -> list[int] | None:
    """Rows of the untouched generalist's head for the task's classes; None where it has none."""
    return head_rows(generalist.json_file("config.json")["labels"], classes)
