"""Good tables and images, and broken ones, for `bad_cases.py`."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bad_bytes import BYTES
from PIL import Image

WORDS = {"card": ["card", "chip", "pin"], "parcel": ["box", "van", "mail"], "refund": ["cash"]}
FILLERS = ["my", "the", "lost", "late", "where", "please", "now", "today"]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Labelled sentences, none of them twice."""
    stream, seen = random.Random(seed), set()
    found = []
    for label, words in WORDS.items():
        while sum(row["intent"] == label for row in found) < count:
            text = " ".join(stream.choices(["my", "the", "lost", "late", "where", *words], k=6))
            if text not in seen:
                seen.add(text)
                found.append({"text": text, "intent": label})
    return found


def _lines(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def _commas(found: list[dict[str, Any]], mark: str = ",") -> bytes:
    names = [*dict.fromkeys(name for row in found for name in row)]
    lines = [names, *([str(row.get(name, "")) for name in names] for row in found)]
    return "".join(mark.join(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def _parquet(found: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    table = found if isinstance(found, pa.Table) else pa.Table.from_pylist(found)
    pq.write_table(table, stream, **options)
    return stream.getvalue()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": _lines,
    ".csv": _commas,
    ".tsv": lambda found: _commas(found, "\t"),
    ".parquet": _parquet,
    ".json": lambda found: json.dumps(found).encode(),
}


def write_data(folder: Path) -> None:
    """A good training and a good test set."""
    (folder / "train.jsonl").write_bytes(_lines(rows(6, 1)))
    (folder / "test.jsonl").write_bytes(
        _lines([{**row, "text": row["text"] + " now"} for row in rows(8, 2)])
    )


def _cell(r: random.Random, found: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    value = r.choice(
        [None, "", "   ", 3, 2.5, [1], {"a": 1}, True, "x" * 1_100_000, "\x00", "a\nb", "\u2028"]
    )
    every = r.random() < 0.3
    at = r.randrange(len(found))
    return [{**row, column: value} if every or k == at else row for k, row in enumerate(found)]


def _columns(r: random.Random, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    many = {f"c{k}": k for k in range(5000)}
    return r.choice([
        [{"text": row["text"]} for row in found],
        [{"intent": row["intent"]} for row in found],
        [{"a": row["text"], "b": row["text"], "c": row["intent"]} for row in found],
        [{"text": k, "intent": row["intent"]} for k, row in enumerate(found)],
        [{"x": k, "y": k / 3} for k, _ in enumerate(found)],
        [{**row, **many} for row in found[:2]],
        [{"text": row["text"], "label": k / 7} for k, row in enumerate(found)],
        [{}, {}, {}],
        [{"": row["text"], " ": row["intent"]} for row in found],
        [{"image": f"../../outside/{k}.png", "label": "a"} for k in range(9)],
        [{"image": f"/etc/{k}.png", "label": "a"} for k in range(9)],
        [{"image": f"gone{k}.png", "label": "ab"[k % 2]} for k in range(9)],
        [{"image": "x" * 300 + ".png", "label": "ab"[k % 2]} for k in range(9)],
    ])  # fmt: skip


def _few(r: random.Random, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return r.choice([
        found[: r.randrange(3)],
        [row for row in found if row["intent"] == "card"],
        [found[0]] * 50,
        [{**row, "intent": f"class {k}"} for k, row in enumerate(found)],
        [row for row in found if row["intent"] != "card"],
    ])  # fmt: skip


def _wide_json(r: random.Random, _: Any) -> bytes:
    return _lines([{f"k{k}-{n}": "x" for n in range(20)} for k in range(2000)])


def _deep_json(r: random.Random, _: Any) -> bytes:
    depth = r.choice([200, 2000, 100_000])
    return b'{"text": ' + b"[" * depth + b"]" * depth + b', "intent": "card"}\n'


def _dictionary_bomb(r: random.Random, _: Any) -> bytes:
    words = pa.DictionaryArray.from_arrays(
        pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 900_000])
    )
    return _parquet(pa.table({"text": words, "intent": words}))


def _twice(r: random.Random, _: Any) -> bytes:
    texts = pa.array(["a", "b"])
    return _parquet(pa.Table.from_arrays([texts, texts, texts], names=["text", "text", "intent"]))


def _strange_parquet(r: random.Random, _: Any) -> bytes:
    column = r.choice([
        pa.array([1.5, None, float("nan")]), pa.array([[1], [2], []]), pa.nulls(3),
        pa.array([b"\xff\xfe", b"", None]), pa.array([{"bytes": None, "path": "/etc/passwd"}] * 3),
        pa.array([{"bytes": b"junk", "path": None}] * 3), pa.array([0, 1, 2], pa.timestamp("s")),
        pa.array(["a", "b", "c"]).dictionary_encode(), pa.array([None, None, "x"]),
    ])  # fmt: skip
    return _parquet(pa.table({r.choice(["text", "image", "x"]): column, "label": ["a", "b", "a"]}))


WHOLE: dict[str, Callable[[random.Random, Any], bytes]] = {
    "ever new names": _wide_json,
    "nested deep": _deep_json,
    "a dictionary that unfolds": _dictionary_bomb,
    "a column twice": _twice,
    "strange types": _strange_parquet,
    "a list of scalars": lambda r, _: b"[1, 2, 3]",
    "names twice": lambda r, _: b'{"text": "a", "text": "b", "intent": "c"}\n' * 9,
    "lines that are no objects": lambda r, _: b'{"text": "a", "intent": "b"}\n7\n"x"\n',
    "ragged": lambda r, _: b'text,intent\na,b\na,b,c,d\n"un\nfinished,x\n',
    "only a header": lambda r, _: b"text,intent\n",
    "other marks": lambda r, _: b"text;intent\na;b\nc;d\n" * 5,
    "header twice": lambda r, _: b"text,text,intent\na,b,c\nd,e,f\n",
    "open quotes": lambda r, _: b'text,intent\n"' + b"a,b\n" * 50_000,
    "NaN and huge numbers": lambda r, _: (
        b'{"text": NaN, "intent": 1e999}\n{"text": 3, "intent": 123456789012345678901234567890}\n'
    ),
}


def broken_table(r: random.Random, found: list[dict[str, Any]]) -> tuple[str, str, bytes]:
    """(suffix, damage, content) of a table in any form."""
    suffix = r.choice([*FORMS])
    how = r.choice(["bytes", "bytes", "bytes", "cell", "cell", "columns", "few", "whole", "suffix"])
    if how == "bytes":
        name = r.choice([*BYTES])
        return suffix, f"bytes: {name}", BYTES[name](r, FORMS[suffix](found))
    if how == "whole":
        name = r.choice([*WHOLE])
        parquet = name in ("a dictionary that unfolds", "a column twice", "strange types")
        comma = name in ("ragged", "only a header", "other marks", "header twice", "open quotes")
        form = ".parquet" if parquet else ".csv" if comma else r.choice([".jsonl", ".json"])
        return form, name, WHOLE[name](r, found)
    if how == "suffix":
        other = r.choice([form for form in FORMS if form != suffix])
        return other, f"{suffix} called {other}", FORMS[suffix](found)
    changed = {"columns": _columns, "few": _few}.get(
        how, lambda r, x: _cell(r, x, r.choice(["text", "intent"]))
    )
    table = changed(r, found)
    try:
        return suffix, how, FORMS[suffix](table)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):  # mixed types
        return ".jsonl", how, _lines(table)


def picture(form: str = "PNG", size: tuple[int, int] = (12, 10), value: int = 90) -> bytes:
    """A small image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 20, 200)).save(stream, form)
    return stream.getvalue()


def _claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its pixels do not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def broken_image(r: random.Random) -> tuple[str, bytes]:
    """(damage, content) of an image file."""
    form = r.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
    name = r.choice(
        [*[b for b in BYTES if b not in ("gzip bomb",)], "claims", "claims", "postscript", "svg"]
    )
    if name == "claims":
        sizes = [
            (50_000, 50_000),
            (2**31 - 1, 1),
            (1, 2**31 - 1),
            (0, 5),
            (20_000, 9000),
            (9000, 9000),
        ]
        return "claims more pixels", _claims(*r.choice(sizes))
    if name == "postscript":
        return (
            "PostScript",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(pwned) (w) file\nshowpage\n",
        )
    if name == "svg":
        return "SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    return f"{form}, {name}", BYTES[name](r, picture(form))


def image_folder(r: random.Random, root: Path) -> str:
    """Write `root`/{a,b}/*.png with something wrong in it; returns the damage."""
    for k in range(12):
        place = root / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}.png").write_bytes(picture(value=10 * k))
    how = r.choice(
        [
            "image",
            "image",
            "image",
            "image",
            "link",
            "loop",
            "one class",
            "folder.png",
            "name",
            "none",
            "fifo",
        ]
    )
    if how == "image":
        damage, raw = broken_image(r)
        (root / "a" / "4.png").write_bytes(raw)
        return damage
    if how == "link":
        (root.parent / "secret.png").write_bytes(picture())
        (root / "a" / "link.png").symlink_to(
            r.choice(["../../secret.png", "/etc/passwd", str(root.parent / "secret.png")])
        )
    elif how == "loop":
        (root / "a" / "link.png").symlink_to("link.png")
    elif how == "one class":
        shutil.rmtree(root / "b")
    elif how == "folder.png":
        (root / "a" / "x.png").mkdir()
    elif how == "name":
        Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff\xfe.png")).write_bytes(picture())
    elif how == "fifo":
        os.mkfifo(root / "a" / "pipe.png")
    elif how == "none":
        shutil.rmtree(root)
        root.mkdir()
        (root / "x.txt").touch()
    return how
