"""Settings of recovery on a task that is in no table: what the other studies' settings rest on.

The ladder to 90 % of `study_taco.py` (16 shots and the pool, dynamic allocation) on the task food,
one value changed a row. What decides is the divergence from the teacher, in nats, on the examples
that recovery holds out; the test set's accuracy stands beside it and decides nothing.

    python benchmarks/study_recovery.py plan|pack|run|table ...  (benchmarks/studies/command.py)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
from benchmarks.studies.grid import CONVNEXT, DEIT, RESNET, Row, merged
from benchmarks.studies.scoring import score
from benchmarks.studies.tables import markdown, told_of
from benchmarks.study_taco import STEPS, row_of, work

CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a quarter with labels": {"distill": {"labelled_share": 0.25}},
    "an eighth with labels": {"distill": {"labelled_share": 0.125}},
    "no cross-entropy": {"distill": {"ce": 0.0}},
    "twice the rate": {"distill": {"lr": 1e-3}},
    "half the rate": {"distill": {"lr": 2.5e-4}},
    "twice the steps": {"distill": {"steps": 2 * STEPS}},
    "evolutionary": {"prune": {"allocation": "evolutionary"}},
}
RUNGS = (0.5, 0.75, 0.9)


def rows(args: argparse.Namespace) -> list[Row]:
    """A row a model and change, seed 0."""
    found = []
    for told, change in CHANGES.items():
        for model in args.models or (DEIT, CONVNEXT, RESNET):
            plain = row_of("recovery", model, "food", 0, to=0.9, pool=True, allocation="dynamic")
            name = f"recovery/{model}/food/s0/{told.replace(' ', '-')}"
            names = {"name": name, "id": name, "ids": [f"{name}/{rung:g}" for rung in RUNGS]}
            found.append({**merged(plain, {"recipe": change}), **names, "change": told})
    return found


def table(found: list[Row]) -> str:
    """Divergence after each rung by change, a table a model."""
    fine = [row for row in found if "failed" not in row]
    parts = [
        told_of(found),
        "Divergence on held-out examples after the rung, in thousandths of a nat; in brackets the "
        "drop on the test set in points.",
    ]
    for model in dict.fromkeys(row["model"] for row in fine):
        cells = {
            (row["change"], row["sparsity"]): f"{1000 * row['rung']['kl_after']:.1f} "
            f"({100 * row['drop']:.1f})"
            for row in fine
            if row["model"] == model
        }
        lines = [(told, *(cells.get((told, rung), "") for rung in RUNGS)) for told in CHANGES]
        heads = (model, *(f"{rung:.0%}" for rung in RUNGS))
        parts.append(markdown(heads, lines))
    return "\n\n".join(parts)


STUDY = Study("recovery", __doc__.splitlines()[0], rows, work, score, table)

if __name__ == "__main__":
    main(STUDY)
