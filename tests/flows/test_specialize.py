"""The whole chain on a tiny text task: a real Prefect server, a real MLflow store, real files."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.specialize import specialize
from tasks import cache
from tasks.config import Recipe
from tests.conftest import QUICK, merged
from tests.quiet import QUIET

pytestmark = QUIET

STAGES = [
    "prepare",
    "load",
    "leaks",
    "teach",
    "quantize teacher",
    "export generalist",
    "export teacher",
    "export teacher-int8",
    "prune to 0.5",
    "quantize specialist",
    "export pruned",
    "export specialist",
    "verify",
]


class Run:
    """One home with what was run in it."""

    def __init__(self, home: Path, plain: dict[str, Any]) -> None:
        self.home, self.plain, self.out = home, plain, home / "out"
        self.uri = f"sqlite:///{home / 'mlflow.db'}"

    def recipe(self, **changes: Any) -> Recipe:
        return Recipe.model_validate(merged(self.plain, changes))

    def again(self, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[Any, list[str]]:
        """Run with changes; returns the report and the titles of the stages that were computed."""
        capsys.readouterr()
        report = specialize(self.recipe(**changes), self.out)
        told = capsys.readouterr().err.splitlines()
        computed = [line[2:].rpartition(":")[0] for line in told if line.startswith("+ ")]
        reused = [line[2:].partition(": reused")[0] for line in told if line.startswith("= ")]
        assert sorted(computed + reused) == sorted(STAGES), told
        return report, computed


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], text_generalist: str
) -> Run:
    """The first run, of which the tests look at the traces."""
    home = tmp_path_factory.mktemp("specialize-home")
    plain = {"name": "tiny", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    quick = merged(QUICK, {"task": {"unlabelled": "rest"}, "quantize": {"embeddings": "int8"}})
    run = Run(home, merged(plain, quick))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        run.report = specialize(run.recipe(), run.out)  # type: ignore[attr-defined]
    return run


@pytest.fixture
def run(first: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The first run; `home` is asked for so that its own setting comes before this one."""
    monkeypatch.setenv("WINNOW_HOME", str(first.home))
    yield first


def test_the_report_keeps_its_schema(run: Run) -> None:
    report = json.loads((run.out / "report.json").read_text())
    assert report["schema"] == 1
    assert set(report) >= {
        "task", "models", "accuracy", "speed", "sparsity", "interplay", "parity", "verdict",
        "mlflow", "host", "seconds",
    }  # fmt: skip
    assert report["task"]["support"]["n"] == 24
    assert report["task"]["leaks"] == 0
    for name in ("generalist", "teacher", "specialist"):
        facts = report["models"][name]
        assert facts["parameters"] >= facts["nonzero"] > 0
        assert facts["bytes"] > 0 and facts["latency_ms"] > 0
    assert report["models"]["generalist"]["accuracy"] is None
    assert report["models"]["teacher"]["accuracy"] > 1 / 3
    assert report["sparsity"]["nonzero_ratio"] == pytest.approx(2, rel=0.05)
    assert report["models"]["specialist"]["bytes"] == (run.out / "specialist.onnx").stat().st_size
    hops = {hop["hop"]: hop for hop in report["parity"]}
    assert set(hops) >= {
        "preprocess", "torch->onnx", "onnx->pruned", "preprocess specialist",
        "torch->onnx specialist", "pruned->int8", "int8->served",
    }  # fmt: skip
    assert hops["preprocess"]["max_abs"] == 0 and hops["torch->onnx"]["max_abs"] < 1e-3
    assert not any(hop["broken"] for hop in report["parity"])
    assert report["leaks"]["exact"] == 0
    per_class = report["accuracy"]["per_class"]
    assert [row["class"] for row in per_class] == report["task"]["classes"]
    assert sum(row["n"] for row in per_class) == report["task"]["test"]["n"]
    assert report["limits"]["outside"]["n"] > 1
    assert {row["kind"] for row in report["limits"]["corruptions"]} == {"typos"}
    assert report["champion"]["action"] in ("first", "not passed")
    drop = report["models"]["teacher"]["accuracy"] - report["models"]["specialist"]["accuracy"]
    assert report["accuracy"]["drop"] == pytest.approx(drop)
    low, high = report["accuracy"]["drop_ci"]
    assert low <= drop <= high
    assert [key for key in report["seconds"] if key != "total"] == STAGES
    assert set(report["models"]) == {"generalist", "teacher", "specialist"}
    assert {row["kind"] for row in report["sparsity"]["ledger"]} == {
        "unstructured 50%, bytes only", "int8", "together",
    }  # fmt: skip
    assert json.dumps(report, allow_nan=False)


def test_the_folder_holds_what_is_promised(run: Run) -> None:
    assert {path.name for path in run.out.iterdir()} == {
        "specialist.onnx", "preprocess.json", "tokenizer.json", "card.md", "card.html",
        "tradeoff.png", "per-class.png", "calibration.png", "report.json", "recipe.yaml",
    }  # fmt: skip
    again = Recipe.model_validate(yaml.safe_load((run.out / "recipe.yaml").read_text()))
    assert again == run.recipe()
    assert (run.out / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def mlflow_client(run: Run) -> Any:
    import mlflow

    return mlflow.MlflowClient(run.uri, run.uri)


def test_mlflow_holds_one_run_with_a_nested_one_a_stage(run: Run) -> None:
    client = mlflow_client(run)
    parent = client.get_run(run.report["mlflow"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["prune.sparsity"] == "0.5"
    assert parent.data.metrics["models.specialist.accuracy"] == pytest.approx(
        run.report["models"]["specialist"]["accuracy"]
    )
    inputs = {item.dataset.name: item.dataset for item in parent.inputs.dataset_inputs}
    digest = run.report["task"]["support"]["sha256"]
    assert digest.startswith(inputs["tiny-support"].digest) and len(inputs) == 2
    logged = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert logged >= {"report.json", "card.md", "tradeoff.png", "recipe.yaml", "specialist.onnx"}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert sorted(child.info.run_name for child in children) == sorted(STAGES)
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        assert [item.path for item in client.list_artifacts(child.info.run_id)] == ["artifact.json"]
        assert child.data.metrics["seconds"] >= 0 and child.data.tags["winnow.sha256"]


def test_prefect_and_mlflow_name_each_other(run: Run) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import TaskRunSort

    from tasks.embedded import embedded_prefect

    tags = mlflow_client(run).get_run(run.report["mlflow"]["run_id"]).data.tags
    assert tags["prefect.flow_run_id"] in tags["prefect.flow_run_url"]
    with embedded_prefect(), get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(tags["prefect.flow_run_id"])
        assert flow_run.state is not None and flow_run.state.is_completed()
        wanted = {"flow_runs": {"id": {"any_": [str(flow_run.id)]}}}
        response = client.request("POST", "/artifacts/filter", json=wanted)
        asked = FlowRunFilter.model_validate({"id": {"any_": [str(flow_run.id)]}})
        order = TaskRunSort.ID_DESC
        task_runs = client.read_task_runs(flow_run_filter=asked, sort=order, limit=50)
    # the flow run is marked as its process's; a task with a tag would be asked for limits, which
    # costs two seconds where SQLite is written to meanwhile
    assert any(tag.startswith("winnow-process-") for tag in flow_run.tags)
    assert task_runs and not any(each.tags for each in task_runs)
    found = {artifact["key"]: artifact for artifact in response.json()}
    assert set(found) >= {"tiny-models", "tiny-card", "tiny-tradeoff", "tiny-mlflow"}
    assert run.report["mlflow"]["run_id"] in str(found["tiny-mlflow"]["data"])


def test_the_registered_model_answers_without_torch(run: Run) -> None:
    text = json.loads(Path(run.plain["task"]["test"]).read_text().splitlines()[0])["text"]
    uri = run.report["mlflow"]["model_uri"]
    script = (
        "import sys, mlflow\n"
        f"frame = mlflow.pyfunc.load_model({uri!r}).predict([{text!r}])\n"
        "row = frame.iloc[0]\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)\n"
        "print(row['label'], row['probability'])\n"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": run.uri}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, env=env, cwd=run.home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    from tasks.predict import predict

    (ours,) = predict(str(run.out), [text])
    assert label == ours["label"]
    assert float(probability) == pytest.approx(ours["probability"], abs=1e-6)
    assert predict(uri, [text]) == [ours]


def test_champion_is_set_on_a_pass_only(run: Run) -> None:
    client, mlflow = mlflow_client(run), run.report["mlflow"]
    aliases = client.get_registered_model("tiny").aliases
    passed = run.report["verdict"]["status"] == "pass"
    assert mlflow["alias"] == ("champion" if passed else None)
    assert ("champion" in aliases) == passed
    version = client.get_model_version("tiny", mlflow["model_uri"].rpartition("/")[2])
    assert version.tags["winnow.verdict"] == run.report["verdict"]["status"]


def test_a_rerun_reuses_every_stage_and_the_version(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    report, computed = run.again(capsys)
    assert computed == []
    assert report["mlflow"]["model_uri"] == run.report["mlflow"]["model_uri"]
    assert report["mlflow"]["run_id"] != run.report["mlflow"]["run_id"]
    assert len(mlflow_client(run).search_model_versions("name = 'tiny'")) == 1
    assert (run.report["champion"]["action"], report["champion"]["action"]) == ("first", "same")
    same = [key for key in report if key not in ("mlflow", "seconds", "page", "champion")]
    assert {key: report[key] for key in same} == {key: run.report[key] for key in same}


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({"track": {"experiment": "other"}}, []),
        ({"verify": {"max_drop": 0.4}}, ["prepare", "verify"]),
        (
            {"quantize": {"activation_rule": "minmax"}},
            ["export teacher-int8", "export specialist", "verify"],
        ),
    ],
    ids=["track", "verify", "activation"],
)
def test_a_changed_value_recomputes_exactly_what_depends_on_it(
    run: Run, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], computed: list[str]
) -> None:
    assert run.again(capsys, **changes)[1] == computed


@pytest.mark.parametrize(
    ("touched", "computed"),
    [
        ("compression/sweep.py", ["quantize teacher", "prune to 0.5", "quantize specialist"]),
        ("models/teacher.py", ["teach"]),
        ("exports/parity.py", ["verify"]),
        ("tasks/progress.py", []),
    ],
)
def test_a_touched_file_recomputes_exactly_the_stages_that_reach_it(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    touched: str,
    computed: list[str],
) -> None:
    for room in cache.ROOMS:
        shutil.copytree(cache.ROOT / room, tmp_path / room)
    with (tmp_path / touched).open("a") as source:
        source.write("# touched\n")
    digest = cache.code_digest
    monkeypatch.setattr(cache, "code_digest", lambda module, _: digest(module, tmp_path))
    # what is made again is bit for bit what was there, so that nothing after it is made again
    assert run.again(capsys)[1] == computed


def test_other_content_of_the_test_set_recomputes_what_looks_at_it(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    moved = tmp_path / Path(run.plain["task"]["test"]).name  # the card tells the file's name
    shutil.copyfile(run.plain["task"]["test"], moved)
    same = {"task": {"test": str(moved)}}
    assert run.again(capsys, **same)[1] == []  # another path, the same content
    lines = moved.read_text().splitlines()
    moved.write_text("\n".join(lines[1:]) + "\n")
    assert run.again(capsys, **same)[1] == ["prepare", "leaks", "verify"]


@pytest.mark.slow
def test_cache_off_recomputes_everything(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in (run.home / "store" / "export").iterdir()}
    _, computed = run.again(capsys, cache="off")
    assert sorted(computed) == sorted(STAGES)
    assert {path.name for path in (run.home / "store" / "export").iterdir()} == before


def test_a_damaged_artifact_is_made_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for weights in (run.home / "store" / "teach").glob("*/model.safetensors"):
        weights.write_bytes(b"")
    assert run.again(capsys)[1] == ["teach"]


def test_failed_runs_end_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.teach import teach

    def broken(*_: object, **__: object) -> dict[str, Any]:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(teach, "body", broken)
    with pytest.raises(RuntimeError, match="no such luck"):
        specialize(run.recipe(teacher={"steps": 5}), run.out)
    client = mlflow_client(run)
    experiment = client.get_experiment_by_name("winnow")
    newest = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])[0]
    assert newest.info.status == "FAILED"
    assert newest.data.tags["winnow.error"] == "no such luck"
    running = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    assert len(running) == 0


def test_numbers_are_finite(run: Run) -> None:
    def walk(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)
        elif isinstance(value, float):
            yield value

    assert all(math.isfinite(number) for number in walk(run.report))


def test_images_go_the_same_way(
    tmp_path: Path, image_task: dict[str, str], image_generalist: str
) -> None:
    from tasks.predict import predict

    plain = {"name": "tiny-images", "generalist": {"source": image_generalist}, "task": image_task}
    recipe = Recipe.model_validate(merged(plain, QUICK))
    report = specialize(recipe, tmp_path / "out")
    # the label space knows the classes, so the untouched generalist is scored too
    assert 0 <= report["models"]["generalist"]["accuracy"] <= 1
    assert report["models"]["generalist"]["nonzero"] > report["models"]["specialist"]["nonzero"]
    picture = str(next(Path(image_task["test"], "red").iterdir()))
    (row,) = predict(str(tmp_path / "out"), [picture])
    assert row["label"] in report["task"]["classes"]
    (same,) = predict(report["mlflow"]["model_uri"], [picture])
    assert same == row
