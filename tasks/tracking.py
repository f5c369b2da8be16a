"""What a run leaves in MLflow: its values, its files, its data sets, a nested run a stage."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run

from tasks.config import Recipe
from tasks.home import embedded_tracking_uri, home, mlflow_page, tracking_uri
from tasks.mlflow_store import (
    LONGEST,
    hurried,
    pointed,
    require_reachable,
    state_of_store,
    steady_client,
)
from tasks.processes import host_name, this_process
from tasks.secrets import redacted
from tasks.stage import Finished
from tasks.unfinished import HOST, ONCE, PROCESS, close_left_runs, remember, remove_twins

__all__ = ["log_recheck", "log_run", "log_sweep", "run_url", "state_of_store", "tracked"]

# what MLflow takes in one call
_BATCH = 100
# when a run's values were first logged: again at the same time, they are the same values
_LOGGED = "winnow.logged_ms"
# in the middle of a flow, a server that is just away is waited for
_PATIENCE_SECONDS = 120.0


def run_url(experiment_id: str, run_id: str) -> str:
    """The address of the run's page."""
    return f"{mlflow_page()}/#/experiments/{experiment_id}/runs/{run_id}"


@contextmanager
def tracked(recipe: Recipe, tags: Mapping[str, str], command: str = "specialize") -> Iterator[str]:
    """Open the MLflow run of one `winnow` command; yields its id.

    It ends FAILED, with the reason as a tag, when anything in the block raises, and FINISHED
    otherwise: never RUNNING. A process that is killed cannot end it; the next run on this host
    does.
    """
    require_reachable(tracking_uri(), _PATIENCE_SECONDS)
    once = uuid.uuid4().hex
    with pointed():
        client = steady_client()
        close_left_runs(client)
        run = client.create_run(
            _experiment(client, recipe.track.experiment),
            run_name=recipe.name if command == "specialize" else f"{recipe.name}-{command}",
            tags={
                "mlflow.source.name": f"winnow {command}",
                "winnow.recipe": recipe.name,
                **_origin(once),
                **tags,
            },
        )
    run_id = run.info.run_id
    try:
        yield run_id
    except BaseException as error:
        reason = str(error).splitlines()[0][:LONGEST] if str(error) else type(error).__name__
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        _end_badly(run_id, status, redacted(reason))
        raise
    with pointed():
        client = steady_client()
        mine = f"tags.`{ONCE}` = '{once}'"
        remove_twins(client, run.info.experiment_id, mine, {once: run_id})
        client.set_terminated(run_id, "FINISHED")


def _origin(once: str) -> dict[str, str]:
    """Tags that name the process, and the one call that made the run."""
    return {HOST: host_name(), PROCESS: this_process(), ONCE: once}


def _end_badly(run_id: str, status: str, reason: str) -> None:
    """Close a run whose error is in hand; what cannot be closed now is closed by the next run."""
    with pointed(), hurried():
        try:
            client = MlflowClient()
            client.set_tag(run_id, "winnow.error", reason)
            client.set_terminated(run_id, status)
        except (MlflowException, OSError):  # the error in hand is the one to tell
            remember(run_id, status, reason)


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
        client = steady_client()
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
        client = steady_client()
        client.set_tag(run_id, "winnow.picked", str(report["picked"]))
        keys = ("accuracy", "drop", "latency_ms", "ratio", "bytes", "nonzero")
        points = [{key: row[key] for key in keys} for row in report["points"]]
        seconds = {key: x for key, x in report["seconds"].items() if key != "stages"}
        values = {"points": points, "seconds": seconds}
        return _log(client, run_id, recipe, values, stages, files)


def log_recheck(
    run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float], texts: Mapping[str, str]
) -> str:
    """Write a decision into its run: tags, figures, files by name; returns the run's page."""
    with pointed():
        client = steady_client()
        run = client.get_run(run_id)
        # at the run's own time, so that a second try writes the same values and not more
        _log_values(client, run_id, {}, metrics, int(run.info.start_time))
        for name, text in texts.items():
            client.log_text(run_id, text, name)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        return run_url(run.info.experiment_id, run_id)


def _log(
    client: MlflowClient,
    run_id: str,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    stages: Sequence[Finished],
    files: Iterable[Path],
) -> str:
    """Parameters, metrics, files and a nested run a stage; returns the run's page.

    Done again, after an outage in the middle, it adds what is missing and nothing twice.
    """
    run = client.get_run(run_id)
    experiment, logged = run.info.experiment_id, run.data.tags.get(_LOGGED)
    now = int(logged or time.time() * 1000)
    if logged is None:
        client.set_tag(run_id, _LOGGED, str(now))
    # what a second try measures anew, such as the time in all, stays as it was logged
    _log_values(client, run_id, recipe.model_dump(mode="json"), metrics, now, run.data.metrics)
    for path in files:
        client.log_artifact(run_id, str(path))
    known = _children(client, experiment, run_id)
    made: dict[str, str] = {}
    for stage in stages:
        made |= _log_stage(client, experiment, run_id, stage, known.get(stage.title))
    remove_twins(client, experiment, _nested(run_id), made)
    return run_url(experiment, run_id)


def _nested(run_id: str) -> str:
    return f"tags.`mlflow.parentRunId` = '{run_id}'"


def _children(client: MlflowClient, experiment: str, run_id: str) -> dict[str, Run]:
    """The nested runs by name; of several by one name, a finished one."""
    found, token = dict[str, Run](), None
    while True:
        page_of = client.search_runs([experiment], _nested(run_id), page_token=token)
        for run in page_of:
            name = str(run.info.run_name)
            if name not in found or found[name].info.status != "FINISHED":
                found[name] = run
        token = page_of.token
        if not token:
            return found


def _log_stage(
    client: MlflowClient, experiment: str, run_id: str, stage: Finished, known: Run | None
) -> dict[str, str]:
    """Log one stage as a nested run, unless it is there; returns {word of `ONCE`: run} if made."""
    artifact, end = stage.artifact, int(time.time() * 1000)
    once, made = uuid.uuid4().hex, dict[str, str]()
    if known is not None and known.info.status == "FINISHED":
        return made
    if known is None:
        tags = {
            "mlflow.parentRunId": run_id,
            "winnow.stage": artifact.stage,
            "winnow.sha256": artifact.sha256,
            "winnow.reused": str(stage.reused).lower(),
            **_origin(once),
        }
        start = end - int(artifact.seconds * 1000)
        child = client.create_run(experiment, start_time=start, tags=tags, run_name=stage.title)
        made[once] = child.info.run_id
    else:  # an earlier try was broken off in the middle of it
        child = known
        end = int(child.info.start_time or 0) + int(artifact.seconds * 1000)
    own = child.info.run_id
    values = {**artifact.metrics, "seconds": artifact.seconds}
    _log_values(client, own, stage.values, values, end)
    client.log_text(own, artifact.model_dump_json(indent=1), "artifact.json")
    client.set_terminated(own, "FINISHED", end_time=end)
    return made


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
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, Any],
    now: int,
    logged: Mapping[str, float] | None = None,
) -> None:
    """Log parameters and metrics.

    Args:
        now: time of every value, milliseconds since the epoch: the store drops what it has with
            the same time, step and value.
        logged: values that are there already, by name; histories are logged again all the same.
    """
    numbers: list[Metric] = []
    for key, value in _flat(metrics):
        # a list of dictionaries is a history: one step an entry
        history = value if isinstance(value, list) else [value]
        for step, entry in enumerate(history):
            for name, number in _flat(entry, key):
                if history is not value and name in (logged or {}):
                    continue
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
