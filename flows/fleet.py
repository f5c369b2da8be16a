"""A fleet: one generalist becomes many specialists, one after another or on several workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import share
from flows.runners import Engine, engine, require_engine
from flows.specialize import specialize_flow
from tasks.artifacts import write_atomically
from tasks.config import Recipe
from tasks.crashed import without_mark
from tasks.embedded import embedded_prefect
from tasks.errors import RecipeError
from tasks.fleet import Fleet
from tasks.fleet_report import fleet_report, needed_by
from tasks.home import home, require_writable
from tasks.members import files_of, lost, member_of
from tasks.outputs import result_folder
from tasks.pages import show_fleet
from tasks.profile import require_profile
from tasks.progress import watch, watching
from tasks.stage import recording
from tasks.track import nested_in, tracked
from tasks.track_fleet import track_fleet
from tasks.worker_hosts import Sender, as_sent


class MembersFailed(Exception):
    """Members of a fleet ended without a verdict; the others are finished and written down."""

    def __init__(self, report: dict[str, Any]) -> None:
        failed = [row for row in report["members"] if row["error"]]
        told = "; ".join(f"{row['member']}: {row['error']}" for row in failed)
        super().__init__(f"{len(failed)} of {len(report['members'])} members failed: {told}")
        self.report = report


def specialize_member(
    name: str, recipe: Recipe, out: str, fleet_run: str, told: Sender | None, beside: bool
) -> dict[str, Any]:
    """Specialize one member wherever this runs; its failure is an outcome like any other.

    Args:
        out: folder for its results.
        fleet_run: the fleet's MLflow run.
        told: what is to be known of the host that sends it, where that may be another.
        beside: whether other members run at the same time.
    """
    with nested_in(fleet_run), as_sent(told, name) as (folder, seen):
        folder = folder or Path(out)
        outcome = member_of(name, lambda: specialize_flow(recipe, str(folder)), beside)
        files = {} if seen else files_of(folder)
        return {**outcome, "files": files}


@flow(name="fleet")
def fleet_flow(
    fleet: Fleet, out: str | None = None, workers: int = 1, scheduler: str | None = None
) -> dict[str, Any]:
    """Turn one generalist into many verified specialists.

    Args:
        fleet: What all members share, and what each says differently.
        out: Folder for the members' folders and the table; left out, runs/NAME-fleet.
        workers: Processes on this host that members run in, one thread each; 1: this one alone.
        scheduler: Address of a running Dask scheduler whose workers are used instead.
    """
    started, folder = time.time(), result_folder(out, f"{fleet.name}-fleet")
    require_engine(workers, scheduler)
    recipes = fleet.recipes()
    for name, recipe in recipes.items():
        try:
            require_profile(recipe.planned())
        except RecipeError as error:
            raise RecipeError(f"members.{name}: {error}") from None

    gpus = sum(fleet.takes_gpu().values())
    first = next(iter(recipes.values())).model_copy(update={"name": fleet.name})
    with engine(workers, scheduler, gpus) as where, tracked(first, "fleet") as run:
        with where.sent_from(folder, gpu=gpus > 0) as told:
            with recording() as together:
                share(recipes.values())
            outcomes = _run(where, fleet, recipes, folder, run, told)
        report = fleet_report(fleet.name, outcomes, together, folder, where.workers, started)
        with without_mark():
            report = track_fleet(report, needed_by(outcomes), run, folder)

    show_fleet(report)
    if any(row["error"] for row in report["members"]):
        raise MembersFailed(report)
    return report


def _run(
    where: Engine,
    fleet: Fleet,
    recipes: dict[str, Recipe],
    folder: Path,
    run: str,
    told: Sender | None,
) -> list[dict[str, Any]]:
    """Every member's outcome, in the fleet's order."""
    gpu, handles = fleet.takes_gpu(), {}
    for name, recipe in recipes.items():
        own = {"name": name, "recipe": recipe, "out": str((folder / name).absolute())}
        own |= {"fleet_run": run, "told": told, "beside": where.beside}
        handles[where.submit(specialize_member, name, gpu=gpu[name], **own)] = name
    found = {}
    for handle in where.as_done(handles):
        name = handles[handle]
        try:
            found[name] = handle.result()
        except Exception as error:  # the worker died: what it was doing is not known
            found[name] = lost(name, error)
        outcome = found[name]
        for file, content in outcome.pop("files", {}).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name / file, content)
        watching().say(f"* {name}: {outcome['error'] or outcome['status']}")
    return [found[name] for name in recipes]


def fleet(
    plan: Fleet,
    out: str | Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Run a fleet from Python, with Prefect's and MLflow's stores under <home>.

    Returns the fleet's report (the content of fleet.json), members that failed included; raises
    what a user can mend as a `ValueError` of one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        try:
            return fleet_flow(plan, None if out is None else str(out), workers, scheduler)
        except MembersFailed as failed:
            return failed.report
