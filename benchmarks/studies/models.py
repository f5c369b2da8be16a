"""Models that studies make beside the stages: uniform structure, recovery alone, masks on a grid.

Each is published into the store under a key of what it was made from, so that rows share them and
a study that is stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.artifacts import Artifact
    from tasks.config import Recipe


def made(
    stage: str, what: dict[str, Any], make: Callable[[Path], dict[str, Any]], *inputs: Artifact
) -> Artifact:
    """The artifact of `make(folder)`, which is called once for what it is made from.

    Args:
        stage: under which it is published; 'quantize' for what has grids beside it.
        what: plain values that tell it from others.
    """
    from tasks.artifacts import lock_of, publish, published, workspace
    from tasks.locks import locked

    content = [what, [each.sha256 for each in inputs]]
    key = "study-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    with locked(lock_of(stage, key), lambda _: None):
        found = published(stage, key)
        if found is not None:
            return found
        with workspace(stage, key) as folder:
            started = time.perf_counter()
            metrics = make(folder)
            seconds = round(time.perf_counter() - started, 3)
            return publish(folder, stage=stage, key=key, metrics=metrics, seconds=seconds)


def recovered(
    recipe: Recipe,
    data: Artifact,
    teacher: Artifact,
    student: Artifact,
    steps: int,
    *,
    judged: bool = True,
) -> Artifact:
    """`steps` of distillation as after a step of shrinking; zeros of the student are held.

    Args:
        judged: the best of the averages is kept, by divergence on held-out examples. Of a student
            that is the teacher that is always the one before the first step; False keeps the last.
    """
    if steps == 0:
        return student
    asked = recipe.model_dump(mode="json")
    what = {key: asked[key] for key in ("distill", "augment", "precision")} | {"steps": steps}
    if not judged:
        what["judged"] = False

    def make(folder: Path) -> dict[str, Any]:
        from compression.ladder import frozen_copy
        from compression.prune import masks_of
        from compression.recovery import recover
        from models.checkpoint import load_bundle, save_bundle
        from models.structure import prunable_layers, segments
        from tasks import batches
        from tasks.recovery import recovery_settings

        at, distill = batches.device(), recipe.distill
        bundle = load_bundle(student.folder)
        model = bundle.model.to(at)
        example = tuple(part.to(at) for part in batches.blank(bundle))
        parts, layers = segments(model, example), prunable_layers(model, example)
        known = batches.splits(data, "support", "unlabelled")
        shown = batches.samples(known, bundle, recipe, augmented=True)
        mix = batches.mixture(shown, seed=recipe.task.seed)
        metrics = recover(
            model,
            frozen_copy(load_bundle(teacher.folder).model.to(at)),
            masks_of(model, list(layers)),
            taps=[part.name for part in parts if part.name not in layers],
            draw=mix.draw(distill.batch_size, distill.labelled_share, at),
            holdout=mix.holdout(distill.batch_size, at) if judged else [],
            settings=recovery_settings(
                recipe, bundle.modality, at, steps=steps, seed=recipe.task.seed
            ),
            device=at,
        )
        bundle.model = model.cpu()
        save_bundle(bundle, folder)
        # without held-out examples there is nothing to tell of them
        return {key: value for key, value in metrics.items() if math.isfinite(value)}

    return made("recovered", what, make, data, teacher, student)


def narrowed(
    recipe: Recipe,
    data: Artifact,
    student: Artifact,
    share: float,
    *,
    score: str = "obs",
    update: bool = True,
    kinds: tuple[str, ...] = ("heads", "neurons", "channels"),
) -> Artifact:
    """`share` of the heads, neurons and channels of every branch left, by `compression.shrink`.

    The same share everywhere: which groups leave, not how many, is what is compared.
    """
    what = {"share": share, "score": score, "update": update, "kinds": kinds}
    what |= {"seed": recipe.task.seed, "prune": recipe.prune.model_dump(mode="json")}

    def make(folder: Path) -> dict[str, Any]:
        from compression.shrink import remove_structure
        from models import shrinking
        from models.checkpoint import load_bundle, save_bundle
        from models.structure import segments
        from models.units import branches
        from tasks import batches

        at = batches.device()
        bundle = load_bundle(student.folder)
        found = branches(bundle.model, batches.blank(bundle))
        model = bundle.model.to(at)
        example = tuple(part.to(at) for part in batches.blank(bundle))
        sizes = {
            branch.name: tuple(
                max(1, round(share * unit.groups)) if unit.kind in kinds else unit.groups
                for unit in branch.units
            )
            for branch in found
        }
        kept, losses = remove_structure(
            model,
            segments(model, example),
            batches.calibration(recipe, data, bundle, generic=False, at=at),
            found,
            sizes,
            rel_damp=recipe.prune.rel_damp,
            rows_per_column=recipe.prune.rows_per_column,
            score=score,
            update=update,
        )
        bundle.model = model.cpu()
        smaller = shrinking.shrink(bundle, {name: rows.tolist() for name, rows in kept.items()})
        save_bundle(smaller, folder)
        return {"loss": sum(losses.values())}

    return made("narrowed", what, make, data, student)


def masked_on_grid(quantized: Artifact, pruned: Artifact) -> Artifact:
    """A quantized model that also has the zeros of another one; what stays keeps its integers."""

    def make(folder: Path) -> dict[str, Any]:
        from safetensors.torch import load_file, save_file

        from models.checkpoint import load_bundle, save_bundle
        from tasks.layout import GRIDS

        bundle, other = load_bundle(quantized.folder), load_bundle(pruned.folder)
        stored = load_file(quantized.folder / GRIDS)
        ours, theirs = dict(bundle.model.named_parameters()), dict(other.model.named_parameters())
        for name in [key.split()[1] for key in stored if key.endswith(" integers")]:
            if f"weight {name} integers" not in stored:
                continue  # a table of embeddings
            kept = theirs[f"{name}.weight"].detach() != 0
            ours[f"{name}.weight"].data.mul_(kept)
            integers = stored[f"weight {name} integers"]
            integers.mul_(kept.reshape(integers.shape))
        save_bundle(bundle, folder)
        save_file(stored, folder / GRIDS)
        return {}

    return made("quantize", {"masked": True}, make, quantized, pruned)
