"""A fleet for real: two worker processes, a real Prefect server, real stores, real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.fleet import fleet
from flows.sweep import sweep
from tasks.config import Recipe
from tasks.fleet import Fleet
from tests.conftest import QUICK, merged
from tests.quiet import QUIET

pytestmark = QUIET

MEMBERS = [
    {"name": "all"},
    {"name": "two", "task": {"classes": ["card", "parcel"]}},
    {"name": "bad", "task": {"train": "/nowhere/train.csv"}},
]
CLOCK = {"verify"}  # stages that hold times


def plan(task: dict[str, str], generalist: str, members: list[dict[str, Any]]) -> Fleet:
    plain = {"name": "desk", "generalist": {"source": generalist}, "task": dict(task)}
    changes = {"limits": {"samples": 0}, "verify": {"repeats": 5}, "members": members}
    return Fleet.model_validate(merged(merged(plain, QUICK), changes))


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], text_generalist: str
) -> dict[str, Any]:
    """A fleet on two workers, of which the tests look at the traces."""
    home = tmp_path_factory.mktemp("fleet-home")
    whole = plan(text_task, text_generalist, MEMBERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        patch.setenv("WINNOW_CLOCK", str(home / "clock"))
        report = fleet(whole, home / "out", workers=2)
    return {"home": home, "out": home / "out", "report": report, "fleet": whole}


@pytest.fixture
def again(done: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same, its stores in use."""
    monkeypatch.setenv("WINNOW_HOME", str(done["home"]))
    return done


def stages(report: dict[str, Any], member: str) -> dict[str, str]:
    row = next(row for row in report["members"] if row["member"] == member)
    return {stage["title"]: stage["sha256"] for stage in row["stages"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "fleet: nowhere.yaml is not a file"),
        (["{file}", "--set", "members.x.task.shots=2"], "members.x: no such member; known: all"),
        (["{file}", "--set", "gpu=["], "--set: gpu: '[' is not readable as a YAML value"),
        (["{file}", "--set", "members.all.gpu=["], "--set: members.all.gpu: '[' is not readable"),
        (["{file}", "--set", "members.v1.2.task.shot=8"], "task.shot: no such field; did you mean"),
        (["{file}", "--workers", "0"], "--workers: 0 is none"),
        (["{file}", "--workers", "2", "--scheduler", "tcp://x:1"], "name one"),
        (["{file}", "--scheduler", "x"], "--scheduler: x is not an address"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, text_task: dict[str, str]
) -> None:
    file = tmp_path / "fleet.yaml"
    whole = plan(text_task, "hf:/nowhere", [{"name": "all"}, {"name": "v1.2"}])
    file.write_text(yaml.safe_dump(whole.model_dump(mode="json")), encoding="utf-8")
    told = [each.format(file=file) for each in arguments]
    result = CliRunner().invoke(app, ["fleet", *told, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert words in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_member_that_fails_stops_no_other(again: dict[str, Any]) -> None:
    report = json.loads((again["out"] / "fleet.json").read_text())
    rows = {row["member"]: row for row in report["members"]}
    assert [row["member"] for row in report["members"]] == ["all", "two", "bad"]
    assert rows["bad"]["status"] == "refused"
    assert rows["bad"]["error"].startswith("task.train: /nowhere/train.csv: no such file")
    for name in ("all", "two"):
        assert rows[name]["status"] == "pass" and rows[name]["error"] is None
        folder = again["out"] / name
        assert {path.name for path in folder.iterdir()} >= {"specialist.onnx", "report.json"}
        own = json.loads((folder / "report.json").read_text())
        assert (
            own["task"]["name"] == f"desk-{name}" and own["accuracy"]["drop"] == rows[name]["drop"]
        )
    assert rows["two"]["classes"] == 2 and rows["all"]["classes"] == 3
    assert "| bad | refused |" in (again["out"] / "fleet.md").read_text()


@pytest.mark.slow
def test_the_generalist_is_loaded_and_exported_once(again: dict[str, Any]) -> None:
    report = again["report"]
    shared = {"load", "export generalist"}
    for row in report["members"]:
        found = {stage["title"] for stage in row["stages"] if stage["reused"]}
        assert shared <= found or row["status"] == "refused"
    store = again["home"] / "store"
    assert len(list((store / "load").glob("[0-9a-f]*"))) == 1
    work = report["work"]
    # by hand, from the members' own stages: shared ones count once and were made before them
    own = [s for row in report["members"] for s in row["stages"]]
    saved = sum(stage["seconds"] for stage in own if stage["reused"])
    assert work["alone"] - sum(s["seconds"] for s in own if not s["reused"]) == pytest.approx(
        saved, abs=0.01
    )
    assert 0 < work["shared"] < 1


@pytest.mark.slow
def test_workers_make_what_one_process_makes(
    again: dict[str, Any], text_task: dict[str, str], text_generalist: str, home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WINNOW_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = fleet(plan(text_task, text_generalist, MEMBERS[1:2]), home / "out")
    mine, theirs = stages(alone, "two"), stages(again["report"], "two")
    assert mine.keys() == theirs.keys() >= {"teach", "prune to 0.5", "export specialist"}
    # the order of a traced graph's nodes is its process's (hash seed), its INT8 form the clock's
    compared = {name for name in mine if name not in CLOCK and not name.startswith("export")}
    assert {name for name in compared if mine[name] != theirs[name]} == set()


@pytest.mark.slow
def test_run_again_it_reuses_everything_and_says_what_failed(again: dict[str, Any]) -> None:
    file = again["home"] / "fleet.yaml"
    file.write_text(yaml.safe_dump(again["fleet"].model_dump(mode="json")), encoding="utf-8")
    result = CliRunner().invoke(app, ["fleet", str(file), "--out", str(again["out"])])
    assert result.exit_code == 2, result.output
    assert "bad: task.train: /nowhere/train.csv" in result.output
    report = json.loads((again["out"] / "fleet.json").read_text())
    assert report["work"]["spent"] == 0 and report["work"]["found"] > 0
    assert all(stage["reused"] for row in report["members"] for stage in row["stages"])
    assert report["workers"] == 1


@pytest.mark.slow
def test_mlflow_shows_members_below_their_fleet_and_prefect_its_table(
    again: dict[str, Any],
) -> None:
    import mlflow
    from prefect.client.orchestration import get_client

    from tasks.embedded import embedded_prefect

    uri = f"sqlite:///{again['home'] / 'mlflow.db'}"
    client, run = mlflow.MlflowClient(uri, uri), again["report"]["mlflow"]["run_id"]
    whole = client.get_run(run)
    assert whole.info.status == "FINISHED" and whole.info.run_name == "desk-fleet"
    assert whole.data.metrics["members.pass"] == 2 and whole.data.metrics["members.refused"] == 1
    assert {item.path for item in client.list_artifacts(run)} == {"fleet.json", "fleet.md"}
    below = client.search_runs([whole.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'")
    assert sorted((x.info.run_name, x.info.status) for x in below) == [
        ("desk-all", "FINISHED"), ("desk-two", "FINISHED"),
    ]  # fmt: skip
    flow_run = whole.data.tags["prefect.flow_run_id"]
    with embedded_prefect(), get_client(sync_client=True) as api:
        wanted = {"flow_runs": {"id": {"any_": [flow_run]}}}
        found = {x["key"] for x in api.request("POST", "/artifacts/filter", json=wanted).json()}
        assert found >= {"desk-fleet", "desk-fleet-members", "desk-fleet-mlflow"}
        state = api.read_flow_run(flow_run).state
        assert state is not None and state.is_failed() and "bad: task.train" in str(state.message)


@pytest.mark.slow
def test_a_sweep_on_workers_is_the_sweep(
    home: Path, text_task: dict[str, str], text_generalist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers make the points; the same in one process then finds every one of them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plain = {"name": "tiny", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    points = {
        "prune": {"sparsity": None},
        "sweep": {"speedups": [], "sparsities": [0.5, 0.9]},
        "limits": {"samples": 0},
        "verify": {"repeats": 5},
    }
    recipe = Recipe.model_validate(merged(merged(plain, QUICK), points))
    spread = sweep(recipe, home / "spread", workers=2)
    here = sweep(recipe, home / "here")
    assert [row["point"] for row in spread["points"]] == [
        "50%-float32", "50%-int8", "90%-float32", "90%-int8",
    ]  # fmt: skip
    assert here["points"] == spread["points"] and here["picked"] == spread["picked"]
    assert set(here["seconds"]["stages"]) == set(spread["seconds"]["stages"])
    assert here["seconds"]["stages"] == spread["seconds"]["stages"]  # found, not made again
