"""Results read back: intervals over seeds and tasks, tables, rows made again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.grid import Row
from benchmarks.studies.provenance import commit_of


class NoRows(Exception):
    """A file of results that is not there."""


def read(files: Iterable[Path], *, failures: bool = True) -> list[Row]:
    """Results by their last line of each name; a failure that was mended is gone.

    Raises:
        NoRows: a file is not there.
    """
    found: dict[str, Row] = {}
    for path in files:
        if not path.is_file():
            raise NoRows(f"no file of results at {path}")
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "failed" not in row or row["id"] not in found:
                found[row["id"]] = row

    def stands(row: Row) -> bool:
        return "failed" not in row or (failures and not set(row["ids"]) <= set(found))

    return [row for row in found.values() if stands(row)]


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval at 95 %; infinite where there are fewer than two values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return ""
        if self.n == 1:
            return f"{self.mean:.2f} (1)"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.n})"


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean."""
    import numpy as np
    from scipy import stats

    x = np.asarray(values, dtype=float)
    if not len(x):
        return Interval(float("nan"), -float("inf"), float("inf"), 0)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, -float("inf"), float("inf"), 1)
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return Interval(mean, mean - half, mean + half, len(x))


def paired(
    rows: Iterable[Row],
    key: str,
    one: Any,
    other: Any,
    *,
    of: str = "accuracy",
    over: Sequence[str],
) -> dict[tuple[Any, ...], float]:
    """`of` where row[key] is `one` minus where it is `other`, by the values of `over`."""
    sides: dict[Any, dict[tuple[Any, ...], float]] = {one: {}, other: {}}
    for row in rows:
        if row[key] in sides:
            sides[row[key]][tuple(row[name] for name in over)] = row[of]
    return {at: x - sides[other][at] for at, x in sides[one].items() if at in sides[other]}


def clustered(pairs: dict[tuple[Any, ...], float], size: int = 2) -> Interval:
    """The interval over models and tasks, seeds averaged first: seeds of a pair are alike."""
    means: dict[tuple[Any, ...], list[float]] = {}
    for at, value in pairs.items():
        means.setdefault(at[:size], []).append(value)
    return interval([sum(x) / len(x) for x in means.values()])


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and count of drops, in points."""
    import numpy as np

    if not len(values):
        return ""
    x = 100 * np.asarray(values)
    deviation = x.std(ddof=1) if len(x) > 1 else 0.0
    return f"{x.mean():.2f} ({deviation:.2f}; {len(x)})"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table."""
    found = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    found += ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join(found)


def told_of(rows: Sequence[Row]) -> str:
    """Where rows come from: devices, versions, commits, seeds, and what failed."""
    if not rows:
        return "No rows yet."
    fine = [row for row in rows if "failed" not in row]
    machines = sorted(
        {
            f"{row['device']}; scored on {row['machine']['processor']} ({row['machine']['cores']} "
            f"cores), torch {row['machine']['torch']}, ONNX Runtime {row['machine']['onnxruntime']}"
            for row in rows
        }
    )
    commits = ", ".join(sorted({commit_of(row) for row in rows}))
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in fine}))
    said = f"{len(fine)} results, seeds {seeds or 'none'}, commit {commits}. Machines: "
    said += "; ".join(machines) + "."
    failed = [row for row in rows if "failed" in row]
    for row in failed:
        said += f"\n\nFailed: `{row['id']}`: {row['failed']}"
    return said


def check(args: argparse.Namespace) -> None:
    """Rows made again against those printed: each within the spread of its seeds."""
    import numpy as np

    old, new = ({row["id"]: row for row in read([path], failures=False)} for path in args.files)
    groups: dict[str, list[float]] = {}
    for row in old.values():
        groups.setdefault(row["id"].replace(f"/s{row['seed']}/", "/s*/"), []).append(row["drop"])
    outside = 0
    for name in sorted(set(old) & set(new)):
        same = groups[name.replace(f"/s{old[name]['seed']}/", "/s*/")]
        # two draws of the test set's own noise are no difference either
        flips = old[name]["worse"] + old[name]["better"]
        noise = (max(flips, 1) ** 0.5) / old[name]["n"]
        wide = 2 * max(float(np.std(same, ddof=1)) if len(same) > 1 else 0.0, noise)
        moved = new[name]["drop"] - old[name]["drop"]
        outside += abs(moved) > wide
        print(
            f"{name}: {100 * moved:+.2f} points, within {100 * wide:.2f}"
            f"{'' if abs(moved) <= wide else '  OUTSIDE'}"
        )
    print(f"{len(set(old) & set(new))} rows made again, {outside} outside their spread")
    raise SystemExit(bool(outside))
