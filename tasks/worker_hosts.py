"""What workers on other hosts must share with the host that sends them tasks, and how it shows.

A token file tells whether a worker sees the same folders: the home, then every stage that all need
is made once; the results, then they are written where they belong. A host that sees neither uses a
home of its own, makes shared stages itself, and hands its results back.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.cache import ROOMS, ROOT
from tasks.errors import UserError
from tasks.home import home, tracking_uri
from tasks.processes import this_process
from tasks.secrets import redacted

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Sender:
    """The host that sends the tasks.

    Attributes:
        home: its <home>.
        out: its folder for the results.
        token: name of a file that lies in both meanwhile.
        prefect: address of Prefect's API.
        tracking: MLflow's address.
        code: digest of winnow's own files.
        python: its version, as (3, 11).
        boot: of which host, since it was started.
    """

    home: str
    out: str
    token: str
    prefect: str
    tracking: str
    code: str
    python: tuple[int, int]
    boot: str


@contextmanager
def sender(out: Path, prefect: str) -> Iterator[Sender]:
    """This host as a sender of tasks; its token files are gone afterwards.

    Args:
        out: folder for the results, made here.
        prefect: address of Prefect's API.
    """
    token = f".token-{uuid.uuid4().hex}"
    places = [home(), out.absolute()]
    try:
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / token).touch()
        yield Sender(
            str(places[0]),
            str(places[1]),
            token,
            prefect,
            tracking_uri(),
            code_of_winnow(),
            sys.version_info[:2],
            _boot(),
        )
    finally:
        for place in places:
            (place / token).unlink(missing_ok=True)


def code_of_winnow() -> str:
    """SHA-256 over winnow's own source files."""
    total = hashlib.sha256()
    for room in (*ROOMS, "flows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def look(known: Sender) -> dict[str, Any]:
    """Run on a worker: what it shares with the sender, and what it cannot reach."""
    return {
        "host": socket.gethostname(),
        "same_host": _boot() == known.boot,
        "code": code_of_winnow(),
        "python": sys.version_info[:2],
        "shares_home": _seen(known.home, known.token) or (home() / known.token).is_file(),
        "shares_out": _seen(known.out, known.token),
        "unreachable": {
            name: reason
            for name, address in (
                ("PREFECT_API_URL", f"{known.prefect.rstrip('/')}/health"),
                ("MLFLOW_TRACKING_URI", f"{known.tracking.rstrip('/')}/health"),
            )
            if address.startswith("http") and (reason := _silence(address))
        },
    }


def require_fit(known: Sender, found: Mapping[str, Mapping[str, Any]], shared: bool) -> None:
    """Raise `UserError` (one line) where a worker cannot do its part.

    Args:
        found: by worker's address, what `look` found.
        shared: whether workers must see the sender's home.
    """
    for address, facts in found.items():
        where = f"worker {address} ({facts['host']})"
        if tuple(facts["python"]) != known.python:
            raise UserError(
                f"{where}: runs Python {'.'.join(map(str, facts['python']))}, this is "
                f"{'.'.join(map(str, known.python))}; use one version on all hosts"
            )
        if facts["code"] != known.code:
            raise UserError(f"{where}: has another version of winnow; install this one there")
        for name, reason in facts["unreachable"].items():
            uri = known.prefect if name == "PREFECT_API_URL" else known.tracking
            raise UserError(
                f"{name}: {where} gets no answer from {redacted(uri)} ({reason}); start a server "
                "that other hosts reach (`winnow up --host ADDRESS`) and set the variable here"
            )
        if known.tracking.startswith("sqlite") and not facts["same_host"]:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {where} is another host, and {redacted(known.tracking)} is "
                "one host's; start a server (`winnow up --host ADDRESS`) and set the variable here"
            )
        if shared and not facts["shares_home"]:
            raise UserError(
                f"WINNOW_HOME: {where} does not see {known.home}; name a folder that all hosts "
                "share, at the same path"
            )


@contextmanager
def as_sent(known: Sender | None, name: str) -> Iterator[tuple[Path | None, bool]]:
    """On a worker: the sender's stores inside the block.

    Yields the folder for the results called `name`, and whether the sender sees it. None stands
    for a worker of the sender's own, which has all that already.
    """
    if known is None:
        yield None, True
        return
    seen, changes = _seen(known.out, known.token), {"MLFLOW_TRACKING_URI": known.tracking}
    if _seen(known.home, known.token):
        changes["WINNOW_HOME"] = known.home
    if known.tracking == f"sqlite:///{Path(known.home) / 'mlflow.db'}":
        del changes["MLFLOW_TRACKING_URI"]  # the embedded store, by another name
    with ExitStack() as stack:
        root = known.out
        if not seen:
            root = stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-"))
        # a flow that a form started writes there; the sender has looked at where that is
        stack.enter_context(_environment({**changes, "WINNOW_OUT": root}))
        yield Path(root, name), seen


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _seen(folder: str, token: str) -> bool:
    return Path(folder, token).is_file()


def _boot() -> str:
    return this_process().partition(":")[0]


def _silence(address: str) -> str:
    """Why an address does not answer; empty where it does."""
    try:
        urllib.request.urlopen(address, timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as answer:  # also a refusal is an answer
        answer.close()
    except (OSError, ValueError) as error:
        return redacted(str(error))
    return ""
