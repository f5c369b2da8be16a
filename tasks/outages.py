"""What goes wrong around a run, not in it: servers away, databases locked, disks full.

What passes is waited for, as long as MLflow's and Prefect's own clients wait; what does not is told
in one line. Errors are known by their class and text, so that this imports none of the libraries.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tasks.errors import RecipeError, UserError
from tasks.home import home, prefect_home, tracking_uri
from tasks.secrets import redacted

# MLflow's client waits four minutes for a server that is away (seven retries), Prefect's as long
# with the setting of tasks/__init__.py; a locked database is waited for as long.
PATIENCE_SECONDS = 240.0
_ALMOST_NOTHING = 1 << 20  # bytes; a file system seldom gives its last block away

_FULL_CODES = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
    "disk full",
)
_LOCKED_WORDS = ("read-only file system", "attempt to write a readonly database")
# what a full disk also looks like, where a library or a server has swallowed the reason
_VAGUE_WORDS = (
    "disk i/o error",
    "unable to open database file",
    "internal server error",
    "server error '500",
    "prefect server at",  # tasks.embedded: it did not start
)
_BUSY_WORDS = ("database is locked", "database table is locked", "database schema is locked")
_AWAY_MODULES = ("requests", "urllib3", "httpx", "httpcore", "websockets")
# the middles of the names of their errors
_AWAY_NAMES = (
    "Connect",
    "Timeout",
    "Protocol",
    "ReadError",
    "WriteError",
    "ChunkedEncoding",
    "MaxRetry",
    "RetryError",
    "Incomplete",
)

_AWAY_WORDS = (
    "Max retries exceeded",
    "Connection refused",
    "Connection broken",
    "Connection aborted",
    "Connection reset",
    "Remote end closed connection",
    "timed out",
)

Result = TypeVar("Result")


class Away(UserError):
    """A server, a database or a disk cannot be used at the moment; nothing is wrong with the run.

    Not a `RecipeError`: what is away must never be taken for what is not there.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors behind it, each once."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def is_busy(error: BaseException) -> bool:
    """Whether a database is locked by another writer: nothing was written, so try again."""
    return any(any(words in str(each).lower() for words in _BUSY_WORDS) for each in causes(error))


def is_away(error: BaseException) -> bool:
    """Whether a server could not be reached, or broke off."""
    for each in causes(error):
        if isinstance(each, ConnectionError | TimeoutError):
            return True
        kind, text = type(each), str(each)
        # MLflow tells of failed downloads in one text, with no error behind it
        if kind.__module__.startswith("mlflow") and any(x in text for x in _AWAY_WORDS):
            return True
        if kind.__module__.split(".")[0] in _AWAY_MODULES and any(
            name in kind.__name__ for name in _AWAY_NAMES
        ):
            return True
    return False


def patiently(call: Callable[[], Result], seconds: float = PATIENCE_SECONDS) -> Result:
    """What a call returns; tried again while a database is locked or a server is away.

    Only for what may be done twice. The last error is raised after `seconds`: a client that has
    waited for so long itself is not asked to do so again.
    """
    end, pause = time.monotonic() + seconds, 0.2
    while True:
        try:
            return call()
        except Exception as error:
            passing = is_busy(error) or is_away(error)
            if not passing or time.monotonic() + pause > end:
                raise
        time.sleep(pause * (0.5 + random.random()))  # so that two that wait do not meet again
        pause = min(2 * pause, 15.0)


def worth_another_try(task: Any, run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn` of tasks that speak with the tracking store.

    What a user has to mend, a full disk among it, is not tried again, and no mistake of ours is.
    """
    error = state.result(raise_on_failure=False)
    if not isinstance(error, Exception) or isinstance(error, UserError):
        return False
    kinds = {type(each).__module__.split(".")[0] for each in causes(error)}
    return is_busy(error) or is_away(error) or ("mlflow" in kinds and not is_full(error))


def is_full(error: BaseException) -> bool:
    """Whether a disk, or a user's share of it, is full."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL_CODES)
        or any(words in str(each).lower() for words in _FULL_WORDS)
        for each in causes(error)
    )


def require_reachable(uri: str, seconds: float = 0.0) -> None:
    """Ask a tracking server for a sign of life: MLflow itself would try for four minutes.

    Args:
        seconds: how long to wait for it: in the middle of a run it may be just away.
    """
    if not uri.startswith("http"):
        return
    try:
        patiently(lambda: _ask(uri), seconds)
    except OSError as error:
        raise RecipeError(
            f"MLFLOW_TRACKING_URI: no server answers at {redacted(uri)} ({error}); start it, or "
            "unset the variable to use the store under WINNOW_HOME"
        ) from None


def _ask(uri: str) -> None:
    parts = urlsplit(uri)  # urllib would take a user and a password for a part of the host's name
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError as answer:  # also a refusal is an answer
        answer.close()


def told(error: BaseException) -> str | None:
    """The one line for an error that comes from around the run; None where it does not.

    Named are the place, its free bytes and what helps.
    """
    chain = list(causes(error))
    if isinstance(error, UserError):
        return None
    if is_full(error):
        return _full(next(filter(None, map(_named, chain)), None))
    for each in chain:
        code, text = getattr(each, "errno", None), str(each).lower()
        if code == errno.EROFS or any(words in text for words in _LOCKED_WORDS):
            place = _named(each) or home()
            return f"{place}: is read-only; make it writable, or name another WINNOW_HOME or --out"
    text = " ".join(str(each).lower() for each in chain)
    if any(words in text for words in _VAGUE_WORDS) and _free(_fullest()) < _ALMOST_NOTHING:
        return _full(None)
    if is_busy(error):
        return (
            f"{home()}: its database stayed locked for {PATIENCE_SECONDS:.0f} s; end what writes "
            "to it, and run again: finished stages are reused"
        )
    if is_away(error):
        return _away(chain)
    return None


def raise_if_away(error: BaseException) -> None:
    """Raise `Away` where an error says that a server or a database cannot be reached now.

    For handlers that would take any other error for "not there" or "broken".
    """
    if isinstance(error, Away):
        raise error
    if is_busy(error) or is_away(error) or is_full(error):
        raise Away(told(error) or str(error)) from error


def _away(chain: list[BaseException]) -> str:
    text = " ".join(f"{type(each).__module__} {each}" for each in chain)
    prefect = os.environ.get("PREFECT_API_URL")
    if ("mlflow" in text or "requests." in text) and tracking_uri().startswith("http"):
        name, where = "MLFLOW_TRACKING_URI", tracking_uri()
    elif "prefect" not in text and "httpx" not in text:
        name, where = "network", (str(chain[0]).splitlines() or ["some address"])[0]
    elif prefect is None:
        name, where = str(prefect_home()), "127.0.0.1 of this run (server.log there says why)"
    else:
        name, where = "PREFECT_API_URL", prefect
    return (
        f"{name}: the server at {redacted(where)} went away in the middle and was waited for; "
        "when it is back, run again: finished stages are reused"
    )


def _full(place: Path | None) -> str:
    place = place or _fullest()
    return (
        f"{place}: no space left ({_free(place):,} bytes free); make room, `winnow gc` removes "
        "what no run needs, and run again: finished stages are reused"
    )


def _named(error: BaseException) -> Path | None:
    """The nearest folder that exists of the file that an error names."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes) or not name:
        return None
    place = Path(os.fsdecode(name)).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    # a run's scratch folder is gone by the time that this is read
    inside = home()
    return inside if inside.is_dir() and place.is_relative_to(inside) else place


def _fullest() -> Path:
    """Of the places that a run writes to, the one with the fewest free bytes."""
    places = [home(), Path.cwd(), Path(tempfile.gettempdir())]
    return min((each for each in places if each.is_dir()), key=_free, default=Path("/"))


def _free(place: Path) -> int:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return sys.maxsize
