"""One specialization: a generalist becomes a verified, registered specialist."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.embedded import embedded_prefect
from tasks.export import export
from tasks.home import home, require_writable
from tasks.load import load, require_same_modality
from tasks.pages import show_pages
from tasks.prepare import prepare, warn_if_too_small
from tasks.profile import profile, require_profile, say_where_it_is_from
from tasks.progress import watch, watching
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.shrink import shrink
from tasks.stage import recording
from tasks.teach import teach
from tasks.track import track, tracked
from tasks.trim import trim
from tasks.verify import verify


@flow(name="specialize")
def specialize_flow(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """Turn a generalist into a verified specialist.

    Args:
        recipe: Everything that one specialization needs to know.
        out: Folder for the specialist and its report; left out, runs/NAME.
    """
    started, folder = time.time(), Path(out or f"runs/{recipe.name}")
    require_writable(folder, "out")
    require_profile(recipe)

    with recording() as stages:
        data = prepare(recipe)
        warn_if_too_small(recipe, data)
        generalist = load(recipe)
        require_same_modality(recipe, data, generalist)

        with tracked(recipe) as run:
            teacher = teach(recipe, data, generalist)
            dense = export_dense(recipe, data, generalist, teacher)
            smaller: Artifact = teacher
            told: list[Artifact] = []
            if recipe.shrinks:
                smaller, told = shrink_in_steps(recipe, data, teacher, dense)
            pruned = smaller
            for rung in recipe.rungs:
                at = recipe.at_rung(rung)
                pruned = prune(at, data, teacher, pruned, title=f"prune to {rung:.4g}")
            if recipe.trims and data.metrics["modality"] == "text":
                pruned = trim(recipe, data, pruned)
                told = [*told, pruned]
            specialist = quantize(recipe, data, pruned, title="quantize specialist")
            graphs = [*dense]
            if recipe.shrinks and recipe.rungs:
                graphs.append(export(recipe, data, smaller, title="export shrunk"))
            graphs.append(export(recipe, data, pruned, title="export pruned"))
            graphs.append(export(recipe, data, specialist, title="export specialist"))
            verified = verify(recipe, data, generalist, teacher, *graphs, *told)
            report = track(recipe, run, data, graphs[-1], verified, stages, folder, started)

    show_pages(recipe, report, folder)
    return report


def export_dense(
    recipe: Recipe, data: Artifact, generalist: Artifact, teacher: Artifact
) -> list[Artifact]:
    """The generalist, the teacher and the quantized teacher as graphs: those of `layout.DENSE`."""
    quantized = quantize(recipe, data, teacher, title="quantize teacher")
    return [
        export(recipe, data, generalist, title="export generalist"),
        export(recipe, data, teacher, title="export teacher"),
        export(recipe.unreported(), data, quantized, title="export teacher-int8"),
    ]


def shrink_in_steps(
    recipe: Recipe, data: Artifact, teacher: Artifact, dense: list[Artifact]
) -> tuple[Artifact, list[Artifact]]:
    """Shrink the teacher to the budgets step by step; returns it, and what the report tells of."""
    profiled = profile(recipe, data, teacher, *dense)
    say_where_it_is_from(profiled)
    student, steps = teacher, recipe.shrink.rungs
    for step in range(1, steps + 1):
        title = f"shrink {step} of {steps}"
        student = shrink(recipe.at_step(step), data, teacher, student, profiled, title=title)
    return student, [profiled, student]


def specialize(recipe: Recipe, out: str | Path | None = None) -> dict[str, Any]:
    """Run a recipe from Python, with Prefect's and MLflow's stores under <home>.

    Returns the report (the content of report.json); raises what a user can mend as a `ValueError`
    of one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return specialize_flow(recipe, None if out is None else str(out))
