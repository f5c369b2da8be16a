"""Two runs at once make a stage once; a killed one is resumed; nothing else comes of either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.home import store
from tasks.recipes import parse_recipe

ROOT = Path(__file__).parents[2]

# one stage that takes turns with its test over a pipe, and counts in a file how often it ran
RUN = """
import json, sys, threading
from pathlib import Path
from tasks.errors import DataError
from tasks.recipes import parse_recipe
from tasks.stage import stage, recording, without_prefect

ran, mode = Path(sys.argv[1]), sys.argv[2]

@stage(reads=("prune",))
def slow(recipe, *, into, progress, keeper):
    with ran.open("a") as stream:
        stream.write("x")
    state = keeper.load() or {"step": 0}
    print("begun at", state["step"], flush=True)
    for step in range(state["step"], 4):
        if step == 2 and mode == "wait":
            print("at 2", flush=True)
            sys.stdin.readline()
        if step == 2 and mode == "fail":
            raise DataError("task.train: the data are not there")
        keeper.save({"step": step + 1})
    (into / "f").write_text("made")
    return {"steps": 4}

slow.body.__module__ = "tasks.digests"
cache = sys.argv[3] if len(sys.argv) > 3 else "on"
recipe = parse_recipe({"name": "n", "generalist": {"source": "x"}, "cache": cache,
                       "task": {"train": "a", "test": "b"}})

def run():
    with without_prefect(), recording() as stages:
        slow(recipe)
    (found,) = stages
    print(json.dumps([found.reused, found.artifact.sha256]), flush=True)

threads = [threading.Thread(target=run) for _ in range(2 if mode == "threads" else 1)]
if mode == "threads":
    for thread in threads: thread.start()
    for thread in threads: thread.join()
else:
    run()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a run of the stage, which notes that it ran in `tmp_path / ran`."""
    begun: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / "ran"), *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def left() -> list[str]:
    return [path.name for path in store().glob("slow/.*")]


def test_the_second_of_two_runs_waits_and_reuses(start: Start, tmp_path: Path) -> None:
    first = start("wait")
    assert told(first) == "begun at 0" and told(first) == "at 2"
    second = start("wait")
    assert second.stderr is not None
    said = second.stderr.readline()
    assert f"slow: waiting for another run that makes it (process {first.pid} on" in said
    assert first.stdin is not None
    first.stdin.write("go on\n")
    first.stdin.flush()
    made, reused = json.loads(told(first)), json.loads(told(second))
    assert made[0] is False and reused == [True, made[1]]
    assert (tmp_path / "ran").read_text() == "x" and left() == []


def test_two_threads_make_it_once(start: Start, tmp_path: Path) -> None:
    out, _ = start("threads").communicate(timeout=60)
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    assert sorted(row[0] for row in rows) == [False, True] and rows[0][1] == rows[1][1]
    assert (tmp_path / "ran").read_text() == "x"


def test_without_the_cache_two_runs_make_it_one_after_the_other(
    start: Start, tmp_path: Path
) -> None:
    for process in [start("go", "off") for _ in range(2)]:
        out, _ = process.communicate(timeout=60)
        assert out.splitlines()[0] == "begun at 0" and out.splitlines()[1].startswith("[false")
    assert (tmp_path / "ran").read_text() == "xx" and left() == []


def test_a_killed_run_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    first = start("wait")
    assert told(first) == "begun at 0" and told(first) == "at 2"
    second = start("go")  # waits, and takes over what the first one kept
    assert second.stderr is not None and "waiting" in second.stderr.readline()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert told(second) == "begun at 2"
    assert json.loads(told(second))[0] is False
    assert second.wait(60) == 0 and left() == []
    assert [path.name for path in (store() / "slow").iterdir()] != []
    third = start("go")
    assert json.loads(told(third))[0] is True
    assert (tmp_path / "ran").read_text() == "xx"


def test_with_the_cache_off_nothing_is_gone_on_with(start: Start) -> None:
    first = start("wait", "off")
    assert told(first) == "begun at 0" and told(first) == "at 2"
    first.kill()
    first.wait()
    assert any(name.startswith(".partial-") for name in left())
    assert told(start("go", "off")) == "begun at 0"


def test_bad_input_keeps_nothing(start: Start) -> None:
    _, err = start("fail").communicate(timeout=60)
    assert "the data are not there" in err and left() == []


def test_what_was_kept_of_a_published_stage_goes_when_it_is_reused(start: Start) -> None:
    """Killed between publishing and clearing up."""
    assert start("go").wait(60) == 0
    (path,) = (store() / "slow").iterdir()
    left_behind = path.with_name(f".partial-{path.name}")
    left_behind.mkdir()
    assert json.loads(told(start("go")))[0] is True
    assert left() == []


def test_a_change_leaves_what_was_kept_unread(home: Path) -> None:
    """Partial states lie under the key, so another key finds none."""
    from tasks.partial import Partial
    from tasks.stage import stage

    seen: list[Any] = []

    @stage(reads=("prune",))
    def kept(recipe: Any, *, into: Path, progress: Any, keeper: Partial) -> dict[str, Any]:
        seen.append(keeper.load())
        keeper.save({"sparsity": recipe.prune.sparsity})
        raise RuntimeError("on purpose")

    for sparsity in (0.5, 0.9, 0.5):
        plain = {"name": "n", "generalist": {"source": "x"}, "task": {"train": "a", "test": "b"}}
        recipe = parse_recipe({**plain, "prune": {"sparsity": sparsity}})
        with pytest.raises(RuntimeError, match="on purpose"):
            kept.compute(recipe)
    assert seen == [None, None, {"sparsity": 0.5}]
