"""What a fleet knows of each member: how it went, what it cost, and what it had to itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from tasks.artifacts import Artifact
from tasks.errors import bad_input
from tasks.home import home
from tasks.host_clock import seconds_waited
from tasks.progress import Callback, Reporter, watch
from tasks.secrets import redacted
from tasks.stage import Finished, recording

REFUSED, BROKEN = "refused", "error"


class Followed(Reporter):
    """Tells a member's story under its name.

    Attributes:
        spent: seconds of the stages that were computed, by title, without what they waited for
            the host's clock.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        super().__init__(console)
        self.name = name
        self.spent: dict[str, float] = {}

    def say(self, text: str, style: str | None = None) -> None:
        """One line, with the member's name."""
        super().say(f"{self.name} | {text}", style)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callback]:
        """Follow one stage, and note what it took."""
        started, waited = time.perf_counter(), seconds_waited()
        try:
            with super().stage(title) as callback:
                yield callback
        finally:
            waited = seconds_waited() - waited
            self.spent[title] = time.perf_counter() - started - waited


def plain_lines() -> Console:
    """A console for lines only: bars of several processes would overwrite each other."""
    return Console(stderr=True, highlight=False, force_terminal=False)


def member_of(name: str, run: Callable[[], dict[str, Any]], beside: bool = False) -> dict[str, Any]:
    """Run one member; returns what happened, whatever it was.

    Args:
        run: gives its report.
        beside: whether others tell their stories on the same terminal: plain lines then.
    """
    started, follow = time.time(), Followed(name, plain_lines() if beside else None)
    stages: list[Finished] = []
    outcome: dict[str, Any] = {"member": name, "report": None, "error": None}
    try:
        with watch(follow), recording() as stages:
            outcome["report"] = run()
        outcome["status"] = outcome["report"]["verdict"]["status"]
    except bad_input() as error:
        outcome |= {"status": REFUSED, "error": _line(error)}
    except Exception as error:  # one member's fault is not the others'
        outcome |= {"status": BROKEN, "error": f"{type(error).__name__}: {_line(error)}"}
    return {
        **outcome,
        "host": socket.gethostname(),
        "home": str(home()),
        "stages": [
            {
                "title": each.title,
                **each.artifact.model_dump(include={"stage", "path", "key", "sha256"}),
                "reused": each.reused,
                "seconds": follow.spent.get(each.title, each.artifact.seconds),
                "spared": spared_seconds(each.artifact),
            }
            for each in stages
        ],
        "began": started,
        "ended": time.time(),
    }


def lost(name: str, error: Exception) -> dict[str, Any]:
    """What is told of a member whose worker did not come back with an outcome."""
    reason = f"its worker was lost ({type(error).__name__}: {_line(error)})"
    now = time.time()
    return {
        "member": name,
        "report": None,
        "status": BROKEN,
        "error": reason,
        "host": "",
        "home": "",
        "stages": [],
        "began": now,
        "ended": now,
    }


def spared_seconds(artifact: Artifact) -> float:
    """What a stage would have cost more, had it not found times that another one took."""
    return float(artifact.metrics.get("spared_seconds", 0.0))


def files_of(folder: Path) -> dict[str, bytes]:
    """The files at the top of a member's folder, for a host that does not see it."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _line(error: Exception) -> str:
    return redacted(
        " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    )
