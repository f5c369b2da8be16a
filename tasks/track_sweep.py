"""The last step of a sweep, never cached: its record in MLflow, and the user's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from exports.plots import sweep_pictures
from exports.sweep_card import sweep_markdown, sweep_page
from tasks import tracking
from tasks.artifacts import Artifact, write_atomically
from tasks.config import Recipe
from tasks.outages import worth_another_try
from tasks.runs import note_run
from tasks.stage import Finished


# The store may be busy, or away for a minute, so this is tried again; nothing is logged twice.
@task(
    name="track sweep",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 15, 60],
    retry_condition_fn=worth_another_try,
)
def track_sweep(
    recipe: Recipe,
    run_id: str,
    compared: Artifact,
    stages: Sequence[Finished],
    out: Path,
    ways: Mapping[float, Sequence[float]],
    started: float,
) -> dict[str, Any]:
    """Fill `out` and record everything; returns the finished sweep.

    Args:
        ways: by speed, the speeds that were passed on the way to it.
    """
    report = compared.json_file("sweep.json")
    for row in report["points"]:
        row["path"] = list(ways.get(row["speedup_asked"], []))
        own = [each for each in stages if each.title.endswith(f" {row['point']}")]
        row["seconds"] = round(sum(each.artifact.seconds for each in own), 3)
    made = sum(row["seconds"] for row in report["points"])
    every = sum(each.artifact.seconds for each in stages)
    report["seconds"] = {
        "points": round(made, 3),
        "shared": round(every - made, 3),
        "stages": {each.title: each.artifact.seconds for each in stages},
        "total": round(time.time() - started, 3),
    }
    report["mlflow"] = {"run_id": run_id}
    out.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    pictures = sweep_pictures(report)
    files = {name: content for name, content in pictures.items() if "-dark" not in name}
    files["sweep.md"] = sweep_markdown(report).encode()
    files["sweep.html"] = sweep_page(report, pictures).encode()
    files["recipe.yaml"] = plain.encode()
    # last, so that a report always describes the files that lie beside it
    files["sweep.json"] = (json.dumps(report, indent=1) + "\n").encode()
    for name, content in files.items():
        write_atomically(out / name, content)
    url = tracking.log_sweep(run_id, recipe, report, stages, [out / name for name in files])
    note_run(
        "sweep",
        recipe.name,
        [stage.artifact for stage in stages],
        flow_run=str(flow_run.id or ""),
        mlflow_run=run_id,
    )
    return {**report, "page": url}
