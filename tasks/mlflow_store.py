"""The way to MLflow's store, for the two modules that use it: `tracking` and `registry`.

The store is SQLite at `<home>/mlflow.db` with its artifacts beside it, unless MLFLOW_TRACKING_URI
names another. Everything goes by run id: MLflow's active run belongs to one thread.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient

from tasks.errors import RecipeError
from tasks.home import embedded_tracking_uri, home, tracking_uri

# the longest value that MLflow takes
LONGEST = 5000


@contextmanager
def pointed() -> Iterator[None]:
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


def require_reachable(uri: str) -> None:
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


def empty() -> bool:
    """Whether the store is the embedded one and no run has made it yet."""
    return tracking_uri() == embedded_tracking_uri() and not (home() / "mlflow.db").exists()


def state_of_store() -> tuple[str, bool]:
    """What the tracking store holds, or why it cannot be reached: for `winnow doctor`."""
    if empty():
        return "made by the first run", True
    with pointed():
        client = MlflowClient()
        try:
            runs = sum(1 for _ in client.search_experiments())
            models = [model.name for model in client.search_registered_models()]
        except Exception as error:  # any backend's own errors: the doctor reports, never raises
            return f"not reachable ({str(error).splitlines()[0]})", False
    return f"{runs} experiments; models: {', '.join(models) or 'none'}", True
