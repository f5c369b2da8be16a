"""SIGKILL at random moments of a tiny run: benchmarks/crash.py with three kills or more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_kills_change_nothing(
    write_recipe: Callable[..., Path], text_generalist: str, tmp_path: Path
) -> None:
    recipe = write_recipe(
        text_generalist, task={"unlabelled": "rest"}, quantize={"embeddings": "int8"}
    )
    out = tmp_path / "crash.jsonl"
    command = [sys.executable, "benchmarks/crash.py", "--recipe", str(recipe), "--kills", "3"]
    command += ["--work", str(tmp_path / "work"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(len(row["kills"]) for row in rows) >= 3
    for row in rows:
        assert row["exit"] in (0, 3, 4), row
        assert row["equal"] and row["artifacts_differ"] == [], row
        assert row["files_left"] == [], row
        for kill in row["kills"]:
            assert kill["recomputed"] == [] and kill["processes_left"] == 0, row
        running = {name: n for name, n in row["after"].items() if name != "mlflow_versions"}
        assert set(running.values()) == {0}, row
        assert row["after"]["mlflow_versions"] == 1, row
    assert "finished stages recomputed: 0" in done.stdout
    assert out.with_suffix(".md").read_text() in done.stdout
