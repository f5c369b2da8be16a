"""What a fleet amounts to: a row a member, the work that they shared, the worst of the verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exports.markdown import markdown_table
from tasks.artifacts import Artifact
from tasks.home import home
from tasks.members import BROKEN, REFUSED
from tasks.stage import Finished

SCHEMA = 1
# exit codes of members: the smaller, the worse, but for 0
_CODES = {"pass": 0, BROKEN: 1, REFUSED: 2, "fail": 3, "inconclusive": 4}
_STYLE = {"pass": "bold green", "inconclusive": "bold yellow"}


def fleet_report(
    name: str,
    outcomes: Sequence[Mapping[str, Any]],
    together: Sequence[Finished],
    folder: Path,
    workers: int,
    started: float,
) -> dict[str, Any]:
    """The content of fleet.json, but for its MLflow run.

    Args:
        together: stages that were made for all before the members began.
        folder: the fleet's; a member's is below it.
        workers: processes that members ran in.
        started: when the fleet began, seconds since the epoch.
    """
    here = str(home())
    hosts = {
        each["host"]: {"shares_home": each["home"] == here} for each in outcomes if each["host"]
    }
    return {
        "schema": SCHEMA,
        "name": name,
        "members": [row_of(each, folder) for each in outcomes],
        "work": work_of(together, outcomes),
        "workers": workers,
        "hosts": hosts,
        "seconds": {"total": round(time.time() - started, 3)},
    }


def row_of(outcome: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What fleet.json tells of one member."""
    report, kept = outcome["report"], ("member", "status", "error", "host", "home")
    row: dict[str, Any] = {key: outcome[key] for key in kept}
    row["seconds"] = round(outcome["ended"] - outcome["began"], 3)
    row["stages"] = [
        {
            **{key: each[key] for key in ("title", "sha256", "reused")},
            "seconds": round(each["seconds"], 3),
        }
        for each in outcome["stages"]
    ]
    if report is None:
        return {**row, "folder": None, "model": None}
    teacher, specialist = (report["models"][name] for name in ("teacher", "specialist"))
    champion = report.get("champion")
    return {
        **row,
        "folder": str(folder / outcome["member"]),
        "classes": len(report["task"]["classes"]),
        "teacher": teacher["accuracy"],
        "accuracy": specialist["accuracy"],
        **{key: report["accuracy"][key] for key in ("drop", "drop_ci", "n")},
        "ratio": report["speed"]["ratio"],
        "latency_ms": specialist["latency_ms"],
        "bytes": specialist["bytes"],
        "bytes_ratio": report["sparsity"]["bytes_ratio"],
        "reasons": report["verdict"]["reasons"],
        "model": report["mlflow"]["model_uri"],
        "champion": champion and champion["action"],
        "mlflow_run": report["mlflow"]["run_id"],
        "page": report.get("page"),
    }


def work_of(together: Sequence[Finished], outcomes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How much of the members' work was shared among them.

    Alone, a member would have made every stage of its own and timed every size itself. What the
    fleet found made by an earlier run, such as the one that it resumes, counts on neither side.

    Args:
        together: stages that were made for all before the members began.

    Returns:
        seconds {"spent", "alone", "found"}, and "shared": 1 - spent / alone.
    """
    uses = [stage for outcome in outcomes for stage in outcome["stages"]]
    first = [
        {"key": x.artifact.key, "reused": x.reused, "seconds": x.artifact.seconds} for x in together
    ]
    made = {stage["key"] for stage in (*first, *uses) if not stage["reused"]}
    spent = sum(stage["seconds"] for stage in (*first, *uses) if not stage["reused"])
    alone = sum(x["seconds"] + x["spared"] for x in uses if x["key"] in made)
    found = sum(x["seconds"] for x in uses if x["key"] not in made)
    return {
        "spent": round(spent, 3),
        "alone": round(alone, 3),
        "found": round(found, 3),
        "shared": round(1 - spent / alone, 4) if alone > spent else 0.0,
    }


def needed_by(outcomes: Iterable[Mapping[str, Any]]) -> list[Artifact]:
    """The artifacts that members made or found, each once."""
    found = {}
    for stage in (stage for outcome in outcomes for stage in outcome["stages"]):
        facts = {name: stage[name] for name in ("stage", "path", "key", "sha256")}
        found[stage["key"]] = Artifact.model_validate(facts)
    return list(found.values())


def exit_code(report: Mapping[str, Any]) -> int:
    """The worst of the members': anything unexpected, bad input, fail, inconclusive, pass."""
    return min((code for row in report["members"] if (code := _CODES[row["status"]])), default=0)


def fleet_markdown(report: Mapping[str, Any]) -> str:
    """The table as a page for a repository."""
    rows = [
        [
            row["member"],
            row["status"],
            *(_cells(row) if row["error"] is None else ["", "", "", "", ""]),
            row["error"] or row["champion"] or "",
        ]
        for row in report["members"]
    ]
    heads = ["member", "verdict", "accuracy", "drop (points)", "faster", "bytes", "smaller", ""]
    return f"# Fleet {report['name']}\n\n{markdown_table(heads, rows)}\n{told(report)}\n"


def told(report: Mapping[str, Any]) -> str:
    """How long it took, where, and what was shared, in a sentence or two."""
    work, hosts = report["work"], report["hosts"]
    where = f"{report['workers']} worker{'s' * (report['workers'] != 1)}"
    if len(hosts) > 1:
        where += f" on {len(hosts)} hosts ({', '.join(sorted(hosts))})"
    lines = [
        f"{len(report['members'])} members in {report['seconds']['total']:.0f} s on {where}; "
        f"stages took {work['spent']:.0f} s, alone they would have taken {work['alone']:.0f} s: "
        f"{100 * work['shared']:.0f} % was shared."
    ]
    apart = sorted(name for name, how in hosts.items() if not how["shares_home"])
    if apart:
        lines.append(f"{', '.join(apart)}: a store of its own; what all share was made there too.")
    return " ".join(lines)


def print_fleet(report: Mapping[str, Any], out: Path, console: Console | None = None) -> None:
    """The members side by side, those that failed by name, and where the results lie."""
    plain = console or Console(highlight=False)
    console = plain if console or plain.is_terminal else Console(highlight=False, width=120)
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    grid.add_column("member", no_wrap=True)
    for heading in ("accuracy", "drop", "faster", "bytes", "smaller", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in report["members"]:
        cells = _cells(row) if row["error"] is None else ["-"] * 5
        status = Text(row["status"], style=_STYLE.get(row["status"], "bold red"))
        grid.add_row(row["member"], *cells, status)
    console.print()
    console.print(grid)
    console.print()
    for row in report["members"]:
        if row["error"] is not None:
            console.print(
                f"{row['member']}: {row['error']}", style="red", markup=False, soft_wrap=True
            )
    console.print(told(report), markup=False, soft_wrap=True)
    console.print(f"result  {out}  (fleet.md, fleet.json)", markup=False, soft_wrap=True)


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = (100 * end for end in row["drop_ci"])
    return [
        f"{row['accuracy']:.3f}",
        f"{100 * row['drop']:.1f} [{low:.1f}, {high:.1f}]",
        f"{row['ratio']:.2f}x",
        f"{row['bytes'] / 1e6:.1f}M",
        f"{row['bytes_ratio']:.1f}x",
    ]
