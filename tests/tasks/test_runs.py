"""The index of runs, and which runs and processes are alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.artifacts import Artifact
from tasks.processes import host_name, is_gone, this_process
from tasks.runs import damaged_entries, note_run, noted_runs, oldest_under_way, under_way

ROOT = Path(__file__).parents[2]
LIVE = """
import sys, time
from tasks.runs import under_way
with under_way():
    print("begun", flush=True)
    time.sleep(600)
"""


def artifact(key: str, stage: str = "teach") -> Artifact:
    return Artifact(
        stage=stage, path=f"{stage}/{key}", sha256=f"digest of {key}", key=key, seconds=1
    )


def python(code: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "WINNOW_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_index_holds_what_runs_used_the_latest_first(home: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3)
    note_run("specialize", "old", [artifact("a")], flow_run="f-1", mlflow_run="m1", ended=long_ago)
    path = note_run("sweep", "new", [artifact("b"), artifact("a")], model="new/1")
    assert path.parent == home / "runs"
    new, old = noted_runs()
    assert (new.recipe, new.model, old.id, old.mlflow_run) == ("new", "new/1", "f-1", "m1")
    assert old.ended == long_ago
    assert new.artifacts == [("teach", "a", "digest of a"), ("teach", "b", "digest of b")]


def test_a_run_noted_again_replaces_its_entry_and_a_member_of_a_fleet_does_not(home: Path) -> None:
    note_run("specialize", "one", [artifact("a")], flow_run="f", mlflow_run="m1")
    note_run("specialize", "one", [artifact("b")], flow_run="f", mlflow_run="m1")
    note_run("specialize", "two", [artifact("c")], flow_run="f", mlflow_run="m2")
    assert {(run.recipe, run.artifacts[0][1]) for run in noted_runs()} == {
        ("one", "b"),
        ("two", "c"),
    }
    assert note_run("x", "y", [], flow_run="../../etc/passwd").parent == home / "runs"


def test_a_damaged_entry_is_named(home: Path) -> None:
    path = note_run("specialize", "one", [artifact("a")])
    assert damaged_entries() == []
    path.write_text(path.read_text()[:-20])
    assert noted_runs() == [] and damaged_entries() == [path]


def test_a_run_is_under_way_until_its_process_ends_however_it_ends(home: Path) -> None:
    assert oldest_under_way() is None
    before = time.time() - 2  # a file system's clock may be a little behind
    first = python(LIVE, home)
    try:
        assert first.stdout is not None and first.stdout.readline() == "begun\n"
        started = oldest_under_way()
        assert started is not None and before <= started <= time.time() + 2
        with under_way():
            assert oldest_under_way() == started
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert oldest_under_way() is None
        assert list((home / "runs" / ".live").iterdir()) == []
    finally:
        first.kill()
        first.wait()
        first.stdout.close()  # type: ignore[union-attr]


def test_a_process_is_gone_once_it_ended_and_not_before(home: Path) -> None:
    code = (
        "import time; from tasks.processes import this_process; print(this_process(), flush=True)"
    )
    other = python(f"{code}; time.sleep(600)", home)
    assert other.stdout is not None
    try:
        process = other.stdout.readline().strip()
        assert not is_gone(host_name(), process)
        other.kill()
        deadline = time.monotonic() + 30
        while not is_gone(host_name(), process) and time.monotonic() < deadline:
            time.sleep(0.01)
        # nobody has waited for it yet: it is a zombie, and gone all the same
        assert is_gone(host_name(), process)
        other.wait()
        assert is_gone(host_name(), process)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


@pytest.mark.parametrize("part", range(4))
def test_what_this_host_cannot_tell_is_not_gone(part: int) -> None:
    """Another boot, container, number or start than this very process's, one at a time."""
    parts = this_process().split(":")
    assert not is_gone(host_name(), ":".join(parts))
    assert not is_gone("elsewhere", ":".join(parts))
    parts[part] = {0: "another-boot", 1: "1", 2: "999999999", 3: "1"}[part]
    # only the container's processes cannot be seen from here
    assert is_gone(host_name(), ":".join(parts)) is (part != 1)


@pytest.mark.parametrize("text", ["", "x", ":::", "a:b:c:d", "boot:ns:-1:5"])
def test_nonsense_is_not_gone(text: str) -> None:
    assert not is_gone(host_name(), text)
