"""A process of `winnow` that may be killed: begun, followed line by line, killed, gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crash_homes import TIMED

ROOT = Path(__file__).resolve().parent.parent
BEFORE, BETWEEN, AFTER = "before the stages", "between stages", "after the stages"
ENDED = (0, 3, 4)


@dataclass
class Run:
    """One process of `winnow specialize`, followed by its lines."""

    process: subprocess.Popen[str]
    began: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    def follow(self) -> None:
        """Read its lines until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic() - self.began, line.rstrip("\n")))

    def stage_at(self, moment: float) -> tuple[str, float]:
        """The stage that ran at a moment, or where between them it was, and when it had begun."""
        title, since = BEFORE, 0.0
        for at, line in self.lines:
            if at > moment:
                break
            if line.startswith("  ") and line.endswith(" ..."):
                title, since = line[2:-4], at
            elif line.startswith(("+ ", "= ")):
                title, since = AFTER if line[2:].startswith(f"{TIMED}:") else BETWEEN, at
        return title, since

    def titles(self, mark: str) -> list[str]:
        """Stages told of with a mark: '+' made, '=' reused."""
        return [x[2:].rpartition(": ")[0] for _, x in self.lines if x.startswith(f"{mark} ")]


def begin(command: list[str], home: Path) -> Run:
    """Start `winnow` with stores, results and temporary files below `home`."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "WINNOW_HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    for server in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(server, None)
    out = [] if "--out" in command else ["--out", str(home / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command, *out],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = Run(process, time.monotonic())
    threading.Thread(target=run.follow, daemon=True).start()
    return run


def finished(run: Run) -> int:
    """Wait for the end; returns the exit code."""
    code = run.process.wait()
    time.sleep(0.2)  # its last lines
    run.lines.append((time.monotonic() - run.began, f"exit {code}"))
    return code


def require(code: int, run: Run) -> None:
    """End where a run that nobody killed did not end well."""
    if code not in ENDED:
        said = "\n".join(line for _, line in run.lines[-15:])
        sys.exit(f"crash: the run without a break ended with {code}:\n{said}")


def killed(run: Run, moment: float, alone: bool) -> list[int]:
    """SIGKILL at a moment; returns the processes that were there, none where it had ended."""
    try:
        run.process.wait(max(0.0, run.began + moment - time.monotonic()))
        return []
    except subprocess.TimeoutExpired:
        pass
    tree = list(below(run.process.pid))
    for pid in [run.process.pid, *([] if alone else tree)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.process.wait()
    return [run.process.pid, *tree]


def below(pid: int) -> Iterator[int]:
    """Children of a process, and theirs."""
    with suppress(OSError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from below(child)


def gone(pid: int, patience: float) -> bool:
    """Whether a process has ended within some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False
