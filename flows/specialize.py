"""One specialization: a generalist becomes a verified, registered specialist."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import begin, make
from tasks.config import Recipe
from tasks.crashed import without_mark
from tasks.embedded import embedded_prefect
from tasks.from_sweep import read_sweep
from tasks.home import home, require_writable
from tasks.leaks import kept_rows
from tasks.outputs import result_folder
from tasks.pages import show_pages
from tasks.profile import require_profile
from tasks.progress import watch, watching
from tasks.seeds import spread
from tasks.stage import recording, titled
from tasks.track import track, tracked


@flow(name="specialize")
def specialize_flow(
    recipe: Recipe, out: str | None = None, sweep: str | None = None
) -> dict[str, Any]:
    """Turn a generalist into a verified specialist.

    Args:
        recipe: Everything that one specialization needs to know.
        out: Folder for the specialist and its report; left out, runs/NAME.
        sweep: Folder of the sweep that the recipe is a point of; its front is shown in the card.
    """
    front = read_sweep(Path(sweep)) if sweep else None
    started, folder = time.time(), result_folder(out, recipe.name)
    require_profile(recipe.planned())

    with recording() as stages:
        begun = begin(recipe)
        with tracked(recipe) as run:
            made = make(recipe, begun)
            verified, others = made.verified, []
            for seed in recipe.further_seeds:
                with titled(f"seed {seed}: "):
                    others.append(make(recipe.with_seed(seed), begin(recipe.with_seed(seed))))
            if others:
                verified = spread(recipe, verified, *(other.verified for other in others))
            kept = kept_rows(begun.leaked, begun.data.metrics["test"]["n"])
            end = (stages, folder, started, kept, front)
            with without_mark():
                report = track(recipe, run, begun.data, made.specialist, verified, *end)

    show_pages(recipe, report, folder)
    return report


def specialize(
    recipe: Recipe, out: str | Path | None = None, sweep: str | Path | None = None
) -> dict[str, Any]:
    """Run a recipe from Python, with Prefect's and MLflow's stores under <home>.

    Returns the report (the content of report.json); raises what a user can mend as a `ValueError`
    of one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return specialize_flow(recipe, *(None if x is None else str(x) for x in (out, sweep)))
