"""Ways to damage the bytes of any file, for `bad_cases.py`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable

Damage = Callable[[random.Random, bytes], bytes]


def junk(r: random.Random, size: int) -> bytes:
    """Random bytes."""
    return r.randbytes(size)


def _cut(r: random.Random, raw: bytes) -> bytes:
    return raw[: r.randrange(len(raw))]


def _flip(r: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(r.choice([1, 2, 8, 64])):
        changed[r.randrange(len(changed))] = r.randrange(256)
    return bytes(changed)


def _insert(what: bytes) -> Callable[[random.Random, bytes], bytes]:
    def insert(r: random.Random, raw: bytes) -> bytes:
        at = r.randrange(len(raw) + 1)
        return raw[:at] + what * r.choice([1, 3, 100]) + raw[at:]

    return insert


def _tar(_: random.Random, raw: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        facts = tarfile.TarInfo("data")
        facts.size = len(raw)
        archive.addfile(facts, io.BytesIO(raw))
    return stream.getvalue()


def _zip(_: random.Random, raw: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", raw)
    return stream.getvalue()


def _bomb(_: random.Random, raw: bytes) -> bytes:
    """A gigabyte in a megabyte, after the good beginning."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(raw)] + [packer.compress(bytes(1 << 24)) for _ in range(64)]
    return b"".join([*parts, packer.flush()])


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": _cut,
    "bits flipped": _flip,
    "binary junk": lambda r, raw: junk(r, r.choice([1, 10, 1000, 100_000])),
    "empty": lambda r, raw: b"",
    "white space": lambda r, raw: r.choice([b" ", b"\n", b"\n\n \t\n", b"\r\n"]) * 5,
    "NUL": _insert(b"\0"),
    "escape characters": _insert(b"\x1b[2J\x07\x08"),
    "Unicode lines": _insert("\u2028\u2029\x85\v\f".encode()),
    "bad UTF-8": _insert(b"\xff\xfe\xc0\x80"),
    "surrogates": _insert(b"\xed\xa0\x80"),
    "UTF-16": lambda r, raw: raw.decode(errors="replace").encode("utf-16"),
    "Latin-1": _insert("éü".encode("latin-1")),
    "gzip": lambda r, raw: gzip.compress(raw),
    "bzip2": lambda r, raw: bz2.compress(raw),
    "xz": lambda r, raw: lzma.compress(raw),
    "zip": _zip,
    "tar": _tar,
    "half an archive": lambda r, raw: _cut(r, gzip.compress(raw)),
    "gzip bomb": _bomb,
    "long line": _insert(b"x" * 10_000),
    "brackets": _insert(b"[{" * 3000),
}
