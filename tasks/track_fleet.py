"""The last step of a fleet, never cached: its table in the user's folder and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks import tracking
from tasks.artifacts import Artifact, write_atomically
from tasks.fleet_report import fleet_markdown
from tasks.outages import worth_another_try
from tasks.runs import note_run


@task(
    name="track fleet",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 15, 60],
    retry_condition_fn=worth_another_try,
)
def track_fleet(
    report: Mapping[str, Any], needed: Sequence[Artifact], run_id: str, out: Path
) -> dict[str, Any]:
    """Write fleet.json and fleet.md, and the same into the fleet's MLflow run.

    Args:
        needed: what all members made or found, which `winnow gc` keeps for the fleet's sake.
    """
    whole = {**report, "mlflow": {"run_id": run_id}}
    page = fleet_markdown(whole)
    # last, so that a report always describes the files that lie beside it
    texts = {"fleet.md": page, "fleet.json": json.dumps(whole, indent=1) + "\n"}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    statuses = [row["status"] for row in report["members"]]
    metrics = {
        **{f"members.{status}": float(statuses.count(status)) for status in set(statuses)},
        **{f"work.{name}": float(value) for name, value in report["work"].items()},
        "members": float(len(statuses)),
        "workers": float(report["workers"]),
        "seconds": float(report["seconds"]["total"]),
    }
    url = tracking.log_recheck(run_id, {"winnow.fleet": report["name"]}, metrics, texts)
    note_run("fleet", report["name"], needed, flow_run=str(flow_run.id or ""), mlflow_run=run_id)
    return {**whole, "page": url}
