"""Every bad input ends with exit code 2 and one line, before any compute, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.settings import temporary_settings
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows.cli import app
from tests.conftest import text_rows, write_rows

# Prefect's temporary server is started by the first flow and ended when the tests' process ends
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

Write = Callable[..., Path]


def check(recipe: Path, *options: str, words: tuple[str, ...], out: Path) -> str:
    """Run, and hold the result against the contract; returns the one line."""
    arguments = ["specialize", str(recipe), "--out", str(out), *options]
    existed = out.exists()
    result = CliRunner().invoke(app, arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.rstrip().endswith(lines[0])
    for word in words:
        assert word in lines[0]
    assert out.exists() == existed
    return lines[0]


@pytest.fixture
def nothing_half_written(home: Path) -> Any:
    """After the test: no MLflow run, no unfinished artifact."""
    yield
    assert not (home / "mlflow.db").exists()
    assert list(home.glob("store/*/.making-*")) == []
    assert {path.parent.name for path in home.glob("store/*/*")} <= {"prepare", "load", "leaks"}


pytestmark = [pytestmark, pytest.mark.usefixtures("nothing_half_written")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "prune.sparsity=1.5"), ("prune.sparsity", "1.5", "less than 1")),
        (("--set", "task.shots=0"), ("task.shots", "0", "greater than or equal to 1")),
        (("--set", "prune.pattern=5:4"), ("prune.pattern", "5:4", "2:4")),
        (("--set", "target.speedup=-2"), ("target.speedup", "-2")),
        (
            ("--set", "target.nonzero_ratio=50", "--set", "prune.sparsity=0.5"),
            ("target.nonzero_ratio", "50", "0.98"),
        ),
        (("--set", "shrink.kinds=[fingers]"), ("shrink.kinds", "fingers", "heads")),
        (("--set", "shrink.rungs=0"), ("shrink.rungs", "0", "greater than or equal to 1")),
        (("--set", "quantize.format=int2"), ("quantize.format", "int2", "int4")),
        (("--set", "verify.tokens=999"), ("verify.tokens", "999", "generalist.max_length")),
        (
            (
                *("--set", "target.speedup=3", "--set", "quantize.format=none"),
                *("--set", "shrink.kinds=[vocabulary]"),
            ),
            ("target.speedup", "3", "quantize.format none", "heads"),
        ),
        (("--set", "shrink.profile=gone.json"), ("shrink.profile", "gone.json", "winnow profile")),
        (("--set", "prune"), ("--set", "'prune'", "section.field=value")),
        (("--set", "prune.sparsty=0.5"), ("--set", "prune.sparsty", "did you mean sparsity?")),
        (("--set", "task.train=missing.jsonl"), ("task.train", "missing.jsonl", "no such file")),
        (("--set", "task.label_column=topic"), ("task.label_column", "'topic'", "text, intent")),
        (("--set", "task.text_column=body"), ("task.text_column", "'body'", "text, intent")),
        (("--set", "task.image_column=text"), ("task.image_column", "'text'", "no images")),
        (("--set", "task.classes=[card]"), ("task.classes", "'card'", "one class only")),
        (("--set", "task.classes=[card, boat]"), ("task.classes", "'boat'", "no example")),
        (("--set", "task.shots=500"), ("task.shots", "500", "'card'", "30 distinct")),
        (("--set", "task.train=some/dataset"), ("task.train", "some/dataset", "hub")),
    ],
    ids=lambda value: value[-1] if isinstance(value[0], str) and "--set" in value else "",
)
def test_a_value_of_the_recipe(
    write_recipe: Write, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    check(write_recipe(), *options, words=words, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ("is not JSON",)),
        ("[1, 2]", ("is not a profile",)),
        ('{"schema": 1}', ("is not a profile",)),
        (
            '{"schema": 7, "host": {}, "threads": 1, "batch": 1, "base_ms": {}, "branch_ms": {}, '
            '"generalist_ms": 1}',
            ("has schema 7, expected 1",),
        ),
    ],
)
def test_a_profile_that_cannot_be_planned_with(
    write_recipe: Write, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "server.json"
    path.write_text(content)
    recipe = write_recipe(shrink={"profile": str(path)}, target={"speedup": 2})
    words = ("shrink.profile", str(path), *words, "winnow profile")
    check(recipe, words=words, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("recipe.yaml", "not a file")),
        ("name: [", ("recipe.yaml", "not readable as YAML")),
        ("just words", ("recipe.yaml", "holds str")),
        ("name: x\nspeed: 3", ("speed", "no such field")),
        ("name: x", ("generalist", "missing")),
    ],
)
def test_the_recipe_itself(tmp_path: Path, content: str | None, words: tuple[str, ...]) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    check(path, words=words, out=tmp_path / "out")


def test_the_output_folder_is_a_file(write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    check(write_recipe(), words=("--out", "taken is a file"), out=tmp_path / "taken")
    check(write_recipe(), words=("--out", "taken is a file"), out=tmp_path / "taken" / "inner")


def test_the_home_is_a_file(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "taken"))
    check(write_recipe(), words=("WINNOW_HOME", "is a file"), out=tmp_path / "out")


def test_an_empty_text(write_recipe: Write, tmp_path: Path) -> None:
    rows = [*text_rows(10, 5), {"text": "  ", "intent": "card"}]
    path = write_rows(tmp_path / "train.jsonl", rows)
    recipe = write_recipe(task={"test": str(path)})
    check(recipe, words=("task.test", "train.jsonl, row 30", "empty"), out=tmp_path / "out")


def test_a_leak(write_recipe: Write, tmp_path: Path, text_task: dict[str, str]) -> None:
    words = ("task.test", "also in", "leaks.exact: drop")
    check(write_recipe(task={"test": text_task["train"]}), words=words, out=tmp_path / "out")


def test_a_near_leak(
    write_recipe: Write, tmp_path: Path, text_task: dict[str, str], text_generalist: str
) -> None:
    shown = [json.loads(line) for line in Path(text_task["train"]).read_text().splitlines()]
    rows = [{**row, "text": f"{row['text'].capitalize()}!"} for row in shown]
    test = write_rows(tmp_path / "test.jsonl", rows)
    recipe = write_recipe(text_generalist, task={"test": str(test)}, leaks={"near": "stop"})
    words = ("task.test", str(test), "nearly the same", "leaks.near: drop")
    check(recipe, words=words, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("leaks.exact=ignore", ("leaks.exact", "ignore", "stop")),
        ("leaks.conflicts=drop", ("leaks.conflicts", "drop", "stop")),
        ("task.allow_leaks=true", ("task.allow_leaks",)),
    ],
)
def test_a_policy_for_leaks(
    write_recipe: Write, tmp_path: Path, option: str, words: tuple[str, ...]
) -> None:
    check(write_recipe(), "--set", option, words=words, out=tmp_path / "out")


def test_a_corrupt_image(
    write_recipe: Write, tmp_path: Path, image_task: dict[str, str], image_generalist: str
) -> None:
    broken = tmp_path / "test"
    shutil.copytree(image_task["test"], broken)
    picture = broken / "green" / "3.png"
    picture.write_bytes(picture.read_bytes()[:200])
    task = {"train": image_task["train"], "test": str(broken)}
    recipe = write_recipe(image_generalist, task=task)
    check(recipe, words=("task.test", str(broken), "damaged image"), out=tmp_path / "out")


def test_texts_for_an_image_generalist(
    write_recipe: Write, tmp_path: Path, image_generalist: str
) -> None:
    words = ("generalist.source", "takes images", "holds texts")
    check(write_recipe(image_generalist), words=words, out=tmp_path / "out")


def copied(generalist: str, target: Path) -> Path:
    shutil.copytree(generalist.partition("hf:")[2] or generalist.rpartition(":")[2], target)
    return target


def test_not_a_number_in_the_weights(
    write_recipe: Write, tmp_path: Path, text_generalist: str
) -> None:
    folder = copied(text_generalist, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = sorted(key for key in state if key.endswith("query.weight"))[0]
    state[name][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    check(
        write_recipe(f"hf:{folder}"), words=("model.safetensors", name, "NaN"), out=tmp_path / "o"
    )


def test_a_pickle_where_safetensors_belong(
    write_recipe: Write, tmp_path: Path, text_generalist: str
) -> None:
    folder = copied(text_generalist, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    words = (str(folder), "pytorch_model.bin", "model.safetensors")
    check(write_recipe(f"hf:{folder}"), words=words, out=tmp_path / "out")


def test_an_unknown_architecture(
    write_recipe: Write, tmp_path: Path, image_generalist: str, image_task: dict[str, str]
) -> None:
    folder = copied(image_generalist, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "resnet19"}))
    recipe = write_recipe(f"timm:local-dir:{folder}", task=image_task)
    check(recipe, words=("'resnet19'", "did you mean"), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf:./nowhere", ("./nowhere", "no such folder")),
        ("timm:local-dir:nowhere", ("nowhere", "no such folder")),
        ("hf:package:not_installed/model", ("not_installed", "not installed")),
        ("keras:resnet50", ("keras:resnet50", "timm:NAME")),
        ("hf:someone/something", ("hf:someone/something",)),
    ],
)
def test_a_generalist_that_is_not_there(
    write_recipe: Write, tmp_path: Path, source: str, words: tuple[str, ...]
) -> None:
    check(write_recipe(source), words=words, out=tmp_path / "out")


def test_a_layer_to_keep_dense_that_is_not_there(
    write_recipe: Write, tmp_path: Path, text_generalist: str
) -> None:
    recipe = write_recipe(text_generalist, prune={"keep_dense": ["stem", "conv9"]})
    check(recipe, words=("prune.keep_dense", "'conv9'"), out=tmp_path / "out")


def test_servers_that_do_not_answer(
    write_recipe: Write, tmp_path: Path, text_generalist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write_recipe(text_generalist), tmp_path / "out"
    nobody = "http://127.0.0.1:9"
    with temporary_settings({"api.url": f"{nobody}/api"}):
        check(recipe, words=("PREFECT_API_URL", nobody, "unset"), out=out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    check(recipe, words=("MLFLOW_TRACKING_URI", nobody, "unset"), out=out)
