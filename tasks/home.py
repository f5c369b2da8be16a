"""Where winnow keeps what outlives a run: the artifact store, Prefect's and MLflow's databases."""

from __future__ import annotations

import errno
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
    existing, missing = folder.absolute(), list[str]()
    while not there(existing) and existing != existing.parent:
        missing.append(existing.name)
        existing = existing.parent
    # each part beside what exists: below a part that is missing no system looks at a name
    for path in (folder.absolute(), *(existing / name for name in missing)):
        _require_name(path, field)
    if not existing.is_dir():
        raise RecipeError(f"{field}: {existing} is a file; name a folder that can be written to")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(f"{field}: {existing} is not writable; name a folder that is")


def require_writable_file(path: Path, field: str) -> None:
    """Raise `RecipeError` where the file `path` cannot be made or written; creates nothing."""
    if there(path) and path.is_dir():
        raise RecipeError(f"{field}: {path} is a folder; name a file, such as {path}/server.json")
    require_writable(path.parent, field)
    # its temporary name, see `artifacts.write_atomically`, is longer than its own
    _require_name(path.parent / f"{path.name}{15 * '.'}", field)


def _require_name(path: Path, field: str) -> None:
    """Raise where no file could have this name, or one is a link that leads nowhere."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        # what is missing or closed is judged by the folder that it would lie in
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
            return
        short = path.name if len(path.name) <= 40 else f"{path.name[:40]}..."
        raise RecipeError(f"{field}: {short!r} is no name of a file; name a shorter one") from None
    if not there(path):
        raise RecipeError(f"{field}: {path} is a link that leads nowhere; remove it")
