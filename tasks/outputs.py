"""Where a flow may write its results: anywhere for whoever is at the keyboard, not for a form."""

from __future__ import annotations

import os
from pathlib import Path

from prefect.runtime import deployment

from tasks.errors import RecipeError
from tasks.fences import inside
from tasks.home import require_writable


def result_folder(out: str | None, name: str) -> Path:
    """The folder for a flow's results: `out`, or `name` below runs/.

    A flow run that a deployment started (a form in a browser, a schedule, an event) writes below
    $WINNOW_OUT, or runs/ in its working folder, and nowhere else.

    Raises:
        RecipeError: it leads elsewhere, or cannot be written to.
    """
    started_by_form = deployment.id is not None
    root = Path((os.environ.get("WINNOW_OUT") or "runs") if started_by_form else "runs")
    folder = Path(out) if out else root / name
    if started_by_form and not inside(root, folder):
        raise RecipeError(
            f"out: {folder} lies outside {root.absolute()}, the only place that runs of a "
            "deployment write to; leave it out, or set WINNOW_OUT where the worker runs"
        )
    require_writable(folder, "out")
    return folder
