"""Writes benchmarks/RESULTS.md: prose kept in benchmarks/results/page, tables made from the rows.

    python benchmarks/results_page.py [--check]

A part of the page is a Markdown file; its lines `{{NAME FILE...}}` are replaced by what NAME makes
of the rows in benchmarks/results, `{{advice}}` by the sentences that those rows support. A study
without rows says how to make them. `--check` ends with 1 where the page is not what would be
written. Pictures are written by the studies (`table --picture`), this page only links to them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.studies.advice import advice  # noqa: E402
from benchmarks.studies.grid import Row  # noqa: E402
from benchmarks.studies.tables import read  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "benchmarks" / "RESULTS.md"
STUDIES = ("taco", "recovery", "interplay", "combining", "methods", "peers")
_DIRECTIVE = re.compile(r"^\{\{(\w+)((?: [\w.-]+)*)\}\}$", re.MULTILINE)


def specialists(files: Sequence[Path]) -> str:
    """The first study's table, as `specialists.py table` prints it."""
    from benchmarks.specialists import table

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        table(argparse.Namespace(results=list(files)))
    return printed.getvalue().strip()


def study(name: str) -> Callable[[Sequence[Path]], str]:
    """The table of one of the studies of methods."""

    def make(files: Sequence[Path]) -> str:
        module = importlib.import_module(f"benchmarks.study_{name}")
        return str(module.STUDY.table(read(files)))

    return make


def solvers(files: Sequence[Path]) -> str:
    """Column sweep and peer, layer by layer, a table a machine and sparsity."""
    from benchmarks.solver_speed import line

    groups: dict[str, list[Row]] = {}
    for path in files:
        for text in path.read_text().splitlines():
            row = json.loads(text)
            where = (
                f"Peer: {row['peer']}. {row['machine']}, {row['threads']} thread(s), commit "
                f"{row['commit']}, {row['clock']}; a float32 product runs at "
                f"{row['rate'] / 1e9:.0f} Gflop/s."
            )
            groups.setdefault(where, []).append(row)
    parts = []
    for where, rows in groups.items():
        heads = (
            "layer",
            "shape",
            "peer's loss",
            "peer",
            "sweep's loss",
            "sweep",
            "refined's loss",
            "refined",
            "sweep / peer",
            "refined / peer",
        )
        table = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        parts += [where, "\n".join([*table, *(line(row, row["rate"]) for row in rows)])]
    return "\n\n".join(parts)


def allocation(files: Sequence[Path]) -> str:
    """Allocations on held-out examples."""
    from benchmarks.allocation_study import table

    lines = [line for path in files for line in path.read_text().splitlines()]
    return str(table([json.loads(line) for line in lines])).strip()


TABLES: dict[str, Callable[[Sequence[Path]], str]] = {
    "specialists": specialists,
    "solvers": solvers,
    "allocation": allocation,
    **{name: study(name) for name in STUDIES},
}


def page() -> str:
    """The whole of RESULTS.md."""
    rows = {name: read([path]) for name in STUDIES if (path := RESULTS / f"{name}.jsonl").exists()}

    def made(match: re.Match[str]) -> str:
        name, files = match[1], [RESULTS / file for file in match[2].split()]
        if name == "advice":
            said = advice(rows)
            if not said:
                return (
                    "No rows yet that support a sentence; the studies below say how to make them."
                )
            return "\n".join(f"- {sentence}" for sentence in said)
        there = [file for file in files if file.exists()]
        if not there:
            names = ", ".join(f"`benchmarks/results/{file.name}`" for file in files)
            return f"No rows yet ({names})."
        text = TABLES[name](there)
        picture = RESULTS / f"{there[0].stem}.png"
        if name in STUDIES and picture.exists():
            text += f"\n\n![{name}](results/{picture.name})"
        return text

    told = "<!-- Written by benchmarks/results_page.py; edit benchmarks/results/page instead. -->\n"
    parts = [path.read_text().strip() for path in sorted((RESULTS / "page").glob("*.md"))]
    head, *rest = [_DIRECTIVE.sub(made, part) for part in parts]
    return "\n\n".join([head.replace("\n", f"\n\n{told}", 1), *rest]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it would change")
    args = parser.parse_args()
    text = page()
    if args.check:
        same = PAGE.exists() and PAGE.read_text() == text
        print("up to date" if same else "benchmarks/RESULTS.md is not what would be written")
        raise SystemExit(not same)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
