"""A sweep: a family of specialists, one table, one front, and the smallest that passes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import begin
from flows.family import make_family
from flows.runners import engine, require_engine
from tasks.config import Recipe
from tasks.crashed import without_mark
from tasks.embedded import embedded_prefect
from tasks.home import home, require_writable
from tasks.outputs import result_folder
from tasks.pages import show_sweep
from tasks.points import laddered, require_points
from tasks.profile import require_profile
from tasks.progress import watch, watching
from tasks.stage import recording
from tasks.track import tracked
from tasks.track_sweep import track_sweep


@flow(name="sweep")
def sweep_flow(
    recipe: Recipe, out: str | None = None, workers: int = 1, scheduler: str | None = None
) -> dict[str, Any]:
    """Make specialists at several speeds and formats, and pick the smallest that passes.

    Args:
        recipe: Everything that one specialization needs to know; its `sweep` names the points.
        out: Folder for the table, the picture and the page; left out, runs/NAME-sweep.
        workers: Processes on this host that export and judge structures beside the next ones'
            shrinking, one thread each; 1: this one alone does everything.
        scheduler: Address of a running Dask scheduler whose workers are used instead.
    """
    started, folder = time.time(), result_folder(out, f"{recipe.name}-sweep")
    require_points(recipe)
    if recipe.sweep.speedups != []:
        require_profile(laddered(recipe, recipe.sweep.speedups or []).planned())
    require_engine(workers, scheduler)

    with recording() as stages:
        begun = begin(recipe)
        with engine(workers, scheduler) as where, tracked(recipe, "sweep") as run:
            with where.sent_from(folder, shared=True) as told:
                family, compared = make_family(recipe, begun, where, told)
            with without_mark():
                report = track_sweep(recipe, run, compared, stages, folder, family.ways, started)

    show_sweep(recipe, report, folder)
    return report


def sweep(
    recipe: Recipe,
    out: str | Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Run a sweep from Python, with Prefect's and MLflow's stores under <home>.

    Returns the sweep (the content of sweep.json); raises what a user can mend as a `ValueError` of
    one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return sweep_flow(recipe, None if out is None else str(out), workers, scheduler)
