"""Memory that is given back is used again, also where the environment says to return it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
import numpy as np
from tasks.memory import keep_freed
if sys.argv[1] == "keep" and not keep_freed():
    raise SystemExit(77)
np.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(1 << 20)  # 8 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages cleared while a hundred arrays of 8 MB come and go, under what Dask sets."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=ROOT,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0
    return int(done.stdout)


def test_pages_are_not_cleared_again_and_again() -> None:
    kept, given_back = faults("keep"), faults("")
    if given_back < 50_000:
        pytest.skip("this kernel clears two megabytes at once (transparent huge pages: always)")
    assert kept < given_back / 20
