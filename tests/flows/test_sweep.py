"""A sweep for real: its points, its front, its pick, its record, and a run that continues it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.specialize import specialize
from flows.sweep import sweep
from tasks.config import Recipe
from tasks.from_sweep import recipe_from_sweep
from tests.conftest import QUICK, merged
from tests.quiet import QUIET

pytestmark = QUIET

# a model as small as this is all overhead: half its own speed is in reach, whatever the clock says;
# the adaptive search adds one speed between the two
POINTS = {
    "prune": {"sparsity": None},
    "shrink": {"steps": 3, "generations": 1, "offspring": 2},
    "sweep": {
        "speedups": [0.4, 0.5],
        "sparsities": [0.5, 0.9],
        "search": "adaptive",
        "structures": 3,
    },
    "limits": {"samples": 16},
    "verify": {"repeats": 5},
}


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], text_generalist: str
) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("sweep-home")
    plain = {"name": "tiny", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    recipe = Recipe.model_validate(merged(merged(plain, QUICK), POINTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        report = sweep(recipe, home / "out")
    return {"home": home, "recipe": recipe, "report": report, "out": home / "out"}


@pytest.fixture
def out(swept: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sweep's folder, its stores in use."""
    monkeypatch.setenv("WINNOW_HOME", str(swept["home"]))
    return swept["out"]


def test_every_point_is_measured(out: Path) -> None:
    report = json.loads((out / "sweep.json").read_text())
    assert [row["point"] for row in report["points"]] == [
        "0.4x-float32", "0.4x-int8", "0.447x-float32", "0.447x-int8",
        "0.5x-float32", "0.5x-int8", "50%-float32", "50%-int8", "90%-float32", "90%-int8",
    ]  # fmt: skip
    by_name = {row["point"]: row for row in report["points"]}
    assert by_name["90%-float32"]["nonzero_ratio"] == pytest.approx(10, rel=0.05)
    assert by_name["50%-int8"]["bytes"] < by_name["50%-float32"]["bytes"]
    for row in report["points"]:
        low, high = row["drop_ci"]
        assert low <= row["drop"] <= high
        assert row["drop"] == pytest.approx(report["teacher"]["accuracy"] - row["accuracy"])
    assert json.dumps(report, allow_nan=False)


def test_a_speed_between_two_continues_from_the_slower_one(out: Path) -> None:
    report = json.loads((out / "sweep.json").read_text())
    ways = {row["point"]: row["path"] for row in report["points"]}
    # found last, so that the one above it did not come by it
    assert ways["0.447x-int8"] == [0.4, 0.447] and ways["0.5x-int8"] == [0.4, 0.5]


def test_the_order_of_the_tests_follows_held_out_divergence(out: Path) -> None:
    points = json.loads((out / "sweep.json").read_text())["points"]
    kl = [row["held_out"]["kl"] for row in sorted(points, key=lambda row: row["order"])]
    assert kl == sorted(kl)


def test_the_pick_passed_and_so_did_all_before_it(out: Path) -> None:
    report = json.loads((out / "sweep.json").read_text())
    picked = next(row for row in report["points"] if row["point"] == report["picked"])
    before = [row for row in report["points"] if row["order"] <= picked["order"]]
    assert all(row["drop_ci"][1] <= report["max_drop"] for row in before)


def test_the_front_holds_what_nothing_beats(out: Path) -> None:
    points = json.loads((out / "sweep.json").read_text())["points"]
    for cost in ("latency_ms", "bytes", "nonzero"):
        for row in points:
            beaten = any(
                other[cost] <= row[cost]
                and other["accuracy"] >= row["accuracy"]
                and (other[cost] < row[cost] or other["accuracy"] > row["accuracy"])
                for other in points
            )
            assert row["front"][cost] != beaten


def test_the_folder_holds_the_picture_and_the_page(out: Path) -> None:
    assert {path.name for path in out.iterdir()} >= {
        "sweep.json", "sweep.md", "sweep.html", "front.png", "recipe.yaml",
    }  # fmt: skip
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (out / "sweep.html").read_text()


def test_mlflow_and_prefect_hold_the_sweep(swept: dict[str, Any], out: Path) -> None:
    import mlflow

    uri = f"sqlite:///{swept['home'] / 'mlflow.db'}"
    run = mlflow.MlflowClient(uri, uri).get_run(swept["report"]["mlflow"]["run_id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "tiny-sweep"
    assert run.data.tags["winnow.picked"] == swept["report"]["picked"]
    history = mlflow.MlflowClient(uri, uri).get_metric_history(run.info.run_id, "points.accuracy")
    assert len(history) == len(swept["report"]["points"])


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("90%-int8", ["verify"]),
        (
            "0.447x-float32",
            ["quantize teacher", "export teacher-int8", "quantize specialist", "verify"],
        ),
    ],
)
def test_a_run_from_the_sweep_reuses_what_the_sweep_made(
    swept: dict[str, Any],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    extra: list[str],
) -> None:
    recipe = recipe_from_sweep(out, name)
    capsys.readouterr()
    report = specialize(recipe, out.parent / "run", out)
    told = capsys.readouterr().err.splitlines()
    computed = [line[2:].rpartition(":")[0] for line in told if line.startswith("+ ")]
    # the float run's third dense graph is float as well: none of the sweep's
    assert computed == extra
    row = next(row for row in swept["report"]["points"] if row["point"] == name)
    assert report["models"]["specialist"]["accuracy"] == row["accuracy"]
    assert report["models"]["specialist"]["bytes"] == row["bytes"]
    assert "front.png" in (out.parent / "run" / "card.md").read_text()
