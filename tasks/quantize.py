"""Stage: weights on 8-bit or 4-bit grids solved by the same sweep, embeddings on theirs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.blocks import BLOCK
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.layout import GRIDS
from tasks.partial import Partial
from tasks.progress import Callback
from tasks.stage import stage

_BLOCK = {4: BLOCK, 8: 0}  # numbers of a row that share a scale; 0: the whole row


@stage(
    reads=(
        "task.seed",
        "quantize.format",
        "quantize.embeddings",
        "quantize.method",
        "quantize.compensation",
        "quantize.compensation_rank",
        "quantize.bits",
        "quantize.mean_bits",
        "prune.rel_damp",
        "prune.rows_per_column",
        "prune.samples",
    ),
    splits=("support", "unlabelled"),
)
def quantize(
    recipe: Recipe,
    data: Artifact,
    model: Artifact,
    *,
    into: Path,
    progress: Callback,
    keeper: Partial | None = None,
) -> dict[str, Any]:
    """Round a bundle's weights to what will be served; its zeros stay exact zeros."""
    # see load.py: only a stage that computes pays for torch
    from safetensors.torch import save_file
    from torch.nn import Linear

    from compression.keeping import part_of
    from compression.quantize import quantize_embeddings, quantize_weights
    from models.checkpoint import load_bundle, save_bundle
    from models.low_rank import is_factor
    from models.structure import prunable_layers, segments
    from tasks import batches
    from tasks.compensate import with_factors
    from tasks.widths import choose_widths

    at, wanted = batches.device(), recipe.quantize
    bundle = load_bundle(model.folder)
    student = bundle.model.to(at)
    grids: dict[str, Any] = {}
    chosen: dict[str, int] = {}
    told: dict[str, Any] = {}
    if wanted.format != "none":
        blank = tuple(part.to(at) for part in batches.blank(bundle))
        layers = prunable_layers(student, blank, factors=True)
        bits = int(wanted.format.removeprefix("int"))
        if bits == 4:  # the runtime multiplies by 4-bit matrices; convolutions stay float
            layers = {name: layer for name, layer in layers.items() if isinstance(layer, Linear)}
        if not layers:
            raise RecipeError(
                "quantize.format: int4 is for Linear layers, and the generalist has none; use int8"
            )
        parts = segments(student, blank)
        calibration = batches.calibration(recipe, data, bundle, generic=False, at=at)
        if bits == 4 and (wanted.bits != "uniform" or wanted.mean_bits is not None):
            sizes = {name: batches.weight_of(layer).numel() for name, layer in layers.items()}
            chosen = choose_widths(
                recipe, student, parts, calibration, sizes, _BLOCK[bits], at, progress, keeper
            )
        beside = with_factors(
            wanted, bundle, [name for name in layers if not is_factor(student, name)]
        )
        if beside:  # layers were put in others' places, and their factors go with them
            parts = segments(student, blank)
            layers = {name: layer for name, layer in layers.items() if not is_factor(student, name)}
            told |= beside
        # where widths differ, factors have the format's own
        widths: int | defaultdict[str, int] = bits
        if chosen:
            widths = defaultdict(lambda: bits, chosen)
        weights = quantize_weights(
            student,
            parts,
            calibration,
            list(layers),
            method=wanted.method,
            compensation=wanted.compensation if beside else None,
            bits=widths,
            block=_BLOCK[bits] or None,
            rel_damp=recipe.prune.rel_damp,
            rows_per_column=recipe.prune.rows_per_column,
            progress=progress,
            keeper=part_of(keeper, "round") if chosen else keeper,
        )
        grids |= {f"weight {name}": grid for name, grid in weights.items()}
    if wanted.embeddings != "none":
        bits = int(wanted.embeddings.removeprefix("int"))
        tables = quantize_embeddings(student, bits=bits, block=_BLOCK[bits])
        grids |= {f"embedding {name}": grid for name, grid in tables.items()}
    bundle.model = student.cpu()
    save_bundle(bundle, into)
    flat = {
        f"{name} {part}": x
        for name, pair in grids.items()
        for part, x in zip(("integers", "scale"), pair, strict=True)
    }
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, into / GRIDS)
    if chosen:
        told["bits"] = chosen
    return {"layers": sum(name.startswith("weight") for name in grids), **told}
