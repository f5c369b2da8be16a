"""Data from others: files elsewhere are not read, small files do not unfold, results stay put."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from exports.preprocess import InputError, TextPreprocess, open_image
from tasks.artifacts import Artifact
from tasks.errors import DataError, RecipeError
from tasks.fences import MAX_COLUMNS, MAX_TEXT, inside
from tasks.outputs import result_folder
from tasks.sources import Source, read_source
from tasks.tables import Table

ROOT = Path(__file__).parents[2]


def png(value: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 20, 200)).save(stream, "PNG")
    return stream.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checked

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99)))


def read(path: Path, **options: Any) -> Source:
    return read_source("task.train", str(path), split="train", **options)


def every_row(source: Source) -> list[str]:
    return [source.digest(row) for row in range(len(source))]


def table(folder: Path, names: list[str], suffix: str) -> Path:
    rows = [{"image": name, "label": "ab"[at % 2]} for at, name in enumerate(names)]
    path = folder / f"names{suffix}"
    if suffix == ".csv":
        path.write_text("image,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        structs = [{"bytes": None, "path": row["image"]} for row in rows]
        pq.write_table(pa.table({"image": structs, "label": [r["label"] for r in rows]}), path)
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with an image, beside a secret one."""
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "own.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png(1))
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["../secret.png", "{outside}/secret.png", "link.png"])
def test_a_cell_cannot_name_a_file_outside_its_table(task: Path, suffix: str, name: str) -> None:
    (task / "link.png").symlink_to(task.parent / "secret.png")
    path = table(task, ["own.png", name.format(outside=task.parent)], suffix)
    source = read(path)
    source.digest(0)
    with pytest.raises(DataError, match=r"row 1: image file .*secret|link.*lies outside") as caught:
        source.digest(1)
    assert "task.allow_outside_files: true" in str(caught.value)
    assert len(set(every_row(read(path, allow_outside=True)))) == 2


def test_a_link_cannot_lead_out_of_an_image_folder(task: Path) -> None:
    (task / "own.png").unlink()
    for name in "ab":
        (task / name).mkdir()
        (task / name / "x.png").write_bytes(png(ord(name)))
    (task / "a" / "again.png").symlink_to("x.png")
    assert len(read(task)) == 3  # a link inside is fine
    (task / "b" / "link.png").symlink_to("../../secret.png")
    with pytest.raises(DataError, match=r"b/link.png is a link to a file outside") as caught:
        read(task)
    assert "task.allow_outside_files: true" in str(caught.value)
    assert len(read(task, allow_outside=True)) == 4
    (task / "b" / "link.png").unlink()


def test_a_linked_class_folder_is_read_with_leave_and_refused_without(task: Path) -> None:
    (task / "own.png").unlink()
    inside_, outside = task / "a", task.parent / "photos"
    for at, folder in enumerate((inside_, outside)):
        folder.mkdir()
        (folder / "x.png").write_bytes(png(at))
    (outside / "loop").symlink_to(task)
    (task / "b").symlink_to(outside)
    with pytest.raises(DataError, match=r"b/x.png is a link to a file outside") as caught:
        read(task)
    assert "task.allow_outside_files: true" in str(caught.value)
    source = read_source("task.train", str(task), split="train", allow_outside=True)
    assert source.labels == ("a", "b") and source.raw(1) == png(1)
    (task / "b").unlink()
    outside.rename(task / "c")
    (task / "c" / "loop").unlink()
    (task / "b").symlink_to("c")  # one folder under two names counts once
    assert read_source("task.train", str(task), split="train").labels == ("a", "b")


def test_inside_follows_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert inside(tmp_path / "a", tmp_path / "a" / "b" / ".." / "c")
    assert not inside(tmp_path / "a", tmp_path / "a" / ".." / "b")
    assert not inside(tmp_path / "a", tmp_path / "ab")
    assert not inside(tmp_path / "a", tmp_path / "loop")


def wide(path: Path) -> None:
    rows = ({f"k{row}-{at}": "x" for at in range(50)} for row in range(200))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def deep(path: Path) -> None:
    path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + ', "label": "a"}\n')


def twice(path: Path) -> None:
    path.write_text('{"text": "a", "label": "b", "text": "c"}\n')


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 9))


def nul(path: Path) -> None:
    path.write_bytes("text,label\na,b\n".encode("utf-16"))


def header(path: Path) -> None:
    path.write_text("text,text,label\na,b,c\n")


def columns(path: Path) -> None:
    path.write_text(",".join(f"c{at}" for at in range(MAX_COLUMNS + 1)) + "\n")


def same_names(path: Path) -> None:
    texts = pa.array(["a", "b"])
    pq.write_table(pa.Table.from_arrays([texts, texts], names=["text", "text"]), path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("t.jsonl", wide, f"more than {MAX_COLUMNS:,} names of values, row"),
        ("t.jsonl", deep, "row 0: nested too deep"),
        ("t.jsonl", twice, "row 0: column 'text' is there twice"),
        ("t.csv", packed, "holds a gzip archive; unpack it first"),
        ("t.csv", nul, "holds NUL bytes"),
        ("t.csv", header, "column 'text' is there twice"),
        ("t.csv", columns, f"{MAX_COLUMNS + 1:,} columns"),
        ("t.parquet", same_names, "column 'text' is there twice"),
    ],
)
def test_a_table_that_would_unfold_or_mislead(
    tmp_path: Path, name: str, write: Callable[[Path], None], words: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name)


def test_a_dictionary_that_unfolds_to_a_terabyte_takes_a_gigabyte_at_most(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * 1_000_000])
    )
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": long, "label": long}), path)
    assert path.stat().st_size < 5_000_000
    # in a process of its own, whose memory a limit holds: half of a machine is more than a test's
    script = f"""
        import resource
        from tasks import fences, readers
        from tasks.errors import DataError
        fences.room = lambda: 500_000_000
        import pyarrow  # a pool that gives memory back tells what was needed at the peak
        try:
            readers.read_file(__import__("pathlib").Path({str(path)!r}), "task.train: x", ".")
        except DataError as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, peak_mb = done.stdout.splitlines()
    assert "unfolds to more than 0.5 GB" in told
    assert int(peak_mb) < 2500


def test_rows_to_predict_must_not_unfold_either(tmp_path: Path) -> None:
    """Found by benchmarks/bad_input.py: every cell is short enough, all together are 180 GB."""
    long = pa.DictionaryArray.from_arrays(
        pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 900_000])
    )
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": long}), path)
    rows = Table(path).rows()
    with pytest.raises(DataError, match=r"bytes that unfold to more than 1\.0 GB; give a damaged"):
        next(rows)
    pq.write_table(pa.table({"text": ["the same text"] * 100_000}), path)
    assert sum(1 for _ in Table(path).rows()) == 100_000


def test_a_text_of_more_than_a_book_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": "x" * (MAX_TEXT + 1), "label": "a"}) + "\n")
    with pytest.raises(DataError, match=r"row 0: a text of 1,000,001 characters; cut it"):
        read(path).digest(0)


def test_serving_refuses_a_text_of_more_than_a_book_and_half_a_surrogate_pair() -> None:
    from tokenizers import Tokenizer, models

    plain = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    preprocess = TextPreprocess(plain, 8, 0)
    for text, words in (
        ("x" * (MAX_TEXT + 1), "1,000,001 characters"),
        ("a\ud800", "valid Unicode"),
    ):
        with pytest.raises(InputError, match=f"row 1: .*{words}"):
            preprocess.encode(["fine", text])


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1_000), (20_000, 9_000)])
def test_an_image_that_claims_too_many_pixels_is_refused_unread(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(claims(*size))
    with pytest.raises(DataError, match=r"row 0: image too large \(.*100,000,000"):
        read(tmp_path).digest(0)


def test_postscript_never_reaches_an_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would run `gs`, whatever the file is called; here one that tells of it."""
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:/usr/bin:/bin")
    raw = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(raw)).format == "EPS"  # it is one that Pillow knows
    with pytest.raises(InputError, match="not an image"):
        open_image(raw)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("path", ["/etc", "../x", "load/../../x", ""])
def test_a_manifest_cannot_lead_out_of_the_store(path: str) -> None:
    with pytest.raises(ValidationError, match="leads out of the store"):
        Artifact(stage="load", path=path, sha256="0", key="k")


def test_a_deployments_run_writes_below_runs_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert result_folder("/tmp/anywhere", "x") == Path("/tmp/anywhere")  # from a terminal
    # as Prefect's runtime says it inside a flow run that a deployment started
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "4c6d")
    assert result_folder(None, "x") == Path("runs/x")
    assert result_folder("runs/deep/er", "x") == Path("runs/deep/er")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    for out in ("/tmp/elsewhere", "runs/../../x", "elsewhere", "runs/link/x"):
        with pytest.raises(RecipeError, match=r"out: .* lies outside .*WINNOW_OUT"):
            result_folder(out, "x")
    monkeypatch.setenv("WINNOW_OUT", str(tmp_path / "results"))
    assert result_folder(None, "x") == tmp_path / "results" / "x"
    with pytest.raises(RecipeError, match="lies outside"):
        result_folder("runs/x", "x")


def test_onnx_runtime_is_told_to_send_nothing(tmp_path: Path) -> None:
    """Its telemetry keeps a file in the temporary folder; without telemetry there is none."""
    script = "import exports.runtime, os; print(sorted(os.listdir(os.environ['TMPDIR'])))"
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
