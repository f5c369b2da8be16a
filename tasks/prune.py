"""Stage 4: one rung of the ladder, pruned against the task's own data, with recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.methods import RECOVERY
from tasks.partial import Partial
from tasks.progress import Callback
from tasks.stage import stage


@stage(
    reads=("task.seed", "precision", "augment", "prune", "sparsity", *RECOVERY),
    splits=("support", "unlabelled", "generic"),
)
def prune(
    recipe: Recipe,
    data: Artifact,
    teacher: Artifact,
    student: Artifact,
    *,
    into: Path,
    progress: Callback,
    keeper: Partial | None = None,
) -> dict[str, Any]:
    """Prune the student of the rung below to this rung's sparsity, and recover it."""
    # see load.py: only a stage that computes pays for torch
    from compression.ladder import LadderSettings, climb, frozen_copy
    from compression.request import AllocationSettings
    from models.checkpoint import load_bundle, save_bundle
    from models.structure import prunable_layers, segments
    from tasks import batches
    from tasks.compensate import with_factors
    from tasks.recovery import recovery_settings

    at, distill = batches.device(), recipe.distill
    generic = recipe.prune.calibration == "generic"
    even = recipe.prune.allocation == "uniform"
    bundle = load_bundle(student.folder)
    model = bundle.model.to(at)
    dense_model = load_bundle(teacher.folder).model.to(at)
    known = batches.splits(data, "support", "unlabelled")
    shown = batches.samples(known, bundle, recipe, augmented=True)
    example = tuple(part.to(at) for part in batches.blank(bundle))
    parts, layers = segments(model, example), list(prunable_layers(model, example))
    dense = batches.dense_layers(layers, [part.name for part in parts], recipe.prune.keep_dense)
    beside = with_factors(recipe.prune, bundle, [name for name in layers if name not in dense])
    if beside:  # layers were put in others' places
        parts = segments(model, example)
    mix = batches.mixture(shown, seed=recipe.task.seed)
    (rung,) = climb(
        model,
        frozen_copy(dense_model),
        parts,
        layers=layers,
        dense=dense,
        taps=[part.name for part in parts if part.name not in layers],
        calibration=batches.calibration(recipe, data, bundle, generic=generic, at=at),
        draw=mix.draw(distill.batch_size, distill.labelled_share, at),
        holdout=mix.holdout(distill.batch_size, at),
        settings=LadderSettings(
            sparsity=recipe.sparsity,
            pattern=recipe.prune.pattern,
            method=recipe.prune.method,
            compensation=recipe.prune.compensation,
            allocation=AllocationSettings(
                method=recipe.prune.allocation,
                generations=recipe.prune.generations,
                offspring=recipe.prune.offspring,
                seed=recipe.task.seed,
            ),
            rungs=(recipe.sparsity,),
            density_scaled=False,  # the steps are this rung's own
            rel_damp=recipe.prune.rel_damp,
            rows_per_column=recipe.prune.rows_per_column,
            recovery=recovery_settings(
                recipe, bundle.modality, at, steps=distill.steps, seed=recipe.task.seed
            ),
        ),
        device=at,
        progress=progress,
        keeper=keeper,
        folder=None if keeper is None or even else keeper.files("share"),
    )
    bundle.model = model.cpu()
    save_bundle(bundle, into)
    return {**rung, "layers": len(layers), "dense": sorted(dense), **beside}
