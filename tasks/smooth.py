"""Stage: before rounding, scales moved from norms into the layers that read them.

A stage of its own, so that what is rounded can be held, node by node, against a float graph that
has the same scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compression import smoothing
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.progress import Callback
from tasks.stage import stage

_TOLERANCE = 1e-3  # of the largest answer; smoothing reorders float32 sums and no more


def smoothed(recipe: Recipe, data: Artifact, model: Artifact, *, title: str) -> Artifact:
    """What will be rounded: the model, smoothed where the recipe asks for that."""
    if recipe.quantize.smooth == "none" or recipe.quantize.format == "none":
        return model
    return smooth(recipe, data, model, title=title)


@stage(
    reads=("task.seed", "quantize.smooth", "quantize.format", "prune.samples"),
    splits=("support", "unlabelled"),
)
def smooth(
    recipe: Recipe, data: Artifact, model: Artifact, *, into: Path, progress: Callback
) -> dict[str, Any]:
    """Smooth a bundle as `quantize.smooth` says; its float answers stay the same.

    Only norms whose readers will all be rounded are rescaled. The metrics tell how many that were,
    of how many, and the largest change of the answers to a batch, relative to the largest answer.
    """
    # see load.py: only a stage that computes pays for torch
    import torch
    from torch.nn import Linear

    from compression.smooth import smooth as fold
    from models.checkpoint import load_bundle, save_bundle
    from models.errors import GeneralistError
    from models.feeds import find_feeds, norms
    from models.structure import prunable_layers
    from tasks import batches

    at, name = batches.device(), recipe.quantize.smooth
    bundle = load_bundle(model.folder)
    student = bundle.model.to(at).eval()
    blank = tuple(part.to(at) for part in batches.blank(bundle))
    rounded = {
        name
        for name, layer in prunable_layers(student, blank, factors=True).items()
        if recipe.quantize.format == "int8" or isinstance(layer, Linear)
    }
    feeds = [feed for feed in find_feeds(student, blank) if set(feed.layers) <= rounded]
    calibration = batches.calibration(recipe, data, bundle, generic=False, at=at)
    first = next(iter(calibration()))
    with torch.no_grad():
        before = student(*first)
        done = fold(student, feeds, calibration, smoothing.METHODS.load(name))
        change = float((student(*first) - before).abs().max() / (1.0 + before.abs().max()))
    if not change <= _TOLERANCE:
        raise GeneralistError(
            f"{type(student).__name__}: quantize.smooth {name} changed the answers by "
            f"{change:.2g}; this architecture is not supported: set it to none"
        )
    bundle.model = student.cpu()
    save_bundle(bundle, into)
    return {"norms": len(done), "of": len(norms(student)), "change": change}
