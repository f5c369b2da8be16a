"""What generated bad input (`benchmarks/bad_input.py`) found, each kept as its command."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from tests.tiny_specialists import image_specialist, text_specialist


def refused(*arguments: object) -> str:
    """Run a command that must end with exit code 2 and one line; returns the line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    assert len(lines) == 1 and result.stderr.rstrip("\n").endswith(lines[0])
    assert result.stdout == "" and "Traceback" not in result.output
    return lines[0]


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return text_specialist(tmp_path / "text")


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    return image_specialist(tmp_path / "image")


def test_a_name_longer_than_a_file_system_takes(
    tmp_path: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "my card"}\n')
    long = "x" * 300
    assert "--out" in refused("predict", text_model, "t.jsonl", "--out", f"{long}.csv")
    assert "recipe" in refused("specialize", long)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{name: x, generalist: {source: hf:gone}, task: {train: a.csv, test: b.csv}}")
    assert "--out" in refused("specialize", recipe, "--out", tmp_path / "t.jsonl" / long)
    for out in (tmp_path / long, tmp_path / "not there" / long / "inner"):
        for command in ("specialize", "sweep", "profile"):
            line = refused(command, recipe, "--out", out)
            assert "--out" in line and "name a shorter one" in line
    assert "--out" in refused("profile", recipe, "--out", "x" * 245)  # short of a temporary name
    assert "MODEL" in refused("predict", long, "my card")
    assert "no such file" in refused("predict", text_model, f"{long}.csv")
    assert "--deployments" in refused("deploy", "--deployments", long)
    os.symlink("nowhere", tmp_path / "link")
    assert "leads nowhere" in refused("specialize", recipe, "--out", "link")


@pytest.mark.parametrize("command", ["specialize", "sweep"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("prune.samples=" + "9" * 5000, "is not readable as a YAML value"),
        ("target.speedup=1e999", "finite number"),
        ("target.speedup=nan", "finite number"),
        ("verify.max_drop=1e-12", "greater than or equal to 0.000001"),
        ("verify.threads=1000000", "less than or equal to 1024"),
        ('task.train="a\\nb"', "one line of text"),
        ('task.train="a\\0b"', "one line of text"),
        ("track.model_name=../../x", "should match pattern"),
        ("name=../x", "should match pattern"),
        ("task.seed=" + "[" * 50, "is not readable as a YAML value"),
    ],
)
def test_values_beyond_reason(tmp_path: Path, command: str, option: str, words: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{name: x, generalist: {source: hf:gone}, task: {train: a.csv, test: b.csv}}")
    line = refused(command, recipe, "--set", option, "--out", tmp_path / "out")
    assert words in line and len(line) < 1300
    assert not (tmp_path / "out").exists()


def test_a_recipe_cannot_move_the_cursor(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: "a\\e[2Jb\\ud800\\u202e"\n')
    line = refused("specialize", recipe)
    assert "\x1b" not in line and "\u202e" not in line and "\ud800" not in line


# mtime: a test is called by its value, which must not depend on the second it is collected in
@pytest.mark.parametrize("content", [gzip.compress(b"{}", mtime=0), b"\xff\xfe{", b""])
def test_a_tokenizer_that_is_no_text(text_model: Path, content: bytes) -> None:
    (text_model / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json: not a fast tokenizer" in refused("predict", text_model, "my card")


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean", 1e9), ("std", None), ("size", "x"), ("size", [10**9, 10**9]), ("size", [0, 4]),
     ("labels", 3), ("resize", 10**10), ("mean", {}), ("size", [1e400, 1])],
)  # fmt: skip
def test_preprocessing_that_winnow_did_not_write(
    image_model: Path, tmp_path: Path, field: str, value: Any
) -> None:
    path = image_model / "preprocess.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    assert "preprocess.json" in refused("predict", image_model, tmp_path / "x.png")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", '"x"'])
def test_preprocessing_that_is_no_object(text_model: Path, content: str) -> None:
    (text_model / "preprocess.json").write_text(content)
    assert "preprocess.json" in refused("predict", text_model, "my card")


@pytest.mark.parametrize("where", ["../secret.bin", "{root}/secret.bin", "gone.bin"])
def test_a_graph_whose_weights_lie_elsewhere(text_model: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    path = text_model / "specialist.onnx"
    graph = onnx.load(path)
    weight = graph.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=where.format(root=tmp_path))
    path.write_bytes(graph.SerializeToString())
    assert "ONNX Runtime does not load it" in refused("predict", text_model, "my card")


@pytest.mark.parametrize("damage", ["footer", "page", "half"])
@pytest.mark.parametrize("out", [False, True])
def test_a_damaged_parquet_file(text_model: Path, tmp_path: Path, damage: str, out: bool) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"my card {k}" for k in range(500)]}), path)
    raw = bytearray(path.read_bytes())
    (footer,) = struct.unpack("<I", raw[-8:-4])
    start = len(raw) - 8 - footer
    if damage == "footer":
        raw[start : start + 40] = b"\xff" * 40
    elif damage == "page":
        raw[4:200] = b"\xff" * 196
    else:
        del raw[len(raw) // 2 :]
    path.write_bytes(raw)
    options = ["--out", tmp_path / "answers.csv"] if out else []
    assert "t.parquet" in refused("predict", text_model, path, *options)
    assert not (tmp_path / "answers.csv").exists()


def test_rows_that_json_nests_or_halves(text_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "my card"}\n{"text": ' + "[" * 100_000 + "\n")
    assert "row 1: nested too deep" in refused(
        "predict", text_model, path, "--out", tmp_path / "a.csv"
    )
    path.write_text('{"text": "a\\ud800"}\n')
    assert "not valid Unicode" in refused("predict", text_model, path)


def test_a_file_whose_name_is_no_text_is_answered_all_the_same(
    image_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    Image.new("RGB", (9, 9), (200, 0, 0)).save(odd)
    result = CliRunner().invoke(app, ["predict", str(image_model), str(folder)])
    assert result.exit_code == 0 and result.stdout.startswith("red\t")
    out = tmp_path / "a.csv"
    result = CliRunner().invoke(app, ["predict", str(image_model), str(folder), "--out", str(out)])
    assert result.exit_code == 0 and "\\udcff" in out.read_text()


@pytest.mark.parametrize("missing", ["task", "models", "verdict", "speed"])
def test_a_report_that_lacks_a_part_is_not_printed_halfway(tmp_path: Path, missing: str) -> None:
    stored = json.loads((Path(__file__).parents[1] / "exports" / "full_report.json").read_text())
    del stored[missing]
    (tmp_path / "report.json").write_text(json.dumps(stored))
    assert "is not a report of this version" in refused("report", tmp_path)


def test_a_damaged_sweep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("[" * 100_000)
    line = refused("specialize", "--from-sweep", tmp_path, "--out", tmp_path / "out")
    assert "is not a sweep of this version" in line


def test_an_image_from_a_pipe_is_not_waited_for(image_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert "is a device or a pipe" in refused("predict", image_model, tmp_path / "x.png")
    shutil.rmtree(image_model)
