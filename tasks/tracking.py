"""MLflow, and no other module's business: runs, nested stages, data sets, the registry.

The store is SQLite at `<home>/mlflow.db` with its artifacts beside it, unless MLFLOW_TRACKING_URI
names another. Everything goes by run id: MLflow's active run belongs to one thread.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.models import Model

from tasks.cache import ROOT, import_closure
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.home import embedded_tracking_uri, home, page, tracking_uri
from tasks.stage import Finished

CHAMPION = "champion"
_DIGEST, _VERDICT = "winnow.specialist_sha256", "winnow.verdict"
# what MLflow takes in one call, and in one value
_BATCH, _LONGEST = 100, 5000


@dataclass(frozen=True)
class Registered:
    """A version of the model in the registry; `alias` where this run made it the champion."""

    uri: str
    version: str
    alias: str | None
    reused: bool


def run_url(experiment_id: str, run_id: str) -> str:
    """The run's page: on the tracking server, or on the one that `winnow ui` starts."""
    uri = tracking_uri()
    base = uri.rstrip("/") if uri.startswith("http") else page("mlflow")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


@contextmanager
def tracked(recipe: Recipe, tags: Mapping[str, str]) -> Iterator[str]:
    """Open the MLflow run of one specialization; yields its id.

    It ends FAILED, with the reason as a tag, when anything in the block raises, and FINISHED
    otherwise: never RUNNING.
    """
    _require_reachable(tracking_uri())
    with _pointed():
        client = MlflowClient()
        run = client.create_run(
            _experiment(client, recipe.track.experiment),
            run_name=recipe.name,
            tags={"mlflow.source.name": "winnow specialize", "winnow.recipe": recipe.name, **tags},
        )
    run_id = run.info.run_id
    try:
        yield run_id
    except BaseException as error:
        reason = str(error).splitlines()[0][:_LONGEST] if str(error) else type(error).__name__
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with _pointed(), suppress(MlflowException):  # the error in hand is the one to tell
            MlflowClient().set_tag(run_id, "winnow.error", reason)
            MlflowClient().set_terminated(run_id, status)
        raise
    with _pointed():
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
    with _pointed():
        client = MlflowClient()
        run = client.get_run(run_id)
        experiment = run.info.experiment_id
        _log_values(client, run_id, recipe.model_dump(mode="json"), _headline(report))
        client.log_inputs(run_id, _inputs(recipe, report["task"]))
        client.set_tag(run_id, _VERDICT, report["verdict"]["status"])
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


def register(
    run_id: str,
    name: str,
    specialist: Path,
    *,
    digest: str,
    verdict: str,
    example: Any,
    requirements: Sequence[str],
) -> Registered:
    """Log the specialist as a model that loads without torch, and register it.

    A version with the same content and verdict is reused. `champion` moves only on a pass.

    Args:
        specialist: folder of specialist.onnx, preprocess.json and tokenizer.json.
        digest: of that folder.
        example: one valid input, stored beside the model.
        requirements: names of the distributions that serving imports.
    """
    with _pointed():
        client = MlflowClient()
        found = _same_version(client, name, digest, verdict)
        if found is None:
            tags = {_DIGEST: digest, _VERDICT: verdict}
            number = _log_model(run_id, name, specialist, example, requirements, tags)
        else:
            number = found
        alias = None
        if verdict == "pass":
            client.set_registered_model_alias(name, CHAMPION, number)
            alias = CHAMPION
        client.set_tag(run_id, "winnow.model_version", f"{name}/{number}")
        return Registered(f"models:/{name}/{number}", number, alias, found is not None)


def fetch_model(uri: str, into: Path) -> Path:
    """Download a registered model; returns the folder that holds the specialist's files."""
    if tracking_uri() == embedded_tracking_uri() and not (home() / "mlflow.db").exists():
        raise RecipeError(f"MODEL: {uri} is not in {tracking_uri()}, which no run has filled yet")
    with _pointed():
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into))
        except MlflowException as error:
            raise RecipeError(
                f"MODEL: {uri} is not in {tracking_uri()} ({error.message.splitlines()[0]})"
            ) from None
    found = next(Path(folder).rglob("specialist.onnx"), None)
    if found is None:
        raise RecipeError(f"MODEL: {uri} holds no specialist.onnx; name a model that winnow made")
    return found.parent


def state_of_store() -> tuple[str, bool]:
    """What the tracking store holds, or why it cannot be reached: for `winnow doctor`."""
    if tracking_uri() == embedded_tracking_uri() and not (home() / "mlflow.db").exists():
        return "made by the first run", True
    with _pointed():
        client = MlflowClient()
        try:
            runs = sum(1 for _ in client.search_experiments())
            models = [model.name for model in client.search_registered_models()]
        except Exception as error:  # any backend's own errors: the doctor reports, never raises
            return f"not reachable ({str(error).splitlines()[0]})", False
    return f"{runs} experiments; models: {', '.join(models) or 'none'}", True


@contextmanager
def _pointed() -> Iterator[None]:
    """Point MLflow's process-wide setting at our store, quietly, and put it back."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    home().mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(tracking_uri())
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # MLflow also prints, draws bars and warns about its own type hints
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: what MLflow starts with


def _require_reachable(uri: str) -> None:
    """Ask a tracking server for a sign of life: MLflow itself would try for four minutes."""
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError as answer:  # also a refusal is an answer
        answer.close()
    except OSError as error:
        raise RecipeError(
            f"MLFLOW_TRACKING_URI: no server answers at {uri} ({error}); start it, or unset the "
            "variable to use the store under WINNOW_HOME"
        ) from None


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
    texts = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(params)]
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


def _same_version(client: MlflowClient, name: str, digest: str, verdict: str) -> str | None:
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get(_DIGEST) == digest and found.tags.get(_VERDICT) == verdict:
            return str(found.version)
    return None


def _log_model(
    run_id: str,
    name: str,
    specialist: Path,
    example: Any,
    requirements: Sequence[str],
    tags: dict[str, str],
) -> str:
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        # of our code, only what serving imports travels with the model
        for module, path in import_closure("exports.specialist").items():
            target = Path(scratch, *module.split(".")).with_suffix(".py")
            if path.name == "__init__.py":
                target = Path(scratch, *module.split("."), "__init__.py")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # made by hand, because Model.log would put it into the default experiment
        client = MlflowClient()
        logged = client.create_logged_model(
            client.get_run(run_id).info.experiment_id, "specialist", source_run_id=run_id, tags=tags
        )
        info = Model.log(
            None,
            mlflow.pyfunc,
            name=logged.name,
            model_id=logged.model_id,
            run_id=run_id,
            registered_model_name=name,
            tags=tags,
            python_model=str(ROOT / "exports" / "serving.py"),
            artifacts={"specialist": str(specialist)},
            code_paths=[str(path) for path in Path(scratch).iterdir()],
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in requirements],
        )
    return str(info.registered_model_version)
