"""Measurements take turns on one host, whoever makes them, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.host_clock import clock_file, host_clock, seconds_waited

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys, time\n"
    "from tasks.host_clock import host_clock\n"
    "with host_clock():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clock of the test's own: others on this host may be timing."""
    monkeypatch.setenv("WINNOW_CLOCK", str(tmp_path / "clock"))
    return tmp_path / "clock"


def holder() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def waiter() -> tuple[threading.Thread, threading.Event]:
    """A thread that takes the clock, and whether it has it."""
    has = threading.Event()

    def take() -> None:
        with host_clock():
            has.set()

    thread = threading.Thread(target=take)
    thread.start()
    return thread, has


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_another_process_is_waited_for(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    process, before = holder(), seconds_waited()
    thread, has = waiter()
    assert not has.wait(0.5)
    if end == "killed":
        os.kill(process.pid, signal.SIGKILL)
    else:
        assert process.stdin is not None
        process.stdin.close()
    assert has.wait(30)
    thread.join()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    assert seconds_waited() > before  # how much of the half second depends on the thread's start
    assert "waiting for another run's measurements" in capsys.readouterr().err


def test_threads_of_one_process_take_turns() -> None:
    with host_clock():
        thread, has = waiter()
        assert not has.wait(0.3)
    assert has.wait(30)
    thread.join()


def test_a_holder_may_hold_it_again() -> None:
    with host_clock(), host_clock():
        thread, has = waiter()
    assert has.wait(30)
    thread.join()
    with host_clock():
        thread, has = waiter()
        with host_clock():
            pass
        assert not has.wait(0.3)  # the inner block's end did not free it
    assert has.wait(30)
    thread.join()


def test_the_file_is_for_every_user_and_no_link_is_followed(clock: Path, tmp_path: Path) -> None:
    with host_clock():
        assert clock_file() == clock and clock.stat().st_mode & 0o777 == 0o644
    clock.unlink()
    clock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"WINNOW_CLOCK: .* cannot be opened"), host_clock():
        pass
    assert not (tmp_path / "elsewhere").exists()
