"""What Prefect's page of a flow run tells while it runs: lines in its log, a bar for a long stage.

Nothing here may harm a run: where the server is slow or away, its page tells less.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from uuid import UUID

# Prefect is imported by a run that it orchestrates; elsewhere, such as on a machine that has none,
# these functions do nothing.

_FIRST_SECONDS = 5.0  # a stage that is over by then needs no bar
_EVERY_SECONDS = 5.0
_FAREWELL_SECONDS = 5.0  # the longest that a finished stage waits for its page


def log_line(text: str) -> bool:
    """Put a line into the log of the current flow or task run; False where there is none."""
    logger = _logger()
    if logger is None:
        return False
    with suppress(Exception):
        logger.info("%s", text)
    return True


@contextmanager
def page_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a stage's progress as an artifact of the current run; yields what is told of it."""
    if _logger() is None:
        yield lambda done, total, note: None
        return
    bar = _Bar(title)
    bar.start()
    whole = False
    try:
        yield bar.tell
        whole = True
    finally:
        bar.end(whole)


class _Bar:
    """Sends the newest state now and then, from a thread: the stage never waits for a server."""

    def __init__(self, title: str) -> None:
        self._title, self._note, self._share = title, "", 0.0
        self._started = time.monotonic()
        self._artifact: UUID | None = None
        self._over, self._whole = threading.Event(), False
        # the thread belongs to the same run, and talks to the same server
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._send), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell(self, done: int, total: int, note: str) -> None:
        self._note = note
        if total > 0:
            self._share = min(1.0, max(0.0, done / total))

    def end(self, whole: bool) -> None:
        """Stop sending; the bar is full where the stage is `whole`."""
        self._whole = whole
        self._over.set()
        self._thread.join(_FAREWELL_SECONDS)

    def _send(self) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._over.wait(_FIRST_SECONDS):
            return
        sent: tuple[float, str] | None = None
        while True:
            last = self._over.is_set()
            percent = 100.0 if last and self._whole else round(100 * self._share, 1)
            told = (percent, self._told(last))
            # whatever goes wrong with a page is not the stage's concern
            with suppress(Exception):
                if self._artifact is None:
                    made = create_progress_artifact(told[0], description=told[1])
                    self._artifact = cast("UUID", made)  # no coroutine: nothing awaits here
                elif told != sent:
                    update_progress_artifact(self._artifact, told[0], description=told[1])
                sent = told
            if last:
                return
            self._over.wait(_EVERY_SECONDS)

    def _told(self, last: bool) -> str:
        """The bar in words: lists of artifacts show these and not the bar itself."""
        spent = time.monotonic() - self._started
        if last:
            return f"{self._title}: {'done' if self._whole else 'stopped'} after {spent:.0f} s"
        if not self._share:
            return f"{self._title}: {self._note or 'begun'}"
        left = spent / self._share * (1 - self._share)
        note = f"{self._note}, " if self._note else ""
        return f"{self._title}: {self._share:.0%}, {note}about {left:.0f} s left"


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger] | None:
    if "prefect" not in sys.modules:
        return None
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return None
