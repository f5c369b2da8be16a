"""What every command does around its work: signals, quiet libraries, errors of one line, codes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from tasks.errors import bad_input, one_line
from tasks.outages import told
from tasks.secrets import without_secrets

PASS, UNEXPECTED, BAD_INPUT = 0, 1, 2
EXIT_CODES = {"pass": PASS, "fail": 3, "inconclusive": 4}


def begin(out: Path) -> None:
    """What a command that computes does once its recipe is good; Prefect is imported after it."""
    from tasks.home import home, require_writable

    require_writable(out, "--out")
    require_writable(home(), "WINNOW_HOME")
    signal.signal(signal.SIGTERM, terminate)
    quiet()
    # Prefect and MLflow take seconds to import: only once the recipe is good
    from tasks.embedded import begin_server

    begin_server()


def quiet() -> None:
    """Keep the libraries' own log lines and warnings off the terminal; $WINNOW_DEBUG shows them."""
    if os.environ.get("WINNOW_DEBUG"):
        return
    # Prefect reads these when it is imported, and its temporary server inherits them
    for handler in ("CONSOLE", "DEBUG"):
        os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def terminate(number: int, _: FrameType | None) -> NoReturn:
    """On SIGTERM: end with 128 and the signal's number."""
    # leave through the open blocks, so that the MLflow run and temporary folders are closed
    sys.exit(128 + number)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend ends with exit code 2 and one line; the rest keeps its traceback."""
    try:
        with without_secrets():
            yield
    except bad_input() as error:
        typer.echo(f"winnow: {one_line(str(error))}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except Exception as error:
        # a disk that is full, a server that stayed away: the user's to mend as well
        line = told(error)
        if line is None:
            raise
        typer.echo(f"winnow: {one_line(line)}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("winnow: interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
