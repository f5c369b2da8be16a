"""Work for the tests of `flows.runners`: functions that workers import by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def hold(seconds: float) -> tuple[float, float, int, str]:
    """When it began and ended, in which process, and which GPUs that sees."""
    start = time.time()
    time.sleep(seconds)
    return start, time.time(), os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def die_once(marker: str) -> str:
    """Kill the worker the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def always_die() -> None:
    """Kill the worker every time."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """A fault of the work itself."""
    raise ZeroDivisionError("no such luck")
