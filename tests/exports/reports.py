"""A report and a sweep as finished runs write them, with every optional part."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def full_report() -> dict[str, Any]:
    """The demo's report with all that a run may add to it."""
    return json.loads((_HERE / "full_report.json").read_text(encoding="utf-8"))


def full_sweep() -> dict[str, Any]:
    """A sweep of six speeds in two formats."""
    return json.loads((_HERE / "sweep.json").read_text(encoding="utf-8"))


def with_classes(names: list[str]) -> dict[str, Any]:
    """The report with other classes, each losing a little less than the one before it."""
    report = copy.deepcopy(full_report())
    report["task"]["classes"] = names
    report["accuracy"]["per_class"] = [
        {
            "class": name,
            "n": 10 + at,
            "teacher": 0.9,
            "specialist": 0.9 - 0.2 + 0.001 * at,
            "drop": 0.2 - 0.001 * at,
            "drop_ci": [0.1 - 0.001 * at, 0.3 - 0.001 * at],
            "p_adjusted": 0.5,
            "worse": at == 0,
        }
        for at, name in enumerate(names)
    ]
    return report
