"""The way to MLflow's store, for the two modules that use it: `tracking` and `registry`.

The store is SQLite at `<home>/mlflow.db` with its artifacts beside it, unless MLFLOW_TRACKING_URI
names another. Everything goes by run id: MLflow's active run belongs to one thread.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

import mlflow
from mlflow import MlflowClient

from tasks.home import embedded_tracking_uri, home, tracking_uri
from tasks.outages import patiently, require_reachable
from tasks.secrets import without_secrets

__all__ = [
    "LONGEST",
    "MlflowClient",
    "empty",
    "hurried",
    "pointed",
    "require_reachable",
    "state_of_store",
    "steady_client",
]

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
            without_secrets(),  # clients repeat the server's address in their errors
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: what MLflow starts with


class _Steady:
    """MLflow's client, whose calls are made again while the database is locked or away.

    The REST client waits for a server by itself; a locked SQLite file, which MLflow gives up on
    after twenty seconds, and a connection that breaks off in the middle of an answer it does not
    wait for. Making something twice by that is possible where an answer was lost: `tracking` and
    `registry` look for twins of what they made.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return _steadied(found) if callable(found) else found


def _steadied(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def again(*arguments: Any, **named: Any) -> Any:
        return patiently(lambda: call(*arguments, **named))

    return again


def steady_client() -> MlflowClient:
    """A client of the store that `pointed` points at, with patience; see `tasks.outages`."""
    return cast(MlflowClient, _Steady(patiently(MlflowClient)))


@contextmanager
def hurried() -> Iterator[None]:
    """Inside the block, MLflow's client waits seconds for a server that is away, not minutes."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
