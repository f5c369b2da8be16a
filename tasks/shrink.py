"""Stage: one step of structured shrinking: allocate under budgets, remove, cut out, recover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.methods import RECOVERY
from tasks.partial import Partial, files_of
from tasks.progress import Callback
from tasks.stage import stage

# examples that a candidate allocation is judged on at most
_JUDGED = {"cpu": 256, "cuda": 512}


@stage(
    reads=(
        "task.seed",
        "precision",
        "augment",
        "target",
        "shrink.kinds",
        "shrink.rungs",
        "shrink.path",  # none in the recipe of a step: a longer path shares its beginning
        "shrink.steps",
        "shrink.search",
        "shrink.score",
        "shrink.update",
        "shrink.generations",
        "shrink.offspring",
        "shrink.margin",
        "shrink.multiple",
        "shrink.vocabulary_extra",
        "shrink_step",
        *RECOVERY,
        "quantize.format",
        "quantize.embeddings",
        # int4 is planned at its own bytes, factors included
        "quantize.mean_bits",
        "quantize.compensation",
        "quantize.compensation_rank",
        "prune.samples",
        "prune.rel_damp",
        "prune.rows_per_column",
        "verify.batch",
    ),
    splits=("support", "unlabelled"),
)
def shrink(
    recipe: Recipe,
    data: Artifact,
    teacher: Artifact,
    student: Artifact,
    profile: Artifact,
    *,
    into: Path,
    progress: Callback,
    keeper: Partial | None = None,
) -> dict[str, Any]:
    """Shrink the student of the step before to this step's budgets, and recover it."""
    # see load.py: only a stage that computes pays for torch
    from compression.allocate import Allocation, allocate
    from compression.keeping import part_of
    from compression.ladder import frozen_copy
    from compression.levels import build_levels
    from compression.recovery import divergence, recover
    from compression.search import SearchSettings
    from compression.shrink import remove_structure
    from exports.latency_table import LatencyTable
    from models import shrinking
    from models.checkpoint import load_bundle, save_bundle
    from models.structure import prunable_layers, segments
    from models.units import branches
    from tasks import batches
    from tasks.budgets import (
        costs_of,
        dense_costs,
        limits_of,
        require_reachable,
        timed_as,
        vocabulary_left,
    )
    from tasks.recovery import recovery_settings
    from tasks.sizes import choices, timed_example

    at, asked = batches.device(), recipe.shrink
    blank = batches.blank(bundle := load_bundle(student.folder))
    dense_bundle = load_bundle(teacher.folder)
    now, full = branches(bundle.model, blank), branches(dense_bundle.model, blank)
    whole = {branch.name: branch for branch in full}
    levels = {branch.name: choices(branch, whole[branch.name], recipe) for branch in now}
    table = LatencyTable.from_dict(profile.json_file("table.json"))
    timed = timed_example(bundle, recipe, profile.metrics.get("tokens"))
    costs = costs_of(bundle.model, timed, now, levels, table, recipe.quantize)
    as_is = {b.name: [tuple(unit.groups for unit in b.units)] for b in full}
    whole_costs = costs_of(dense_bundle.model, timed, full, as_is, table, recipe.quantize)
    in_branches = {name: sum(c[0] for c in found) for name, found in whole_costs.items()}
    dense = {
        "milliseconds": table.base_ms[timed_as(recipe.quantize)] + in_branches["milliseconds"],
        **dense_costs(
            dense_bundle.model,
            blank,
            recipe.quantize,
            vocabulary=vocabulary_left(recipe, data, bundle),
        ),
    }
    gone = [branch for branch in full if branch.name not in levels]
    nothing = {branch.name: [(0,) * len(branch.units)] for branch in gone}
    left = costs_of(dense_bundle.model, timed, gone, nothing, table, recipe.quantize)
    fixed = {
        name: dense[name] - in_branches[name] + sum(c[0] for c in left[name]) for name in dense
    }
    require_reachable(recipe, costs, fixed, table.generalist_ms, dense)
    limits = limits_of(recipe, table.generalist_ms, dense)

    example = tuple(part.to(at) for part in blank)
    model = bundle.model.to(at)
    dense_model = frozen_copy(dense_bundle.model.to(at))
    calibration = batches.calibration(recipe, data, bundle, generic=False, at=at)
    judged: list[batches.Batch] = []
    for batch in calibration():  # texts come in batches of equal length, so many small ones
        if sum(len(part[0]) for part in judged) >= _JUDGED[at.type]:
            break
        judged.append(batch)
    bf16 = batches.bfloat16(recipe, at)
    rel_damp, rows = recipe.prune.rel_damp, recipe.prune.rows_per_column
    found = None if keeper is None else keeper.part("chosen").load()
    chosen = None if found is None else Allocation(**found)
    if chosen is None:
        with files_of(keeper, "levels") as folder:
            parts = segments(model, example)
            database = build_levels(
                model,
                parts,
                calibration,
                now,
                levels,
                folder,
                score=asked.score,
                update=asked.update == "obs",
                rel_damp=rel_damp,
                rows_per_column=rows,
                progress=progress,
                keeper=part_of(keeper, "levels"),
            )
            chosen = allocate(
                model,
                dense_model,
                now,
                database,
                {name: costs[name] for name in limits},
                {name: limit - fixed[name] for name, limit in limits.items()},
                judged,
                segments=parts,
                search=None
                if asked.search == "dynamic"
                else SearchSettings(
                    generations=asked.generations, offspring=asked.offspring, seed=recipe.task.seed
                ),
                device=at,
                autocast_bf16=bf16,
                progress=progress,
                keeper=part_of(keeper, "allocate"),
            )
            if keeper is not None:
                keeper.part("chosen").save(vars(chosen))
    kept, _ = remove_structure(
        model,
        segments(model, example),
        calibration,
        now,
        chosen.sizes,
        score=asked.score,
        update=asked.update == "obs",
        rel_damp=rel_damp,
        rows_per_column=rows,
        progress=progress,
        keeper=part_of(keeper, "remove"),
    )
    bundle.model = model.cpu()
    smaller = shrinking.shrink(bundle, {name: rows.tolist() for name, rows in kept.items()})
    model = smaller.model.to(at)
    parts, inner = segments(model, example), prunable_layers(model, example)
    known = batches.splits(data, "support", "unlabelled")
    shown = batches.samples(known, bundle, recipe, augmented=True)
    mix, distill = batches.mixture(shown, seed=recipe.task.seed), recipe.distill
    holdout = mix.holdout(distill.batch_size, at)
    settings = recovery_settings(
        recipe,
        bundle.modality,
        at,
        steps=3 * distill.steps if asked.steps is None else asked.steps,
        seed=1000 * recipe.task.seed + recipe.shrink_step,
    )
    metrics: dict[str, Any] = {}
    if settings.steps:
        metrics = recover(
            model,
            dense_model,
            {},
            taps=[part.name for part in parts if part.name not in inner],
            draw=mix.draw(distill.batch_size, distill.labelled_share, at),
            holdout=holdout,
            settings=settings,
            device=at,
            progress=progress,
            keeper=part_of(keeper, "recover"),
        )
    elif holdout:
        metrics = {"kl_after": divergence(model, dense_model, holdout)}
    smaller.model = model.cpu()
    save_bundle(smaller, into)
    return {
        **metrics,
        "kl_additive": chosen.kl_start,
        "kl_searched": chosen.kl,
        "predicted": {name: chosen.costs[name] + fixed[name] for name in limits},
        "structure": [
            {
                "branch": name,
                "kind": branch.kind,
                "units": [unit.kind for unit in branch.units],
                "full": [unit.groups for unit in branch.units],
                "size": list(_size(chosen.sizes, name, branch)),
            }
            for name, branch in whole.items()
        ],
    }


def _size(sizes: dict[str, tuple[int, ...]], name: str, branch: Any) -> tuple[int, ...]:
    """A branch's size now; one that an earlier step took is gone."""
    return sizes.get(name, (0,) * len(branch.units))
