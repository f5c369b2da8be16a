"""Real servers that go away in the middle of a real run, a lock that is held, a disk that fills."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from benchmarks.local_servers import Server, free_port
from flows.specialize import specialize
from tasks.recipes import load_recipe
from tests.spaces import in_small_disk, require_namespaces
from tests.tiny_runs import tiny_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]
STAGES = 13


@pytest.fixture(scope="module")
def warm(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], text_generalist: str
) -> Path:
    """A folder with a recipe, and a home in which its stages are finished."""
    folder = tmp_path_factory.mktemp("warm")
    recipe = tiny_recipe(folder, text_generalist, text_task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        specialize(load_recipe(recipe, []), folder / "first")
    return folder


@contextmanager
def started(warm: Path, out: Path, *options: str, **environment: str) -> Iterator[Any]:
    """`winnow specialize` in a process of its own; killed at the end if it still runs."""
    command = [sys.executable, "-m", "flows.cli", "specialize", str(warm / "recipe.yaml")]
    process = subprocess.Popen(
        [*command, "--out", str(out), *options],
        cwd=ROOT,
        env={**os.environ, "WINNOW_HOME": str(warm / "home"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for(process: Any, word: str) -> None:
    """Read what a run prints up to a word."""
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"the run ended without {word!r}")


def mlflow_server(folder: Path) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server(command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log", quiet)


def test_an_mlflow_server_that_is_killed_in_the_middle_loses_nothing(
    warm: Path, tmp_path: Path
) -> None:
    server = mlflow_server(tmp_path)
    uri = server.health.removesuffix("/health")
    server.start()
    server.wait(240)
    try:
        renamed = ("--set", "name=away", "--set", "track.model_name=away")
        with started(warm, tmp_path / "out", *renamed, MLFLOW_TRACKING_URI=uri) as process:
            wait_for(process, " verify: ")  # every stage is done: what follows is the record
            server.kill()
            before = count(tmp_path / "mlflow.db", "runs")
            assert 1 <= before <= STAGES, "the server was to be killed in the middle"
            time.sleep(5)
            server.start()
            told = process.stdout.read()
            assert process.wait() == 0, told
        server.wait(240)
        client = mlflow.MlflowClient(uri, uri)
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        run = client.get_run(report["mlflow"]["run_id"])
        nested = client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        )
        assert len(nested) == STAGES and len({child.info.run_name for child in nested}) == STAGES
        assert {each.info.status for each in [run, *nested]} == {"FINISHED"}
        assert all(
            child.data.metrics and client.list_artifacts(child.info.run_id) for child in nested
        )
        assert len(client.search_model_versions("name = 'away'")) == 1
        assert client.get_model_version_by_alias("away", "champion").version == "1"
    finally:
        server.stop()


def count(path: Path, table: str) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


def test_a_prefect_server_that_is_killed_in_the_middle_loses_nothing(
    warm: Path, tmp_path: Path
) -> None:
    port = free_port()
    environment = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}/api"
    server = Server(
        [*command, "--port", str(port)], f"{url}/health", tmp_path / "server.log", environment
    )
    server.start()
    server.wait(240)
    try:
        with started(warm, tmp_path / "out", PREFECT_API_URL=url) as process:
            wait_for(process, "= teach")
            server.kill()
            time.sleep(5)
            server.start()
            told = process.stdout.read()
            assert process.wait() == 0, told
        server.wait(240)
        answers = httpx.post(f"{url}/flow_runs/filter", json={}, timeout=60).json()
        assert [run["state_type"] for run in answers] == ["COMPLETED"]
        deadline = time.monotonic() + 60
        states: list[str] = []
        while time.monotonic() < deadline and states.count("COMPLETED") < STAGES + 1:
            tasks = httpx.post(f"{url}/task_runs/filter", json={}, timeout=60).json()
            states = [run["state_type"] for run in tasks]
            time.sleep(0.5)
        assert states == ["COMPLETED"] * (STAGES + 1)  # the stages, and their record
    finally:
        server.stop()


def test_a_lock_held_longer_than_mlflow_waits_is_waited_for(warm: Path, tmp_path: Path) -> None:
    path = warm / "home" / "mlflow.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    holder.execute("begin immediate")
    release = threading.Timer(30.0, holder.execute, ["commit"])  # MLflow gives up after 20 s
    try:
        with started(warm, tmp_path / "out") as process:
            wait_for(process, "= leaks")  # the run in MLflow is made next
            release.start()
            told = process.stdout.read()
            assert process.wait() == 0, told
    finally:
        release.join()
        holder.close()


@pytest.mark.parametrize("megabytes", [3, 8])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_made(
    warm: Path, tmp_path: Path, megabytes: float
) -> None:
    """3 MB: Prefect's database does not fit; 8 MB: the stages do, the record does not."""
    require_namespaces()
    place = tmp_path / "small"
    arguments = ["specialize", str(warm / "recipe.yaml"), "--out", str(place / "out")]
    left = f"find {place} -name '.making-*' -o -name '*.part'"
    script = f'"$@"; code=$?; {left}; exit $code'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "flows.cli", *arguments]
    done = in_small_disk(place, megabytes, command, WINNOW_HOME=str(place / "home"))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("winnow: ")]
    assert len(last) == 1 and f"{place / 'home'}: no space left (" in last[0], done.stderr
    found = [line for line in done.stdout.splitlines() if "/store/" not in line]
    assert not [line for line in found if line.startswith(str(place))], found
