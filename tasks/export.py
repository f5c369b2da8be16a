"""Stage: one model as an ONNX file, on its grids where it has any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRAPH, GRIDS, QUANTIZED
from tasks.progress import Callback
from tasks.stage import stage
from tasks.this_host import timed_by


@stage(
    reads=(
        "task.seed",
        "prune.samples",
        "quantize",
        "verify.batch",
        "verify.threads",
        "verify.tokens",
    ),
    splits=("support", "unlabelled"),
    # which form of an INT8 graph is fastest, and which type of activations, is this host's
    outside=lambda _: {"host": timed_by()},
    # a float model's graph depends on nothing but the model
    when=lambda _, model: model.stage == "quantize",
)
def export(
    recipe: Recipe, data: Artifact, model: Artifact, *, into: Path, progress: Callback
) -> dict[str, Any]:
    """Export a bundle with what turns raw input into its batches; quantize what was solved."""
    # see load.py: only a stage that computes pays for torch
    from exports.graph import export_onnx, match_layers
    from models.checkpoint import load_bundle
    from models.folding import fold_batchnorm
    from models.structure import prunable_layers
    from tasks.batches import INPUTS, blank, weight_of
    from tasks.lower import lower

    bundle = load_bundle(model.folder)
    path, shown = into / GRAPH, blank(bundle)
    if bundle.modality == "image":  # the exporter would fold BatchNorm itself: unseen, unnamed
        bundle = fold_batchnorm(bundle, shown)
    export_onnx(bundle.model, shown, path, input_names=INPUTS[bundle.modality])
    progress(1, 2, "traced")
    layers = prunable_layers(bundle.model, shown, factors=True)
    weights = {key: weight_of(layer).numpy() for key, layer in layers.items()}
    prunable = sorted(set(match_layers(path, weights).values()))
    if (model.folder / GRIDS).is_file():
        facts = lower(recipe, data, bundle, model, path, progress)
        (into / QUANTIZED).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    progress(2, 2, "written")
    (into / "prunable.json").write_text(json.dumps(prunable))
    settings = {**bundle.preprocess, "labels": list(bundle.labels or ())}
    (into / "preprocess.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False))
    if bundle.tokenizer is not None:
        (into / "tokenizer.json").write_text(bundle.tokenizer, encoding="utf-8")
    return {"bytes": path.stat().st_size}
