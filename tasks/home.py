"""Where winnow keeps what outlives a run: the artifact store, Prefect's and MLflow's databases."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from tasks.errors import RecipeError
from tasks.fences import there

# Ports of the pages that `winnow ui` serves; links to pages point there.
UI_PORTS = {"mlflow": 5000, "prefect": 4200}


def home() -> Path:
    """$WINNOW_HOME, or `.winnow` in the current directory (absolute; not created here)."""
    return Path(os.environ.get("WINNOW_HOME") or ".winnow").expanduser().absolute()


def store() -> Path:
    """The folder of the stages' artifacts: `<home>/store/<stage>/<key>/`."""
    return home() / "store"


def prefect_home() -> Path:
    """The folder of the embedded Prefect server's data."""
    return home() / "prefect"


def prefect_database() -> str:
    """The SQLite address of the embedded Prefect server."""
    return f"sqlite+aiosqlite:///{prefect_home() / 'prefect.db'}"


def embedded_tracking_uri() -> str:
    """The SQLite address of the embedded MLflow store."""
    return f"sqlite:///{home() / 'mlflow.db'}"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the embedded store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or embedded_tracking_uri()


def page(server: str) -> str:
    """The address at which `winnow ui` serves 'mlflow' or 'prefect'."""
    return f"http://127.0.0.1:{UI_PORTS[server]}"


def mlflow_page() -> str:
    """Where people find MLflow's pages: WINNOW_MLFLOW_PAGE, else the tracking server.

    Without a server, where `winnow ui` serves them. A password in the server's address is left out.
    """
    shown, uri = os.environ.get("WINNOW_MLFLOW_PAGE"), tracking_uri()
    if shown is None and not uri.startswith("http"):
        return page("mlflow")
    parts = urlsplit(shown or uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def require_writable(folder: Path, field: str) -> None:
    """Raise `RecipeError` where `folder` cannot be made or written to; creates nothing."""
    existing = folder.absolute()
    while not there(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise RecipeError(f"{field}: {existing} is a file; name a folder that can be written to")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(f"{field}: {existing} is not writable; name a folder that is")
