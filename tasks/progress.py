"""What a person sees while stages run: live bars on a terminal, plain lines in a log.

In a run that Prefect orchestrates, its page tells the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from tasks.run_page import log_line, page_bar

if TYPE_CHECKING:
    from tasks.artifacts import Artifact

# progress(done, total, note)
Callback = Callable[[int, int, str], None]

_LINE_EVERY_SECONDS = 10.0


class Reporter:
    """Tells one run's story to a console; a stage reports through the callback it is given."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str, style: str | None = None) -> None:
        """One line."""
        logged = log_line(text.strip())
        # what a worker started logs to the worker's terminal as well
        if not (logged and os.environ.get("PREFECT__FLOW_RUN_ID")):
            self.console.print(text, style=style, markup=False, soft_wrap=True)

    def reused(self, title: str, artifact: Artifact) -> None:
        """Say that a finished stage was found and not run again."""
        self.say(f"= {title}: reused (saved {seconds(artifact.seconds)})", "cyan")

    @contextmanager
    def stage(self, title: str) -> Iterator[Callback]:
        """Follow one stage; yields its progress callback."""
        started = time.monotonic()
        follow = self._live if self.console.is_terminal else self._lines
        with follow(title) as callback, page_bar(title) as bar:

            def both(done: int, total: int, note: str) -> None:
                callback(done, total, note)
                bar(done, total, note)

            yield both
        self.say(f"+ {title}: {seconds(time.monotonic() - started)}", "green")

    @contextmanager
    def _live(self, title: str) -> Iterator[Callback]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.fields[title]}", markup=False),
            BarColumn(bar_width=30),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            bar = bars.add_task(title, total=None, title=title, note="")

            def callback(done: int, total: int, note: str) -> None:
                bars.update(bar, completed=done, total=total or None, note=note)

            yield callback

    @contextmanager
    def _lines(self, title: str) -> Iterator[Callback]:
        self.say(f"  {title} ...")
        started = last = time.monotonic()

        def callback(done: int, total: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _LINE_EVERY_SECONDS or not 0 < done < total:
                return
            last = now
            left = (now - started) / done * (total - done)
            self.say(f"  {title}: {done}/{total} {note}, about {seconds(left)} left")

        yield callback


def seconds(value: float) -> str:
    """A duration as people read it: '0.4 s', '12 s', '3 min 5 s'."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 90:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


_current: ContextVar[Reporter | None] = ContextVar("winnow_reporter", default=None)


def watching() -> Reporter:
    """The reporter of this run; plain lines to stderr where none was set."""
    return _current.get() or Reporter()


@contextmanager
def watch(reporter: Reporter) -> Iterator[Reporter]:
    """Report to `reporter` inside the block."""
    token = _current.set(reporter)
    try:
        yield reporter
    finally:
        _current.reset(token)
