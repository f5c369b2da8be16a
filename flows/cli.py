"""The `winnow` command. Each command imports what it needs itself, so that `--help` is instant."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from tasks.errors import RecipeError, bad_input

PASS, UNEXPECTED, BAD_INPUT = 0, 1, 2
EXIT_CODES = {"pass": PASS, "fail": 3, "inconclusive": 4}

app = typer.Typer(
    name="winnow",
    help="Turn a generalist vision or language model into a small, fast, verified specialist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def specialize(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, such as recipes/intents.yaml.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a recipe's field; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; left out, runs/NAME.")
    ] = None,
) -> None:
    """Run a recipe. Exit code: 0 pass, 3 fail, 4 inconclusive, 2 bad input, 1 anything else."""
    with _one_line_errors():
        from tasks.home import home, require_writable
        from tasks.recipes import load_recipe

        plan = load_recipe(recipe, changes or [])
        out = out or Path("runs") / plan.name
        require_writable(out, "--out")
        require_writable(home(), "WINNOW_HOME")
        signal.signal(signal.SIGTERM, _terminate)
        _quiet()
        # Prefect and MLflow take seconds to import: only once the recipe is good
        from tasks.embedded import begin_server

        begin_server()
        from flows.specialize import specialize as run
        from tasks.summary import next_steps, print_summary

        report = run(plan, out)
        print_summary(report)
        next_steps(report, out)
    raise typer.Exit(EXIT_CODES[report["verdict"]["status"]])


@app.command()
def profile(
    recipe: Annotated[Path, typer.Argument(help="The YAML recipe that is to be specialized.")],
    out: Annotated[Path, typer.Option(help="File to write, such as server.json.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a recipe's field; repeatable."),
    ] = None,
) -> None:
    """Measure here, on the machine that serves, what a recipe's shrinking chooses among.

    On the machine that trains, `--set shrink.profile=FILE` plans with it.
    """
    with _one_line_errors():
        from tasks.home import home, require_writable
        from tasks.recipes import load_recipe

        plan = load_recipe(recipe, changes or [])
        if out.is_dir():
            raise RecipeError(f"--out: {out} is a folder; name a file, such as {out}/server.json")
        require_writable(out.parent, "--out")
        require_writable(home(), "WINNOW_HOME")
        signal.signal(signal.SIGTERM, _terminate)
        _quiet()
        from tasks.embedded import begin_server

        begin_server()
        from flows.profile import profile_recipe

        facts = profile_recipe(plan, out)
        length = "" if facts["tokens"] is None else f" at {facts['tokens']} tokens"
        times = ", ".join(f"{fmt} {ms:.2f} ms" for fmt, ms in facts["dense_ms"].items())
        typer.echo(f"{out}: {facts['variants']} sizes{length} on {facts['cpu']}; dense {times}")


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(help="A run's folder, or a registered model: models:/NAME@champion.")
    ],
    inputs: Annotated[list[str], typer.Argument(help="Texts, or paths of images.")],
) -> None:
    """Label texts or images with a specialist; one line each: label, probability, input."""
    with _one_line_errors():
        _quiet()
        from tasks.predict import predict as answer

        for row, source in zip(answer(model, inputs), inputs, strict=True):
            typer.echo(f"{row['label']}\t{row['probability']:.4f}\t{source}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
) -> None:
    """Print a finished run's table and verdict again."""
    with _one_line_errors():
        from tasks.summary import print_summary, read_report

        print_summary(read_report(folder))


@app.command()
def doctor() -> None:
    """Say what this host, its runtimes and winnow's stores are like."""
    with _one_line_errors():
        _quiet()
        from tasks.doctor import print_examination

        healthy = print_examination()
    raise typer.Exit(PASS if healthy else UNEXPECTED)


@app.command()
def ui() -> None:
    """Serve MLflow's and Prefect's pages on this machine until Ctrl-C."""
    with _one_line_errors():
        from tasks.servers import serve_pages

        signal.signal(signal.SIGTERM, _terminate)
        serve_pages()


def _quiet() -> None:
    """Keep the libraries' own log lines and warnings off the terminal; $WINNOW_DEBUG shows them."""
    if os.environ.get("WINNOW_DEBUG"):
        return
    # Prefect reads these when it is imported, and its temporary server inherits them
    for handler in ("CONSOLE", "DEBUG"):
        os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    # leave through the open blocks, so that the MLflow run and temporary folders are closed
    sys.exit(128 + number)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can mend ends with exit code 2 and one line; the rest keeps its traceback."""
    try:
        yield
    except bad_input() as error:
        typer.echo(f"winnow: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("winnow: interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line (for `python -m flows.cli`)."""
    return app(args=arguments)


if __name__ == "__main__":
    main()
