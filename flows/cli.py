"""The `winnow` command. Each command imports what it needs itself, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.fleet import fleet
from flows.commands.gc import gc
from flows.commands.recheck import recheck
from flows.commands.up import deploy, ui, up
from flows.commands.watch import watch
from flows.terminal import EXIT_CODES, PASS, UNEXPECTED, begin, one_line_errors, quiet
from tasks.errors import RecipeError

app = typer.Typer(
    name="winnow",
    help="Turn a generalist vision or language model into a small, fast, verified specialist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def specialize(
    recipe: Annotated[
        Path | None, typer.Argument(help="A YAML recipe, such as recipes/intents.yaml.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a recipe's field; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; left out, runs/NAME.")
    ] = None,
    from_sweep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of a recipe: what the sweep in DIR picked."),
    ] = None,
    point: Annotated[
        str | None, typer.Option(help="With --from-sweep: another of its points, such as 2x-int8.")
    ] = None,
) -> None:
    """Run a recipe. Exit code: 0 pass, 3 fail, 4 inconclusive, 2 bad input, 1 anything else."""
    with one_line_errors():
        from tasks.from_sweep import recipe_from_sweep
        from tasks.recipes import changed, load_recipe

        if (recipe is None) == (from_sweep is None):
            raise RecipeError(
                "RECIPE: give a recipe, such as recipes/intents.yaml, or --from-sweep DIR, not both"
            )
        if point is not None and from_sweep is None:
            raise RecipeError(f"--point: {point} is a point of a sweep; name it with --from-sweep")
        if recipe is not None:
            plan = load_recipe(recipe, changes or [])
        else:
            assert from_sweep is not None
            plan = changed(recipe_from_sweep(from_sweep, point), changes or [])
        out = out or Path("runs") / plan.name
        begin(out)
        from flows.specialize import specialize as run
        from tasks.summary import next_steps, print_summary

        report = run(plan, out, from_sweep)
        print_summary(report)
        next_steps(report, out)
    raise typer.Exit(EXIT_CODES[report["verdict"]["status"]])


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; its `sweep` names the points.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a recipe's field; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; left out, runs/NAME-sweep.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that export structures while the next is made.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A running Dask scheduler, such as tcp://HOST:8786."),
    ] = None,
) -> None:
    """Make specialists at several speeds and formats; pick the smallest that passes.

    Exit code 0 where one passes, 3 where none does. `winnow specialize --from-sweep DIR` goes on
    with the pick.
    """
    with one_line_errors():
        from flows.runners import require_engine
        from tasks.points import require_points
        from tasks.recipes import load_recipe

        plan = load_recipe(recipe, changes or [])
        require_points(plan)
        require_engine(workers, scheduler)
        out = out or Path("runs") / f"{plan.name}-sweep"
        begin(out)
        from flows.sweep import sweep as run
        from tasks.summary import print_sweep

        found = run(plan, out, workers, scheduler)
        print_sweep(found, out)
    raise typer.Exit(PASS if found["picked"] else EXIT_CODES["fail"])


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
    with one_line_errors():
        from tasks.home import require_writable_file
        from tasks.recipes import load_recipe

        plan = load_recipe(recipe, changes or [])
        require_writable_file(out, "--out")
        begin(out.parent)
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
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Texts, images, folders of images, or tables (.csv, .tsv, .jsonl, .parquet)."
        ),
    ],
    column: Annotated[
        str | None, typer.Option(help="A table's column of inputs; left out, inferred.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, .csv or .jsonl; left out, the terminal.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Inputs that run together.")] = 32,
    provider: Annotated[str, typer.Option(help="What runs the model: cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
) -> None:
    """Label texts or images with a specialist; one line each: label, probability, input.

    With --out, every row of the input with its label and probability appended, in the same order.
    """
    with one_line_errors():
        quiet()
        from tasks.predict import Batch, predict_all

        def tell(answer: dict[str, Any], source: str) -> None:
            source = source.encode(errors="backslashreplace").decode()  # a file's name is any bytes
            typer.echo(f"{answer['label']}\t{answer['probability']:.4f}\t{source}")

        how = Batch(column, out, batch_size, provider, threads)
        done = predict_all(model, inputs, how, tell)
        if out is not None:
            typer.echo(f"{out}: {done:,} rows")


@app.command()
def promote(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME[/VERSION]", help="A registered model; its newest version."),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Without verdict and comparison; it must still load.")
    ] = False,
) -> None:
    """Make a version the champion where it beats the one that is. Exit code 3 where it does not."""
    with one_line_errors():
        quiet()
        from tasks.promotion import promote as decide

        outcome = decide(model, force=force)
        _tell_champion(model, outcome)
    taken = outcome["action"] in ("first", "promoted", "same")
    raise typer.Exit(PASS if taken else EXIT_CODES["fail"])


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")],
) -> None:
    """Make the champion before this one the champion again."""
    with one_line_errors():
        quiet()
        from tasks.promotion import roll_back

        _tell_champion(model, roll_back(model))


def _tell_champion(model: str, outcome: dict[str, Any]) -> None:
    name = model.removeprefix("models:/").partition("/")[0]
    version = outcome["version"]
    told = f"{name}/{version} is the champion" if version else f"{name} has no champion"
    typer.echo(f"{outcome['action']}: {told} ({'; '.join(outcome['reasons'])})")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
) -> None:
    """Print a finished run's table and verdict again."""
    with one_line_errors():
        from tasks.summary import print_summary, read_report

        print_summary(read_report(folder))


@app.command()
def doctor() -> None:
    """Say what this host, its runtimes and winnow's stores are like."""
    with one_line_errors():
        quiet()
        from tasks.doctor import print_examination

        healthy = print_examination()
    raise typer.Exit(PASS if healthy else UNEXPECTED)


for _command in (fleet, gc, recheck, watch, up, deploy, ui):
    app.command()(_command)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line (for `python -m flows.cli`)."""
    return app(args=arguments)


if __name__ == "__main__":
    main()
