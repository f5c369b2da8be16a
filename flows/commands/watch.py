"""`winnow watch`: have the data behind a champion changed since its run?"""

from __future__ import annotations

from typing import Annotated

import typer

from flows.terminal import begin, one_line_errors


def watch(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Registered models; left out, every champion."),
    ] = None,
) -> None:
    """Look once whether champions' data have changed, and tell Prefect of what has.

    The deployment `watch` does so every quarter of an hour, and `respecialize` acts on what it
    tells.
    """
    with one_line_errors():
        from tasks.home import home

        begin(home())
        from flows.watch import watch as run

        run(models or None)
