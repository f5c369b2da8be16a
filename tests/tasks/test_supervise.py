"""The supervisor, with real processes that die, hang and leave children behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tasks import supervise
from tasks.errors import UserError
from tasks.processes import process_word
from tasks.servers import free_port
from tasks.supervise import Service, Supervisor, alone, answers, end_leftovers

# answers on the port that it is given, and says which process it is; {code} comes first
_SERVER = """
import http.server, os, sys
{code}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *_): pass
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


def service(name: str, code: str = "", port: int | None = None, grace: float = 10) -> Service:
    """A small web server as a service."""
    port = port or free_port()
    script = _SERVER.format(code=code, port=port)
    return Service(
        name, [sys.executable, "-c", script], os.environ, f"http://127.0.0.1:{port}/", grace=grace
    )


class Looked:
    """A supervisor that a test looks after, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.note = folder / "up.json"
        self.logs = folder / "logs"
        self.of = Supervisor(self.logs, self.note, self.said.append)

    def running(self) -> dict[str, str]:
        return dict(json.loads(self.note.read_text())["running"])

    def number(self, name: str) -> int:
        return int(self.running()[name].split(":")[2])

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.said
            self.of.check()
            time.sleep(0.05)


@pytest.fixture
def looked(tmp_path: Path) -> Iterator[Looked]:
    found = Looked(tmp_path)
    with found.of:
        yield found


def is_there(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_is_killed_is_started_again_and_told(looked: Looked) -> None:
    looked.of.start(service("alpha"))
    looked.of.wait("alpha")
    first = looked.number("alpha")
    os.kill(first, signal.SIGKILL)
    looked.until(
        lambda: looked.running().get("alpha", "") != "" and looked.number("alpha") != first
    )
    looked.of.wait("alpha")
    assert looked.said == [
        f"alpha ended by signal 9; started again in 1 s (log: {looked.logs / 'alpha.log'})"
    ]
    assert (looked.logs / "alpha.log").read_text().count("listening") == 2


def test_each_death_in_a_row_doubles_the_wait(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
    child = supervise.Child(service("beta"), looked.logs)
    assert [child.put_off() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    child._started, now[0] = 100.0, 100.0 + 1000  # it lived long: that death was another one
    assert child.put_off() == 1
    child.close()


def test_what_never_starts_is_one_line_that_names_its_log(looked: Looked) -> None:
    looked.of.start(service("gamma", "sys.exit(print('no such thing') or 7)"))
    with pytest.raises(UserError, match=r"^up: gamma ended with exit code 7; its log .*gamma.log"):
        looked.of.wait("gamma")
    looked.until(lambda: "no such thing" in (looked.logs / "gamma.log").read_text())


def test_what_hangs_is_started_again(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_ASK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(supervise, "_LONGEST_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(supervise, "answers", lambda url: answers(url, timeout=0.3))
    looked.of.start(service("delta", grace=1))
    looked.of.wait("delta")
    first = looked.number("delta")
    os.kill(first, signal.SIGSTOP)  # alive, and silent
    looked.until(lambda: any("gave no answer for" in line for line in looked.said))
    assert not is_there(first)
    looked.until(lambda: looked.number("delta") != first)
    looked.of.wait("delta")


def test_leaving_ends_everything_in_reverse_with_its_children(tmp_path: Path) -> None:
    looked = Looked(tmp_path)
    ended = tmp_path / "ended"
    note_end = (
        "import signal\n"
        f"def end(*_):\n    open({str(ended)!r}, 'a').write('{{name}} '); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
    )
    # a grandchild that ignores the request to end
    stubborn = (
        "import subprocess\n"
        "code = 'import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
        "time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print('child', child.pid, flush=True)\n"
    )
    with looked.of:
        looked.of.start(service("one", stubborn + note_end.format(name="one")))
        looked.of.start(service("two", note_end.format(name="two")))
        for name in ("one", "two"):
            looked.of.wait(name)
        log = looked.logs / "one.log"
        looked.until(lambda: "child" in log.read_text())
        grandchild = int(log.read_text().split("child ")[1].split()[0])
        assert is_there(grandchild)
        numbers = [looked.number(name) for name in ("one", "two")]
    assert ended.read_text() == "two one "
    assert not looked.note.exists()
    end = time.monotonic() + 30
    while is_there(grandchild) and time.monotonic() < end:
        time.sleep(0.05)
    assert [number for number in [*numbers, grandchild] if is_there(number)] == []


def test_logs_are_rotated_and_hold_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_LOG_BYTES", 2000)
    looked = Looked(tmp_path)
    talk = "for row in range(500): print('row', row, 'postgresql://winnow:hunter2pass@db/x')"
    with looked.of:
        looked.of.start(service("talker", talk))
        looked.of.wait("talker")
    files = sorted(looked.logs.glob("talker.log*"))
    assert len(files) == 1 + supervise._LOG_FILES
    assert max(file.stat().st_size for file in files) <= 2000
    told = "".join(file.read_text() for file in files)
    assert "listening" in told and "***@db" in told
    assert "hunter2pass" not in told


def test_two_at_once_is_one_line(tmp_path: Path) -> None:
    lock = tmp_path / "up.lock"
    with alone(lock, "up"):
        script = (
            "import sys; from pathlib import Path; from tasks.supervise import alone\n"
            "with alone(Path(sys.argv[1]), 'up'): print('in')"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script, lock], capture_output=True, text=True, cwd=root
        )
        assert done.returncode == 1
        assert f"up: process {os.getpid()} holds {lock}: it runs already" in done.stderr
    with alone(lock, "up"):  # and free again
        pass


def test_what_a_killed_supervisor_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    note, said = tmp_path / "up.json", list[str]()
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    left, other = (subprocess.Popen(sleeper, start_new_session=True) for _ in range(2))
    try:
        # `other` has the number that a process of the note had, but another start
        stale = process_word(other.pid).rpartition(":")[0] + ":1"
        running = {"prefect": process_word(left.pid), "worker": stale}
        note.write_text(json.dumps({"host": supervise.host_name(), "running": running}))
        end_leftovers(note, said.append)
        assert left.wait(30) == -signal.SIGTERM
        assert other.poll() is None
        assert len(said) == 1 and said[0].startswith("prefect of a killed")
        assert not note.exists()
    finally:
        for process in (left, other):
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": 1, "running": {"a": "b"}}'])
def test_a_damaged_note_ends_nothing(tmp_path: Path, content: str) -> None:
    note = tmp_path / "up.json"
    note.write_text(content)
    end_leftovers(note, print)
