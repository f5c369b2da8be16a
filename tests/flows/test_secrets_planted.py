"""Passwords and tokens that a run is given are found in no store, no file and no output of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = "Pl4nted"
SECRETS = {
    "HF_TOKEN": "hf_" + PLANTED * 5,
    "AWS_SECRET_ACCESS_KEY": PLANTED * 4,
    "SOMEBODYS_PASSWORD": f"{PLANTED}-password",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(arguments: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=home.parent,
        env={**plain, **SECRETS, "PYTHONPATH": str(ROOT), "WINNOW_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def told(folder: Path) -> list[str]:
    """Files that hold what was planted, SQLite's and its journals included."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and PLANTED.encode() in path.read_bytes()
    ]


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real tracking server; yields its address without a password."""
    place, port = tmp_path / "server", free_port()
    place.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    command += ["--artifacts-destination", str(place / "artifacts")]
    with (place / "server.log").open("wb") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=place)
        try:
            for _ in range(1200):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(0.25)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def test_a_server_that_is_away_is_named_without_its_password(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe("hf:/nowhere")
    address = f"http://me:{PLANTED}@127.0.0.1:9"
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        value = address if name == "MLFLOW_TRACKING_URI" else f"{address}/api"
        done = run(["specialize", str(recipe)], tmp_path / "home", **{name: value})
        assert done.returncode == 2, done.stderr
        assert PLANTED not in done.stdout + done.stderr
        assert "127.0.0.1:9" in done.stderr
    assert told(tmp_path) == []


@pytest.mark.slow
def test_a_whole_run_and_a_failed_one_leave_no_secret(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    text_generalist: str,
    mlflow_server: str,
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    uri = f"http://me:{PLANTED}@{mlflow_server}"
    recipe = write_recipe(text_generalist)
    done = run(["specialize", str(recipe), "--out", str(out)], home, MLFLOW_TRACKING_URI=uri)
    assert done.returncode in (0, 3, 4), done.stderr
    assert (out / "card.html").is_file()
    bad = run(
        ["specialize", str(recipe), "--set", "prune.keep_dense=[gone]", "--out", str(out)],
        home,
        MLFLOW_TRACKING_URI=uri,
    )
    assert bad.returncode == 2
    doctor = run(["doctor"], home, MLFLOW_TRACKING_URI=uri)
    assert mlflow_server in doctor.stdout
    predict = run(["predict", "models:/tiny/99", "my card"], home, MLFLOW_TRACKING_URI=uri)
    assert predict.returncode == 2
    for each in (done, bad, doctor, predict):
        assert PLANTED not in each.stdout + each.stderr
    # the recipe of somebody who writes a token into it: refused, and nowhere kept
    leaky = run(
        ["specialize", str(recipe), "--set", f"task.train=http://me:{PLANTED}@h/x.csv"], home
    )
    assert leaky.returncode == 2 and PLANTED not in leaky.stderr
    # home, results, and everything that the tracking server keeps
    assert told(tmp_path) == []
