"""The chain with structure: profile, steps of shrinking, a trimmed vocabulary, the ledger."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.tiny_encoder import SPECIALS, save_tiny_encoder
from exports.onnxfile import initializers, load_model
from flows.cli import app
from flows.fleet import fleet_flow
from flows.profile import profile_flow
from flows.specialize import specialize, specialize_flow
from flows.sweep import sweep_flow
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.fleet import Fleet
from tasks.predict import predict
from tasks.profile import require_profile
from tasks.recipes import load_recipe
from tasks.stage import without_prefect
from tasks.summary import print_summary
from tests.conftest import FILLERS, QUICK, WORDS, merged
from tests.flows.test_bad_input import check
from tests.quiet import QUIET

pytestmark = QUIET

STAGES = [
    "prepare", "load", "leaks", "teach", "quantize teacher",
    "export generalist", "export teacher", "export teacher-int8",
    "profile", "shrink 1 of 2", "shrink 2 of 2", "trim", "quantize specialist",
    "export pruned", "export specialist", "verify",
]  # fmt: skip

# budgets on bytes and weights: the times of models as small as these are all overhead
SMALLER = {
    "target": {"bytes": 80_000, "nonzero_ratio": 2},
    "prune": {"sparsity": None},
    "shrink": {"rungs": 2, "steps": 2, "generations": 1, "offspring": 2, "vocabulary_extra": 0},
    "verify": {"repeats": 5},
}


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer BERT whose tokenizer falls back to characters, with words the task lacks."""
    from tokenizers import Tokenizer, models

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted({*FILLERS, *(word for group in WORDS.values() for word in group)})
    others = [f"unused{letter}" for letter in letters]
    every = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words, *others]
    vocabulary = {word: row for row, word in enumerate(every)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    return save_tiny_encoder(tmp_path_factory.mktemp("wordpiece-generalist"), tokenizer)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], generalist: str
) -> Any:
    """A run under a bytes budget: its home, recipe and report."""
    home = tmp_path_factory.mktemp("shrinking-home")
    plain = {"name": "tiny", "generalist": {"source": generalist}, "task": dict(text_task)}
    plain = merged(merged(plain, QUICK), SMALLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        recipe = Recipe.model_validate(plain)
        report = specialize(recipe, home / "out")
    (table,) = (home / "store" / "profile").glob("*/table.json")
    return home, recipe, report | {"table": json.loads(table.read_text())}


def test_the_report_tells_what_was_taken(made: Any) -> None:
    home, recipe, _ = made
    report = json.loads((home / "out" / "report.json").read_text())
    assert [key for key in report["seconds"] if key != "total"] == STAGES
    left = {entry["branch"]: (entry["full"], entry["size"]) for entry in report["structure"]}
    assert len(left) == 4
    assert any(size != full for full, size in left.values())
    assert report["sparsity"]["nonzero_ratio"] >= recipe.target.nonzero_ratio
    rows = {row["kind"]: row for row in report["sparsity"]["ledger"]}
    assert {"structure", "vocabulary", "int8", "together"} <= set(rows)
    assert rows["structure"]["nominal"] >= 2
    assert rows["vocabulary"]["kept"] < rows["vocabulary"]["full"] == 110
    assert set(report["speed"]["predicted_ms"]) == {"float32", "int8"}
    assert report["speed"]["profile"]["same_host"] is True
    quantized = report["quantize"]
    assert quantized["route"] in ("static", "fused", "dynamic")
    assert sum(row["chosen"] for row in quantized["routes"]) == 1
    assert [row["samples"] for row in quantized["calibration"]] == [8, 16, 24]
    assert "onnx->pruned" in {row["hop"] for row in report["parity"]}
    assert json.dumps(report, allow_nan=False)


def test_what_is_served_has_the_smaller_vocabulary_and_still_reads_any_word(made: Any) -> None:
    home, _, report = made
    tokenizer = json.loads((home / "out" / "tokenizer.json").read_text())
    (row,) = [row for row in report["sparsity"]["ledger"] if row["kind"] == "vocabulary"]
    assert len(tokenizer["model"]["vocab"]) == row["kept"]
    assert "unuseda" not in tokenizer["model"]["vocab"]
    shapes = {tuple(tensor.dims) for tensor in _tensors(home / "out" / "specialist.onnx")}
    assert (row["kept"], 32) in shapes and (row["full"], 32) not in shapes
    texts = ["my card was lost", "zyzzyva unuseda"]
    for answer in predict(str(home / "out"), texts):
        assert answer["label"] in report["task"]["classes"]


def _tensors(path: Path) -> list[Any]:
    return list(initializers(load_model(path)).values())


def test_the_card_and_the_summary_tell_it(made: Any) -> None:
    home, _, report = made
    card = (home / "out" / "card.md").read_text()
    for text in ("## What is left of the structure", "## How it is quantized", "| vocabulary |"):
        assert text in card
    assert "None" not in card and "nan" not in card
    told = Console(file=io.StringIO(), width=120)
    print_summary(report, told)
    text = told.file.getvalue()  # type: ignore[attr-defined]
    for word in ("left ", "planned ", "alone ", "vocabulary 84 of 110"):
        assert word in text
    assert max(len(line) for line in text.splitlines() if line.startswith("alone")) < 120


def test_a_budget_out_of_reach_says_what_is_within(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, recipe, _ = made
    monkeypatch.setenv("WINNOW_HOME", str(home))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    check(
        path,
        "--set",
        "target.nonzero_ratio=20",
        "--set",
        "shrink.kinds=[heads]",
        words=("target.nonzero_ratio: 20 cannot be reached", "about 1.3"),
        out=tmp_path / "out",
    )


def test_latencies_of_another_machine_are_used_and_told(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home, recipe, first = made
    monkeypatch.setenv("WINNOW_HOME", str(home))
    plain = dict(first["table"], branch_ms=dict(first["table"]["branch_ms"]))
    path = tmp_path / "server.json"
    path.write_text(json.dumps(plain | {"host": {**plain["host"], "cpu": "another"}}))
    shrink = recipe.shrink.model_copy(update={"profile": str(path)})
    report = specialize(recipe.model_copy(update={"shrink": shrink}), tmp_path / "out")
    assert report["speed"]["profile"]["same_host"] is False
    assert report["speed"]["profile"]["cpu"] == "another"
    assert "made on another machine (another)" in capsys.readouterr().err
    # a file that lacks a size is refused before anything is shrunk
    key = sorted(plain["branch_ms"])[0]
    del plain["branch_ms"][key]
    path.write_text(json.dumps(plain))
    written = tmp_path / "recipe.yaml"
    shrunk = recipe.model_copy(update={"shrink": shrink})
    written.write_text(yaml.safe_dump(shrunk.model_dump(mode="json")))
    check(written, words=("lacks 1 of the", key, "winnow profile"), out=tmp_path / "none")


@pytest.mark.slow
def test_winnow_profile_writes_what_a_recipe_takes(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, recipe, first = made
    monkeypatch.setenv("WINNOW_HOME", str(home))
    path, out = tmp_path / "recipe.yaml", tmp_path / "server.json"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["profile", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "8 tokens" in result.stdout
    shrink = recipe.shrink.model_copy(update={"profile": str(out)})
    require_profile(recipe.model_copy(update={"shrink": shrink}))
    assert json.loads(out.read_text())["branch_ms"].keys() == first["table"]["branch_ms"].keys()


def test_winnow_profile_times_the_format_that_decides(
    write_recipe: Any, text_generalist: str, tmp_path: Path
) -> None:
    """Not the one that is stored, where shrink.plan_format names another."""
    path, out = write_recipe(text_generalist, quantize={"format": "none"}), tmp_path / "host.json"
    changes = ["shrink.plan_format=int8", "shrink.kinds=[neurons]", "target.speedup=0.5"]
    with without_prefect():
        profile_flow.fn(load_recipe(path, changes), str(out))
    recipe = load_recipe(path, [*changes, f"shrink.profile={out}"])
    require_profile(recipe.planned())
    assert recipe.quantize.format == "none"


def test_a_profile_is_checked_for_the_plan_before_anything_is_computed(
    write_recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "float.json"
    known = {"schema": 1, "host": {}, "threads": 1, "batch": 1, "generalist_ms": 2.0}
    file.write_text(json.dumps(known | {"base_ms": {"float32": 1.0}, "branch_ms": {}}))
    begun: list[Recipe] = []
    for module in ("specialize", "sweep"):
        monkeypatch.setattr(f"flows.{module}.begin", begun.append)
    path = write_recipe(quantize={"format": "none"}, shrink={"profile": str(file)})
    plans = load_recipe(path, ["shrink.plan_format=int8", "target.speedup=2"])
    with pytest.raises(RecipeError, match=r"has no int8 times.*shrink\.plan_format=int8"):
        specialize_flow.fn(plans, str(tmp_path / "out"))
    with pytest.raises(RecipeError, match=r"members\.one: .* has no int8 times"):
        plain = plans.model_dump(mode="json") | {"members": [{"name": "one"}]}
        fleet_flow.fn(Fleet.model_validate(plain), str(tmp_path / "out"))
    # a sweep plans with int8 where that is one of its formats
    with pytest.raises(RecipeError, match="has no int8 times"):
        sweep_flow.fn(load_recipe(path), str(tmp_path / "out"))
    assert not begun
