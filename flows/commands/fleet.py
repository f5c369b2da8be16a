"""`winnow fleet`: one generalist, many specialists, in this process or on several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import begin, one_line_errors


def fleet(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FLEET", help="A YAML file: a recipe's fields, and `members` that differ."
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=VALUE",
            help="Change a field for all, or members.NAME.A.B for one; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; left out, runs/NAME-fleet.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes on this host, one thread each; 1: this one alone.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A running Dask scheduler, such as tcp://HOST:8786."),
    ] = None,
) -> None:
    """Make many specialists of one generalist.

    Exit code: the worst of the members': 0 pass, 4 inconclusive, 3 fail, 2 bad input, 1 anything
    else. A member that fails stops no other; run it again to go on where it ended.
    """
    with one_line_errors():
        from flows.runners import require_engine
        from tasks.fleet_files import load_fleet

        plan = load_fleet(file, changes or [])
        require_engine(workers, scheduler)
        out = out or Path("runs") / f"{plan.name}-fleet"
        begin(out)
        from flows.fleet import fleet as run
        from tasks.fleet_report import exit_code, print_fleet

        report = run(plan, out, workers, scheduler)
        print_fleet(report, out)
    raise typer.Exit(exit_code(report))
