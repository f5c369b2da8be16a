"""Stage: what other draws of the shots would have given, beside the specialist that is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import ANSWERS
from tasks.progress import Callback
from tasks.stage import stage


@stage(reads=("task.seed", "verify.confidence"))
def spread(
    recipe: Recipe, verified: Artifact, *others: Artifact, into: Path, progress: Callback
) -> dict[str, Any]:
    """The first draw's report with every draw's accuracy, and an interval over draws.

    The verdict stays that of the specialist that is served; the spread tells how much of it was
    the luck of the draw.
    """
    from exports.statistics import seeds_spread

    rows = []
    for at, each in enumerate((verified, *others)):
        report = each.json_file("report.json")
        rows.append(
            {
                "seed": recipe.task.seed + at,
                "teacher": report["models"]["teacher"]["accuracy"],
                "specialist": report["models"]["specialist"]["accuracy"],
                "drop": report["accuracy"]["drop"],
                "drop_ci": report["accuracy"]["drop_ci"],
                "ratio": report["speed"]["ratio"],
                "status": report["verdict"]["status"],
            }
        )
        progress(at + 1, 1 + len(others), "draws")
    shutil.copytree(verified.folder, into, dirs_exist_ok=True, ignore=lambda *_: ["artifact.json"])
    report = verified.json_file("report.json")
    draws = _same_examples([np.load(each.folder / ANSWERS) for each in (verified, *others)])
    report["seeds"] = {"rows": rows, **seeds_spread(draws, recipe.verify.confidence)}
    (into / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return {"rows": rows}


def _same_examples(
    answers: Sequence[Mapping[str, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What teacher and specialist of each draw got right, on the examples that all were judged on.

    Draws differ in those where an example of the support set was dropped from the test set.
    """
    common = set.intersection(*(set(each["digests"].tolist()) for each in answers))
    found = []
    for each in answers:
        # one of each, in one order
        place = {digest: at for at, digest in enumerate(each["digests"].tolist())}
        rows = [place[digest] for digest in sorted(common)]
        found.append((each["teacher"][rows], each["specialist"][rows]))
    return found
