"""Processes that are kept running: started, asked for signs of life, started again, ended.

What they print goes to one file each, which is rotated. A note of what runs lies in a file, so that
the next supervisor ends what this one left behind when it was killed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.processes import host_name, is_gone, process_word
from tasks.secrets import redacted

_LOG_BYTES, _LOG_FILES = 10_000_000, 5
_ASK_EVERY_SECONDS = 10.0
_LONGEST_SILENCE_SECONDS = 120.0  # a busy host's server was seen to need 30 for one answer
_LONGEST_WAIT_SECONDS = 60.0
_STEADY_SECONDS = 120.0  # what lived this long has recovered
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """One process that is kept running.

    Args:
        health: an address that answers while the process is well; None where there is none.
        patience: seconds that it may need until it answers for the first time.
        grace: seconds that it may need to end.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    health: str | None = None
    patience: float = 300.0
    grace: float = 10.0


class Child:
    """A service and the process that runs it at present."""

    def __init__(self, service: Service, logs: Path) -> None:
        self.service, self.log = service, logs / f"{service.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0  # in a row
        self.again_at = 0.0
        self._started = self._answered = self._asked = 0.0
        self._copier: threading.Thread | None = None
        self._lines = logging.getLogger(f"winnow.up.{service.name}.{id(self)}")
        self._lines.propagate = False
        self._lines.setLevel(logging.INFO)
        logs.mkdir(parents=True, exist_ok=True)
        self._lines.addHandler(
            logging.handlers.RotatingFileHandler(
                self.log, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8", delay=True
            )
        )

    def start(self) -> None:
        """Start the process, in a group of its own: its own children end with it."""
        self._started = self._answered = self._asked = time.monotonic()
        self.process = subprocess.Popen(
            list(self.service.command),
            env=dict(self.service.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._copier = threading.Thread(target=self._copy, args=(self.process,), daemon=True)
        self._copier.start()

    def _copy(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.info(redacted(line.decode("utf-8", "replace").rstrip()))

    def why_gone(self) -> str | None:
        """Why the process is to be started again; None while it is well."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        now = time.monotonic()
        if self.service.health is None or now - self._asked < _ASK_EVERY_SECONDS:
            return None
        self._asked = now
        if answers(self.service.health):
            self._answered = now
            return None
        silent = now - self._answered
        return f"gave no answer for {silent:.0f} s" if silent > _LONGEST_SILENCE_SECONDS else None

    def put_off(self) -> float:
        """Note one more death; returns the seconds until the next start."""
        if time.monotonic() - self._started > _STEADY_SECONDS:
            self.deaths = 0
        wait = min(2.0**self.deaths, _LONGEST_WAIT_SECONDS)
        self.deaths += 1
        self.process, self.again_at = None, time.monotonic() + wait
        return wait

    def end(self) -> None:
        """End the process and its children: asked first, then killed; nothing where none runs."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.service.grace)
        with suppress(ProcessLookupError):  # what is left of its group, too
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Close the log, once it holds what the process said last."""
        if self._copier is not None:
            self._copier.join(_FAREWELL_SECONDS)
        for handler in list(self._lines.handlers):
            self._lines.removeHandler(handler)
            handler.close()


class Supervisor:
    """Keeps services running until it is left; use it as a context manager.

    Args:
        logs: folder of the services' logs.
        note: file that says what runs.
        say: takes one line for the user.
    """

    def __init__(self, logs: Path, note: Path, say: Callable[[str], None]) -> None:
        self._logs, self._note, self._say = logs, note, say
        self._children: list[Child] = []

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        # the other way round: a worker still reports to the server
        for child in reversed(self._children):
            child.end()
            child.close()
        self._note.unlink(missing_ok=True)

    def start(self, service: Service) -> None:
        """Start one more service, without waiting for it."""
        child = Child(service, self._logs)
        self._children.append(child)
        child.start()
        self._write()

    def wait(self, name: str) -> None:
        """Wait until a service answers; raises `UserError` where it does not start."""
        child = next(child for child in self._children if child.service.name == name)
        assert child.process is not None and child.service.health is not None
        end = time.monotonic() + child.service.patience
        while time.monotonic() < end and child.process.poll() is None:
            if answers(child.service.health):
                return
            time.sleep(0.2)
        code = child.process.poll()
        what = f"ended with exit code {code}" if code is not None else "gives no answer"
        raise UserError(f"up: {name} {what}; its log {child.log} says why")

    def check(self) -> None:
        """Look after every service once: start again what is gone and whose wait is over."""
        for child in self._children:
            if child.process is None:
                if time.monotonic() >= child.again_at:
                    child.start()
                    self._write()
                continue
            why = child.why_gone()
            if why is not None:
                child.end()
                wait = child.put_off()
                self._say(
                    f"{child.service.name} {why}; started again in {wait:.0f} s (log: {child.log})"
                )

    def watch(self) -> None:
        """Look after every service until something raises, such as SIGTERM's handler."""
        while True:
            self.check()
            time.sleep(0.5)

    def _write(self) -> None:
        running = {
            child.service.name: process_word(child.process.pid)
            for child in self._children
            if child.process is not None
        }
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps({"host": host_name(), "running": running}), encoding="utf-8")
        partial.replace(self._note)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a file's lock inside the block; raises `UserError` where another process holds it.

    The kernel frees it when the process ends, however that comes.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="ascii") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.seek(0)
            raise UserError(
                f"{what}: process {held.read().strip() or '?'} holds {lock}: it runs already; "
                "end it first, or name another WINNOW_HOME"
            ) from None
        held.truncate(0)
        held.write(f"{os.getpid()}\n")
        held.flush()
        yield


def end_leftovers(note: Path, say: Callable[[str], None]) -> None:
    """End what a killed supervisor left running, as its note says. Call it while `alone`."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        left = [(name, word) for name, word in content["running"].items()]
        host = content["host"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for name, word in left:
        number = word.split(":")[2] if word.count(":") == 3 else ""
        # the same process still, by its boot and its start: a number alone names others later
        if host != host_name() or not number.isdigit() or word != process_word(int(number)):
            continue
        say(f"{name} of a killed `winnow up` still runs (process {number}): ended")
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(int(number), kind)
            end = time.monotonic() + 10
            while time.monotonic() < end and not is_gone(host, word):
                time.sleep(0.1)
            if is_gone(host, word):
                break
    note.unlink(missing_ok=True)


def answers(url: str, timeout: float = 10.0) -> bool:
    """Whether a server answers at an address; a refusal is an answer, a server error is not."""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        return answer.code < 500
    except (OSError, ValueError):
        return False
    return True
