"""`winnow recheck`: is a champion still what it was when it was verified?"""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from flows.terminal import EXIT_CODES, PASS, begin, one_line_errors

_ACTS = ("none", "rollback", "respecialize", "all")


def recheck(
    model: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A registered model; left out, every champion."),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="Labelled examples; left out, the recipe's task.test as it is now."),
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="Inputs without labels, to look for drift in.")
    ] = None,
    act: Annotated[
        str, typer.Option(help=f"What may be done without asking: {', '.join(_ACTS)}.")
    ] = "none",
) -> None:
    """Examine champions on what is there now; say hold, re-specialize or roll back.

    Exit code: 0 hold, 3 something is to be done (or was, with --act), 4 inconclusive.
    """
    with one_line_errors():
        from tasks.errors import RecipeError
        from tasks.home import home

        if act not in _ACTS:
            raise RecipeError(f"--act: {act} is not one of {', '.join(_ACTS)}")
        if model is None and (labelled or unlabelled):
            option = "--labelled" if labelled else "--unlabelled"
            raise RecipeError(f"{option}: name the model that these examples are for: NAME")
        begin(home())
        from flows.recheck import recheck as run

        reports = run(model, labelled, unlabelled, cast(Any, act))
    decisions = {report["decision"] for report in reports}
    if decisions & {"rollback", "respecialize"}:
        raise typer.Exit(EXIT_CODES["fail"])
    raise typer.Exit(EXIT_CODES["inconclusive"] if "inconclusive" in decisions else PASS)
