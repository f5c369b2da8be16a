"""Ten thousand bad recipes and data files, each through the real command.

    python benchmarks/bad_input.py --cases 10000 --workers 2 --out benchmarks/bad_input.md

Every case is a folder of generated files (`bad_cases.py`) and a command line, which runs in the
process of a worker through the `winnow` command itself, against a Prefect server that is started
once. It must end with exit code 2 and one line for a person, without a traceback, and leave no
file behind: not in the folder it runs in, not where it was told to write, not in the temporary
folder, not in the store. Cases whose damage is none are replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LIMIT_SECONDS = 300
_ATTEMPTS = 60


def main() -> None:
    """Start the workers, collect what they found, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--rows", type=Path, help="JSON lines to write, one a case")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked)
        return
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="bad-input-") as place:
        # beside --rows they outlive a run that is stopped: the next one goes on from there
        start = asked.rows or Path(place, "rows")
        parts = [start.with_name(f"{start.name}.part{k}") for k in range(asked.workers)]
        plain = [
            "--cases",
            str(asked.cases),
            "--first",
            str(asked.first),
            "--seed",
            str(asked.seed),
            "--workers",
            str(asked.workers),
        ]
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, *plain, "--worker", str(k), "--rows", str(part)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for k, part in enumerate(parts)
        ]
        ended = [worker.wait() for worker in workers]
        found = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    found.sort(key=lambda row: row["number"])
    if asked.rows:
        asked.rows.write_text("".join(json.dumps(row) + "\n" for row in found))
    text = table(found, asked, time.time() - began)
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    sys.exit(any(ended) or len(found) < asked.cases or any(row["faults"] for row in found))


def work(asked: argparse.Namespace) -> None:
    """Run this worker's share of the cases."""
    place = Path(tempfile.mkdtemp(prefix="bad-input-worker-"))
    for name in ("home", "tmp", "cache"):
        (place / name).mkdir()
    os.environ |= {
        "WINNOW_HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "HF_HOME": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    tempfile.tempdir = None  # read TMPDIR again
    sys.path.insert(0, str(ROOT))
    try:
        _work(asked, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _work(asked: argparse.Namespace, place: Path) -> None:
    from bad_cases import Goods, draw
    from bad_goods import text_generalist

    from flows.terminal import quiet
    from tests.tiny_specialists import image_specialist, text_specialist

    quiet()
    from tasks.embedded import begin_server

    os.chdir(place)  # the server outlives the folders of the cases
    begin_server()
    goods = Goods(
        text_generalist(place / "goods" / "generalist"),
        text_specialist(place / "goods" / "text"),
        image_specialist(place / "goods" / "image"),
    )
    numbers = range(asked.first + asked.worker, asked.first + asked.cases, asked.workers)
    folder = place / "case"
    done = [json.loads(x) for x in asked.rows.open()] if asked.rows.exists() else []
    done = [row for row in done if not row["faults"]]  # those run again
    asked.rows.write_text("".join(json.dumps(row) + "\n" for row in done))
    known = {row["number"] for row in done}
    with asked.rows.open("a") as stream:
        for number in (number for number in numbers if number not in known):
            for attempt in range(_ATTEMPTS):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                case = draw(asked.seed, number, attempt, folder, goods)
                row = run(case, folder, place)
                if not row.pop("valid"):
                    break
            row |= {"number": number, "replaced": attempt}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if row["faults"]:
                print(number, attempt, row, file=sys.stderr, flush=True)
            if number % 500 < asked.workers:
                print(f"{number} of {asked.cases}", file=sys.stderr, flush=True)


def run(case: Any, folder: Path, place: Path) -> dict[str, Any]:
    """Run one case and hold it against the contract."""
    from typer.testing import CliRunner, Result

    from flows.cli import app

    before = _files(folder)
    kept = _kept(place / "home")
    began = time.time()
    with contextlib.chdir(folder), _descriptors() as native:
        try:
            with _limited():
                result = CliRunner().invoke(app, case.arguments)
        except TooLate as late:
            result = Result(CliRunner(), b"", b"", b"", None, 1, late)
    seconds = time.time() - began
    lines = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    line = lines[-1] if lines else ""
    faults = []
    if result.exit_code != 2:
        reason = result.exception
        told = traceback.format_exception(reason)[-3:] if reason is not None else []
        faults.append(f"exit code {result.exit_code}: {''.join(told)[-600:]}")
    elif len(lines) != 1 or result.stderr.rstrip("\n").splitlines()[-1] != line:
        faults.append(f"{len(lines)} lines: {result.stderr[-600:]!r}")
    if not line.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line):
        faults.append(f"control characters: {line!r}")
    if len(line) > 1500 or "Traceback" in result.output:
        faults.append(f"not one line: {result.output[-600:]!r}")
    if result.stdout and case.arguments[0] != "predict":
        faults.append(f"output: {result.stdout[:200]!r}")
    if native():
        faults.append(f"a library wrote: {native()[:300]!r}")
    for where, left in (
        ("folder", _files(folder) - before),
        ("temporary folder", _files(place / "tmp")),
        (
            "cache",
            {p for p in _files(place / "cache") if not p.endswith((".lock", "CACHEDIR.TAG"))},
        ),
        ("store", _kept(place / "home") - kept),
    ):
        if left:
            faults.append(f"left in the {where}: {sorted(left)[:3]}")
    shutil.rmtree(place / "tmp")
    (place / "tmp").mkdir()
    valid = case.stayed_valid(result.exit_code, line)
    return {
        "kind": case.kind,
        "damage": case.damage,
        "seconds": round(seconds, 3),
        "line": line,
        "valid": valid,
        "faults": [] if valid else faults,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _files(folder: Path) -> set[str]:
    return {os.path.join(here, name) for here, _, names in os.walk(folder) for name in names}


def _kept(home: Path) -> set[str]:
    """What lies in the home but for Prefect's own record of failed runs and finished stages."""
    own = (str(home / "prefect"), str(home / "results"))
    done = {str(path.parent) for path in home.glob("store/*/*/artifact.json")}
    return {
        path
        for path in _files(home)
        if not path.startswith(own) and os.path.dirname(path) not in done
    }


class TooLate(BaseException):
    """Not an `Exception`: nobody may take it for a server that does not answer."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A case that does not end is a fault, not a wait."""

    def late(*_: Any) -> None:
        raise TooLate(f"more than {_LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def _descriptors() -> Iterator[Any]:
    """What native code writes to descriptors 1 and 2, past Python's own streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else "/") as heap:
        os.dup2(heap.fileno(), 1)
        os.dup2(heap.fileno(), 2)
        told = b""
        try:
            yield lambda: told.decode(errors="replace")
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
            heap.seek(0)
            told = heap.read(10_000)


def table(found: list[dict[str, Any]], asked: argparse.Namespace, seconds: float) -> str:
    """The result as Markdown."""
    kinds = Counter(row["kind"] for row in found)
    faulty = [row for row in found if row["faults"]]
    lines = [
        "# Bad input",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        f"`python benchmarks/bad_input.py --cases {asked.cases} --seed {asked.seed} "
        f"--workers {asked.workers}`: {seconds / 60:.0f} minutes on {os.cpu_count()} cores "
        f"({platform.machine()}, Python {platform.python_version()}), peak memory of a worker "
        f"{max((row['peak_mb'] for row in found), default=0):,} MB.",
        "",
        "| input | cases | kinds of damage | exit 2, one line, nothing left | replaced as valid |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, count in sorted(kinds.items()):
        mine = [row for row in found if row["kind"] == kind]
        well = sum(not row["faults"] for row in mine)
        damages = len({row["damage"] for row in mine})
        replaced = sum(row["replaced"] for row in mine)
        lines.append(f"| {kind} | {count:,} | {damages} | {well:,} | {replaced:,} |")
    well, replaced = len(found) - len(faulty), sum(row["replaced"] for row in found)
    lines.append(f"| **all** | **{len(found):,}** | | **{well:,}** | {replaced:,} |")
    lines += [
        "",
        f"Faults: {len(faulty)}. Different lines: {len({r['line'] for r in found}):,}.",
        "",
    ]
    lines += [
        f"- {row['number']} {row['kind']}, {row['damage']}: {row['faults']}" for row in faulty[:50]
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
