"""Recheck and watch from the command line, against a real Prefect server and a real registry."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from flows.cli import app
from tasks import registry
from tasks.champions import SOURCES
from tasks.decision import DECIDED
from tasks.embedded import embedded_prefect
from tasks.errors import RecipeError
from tasks.registry import Version, find_version
from tasks.respecialize import held, one_at_a_time
from tasks.watch import CHANGED, look
from tests.conftest import write_rows
from tests.quiet import QUIET
from tests.tasks.lines import (
    FEW,
    MOST,
    NAME,
    add_version,
    copied_home,
    crown,
    make_task,
    recipe_of,
    rows_of,
)

pytestmark = QUIET


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        task = make_task(folder / "task")
        for at, known in enumerate((MOST, FEW)):
            add_version(folder / f"made-{at}", recipe_of(task), known)
    yield folder / "home", task


@pytest.fixture
def task(made: tuple[Path, dict[str, str]], home: Path) -> Iterator[dict[str, str]]:
    """The sources of the model `tiny`, whose versions are 1 (good) and 2 (poor)."""
    copied_home(made[0], home)
    before = {path: Path(path).read_bytes() for path in made[1].values()}
    yield made[1]
    for path, content in before.items():
        Path(path).write_bytes(content)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def events(name: str, least: int = 0) -> list[dict[str, Any]]:
    """Events that the embedded server has, in order; it writes them down some seconds late."""
    wanted = {"filter": {"event": {"name": [name]}, "order": "ASC"}, "limit": 50}
    end = time.monotonic() + 60
    with embedded_prefect(), get_client(sync_client=True) as client:
        while True:
            found = client.request("POST", "/events/filter", json=wanted).json()["events"]
            if len(found) >= least or time.monotonic() > end:
                return list(found)
            time.sleep(0.5)


def artifacts() -> set[str]:
    with embedded_prefect(), get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"limit": 200}).json()
    return {str(each["key"]) for each in found}


def mlflow_runs() -> list[mlflow.entities.Run]:
    with registry.pointed():
        client = mlflow.MlflowClient()
        experiments = [found.experiment_id for found in client.search_experiments()]
        return list(client.search_runs(experiments, "tags.`mlflow.source.name` = 'winnow recheck'"))


def test_a_rollback_is_decided_done_and_recorded(task: dict[str, str]) -> None:
    crown(find_version(NAME, "2"), "1")
    rows = rows_of(40, 60, rows_of(60, 2))
    new = str(write_rows(Path(os.environ["WINNOW_HOME"]) / "new.jsonl", rows))
    code, output = run("recheck", NAME, "--labelled", new)
    assert code == 3 and output.startswith("tiny/2: rollback to tiny/1\n")
    champion = registry.champion_of(NAME)
    assert champion is not None and champion.number == "2"  # nothing is done unasked
    code, output = run("recheck", NAME, "--labelled", new, "--act", "respecialize")
    assert code == 3 and registry.champion_of(NAME).number == "2"  # type: ignore[union-attr]
    code, _ = run("recheck", NAME, "--labelled", new, "--act", "rollback")
    assert code == 3 and registry.champion_of(NAME).number == "1"  # type: ignore[union-attr]
    last = mlflow_runs()[0]
    assert last.info.status == "FINISHED"
    assert last.data.tags["winnow.decision"] == "rollback"
    assert last.data.tags["winnow.acted"] == "rolled back"
    assert last.data.tags["winnow.model_version"] == "tiny/2"
    assert last.data.metrics["fresh.n"] == pytest.approx(len(rows), abs=len(rows) / 2)
    with registry.pointed():
        text = mlflow.artifacts.load_text(f"{last.info.artifact_uri}/recheck.json")
    report = json.loads(text)
    assert report["acted"]["action"] == "rolled back" and report["labelled"]["earlier"]
    told = events(DECIDED, 3)[-1]
    assert told["resource"]["prefect.resource.id"] == "winnow.model.tiny"
    assert told["payload"]["decision"] == "rollback" and told["payload"]["to"] == "1"
    assert last.info.run_id in told["payload"]["page"]
    assert any(x["prefect.resource.role"] == "flow-run" for x in told["related"])
    assert artifacts() >= {"tiny-recheck", "tiny-recheck-figures", "tiny-recheck-mlflow"}


def test_every_champion_is_rechecked_and_one_fault_hides_no_other(
    task: dict[str, str], tmp_path: Path
) -> None:
    assert run("recheck") == (0, "no model has a champion: nothing to recheck\n")
    crown(find_version(NAME, "1"))
    with registry.pointed():  # a second model, whose files are another's: it does not load
        client = mlflow.MlflowClient()
        client.create_registered_model("another")
        source = client.get_model_version(NAME, "2")
        tags = {registry.DIGEST: "0" * 64, "winnow.run_id": str(source.run_id)}
        client.create_model_version("another", source.source, source.run_id, tags)
    crown(find_version("another"))
    code, output = run("recheck")
    lines = output.splitlines()
    assert code == 2 and lines[0].startswith("! another/1: MODEL: another/1: its files are not")
    assert lines[1] == "tiny/1: hold" and lines[-1].startswith("winnow: another/1: ")
    statuses = sorted((found.info.status, found.info.run_name) for found in mlflow_runs())
    assert [status for status, _ in statuses] == ["FAILED", "FINISHED"]


def test_bad_options_are_one_line(task: dict[str, str]) -> None:
    for arguments, words in (
        (("recheck", NAME, "--act", "all-of-it"), "--act: all-of-it is not one of none, rollback"),
        (("recheck", "--labelled", "x.csv"), "--labelled: name the model"),
        (("recheck", "nobody"), "nobody is not in"),
        (("recheck", NAME), "tiny has no champion; `winnow promote tiny/2` makes one"),
        (("watch", "nobody"), "nobody is not in"),
    ):
        code, output = run(*arguments)
        assert code == 2 and output.startswith("winnow: ") and output.count("\n") == 1, output
        assert words in output


def test_one_change_is_one_event(task: dict[str, str]) -> None:
    crown(find_version(NAME, "1"))
    already = len(events(CHANGED))

    def told(least: int = 0) -> list[dict[str, Any]]:
        return events(CHANGED, already + least)[already:]

    code, output = run("watch")
    assert code == 0 and output.startswith("tiny/1: unchanged") and not told()
    rows = rows_of(30, 90, rows_of(60, 2))
    with Path(task["test"]).open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    assert run("watch", NAME)[1].startswith(
        "tiny/1: changed (changed since tiny/1 was made: task.test"
    )
    (event,) = told(1)
    assert event["resource"]["prefect.resource.id"] == "winnow.model.tiny"
    assert event["payload"]["model"] == "tiny" and event["payload"]["changed"] == ["test"]
    assert run("watch")[1].startswith("tiny/1: told") and len(told(1)) == 1
    with embedded_prefect():
        later = look(_champion(), datetime.now(UTC) + timedelta(hours=25))
    assert later["status"] == "changed" and len(told(2)) == 2  # nobody acted: told once more
    Path(task["train"]).write_text(Path(task["train"]).read_text() + "\n")
    assert run("watch")[1].startswith("tiny/1: changed") and len(told(3)) == 3
    assert told()[-1]["payload"]["changed"] == ["train", "test"]


def test_what_was_made_of_the_new_data_is_not_made_again(
    task: dict[str, str], tmp_path: Path
) -> None:
    crown(find_version(NAME, "1"))
    outcome = held(NAME)
    assert outcome is not None and (outcome["action"], outcome["made"]) == (
        "held",
        "models:/tiny/2",
    )
    rows = rows_of(10, 91, rows_of(60, 2))
    with Path(task["test"]).open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    assert held(NAME) is None
    add_version(tmp_path / "made", recipe_of(task), FEW, verdict="fail")
    outcome = held(NAME)
    assert outcome is not None and outcome["verdict"] == "fail" and outcome["version"] == "1"
    with embedded_prefect():
        assert look(_champion())["status"] == "handled"


def test_a_source_that_is_gone_is_told_and_starts_nothing(task: dict[str, str]) -> None:
    crown(find_version(NAME, "1"))
    already = len(events(CHANGED))
    Path(task["test"]).unlink()
    code, output = run("watch")
    assert code == 2 and f"winnow: tiny/1: not there: task.test {task['test']}" in output
    assert len(events(CHANGED)) == already
    with pytest.raises(RecipeError, match=r"task\.test: .* is not there any more"):
        held(NAME)


def test_a_version_that_names_no_sources_is_left_alone(task: dict[str, str]) -> None:
    crown(find_version(NAME, "1"))
    with registry.pointed():
        mlflow.MlflowClient().delete_model_version_tag(NAME, "1", SOURCES)
    assert run("watch")[1].startswith("tiny/1: unknown (it does not name the sources")


def test_one_at_a_time() -> None:
    inside, most, turns = [0], [0], []

    def enter(turn: int) -> None:
        with one_at_a_time("a/model"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            turns.append(turn)
            threading.Event().wait(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=enter, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and sorted(turns) == [0, 1, 2, 3]


def _champion() -> Version:
    found = registry.champion_of(NAME)
    assert found is not None
    return found
