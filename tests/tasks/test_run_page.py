"""What Prefect's page tells while a run works, on a real server; nothing where there is none."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from rich.console import Console

from tasks import run_page
from tasks.embedded import embedded_prefect
from tasks.progress import Reporter


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(tmp_path_factory.mktemp("server")))
        with embedded_prefect(), get_client(sync_client=True) as found:
            yield found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(run_page, "_EVERY_SECONDS", 0.05)


def ask(client: Any, path: str, **body: Any) -> Any:
    """The server's answer, spoken to directly."""
    return client.request("POST", path, json={"limit": 50, **body}).raise_for_status().json()


def bars(client: Any, run: str) -> list[Any]:
    """The progress artifacts of a flow run."""
    mine = {"flow_runs": {"id": {"any_": [run]}}}
    return list(
        ask(client, "/artifacts/filter", artifacts={"type": {"any_": ["progress"]}}, **mine)
    )


def newest(client: Any, name: str) -> str:
    """The id of the flow run of this name."""
    (run,) = ask(client, "/flow_runs/filter", flow_runs={"name": {"any_": [name]}})
    return str(run["id"])


def test_a_long_stage_has_a_bar_and_lines(client: Any) -> None:
    seen: list[tuple[float, str]] = []

    @task
    def work() -> None:
        with Reporter(Console(file=io.StringIO())).stage("shrink") as progress:
            progress(1, 4, "heads")
            # the bar is there while the stage works, not only afterwards
            end = time.monotonic() + 60
            while time.monotonic() < end and not seen:
                found = bars(client, newest(client, "long-run"))
                seen.extend((float(x["data"]), x["description"]) for x in found if x["data"])
                time.sleep(0.1)

    @flow
    def long() -> None:
        work()

    long.with_options(flow_run_name="long-run")()
    assert seen[0][0] == 25.0
    assert seen[0][1].startswith("shrink: 25%, heads, about ")
    run = newest(client, "long-run")
    (bar,) = bars(client, run)
    assert (float(bar["data"]), bar["description"][:18]) == (100.0, "shrink: done after")
    assert bar["task_run_id"] is not None  # its place in the graph

    def lines() -> list[str]:
        found = ask(client, "/logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return [line["message"] for line in found]

    end = time.monotonic() + 60
    while not any(line.startswith("+ shrink:") for line in lines()):
        assert time.monotonic() < end, lines()
        time.sleep(0.2)


def test_a_stage_that_raises_leaves_its_bar_where_it_was(client: Any) -> None:
    @flow(flow_run_name="broken-run")
    def broken() -> None:
        with Reporter(Console(file=io.StringIO())).stage("prune") as progress:
            progress(1, 2, "")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        broken()
    (bar,) = bars(client, newest(client, "broken-run"))
    assert float(bar["data"]) == 50.0
    assert bar["description"].startswith("prune: stopped after")


def test_a_page_that_cannot_be_written_harms_nothing(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def away(progress: float, **_: Any) -> None:
        asked.append(progress)
        raise OSError("no route to the server")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", away)

    @flow
    def alone() -> int:
        with Reporter(Console(file=io.StringIO())).stage("teach") as progress:
            progress(1, 2, "")
            time.sleep(0.3)
        return 7

    assert alone() == 7
    assert len(asked) > 1  # tried again, in case it comes back


def test_a_worker_prints_each_line_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()

    @flow
    def talk() -> None:
        Reporter(Console(file=told)).say("one line")

    talk()
    assert told.getvalue().count("one line") == 1
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "as a worker sets it")
    talk()  # Prefect's own log goes to the worker's terminal
    assert told.getvalue().count("one line") == 1
    Reporter(Console(file=told)).say("outside of a flow")
    assert "outside of a flow" in told.getvalue()


def test_without_prefect_it_is_not_imported() -> None:
    script = (
        "import sys\n"
        "from tasks.progress import Reporter\n"
        "with Reporter().stage('load') as progress:\n"
        "    progress(1, 2, '')\n"
        "assert 'prefect' not in sys.modules, 'Prefect was imported'"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "+ load" in done.stderr
