"""`winnow gc`: remove what no run needs any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flows.terminal import one_line_errors, quiet

if TYPE_CHECKING:
    from tasks.gc import Plan


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    keep_runs: Annotated[
        int, typer.Option(min=0, help="The last so many runs keep what they made or reused.")
    ] = 20,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="What was used more lately stays: 90s, 12h, 1d, 2w.")
    ] = "1d",
    databases: Annotated[
        bool, typer.Option("--databases", help="Also let Prefect and MLflow clean their databases.")
    ] = False,
    history: Annotated[
        str, typer.Option(metavar="TIME", help="With --databases: flow runs younger than it stay.")
    ] = "30d",
) -> None:
    """Remove artifacts, records and leftovers that no run needs; the registry is never touched.

    What the last runs list, what made a registered version, what was used lately and what is being
    made now stays. It may be broken off at any moment.
    """
    with one_line_errors():
        quiet()
        from tasks.gc import collect, plan, seconds_of
        from tasks.unfinished import close_left_in_store

        age, kept = seconds_of(older_than, "--older-than"), seconds_of(history, "--history")
        found = plan(keep_runs, age)
        for line in _told(found):
            typer.echo(line)
        if dry_run:
            typer.echo("nothing was removed (--dry-run)")
        else:
            count, freed = collect(found)
            typer.echo(f"removed {count:,} of {len(found.going):,}, {freed / 1e6:,.1f} MB")
            # after the removal: it writes, and the disk may have been full
            if closed := close_left_in_store():
                typer.echo(f"closed {closed:,} MLflow runs of processes that were killed")
        if databases:
            from tasks.databases import clean_databases

            for line in clean_databases(kept, dry_run):
                typer.echo(line)


def _told(found: Plan) -> Iterator[str]:
    """What goes, one line each, and why the rest stays."""
    going = found.going
    for item in going:
        days = (time.time() - item.used) / 86400
        yield f"- {_size(item.size)}  {item.kind:<8}  {item.name}  (used {days:.1f} days ago)"
    yield f"{_size(sum(item.size for item in going))}  to go, {len(going):,} in all"
    for why, count, size in found.staying:
        yield f"{_size(size)}  {count:,} stay: {why}"
    yield from (f"! {note}" for note in found.notes)


def _size(count: int) -> str:
    return f"{count / 1e6:10,.2f} MB"
