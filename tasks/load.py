"""Stage 2: the generalist, read from where the recipe says and written down as a bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import folder_digest
from tasks.errors import RecipeError
from tasks.hub import commit_of_model
from tasks.progress import Callback
from tasks.stage import stage


def _weights(recipe: Recipe) -> dict[str, str]:
    """The content of a folder (also of one inside a package); of a hub's name, its commit.

    The library and the package belong to it: they decide how a folder is read, and where its
    licence is looked for.
    """
    source = recipe.generalist.source
    library, _, name = source.partition(":")
    folder, carrier = Path(name.removeprefix("local-dir:")).expanduser(), ""
    if name.startswith("package:"):
        module, _, inner = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
        if spec is not None and spec.submodule_search_locations:
            folder, carrier = Path(spec.submodule_search_locations[0], inner), module
    if folder.is_dir():
        return {"generalist": f"{library}:{carrier}:{folder_digest(folder)}"}
    return {"generalist": f"name:{source}:{commit_of_model(source)}"}


@stage(
    reads=(
        "generalist.max_length",
        # what was loaded with leave is refused without it
        "generalist.allow_pickle",
        "generalist.trust_remote_code",
        "prune.keep_dense",
    ),
    outside=_weights,
)
def load(recipe: Recipe, *, into: Path, progress: Callback) -> dict[str, Any]:
    """Load the generalist; its folder, weights, tokenizer and layer names are checked here."""
    # torch, timm and transformers take five seconds to import; a reused stage needs none of them
    from models.checkpoint import save_bundle
    from models.generalists import load_generalist
    from models.licence import licence_of_source
    from models.structure import prunable_layers, segments
    from tasks.batches import blank, dense_layers, weight_of

    source = recipe.generalist.source
    bundle = load_generalist(
        source,
        max_length=recipe.generalist.max_length,
        allow_pickle=recipe.generalist.allow_pickle,
        trust_remote_code=recipe.generalist.trust_remote_code,
    )
    layers = prunable_layers(bundle.model, blank(bundle))
    parts = [part.name for part in segments(bundle.model, blank(bundle))]
    dense_layers(list(layers), parts, recipe.prune.keep_dense)
    save_bundle(bundle, into)
    return {
        "modality": bundle.modality,
        "labels": len(bundle.labels or ()),
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
        "prunable": sum(weight_of(layer).numel() for layer in layers.values()),
        "licence": licence_of_source(source, getattr(bundle.model, "pretrained_cfg", None) or {}),
    }


def require_same_modality(recipe: Recipe, data: Artifact, generalist: Artifact) -> None:
    """Raise where the task's examples are not what the generalist takes."""
    has, needs = data.metrics["modality"], generalist.metrics["modality"]
    if has != needs:
        raise RecipeError(
            f"generalist.source: {recipe.generalist.source} takes {needs}s, but task.train "
            f"({recipe.task.train}) holds {has}s; name a generalist for {has}s"
        )
