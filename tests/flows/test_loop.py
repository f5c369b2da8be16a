"""The loop for real: labels change, a scheduled watch sees it, a trigger specializes anew.

Prefect's server with its services, MLflow's server and what serves the deployments are processes
of their own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.specialize import specialize
from tasks import registry
from tasks.champions import digests_now, sources_named, sources_of
from tasks.events import tell
from tasks.recipes import load_recipe
from tasks.watch import CHANGED
from tests.conftest import sentences

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]
NAME = "tiny"
Found = TypeVar("Found")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, look: Callable[[], Found | None], seconds: float = 900) -> Found:
    """What a look finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {seconds:.0f} s")


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except OSError:
        return False
    return True


@contextmanager
def process(log: Path, *command: str, **environment: str) -> Iterator[None]:
    """A process with all its children, ended with the block."""
    with log.open("wb") as stream:
        started = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            cwd=log.parent,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


@pytest.fixture
def servers(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both servers, and the deployments served; yields the folder of their logs."""
    prefect, tracking = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    database = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    monkeypatch.setenv("PREFECT_API_URL", f"{prefect}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    here = ["--host", "127.0.0.1", "--port"]
    with ExitStack() as stack:
        stack.enter_context(
            process(
                tmp_path / "prefect.log",
                *("-m", "prefect", "server", "start", *here, prefect.rpartition(":")[2]),
                PREFECT_HOME=str(tmp_path / "prefect"),
                PREFECT_API_DATABASE_CONNECTION_URL=database,
                PREFECT_SERVER_ANALYTICS_ENABLED="false",
            )
        )
        stack.enter_context(
            process(
                tmp_path / "mlflow.log",
                *("-m", "mlflow", "server", *here, tracking.rpartition(":")[2], "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
                *("--artifacts-destination", str(tmp_path / "artifacts")),
                MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            )
        )
        until("Prefect server", lambda: answers(f"{prefect}/api/health"))
        until("MLflow server", lambda: answers(f"{tracking}/health"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: f"{prefect}/api"}))
        yield tmp_path


@contextmanager
def serving(folder: Path, every: float) -> Iterator[None]:
    """The deployments, watched and triggered, inside the block."""
    with process(
        folder / "serve.log",
        *("-m", "tests.flows.serve_loop", str(every)),
        PREFECT_RUNNER_POLL_FREQUENCY="1",
        PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    ):
        yield


def flow_runs(name: str) -> list[dict[str, Any]]:
    """Runs of a flow: state, parameters."""
    wanted = {"flows": {"name": {"any_": [name]}}, "limit": 200, "sort": "START_TIME_ASC"}
    with get_client(sync_client=True) as client:
        return list(client.request("POST", "/flow_runs/filter", json=wanted).json())


def ended(name: str, count: int) -> list[dict[str, Any]] | None:
    """The ended runs of a flow, once there are so many."""
    final = ("COMPLETED", "FAILED", "CRASHED")
    found = [run for run in flow_runs(name) if run["state_type"] in final]
    return found if len(found) >= count else None


def events() -> list[dict[str, Any]]:
    wanted = {"filter": {"event": {"name": [CHANGED]}}, "limit": 50}
    with get_client(sync_client=True) as client:
        return list(client.request("POST", "/events/filter", json=wanted).json()["events"])


def versions() -> list[registry.Version]:
    return registry.versions_of(NAME)


def append(path: str, seed: int) -> None:
    with Path(path).open("a") as stream:
        for label in ("card", "parcel", "refund"):
            for text in sentences(label, 8, seed):
                stream.write(json.dumps({"text": f"{text} now", "intent": label}) + "\n")


def test_changed_labels_are_seen_told_and_specialized_once(
    servers: Path,
    tmp_path: Path,
    text_task: dict[str, str],
    text_generalist: str,
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {name: str(tmp_path / f"{name}.jsonl") for name in text_task}
    for name, path in text_task.items():
        Path(own[name]).write_bytes(Path(path).read_bytes())
    recipe = load_recipe(write_recipe(text_generalist, task=own))
    monkeypatch.chdir(tmp_path)
    assert specialize(recipe)["champion"]["action"] == "first"
    assert digests_now(sources_of(versions()[0])) == {
        field: facts["digest"] for field, facts in sources_of(versions()[0]).items()
    }

    with serving(tmp_path, every=10):
        until("watch", lambda: ended("watch", 2))
        assert not events() and not flow_runs("respecialize")  # nothing changed, nothing runs
        # one label corrected, new sentences: what a person does on a Tuesday
        lines = Path(own["test"]).read_text().splitlines()
        first = json.loads(lines[0])
        first["intent"] = "refund" if first["intent"] != "refund" else "card"
        Path(own["test"]).write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
        append(own["train"], 77)
        (run,) = until("respecialize", lambda: ended("respecialize", 1))
        assert run["state_type"] == "COMPLETED"
        assert run["parameters"]["model"] == NAME
        assert "task.train" in run["parameters"]["reason"]
        assert run["created_by"]["type"] == "AUTOMATION"
        newest, oldest = versions()
        made = {field: facts["digest"] for field, facts in sources_of(newest).items()}
        assert set(made) == set(sources_named(recipe))
        assert made == digests_now(sources_of(newest))
        # promoted or held, by the run's own word
        champion = registry.champion_of(NAME)
        assert champion is not None and champion.number in (newest.number, oldest.number)
        with registry.pointed():
            client = mlflow.MlflowClient()
            experiments = [x.experiment_id for x in client.search_experiments()]
            statuses = {x.info.status for x in client.search_runs(experiments)}
        assert statuses == {"FINISHED"}
        # whatever became of it, the change is dealt with
        seen = len(ended("watch", 0) or [])
        until("two more watches", lambda: ended("watch", seen + 2))
        assert len(events()) == 1 and len(flow_runs("respecialize")) == 1
        assert {run["state_type"] for run in ended("watch", 0) or []} == {"COMPLETED"}

    with serving(tmp_path, every=3600):
        append(own["train"], 78)
        for _ in range(2):  # two triggers at once
            tell(CHANGED, NAME, {"model": NAME, "reason": "twice"})
        runs = until("both", lambda: ended("respecialize", 3))
        assert [run["state_type"] for run in runs] == ["COMPLETED"] * 3
        assert [run["parameters"]["reason"] for run in runs[1:]] == ["twice"] * 2
        assert len(versions()) == 3  # and one run
        specializations = ended("specialize", 3)
        assert specializations is not None and len(specializations) == 3
