"""Stage: how far one exported graph is from the teacher's on examples that nothing learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.progress import Callback
from tasks.stage import stage


@stage(reads=("task.seed",), splits=("support", "unlabelled"))
def held_out(
    recipe: Recipe,
    data: Artifact,
    teacher: Artifact,
    graph: Artifact,
    *,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """KL divergence (nats) and share of equal labels, teacher to graph, in ONNX Runtime.

    The examples are those that recovery sets aside for early stopping; the shots where there are
    too few for that. No label and nothing of the test set is read: a sweep may steer by it.
    """
    # see load.py: only a stage that computes pays for torch
    import numpy as np
    import torch
    from scipy.special import log_softmax

    from compression.losses import UNLABELLED
    from tasks import batches
    from tasks.measure import logits_of

    known = batches.splits(data, "support", "unlabelled")
    labels = torch.tensor(known.labels)
    labels = torch.where(labels < 0, UNLABELLED, labels)
    *_, held = batches.held_apart(labels, seed=recipe.task.seed)
    rows = held.tolist() or list(range(int(data.metrics["support"]["n"])))
    answers = logits_of({"teacher": teacher.folder, "graph": graph.folder}, known.rows(rows).inputs)
    target, found = (log_softmax(answers[name].astype("float64"), 1) for name in answers)
    kl = (np.exp(target) * (target - found)).sum(1)  # (n,)
    return {
        "kl": float(kl.mean()),
        "agreement": float((target.argmax(1) == found.argmax(1)).mean()),
        "n": len(rows),
    }
