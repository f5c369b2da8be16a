"""Stage 8, never cached: the run's record in MLflow, the registry, and the user's folder."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from tasks import tracking
from tasks.artifacts import Artifact, write_atomically
from tasks.config import Recipe
from tasks.digests import folder_digest
from tasks.home import page
from tasks.layout import ship
from tasks.splits import load_split
from tasks.stage import Finished


def flow_page() -> tuple[str, str]:
    """The current flow run's id and the address of its page; empty outside a flow."""
    if flow_run.id is None:
        return "", ""
    url = url_for("flow-run", flow_run.id, default_base_url=page("prefect"))
    return str(flow_run.id), url or ""


@contextmanager
def tracked(recipe: Recipe) -> Iterator[str]:
    """An MLflow run that names this flow run; FAILED when anything inside raises."""
    run_id, url = flow_page()
    with tracking.tracked(
        recipe, {"prefect.flow_run_id": run_id, "prefect.flow_run_url": url}
    ) as run:
        yield run


# The store may be busy (another run writes to the same SQLite file), so this is tried again.
@task(name="track", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def track(
    recipe: Recipe,
    run_id: str,
    data: Artifact,
    specialist: Artifact,
    verified: Artifact,
    stages: Sequence[Finished],
    out: Path,
    started: float,
) -> dict[str, Any]:
    """Register the specialist, fill `out`, record everything; returns the finished report."""
    report = verified.json_file("report.json")
    example = load_split(data.folder / "support.parquet").inputs[0]
    status = report["verdict"]["status"]
    registered = None
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        served = Path(scratch)
        files = [(path.name, path.read_bytes()) for path in ship(specialist.folder, served)]
        if recipe.track.register_model:
            registered = tracking.register(
                run_id,
                recipe.model_name,
                served,
                digest=folder_digest(served),
                verdict=status,
                example=[example],
                requirements=("mlflow", "numpy", "onnxruntime", "pillow", "tokenizers"),
            )
    report["mlflow"] = {
        "run_id": run_id,
        "model_uri": registered.uri if registered else None,
        "alias": registered.alias if registered else None,
    }
    report["seconds"] = {stage.title: stage.artifact.seconds for stage in stages}
    report["seconds"]["total"] = round(time.time() - started, 3)
    out.mkdir(parents=True, exist_ok=True)
    files += [(n, (verified.folder / n).read_bytes()) for n in ("card.md", "tradeoff.png")]
    for name, content in files:
        write_atomically(out / name, content)
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(out / "recipe.yaml", plain.encode())
    # last, so that a report always describes the files that lie beside it
    write_atomically(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    names = [name for name, _ in files] + ["recipe.yaml", "report.json"]
    url = tracking.log_run(run_id, recipe, report, stages, [out / name for name in names])
    return {**report, "page": url, "example": example if isinstance(example, str) else None}
