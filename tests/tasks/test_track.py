"""What a run leaves behind: the version's tags and files, the champion, the folder, the record."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from exports.reference import load_reference, shortened
from exports.runtime import host_profile
from exports.specialist import Specialist
from tasks import promotion, registry
from tasks.artifacts import Artifact, publish, workspace
from tasks.champions import SOURCES
from tasks.config import Recipe
from tasks.promotion import promote
from tasks.splits import Split
from tasks.track import track, tracked
from tests.conftest import WORDS, text_rows
from tests.exports.reports import full_report
from tests.quiet import QUIET
from tests.tasks.test_promotion import FEW, SOME, empty_store  # noqa: F401  (a fixture)
from tests.tiny_specialists import text_specialist

pytestmark = QUIET
CLASSES = sorted(WORDS)


def artifact(stage: str, key: str, fill: Callable[[Path], dict[str, Any]]) -> Artifact:
    with workspace(stage) as folder:
        metrics = fill(folder)
        return publish(folder, stage=stage, key=key, metrics=metrics, seconds=1.0)


def split(count: int, seed: int) -> Split:
    rows = text_rows(count, seed)
    return Split(
        tuple(row["text"] for row in rows),
        tuple(CLASSES.index(row["intent"]) for row in rows),
        tuple(f"{seed}-{at}" for at in range(len(rows))),
    )


@pytest.fixture
def run(home: Path, tmp_path: Path, empty_store: Path) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """A function that tracks a run with a specialist made by hand; returns its report."""
    shutil.copy(empty_store, home / "mlflow.db")
    count = 0

    def call(
        known: Any = SOME,
        *,
        kept: list[int] | None = None,
        verdict: str = "pass",
        out: Path = tmp_path / "out",
        **track_section: Any,
    ) -> dict[str, Any]:
        nonlocal count
        count += 1
        facts: dict[str, Any] = {"modality": "text", "classes": CLASSES, "leaks": 0}

        def prepared(folder: Path) -> dict[str, Any]:
            for name, made in (("support", split(8, 1)), ("test", split(40, 7))):
                made.save(folder / f"{name}.parquet", "text")
                facts[name] = {"n": len(made), "sha256": made.sha256()}
            return {**facts, "sources": {"train": "of a", "test": "of b"}}

        def exported(folder: Path) -> dict[str, Any]:
            text_specialist(folder, known)
            (folder / "specialist.onnx").rename(folder / "model.onnx")
            return {}

        def verified(folder: Path) -> dict[str, Any]:
            report = full_report()
            for key in ("mlflow", "champion", "seconds"):
                del report[key]
            report["models"]["pruned"] = report["models"]["specialist"]
            report["task"] |= {"name": "tiny", **facts}
            report["verdict"]["status"] = verdict
            report["host"] = host_profile()
            (folder / "report.json").write_text(json.dumps(report))
            return {}

        data = artifact("prepare", "data", prepared)
        recipe = Recipe.model_validate(
            {
                "name": "tiny",
                "generalist": {"source": "hf:x"},
                "task": {"train": "a", "test": "b"},
                "verify": {"max_drop": 0.1, "repeats": 30},
                "track": track_section,
            }
        )
        with tracked(recipe) as run_id:
            return track.fn(
                recipe,
                run_id,
                data,
                artifact("export", f"specialist-{count}", exported),
                artifact("verify", f"verified-{count}", verified),
                [],
                out,
                time.time(),
                kept=kept,
            )

    return call


def test_a_version_carries_what_it_was_made_of(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    report = run()
    assert report["champion"]["action"] == "first" and report["mlflow"]["alias"] == "champion"
    version = registry.champion_of("tiny")
    assert version is not None and version.uri == report["mlflow"]["model_uri"]
    assert version.tags["winnow.run_id"] == report["mlflow"]["run_id"]
    assert version.tags["winnow.verdict"] == "pass"
    for name in ("support", "test"):
        assert version.tags[f"winnow.{name}_sha256"] == report["task"][name]["sha256"]
    assert report["host"]["cpu"] in version.tags["winnow.host"]
    assert len(version.tags["winnow.recipe_sha256"]) == 64
    (tmp_path / "fetched").mkdir()
    folder = registry.fetch_model(version.uri, tmp_path / "fetched")
    plain = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert Recipe.model_validate(plain).name == "tiny"
    assert json.loads((folder / "host.json").read_text()) == report["host"]
    assert json.loads((folder / "report.json").read_text())["models"] == report["models"]
    assert (folder / "card.md").read_text().startswith("# ")
    assert "<html" in (folder / "card.html").read_text()
    # what a recheck tells known examples from new ones by, and a watch changed data
    reference = load_reference(folder / "reference.npz")
    assert reference.classes == tuple(CLASSES) and reference.judged.all()
    assert shortened("7-0") in reference.known and shortened("1-0") in reference.learnt
    assert len(reference.rows) == len(reference.test) == 120 and len(reference.support) == 24
    sources = json.loads(version.tags[SOURCES])
    assert sources["test"] == {"name": "b", "digest": "of b"} and sources["train"]["name"] == "a"
    Specialist.load(folder)  # verified on this host: nothing to warn of, and warnings are errors
    with registry.pointed():
        client = mlflow.MlflowClient()
        assert client.get_model_version("tiny", version.number).description.startswith("pass: 3 ")
        about = client.get_registered_model("tiny").description
    assert about.startswith("# ") and "Verdict" in about and about.count("\n## ") <= 2
    # the folder's card tells what became of the version; the version's own cannot know yet
    assert (
        report["champion"] == json.loads((tmp_path / "out" / "report.json").read_text())["champion"]
    )


def test_without_a_folder_for_its_results_there_is_no_version(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(OSError):
        run(out=tmp_path / ("x" * 300))
    assert registry.champion_of("tiny") is None
    with registry.pointed():
        assert not mlflow.MlflowClient().search_model_versions()


def test_a_rerun_is_the_same_version_and_a_change_is_another(
    run: Callable[..., dict[str, Any]],
) -> None:
    first = run()
    again = run()
    assert again["mlflow"]["model_uri"] == first["mlflow"]["model_uri"]
    assert again["champion"]["action"] == "same" and again["mlflow"]["alias"] == "champion"
    better = run(WORDS)
    assert better["champion"]["action"] == "promoted" and better["champion"]["previous"] == "1"
    worse = run(FEW)
    assert worse["champion"]["action"] == "kept" and worse["champion"]["version"] == "2"
    assert worse["mlflow"]["alias"] is None
    failed = run(WORDS, verdict="fail")
    assert failed["champion"]["action"] == "not passed"
    assert failed["mlflow"]["model_uri"] == "models:/tiny/4"
    unregistered = run(WORDS, register=False)
    assert unregistered["champion"] is None and unregistered["mlflow"]["model_uri"] is None


def test_only_the_rows_that_were_judged_are_compared(run: Callable[..., dict[str, Any]]) -> None:
    run(FEW, promote="never")
    run(SOME, promote="never", kept=list(range(100)))
    assert promote("tiny/1")["action"] == "first"
    assert promote("tiny/2")["comparison"]["n"] == 100
    assert promotion.promote("tiny/1")["comparison"]["n"] == 120
