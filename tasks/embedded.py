"""A Prefect server of our own, for people who run none: one process, SQLite under <home>.

Prefect can start such a server itself, but only after importing the whole of it into the client's
process, and only when the first flow begins. Started here, before MLflow and the rest are
imported, its four seconds pass meanwhile: a run that reuses every stage takes half the time.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prefect
from prefect.client.orchestration import get_client
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import get_current_settings, temporary_settings

from tasks.crashed import owned_flow_runs
from tasks.errors import UserError
from tasks.home import page, prefect_database, prefect_home, tracking_uri
from tasks.outages import PATIENCE_SECONDS, require_reachable
from tasks.scratch import scratch

_PATIENCE_SECONDS = 180.0  # two cores that others use as well were seen to need 75
_EVENT_TRIES = int(PATIENCE_SECONDS)
_REVIVALS = 5
_server: tuple[subprocess.Popen[bytes], str] | None = None


def begin_server() -> str | None:
    """Start this process's server, without waiting for it; returns its address.

    None where the user's environment or profile names a server (PREFECT_API_URL). A second call
    returns the first one's server, whatever <home> is by then.
    """
    global _server
    if get_current_settings().api.url is not None:
        return None
    if _server is not None and _server[0].poll() is None:
        return _server[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _server = _spawn(port), f"http://127.0.0.1:{port}/api"
    return _server[1]


def _spawn(port: int) -> subprocess.Popen[bytes]:
    prefect_home().mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_HOME": str(prefect_home()),
        "PREFECT_API_DATABASE_CONNECTION_URL": prefect_database(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_UI_ENABLED": "0",
        # what Prefect sets for its own temporary servers: no schedules, no housekeeping
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    command = [sys.executable, "-P", str(Path(__file__).with_name("watched.py")), "uvicorn"]
    command += ["--app-dir", str(prefect.__module_path__.parent)]
    command += ["--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (prefect_home() / "server.log").open("ab") as log:
        # a session of its own: Ctrl-C is for the run, which then still has its end to report
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends, and the server with it
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    atexit.register(_stop, process)
    return process


@contextmanager
def embedded_prefect() -> Iterator[None]:
    """Inside the block, Prefect talks to the user's server, or else to one of our own.

    Servers that the user named are asked for a sign of life before anything is computed.
    """
    url = begin_server()
    require_reachable(tracking_uri())
    # Prefect's client of events gives up after ten tries, a second each, and task runs are events
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=_EVENT_TRIES)
    if url is None:
        _require_answer()
        with scratch(), owned_flow_runs():
            yield
        return
    _wait(url)
    # the pages are those of `winnow ui`, over the same database
    ours = temporary_settings({"api.url": url, "ui_url": page("prefect"), "home": prefect_home()})
    with ours, _revived(), scratch(), owned_flow_runs():
        yield


@contextmanager
def _revived() -> Iterator[None]:
    """Inside the block, our server is started again where it dies (memory runs out, a kill).

    Prefect's client waits for it meanwhile, and its database knows what was.
    """
    over = threading.Event()

    def watch() -> None:
        global _server
        tries = 0
        while not over.wait(1.0) and tries < _REVIVALS:
            if _server is not None and _server[0].poll() is not None:
                tries += 1
                port = int(_server[1].rpartition(":")[2].partition("/")[0])
                _server = _spawn(port), _server[1]

    thread = threading.Thread(target=watch, name="winnow-prefect", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _require_answer() -> None:
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise UserError(
            f"PREFECT_API_URL: no server answers at {get_current_settings().api.url} ({problem}); "
            "start it, or unset the variable to use an embedded one"
        )


def _wait(url: str) -> None:
    assert _server is not None
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end and _server[0].poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(
        f"the embedded Prefect server at {url} did not start (exit code {_server[0].poll()}); "
        f"see {prefect_home() / 'server.log'}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
