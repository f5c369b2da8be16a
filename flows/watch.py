"""A watch: have the data behind a champion changed? Each change is told once, as an event."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.embedded import embedded_prefect
from tasks.errors import UserError
from tasks.home import home, require_writable
from tasks.progress import watch as report_to
from tasks.progress import watching
from tasks.watch import look, watched


@flow(name="watch")
def watch_flow(models: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare what the sources of each champion hold with what its run read.

    A change is told as the event `winnow.data.changed`, on which a trigger may re-specialize.

    Args:
        models: Names of registered models; left out, every model that has a champion.
    """
    found, gone = [], []
    for champion in watched(models):
        seen = look(champion)
        found.append(seen)
        watching().say(f"{champion.told}: {seen['status']} ({seen['reason']})")
        if seen["status"] == "gone":
            gone.append(f"{champion.told}: {seen['reason']}")
    if gone:
        raise UserError("; ".join(gone))
    return found


def watch(models: list[str] | None = None) -> list[dict[str, Any]]:
    """Watch from Python, with Prefect's and MLflow's stores under <home>."""
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), report_to(watching()):
        return watch_flow(models)
