"""Batch prediction: what goes in, what comes out, in which order, and what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from exports.runtime import host_profile
from exports.specialist import Specialist
from flows.cli import app
from tests.conftest import text_rows, write_rows
from tests.tiny_specialists import image_specialist, text_specialist

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return text_specialist(tmp_path / "texts")


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A specialist and a folder of images in folders, with something that is none."""
    photos = tmp_path / "photos"
    for at, name in enumerate(("red", "green", "blue")):
        (photos / name).mkdir(parents=True)
        pixels = np.zeros((9, 12, 3), np.uint8)
        pixels[..., at] = 250
        Image.fromarray(pixels).save(photos / name / "a.png")
    (photos / "notes.txt").write_text("not an image")
    return image_specialist(tmp_path / "images"), photos


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return result.exit_code, result.output


def expected(texts: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return Specialist.load(texts).predict([row["text"] for row in rows])


def test_plain_texts_are_answered_as_before(texts: Path) -> None:
    code, output = run(texts, "my card", "a parcel")
    assert code == 0
    assert [line.split("\t") for line in output.splitlines()] == [
        ["card", "0.5761", "my card"],
        ["parcel", "0.5761", "a parcel"],
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("to", ["csv", "jsonl"])
def test_tables_go_in_and_out_in_order(texts: Path, tmp_path: Path, kind: str, to: str) -> None:
    rows = [
        {"id": str(at), "text": row["text"] + ', "so"\nit is', "intent": row["intent"]}
        for at, row in enumerate(text_rows(500, 3))
    ]  # 1,500 rows: more than a chunk
    source = tmp_path / f"in.{kind}"
    if kind == "jsonl":
        write_rows(source, rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        with source.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    out = tmp_path / f"out.{to}"
    code, output = run(texts, source, "--out", out, "--batch-size", 7)
    assert code == 0, output
    assert output.splitlines()[-1] == f"{out}: 1,500 rows"
    if to == "jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(newline="") as stream:
            found = list(csv.DictReader(stream))
    assert list(found[0]) == ["id", "text", "intent", "label", "probability"]
    for row, answer, want in zip(found, expected(texts, rows), rows, strict=True):
        assert {key: row[key] for key in want} == want
        assert row["label"] == answer["label"]
        assert float(row["probability"]) == pytest.approx(answer["probability"], abs=1e-6)


def test_a_table_s_own_labels_are_kept(texts: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"text": "my card", "label": "other"}])
    out = tmp_path / "out.jsonl"
    assert run(texts, source, "--out", out)[0] == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["label"], row["predicted_label"]) == ("other", "card")
    again = run(texts, out, "--out", tmp_path / "again.jsonl")
    assert again[0] == 2 and "'predicted_label' is already there" in again[1]


def test_images_folders_and_tables_of_images(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    specialist, photos = pictures
    code, output = run(specialist, photos / "red" / "a.png", photos)
    assert code == 0
    assert [line.split("\t")[0] for line in output.splitlines()] == ["red", "blue", "green", "red"]
    # names relative to the table, and a column of encoded images
    listed = photos / "list.csv"
    listed.write_text("file,who\nred/a.png,x\nblue/a.png,y\n")
    out = tmp_path / "out.csv"
    assert run(specialist, listed, "--out", out)[0] == 0
    assert [row.split(",")[:3] for row in out.read_text().splitlines()] == [
        ["file", "who", "label"], ["red/a.png", "x", "red"], ["blue/a.png", "y", "blue"],
    ]  # fmt: skip
    held = [
        {"image": {"bytes": (photos / name / "a.png").read_bytes(), "path": f"{name}.png"}}
        for name in ("green", "blue")
    ]
    pq.write_table(pa.Table.from_pylist(held), tmp_path / "held.parquet")
    assert run(specialist, tmp_path / "held.parquet", "--out", tmp_path / "o.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(row["image"], row["label"]) for row in rows] == [
        ("green.png", "green"), ("blue.png", "blue"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("text\nmy card\n \n", (), "in.csv, row 1: the text is empty"),
        ("text,b\nmy card\n", (), "in.csv, row 0: not the 2 columns"),
        ("", (), "in.csv: is empty"),
        ("a,b\nx,y\n", (), "cannot tell which column holds the texts; name one of: a, b"),
        ("a,b\nx,y\n", ("--column", "c"), "no column 'c'; columns: a, b"),
        ("text\nx\n", ("--batch-size", 0), "--batch-size: 0"),
        ("text\nx\n", ("--threads", 0), "threads 0: at least 1"),
        ("text\nx\n", ("--provider", "abacus"), "provider 'abacus': expected one of cpu, cuda"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_writes_nothing(
    texts: Path, tmp_path: Path, content: str, options: tuple[Any, ...], words: str
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "results" / "out.csv"
    source.write_text(content)
    out.parent.mkdir()
    out.write_text("what was there before")
    code, output = run(texts, source, "--out", out, *options)
    assert code == 2 and words in output, output
    assert output.splitlines()[-1].startswith("winnow: ")
    assert [path.name for path in out.parent.iterdir()] == ["out.csv"]
    assert out.read_text() == "what was there before"


def test_bad_rows_of_later_chunks_are_counted_from_the_table_s_start(
    texts: Path, tmp_path: Path
) -> None:
    rows = [*text_rows(400, 3), {"text": 7}]
    code, output = run(texts, write_rows(tmp_path / "in.jsonl", rows))
    assert code == 2 and "in.jsonl, row 1200: expected text, got int" in output


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("gone.csv", None, "gone.csv: no such file"),
        ("my card", "out.parquet", "neither .csv nor .jsonl"),
        ("my card", "gone/out.csv", "gone is not there"),
    ],
)
def test_sources_and_targets_that_are_not_there(
    texts: Path, tmp_path: Path, source: str, out: str | None, words: str
) -> None:
    code, output = run(texts, source, *(("--out", tmp_path / out) if out else ()))
    assert code == 2 and words in output


def test_a_file_that_is_no_parquet(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("no")
    code, output = run(texts, tmp_path / "in.parquet")
    assert code == 2 and "not Parquet" in output


def test_the_cuda_provider_is_named_where_it_is_missing(texts: Path) -> None:
    if "CUDAExecutionProvider" in host_profile()["providers"]:
        pytest.skip("this onnxruntime has a CUDA provider")
    code, output = run(texts, "my card", "--provider", "cuda")
    assert code == 2
    assert "provider 'cuda'" in output and "onnxruntime-gpu" in output and output.count("\n") == 1


def test_another_host_is_told_once(texts: Path) -> None:
    here = host_profile()
    (texts / "report.json").write_text(json.dumps({"host": here}))
    assert run(texts, "my card")[1].count("\n") == 1
    (texts / "host.json").write_text(json.dumps({**here, "cpu": "Abacus 3", "vnni": False}))
    code, output = run(texts, "my card")
    assert code == 0 and "verified on Abacus 3" in output
    assert "verified on Abacus 3" not in run(texts, "my card")[1]  # once a process


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(texts: Path, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        source = tmp_path / f"{rows}.csv"
        with source.open("w") as stream:
            stream.write("text\n")
            stream.writelines(f"my card {at} {'x' * 400}\n" for at in range(rows))
        command = [sys.executable, "-m", "flows.cli", "predict", str(texts), str(source)]
        script = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *command, "--out", str(tmp_path / "o.csv")],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout.splitlines()[-1])

    small, large = peak(3_000), peak(120_000)  # 50 MB of text
    assert large - small < 25_000, (small, large)  # kB


def test_a_csv_has_one_set_of_columns(texts: Path, tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [{"id": 1, "text": "my card"}])
    other = write_rows(tmp_path / "b.jsonl", [{"text": "a parcel", "who": ["x", "y"]}])
    code, output = run(texts, first, other, "--out", tmp_path / "out.csv")
    assert code == 2 and "columns text, who, label" in output
    assert not (tmp_path / "out.csv").exists()
    assert run(texts, first, other, "--out", tmp_path / "out.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["card", "parcel"] and rows[1]["who"] == ["x", "y"]
    # a text that ends like a table's name, and one input after another
    code, output = run(texts, "my card", first, "the parcel of x.csv", "--out", tmp_path / "o.csv")
    assert code == 2 and "--out: columns" in output
    assert run(texts, "my card", "the parcel of x.csv", "--out", tmp_path / "o.csv")[0] == 0
    assert (tmp_path / "o.csv").read_text().splitlines()[0] == "input,label,probability"
