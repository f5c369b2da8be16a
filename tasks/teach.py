"""Stage 3: the dense specialist, adapted from the shots alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.partial import Partial
from tasks.progress import Callback
from tasks.stage import stage

# the body's usual peak learning rate; here and not in the recipe's sections, so that it is part of
# the source that this stage's key covers
_LR = {"image": 1e-5, "text": 1e-4}


@stage(reads=("task.seed", "precision", "teacher", "augment"), splits=("support",))
def teach(
    recipe: Recipe,
    data: Artifact,
    generalist: Artifact,
    *,
    into: Path,
    progress: Callback,
    keeper: Partial | None = None,
) -> dict[str, Any]:
    """Adapt the generalist to the task's classes; the test set is not looked at."""
    # see load.py: only a stage that computes pays for torch
    from models.checkpoint import load_bundle, save_bundle
    from models.teacher import TeacherSettings, adapt
    from tasks import batches

    at, asked = batches.device(), recipe.teacher
    bundle = load_bundle(generalist.folder)
    teacher, metrics = adapt(
        bundle,
        batches.samples(batches.splits(data, "support"), bundle, recipe, augmented=True),
        tuple(data.metrics["classes"]),
        settings=TeacherSettings(
            **{**asked.model_dump(), "lr": asked.lr or _LR[bundle.modality]},
            seed=recipe.task.seed,
            autocast_bf16=batches.bfloat16(recipe, at),
        ),
        device=at,
        progress=progress,
        keeper=keeper,
    )
    save_bundle(teacher, into)
    return dict(metrics)
