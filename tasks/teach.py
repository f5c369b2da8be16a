"""Stage 3: the dense specialist, adapted from the shots alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.progress import Callback
from tasks.stage import stage


@stage(reads=("task.seed", "precision", "teacher", "augment"), splits=("support",))
def teach(
    recipe: Recipe, data: Artifact, generalist: Artifact, *, into: Path, progress: Callback
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
        batches.samples(batches.splits(data, "support"), bundle, recipe),
        tuple(data.metrics["classes"]),
        settings=TeacherSettings(
            **asked.settings(bundle.modality),
            seed=recipe.task.seed,
            autocast_bf16=batches.bfloat16(recipe, at),
        ),
        device=at,
        progress=progress,
    )
    save_bundle(teacher, into)
    return dict(metrics)
