"""What a run leaves in MLflow: its values, its files, its data sets, a nested run a stage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from tasks.config import Recipe
from tasks.home import embedded_tracking_uri, home, page, tracking_uri
from tasks.mlflow_store import LONGEST, pointed, require_reachable, state_of_store
from tasks.stage import Finished

__all__ = ["log_run", "log_sweep", "run_url", "state_of_store", "tracked"]

# what MLflow takes in one call
_BATCH = 100


def run_url(experiment_id: str, run_id: str) -> str:
    """The run's page: on the tracking server, or on the one that `winnow ui` starts."""
    uri = tracking_uri()
    base = uri.rstrip("/") if uri.startswith("http") else page("mlflow")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


@contextmanager
def tracked(recipe: Recipe, tags: Mapping[str, str], command: str = "specialize") -> Iterator[str]:
    """Open the MLflow run of one `winnow` command; yields its id.

    It ends FAILED, with the reason as a tag, when anything in the block raises, and FINISHED
    otherwise: never RUNNING.
    """
    require_reachable(tracking_uri())
    with pointed():
        client = MlflowClient()
        run = client.create_run(
            _experiment(client, recipe.track.experiment),
            run_name=recipe.name if command == "specialize" else f"{recipe.name}-{command}",
            tags={"mlflow.source.name": f"winnow {command}", "winnow.recipe": recipe.name, **tags},
        )
    run_id = run.info.run_id
    try:
        yield run_id
    except BaseException as error:
        reason = str(error).splitlines()[0][:LONGEST] if str(error) else type(error).__name__
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with pointed(), suppress(MlflowException):  # the error in hand is the one to tell
            MlflowClient().set_tag(run_id, "winnow.error", reason)
            MlflowClient().set_terminated(run_id, status)
        raise
    with pointed():
        MlflowClient().set_terminated(run_id, "FINISHED")


def log_run(
    run_id: str,
    recipe: Recipe,
    report: Mapping[str, Any],
    stages: Sequence[Finished],
    files: Iterable[Path],
) -> str:
    """Write what one specialization did into its run, with a nested run a stage.

    Args:
        stages: in the order in which they ran.
        files: files to log at the top of the run.

    Returns:
        The address of the run's page.
    """
    with pointed():
        client = MlflowClient()
        client.log_inputs(run_id, _inputs(recipe, report["task"]))
        client.set_tag(run_id, "winnow.verdict", report["verdict"]["status"])
        return _log(client, run_id, recipe, _headline(report), stages, files)


def log_sweep(
    run_id: str,
    recipe: Recipe,
    report: Mapping[str, Any],
    stages: Sequence[Finished],
    files: Iterable[Path],
) -> str:
    """Write what a sweep did into its run, with a nested run a stage; returns its page.

    The points are the steps of its metrics: MLflow draws accuracy or latency over them.
    """
    with pointed():
        client = MlflowClient()
        client.set_tag(run_id, "winnow.picked", str(report["picked"]))
        keys = ("accuracy", "drop", "latency_ms", "ratio", "bytes", "nonzero")
        points = [{key: row[key] for key in keys} for row in report["points"]]
        seconds = {key: x for key, x in report["seconds"].items() if key != "stages"}
        values = {"points": points, "seconds": seconds}
        return _log(client, run_id, recipe, values, stages, files)


def _log(
    client: MlflowClient,
    run_id: str,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    stages: Sequence[Finished],
    files: Iterable[Path],
) -> str:
    """Parameters, metrics, files and a nested run a stage; returns the run's page."""
    experiment = client.get_run(run_id).info.experiment_id
    _log_values(client, run_id, recipe.model_dump(mode="json"), metrics)
    for path in files:
        client.log_artifact(run_id, str(path))
    logged = _children(client, experiment, run_id)  # a retry must not log a stage twice
    for stage in stages:
        if stage.title not in logged:
            _log_stage(client, experiment, run_id, stage)
    return run_url(experiment, run_id)


def _children(client: MlflowClient, experiment: str, run_id: str) -> set[str]:
    query = f"tags.`mlflow.parentRunId` = '{run_id}'"
    return {str(run.info.run_name) for run in client.search_runs([experiment], query)}


def _log_stage(client: MlflowClient, experiment: str, run_id: str, stage: Finished) -> None:
    artifact, end = stage.artifact, int(time.time() * 1000)
    tags = {
        "mlflow.parentRunId": run_id,
        "winnow.stage": artifact.stage,
        "winnow.sha256": artifact.sha256,
        "winnow.reused": str(stage.reused).lower(),
    }
    start = end - int(artifact.seconds * 1000)
    child = client.create_run(experiment, start_time=start, tags=tags, run_name=stage.title)
    own = child.info.run_id
    _log_values(client, own, stage.values, {**artifact.metrics, "seconds": artifact.seconds})
    client.log_text(own, artifact.model_dump_json(indent=1), "artifact.json")
    client.set_terminated(own, "FINISHED", end_time=end)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # a server of the user's knows where its artifacts go
    where = (home() / "mlartifacts").as_uri() if tracking_uri() == embedded_tracking_uri() else None
    try:
        return client.create_experiment(name, artifact_location=where)
    except MlflowException:  # another process was first
        return client.get_experiment_by_name(name).experiment_id  # type: ignore[union-attr]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def _log_values(
    client: MlflowClient, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    now = int(time.time() * 1000)
    numbers: list[Metric] = []
    for key, value in _flat(metrics):
        # a list of dictionaries is a history: one step an entry
        history = value if isinstance(value, list) else [value]
        for step, entry in enumerate(history):
            for name, number in _flat(entry, key):
                if isinstance(number, int | float) and math.isfinite(number):
                    numbers.append(Metric(name, float(number), now, step))
    texts = [Param(key, str(value)[:LONGEST]) for key, value in _flat(params)]
    for start in range(0, len(texts), _BATCH):
        client.log_batch(run_id, params=texts[start : start + _BATCH])
    for start in range(0, len(numbers), _BATCH):
        client.log_batch(run_id, metrics=numbers[start : start + _BATCH])


def _headline(report: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("models", "accuracy", "speed", "sparsity", "interplay", "seconds")
    return {
        key: {k: v for k, v in report[key].items() if k != "ledger"}
        for key in keys
        if key in report
    }


def _inputs(recipe: Recipe, task: Mapping[str, Any]) -> list[DatasetInput]:
    found = []
    for context, source in (("support", recipe.task.train), ("test", recipe.task.test)):
        facts = task[context]
        dataset = Dataset(
            name=f"{recipe.name}-{context}",
            digest=facts["sha256"][:36],  # the longest that MLflow stores; the profile has it all
            source_type="local" if Path(source).exists() else "name",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": facts["n"], "sha256": facts["sha256"]}),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found
