"""One holder at a time: over threads, over processes, and after a holder was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.locks import if_free, is_held, locked

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from pathlib import Path
from tasks.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

COUNT = """
import sys, threading
from pathlib import Path
from tasks.locks import locked
import tasks.locks
tasks.locks._LOOK_SECONDS = 0.001
lock, number = Path(sys.argv[1]), Path(sys.argv[2])
def count():
    for _ in range(int(sys.argv[3])):
        with locked(lock):
            number.write_text(str(int(number.read_text()) + 1))
threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_nobody_counts_at_the_same_time(tmp_path: Path) -> None:
    """Processes and threads read a number and write it back; the lock's file comes and goes."""
    number = tmp_path / "number"
    number.write_text("0")
    processes = [started(COUNT, tmp_path / "lock", number, 100) for _ in range(2)]
    for process in processes:
        with process:
            assert process.wait(60) == 0
    assert number.read_text() == "600"
    assert not (tmp_path / "lock").exists()


def test_a_killed_holder_frees_it(tmp_path: Path) -> None:
    lock, told = tmp_path / "lock", list[str]()
    with started(HOLD, lock) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_held(lock)
        with if_free(lock) as free:
            assert not free
        timer = threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        with locked(lock, told.append):
            assert process.wait(5) == -signal.SIGKILL
    assert told == [f"process {process.pid} on {os.uname().nodename}"]
    assert not is_held(lock) and not lock.exists()


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with locked(tmp_path / "lock"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_it_is_freed_where_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "lock"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(UserError, match=r"WINNOW_HOME: .* without file locks"),
        locked(tmp_path / "lock"),
    ):
        pass
