"""Temporary files of killed processes go; those of living ones, and of nobody, stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = """
import sys, tempfile
from tasks.scratch import scratch
before = tempfile.gettempdir()
with scratch():
    with scratch():
        pass
    print(tempfile.mkdtemp(prefix="winnow-"), flush=True)
    sys.stdin.readline()
assert tempfile.gettempdir() == before
"""


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_a_killed_process_is_cleared_up_after(tmp_path: Path) -> None:
    (tmp_path / "winnow-of-the-user").mkdir()
    with started(tmp_path) as dead:
        left = said(dead)
        assert left.is_dir() and left.parent.parent == tmp_path
        dead.kill()
    assert left.is_dir()
    with started(tmp_path) as alive:
        kept = said(alive)
        assert kept.is_dir() and not left.parent.exists()
        with started(tmp_path) as third:
            said(third)
            assert kept.is_dir()
            third.communicate("end\n")
        alive.communicate("end\n")
        assert alive.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["winnow-of-the-user"]
