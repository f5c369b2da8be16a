"""A sweep: a family of specialists, one table, one front, and the smallest that passes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import begin
from flows.family import make_family
from tasks.config import Recipe
from tasks.embedded import embedded_prefect
from tasks.home import home, require_writable
from tasks.pages import show_sweep
from tasks.points import require_points
from tasks.profile import require_profile
from tasks.progress import watch, watching
from tasks.stage import recording
from tasks.track import tracked
from tasks.track_sweep import track_sweep


@flow(name="sweep")
def sweep_flow(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """Make specialists at several speeds and formats, and pick the smallest that passes.

    Args:
        recipe: Everything that one specialization needs to know; its `sweep` names the points.
        out: Folder for the table, the picture and the page; left out, runs/NAME-sweep.
    """
    started, folder = time.time(), Path(out or f"runs/{recipe.name}-sweep")
    require_writable(folder, "out")
    require_points(recipe)
    require_profile(recipe)

    with recording() as stages:
        begun = begin(recipe)
        with tracked(recipe, "sweep") as run:
            family, compared = make_family(recipe, begun)
            report = track_sweep(recipe, run, compared, stages, folder, family.ways, started)

    show_sweep(recipe, report, folder)
    return report


def sweep(recipe: Recipe, out: str | Path | None = None) -> dict[str, Any]:
    """Run a sweep from Python, with Prefect's and MLflow's stores under <home>.

    Returns the sweep (the content of sweep.json); raises what a user can mend as a `ValueError` of
    one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return sweep_flow(recipe, None if out is None else str(out))
