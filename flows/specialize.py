"""One specialization: a generalist becomes a verified, registered specialist."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from tasks.config import Recipe
from tasks.embedded import embedded_prefect
from tasks.export import export
from tasks.home import home, require_writable
from tasks.layout import GRAPHS
from tasks.load import load, require_same_modality
from tasks.pages import show_pages
from tasks.prepare import prepare, warn_if_too_small
from tasks.progress import watch, watching
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.stage import recording
from tasks.teach import teach
from tasks.track import track, tracked
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

    with recording() as stages:
        data = prepare(recipe)
        warn_if_too_small(recipe, data)
        generalist = load(recipe)
        require_same_modality(recipe, data, generalist)

        with tracked(recipe) as run:
            teacher = pruned = teach(recipe, data, generalist)
            for rung in recipe.rungs:
                at = recipe.at_rung(rung)
                pruned = prune(at, data, teacher, pruned, title=f"prune to {rung:.4g}")
            teacher_int8 = quantize(recipe, data, teacher, title="quantize teacher")
            specialist = quantize(recipe, data, pruned, title="quantize specialist")
            models = generalist, teacher, pruned, teacher_int8, specialist
            graphs = [
                export(recipe, data, model, title=f"export {name}")
                for name, model in zip(GRAPHS, models, strict=True)
            ]
            verified = verify(recipe, data, generalist, teacher, *graphs)
            report = track(recipe, run, data, graphs[-1], verified, stages, folder, started)

    show_pages(recipe, report, folder)
    return report


def specialize(recipe: Recipe, out: str | Path | None = None) -> dict[str, Any]:
    """Run a recipe from Python, with Prefect's and MLflow's stores under <home>.

    Returns the report (the content of report.json); raises what a user can mend as a `ValueError`
    of one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return specialize_flow(recipe, None if out is None else str(out))
