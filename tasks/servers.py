"""`winnow ui`: MLflow's and Prefect's own servers over the stores under <home>."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from rich.console import Console

from tasks.errors import UserError
from tasks.home import UI_PORTS, home, page, prefect_database, prefect_home, tracking_uri


def _require_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"ui: port {port} ({name}) is taken; end what listens there, then try again"
            ) from None


def serve_pages() -> None:
    """Run both servers on 127.0.0.1 until Ctrl-C, or until one of them ends."""
    for name, port in UI_PORTS.items():
        _require_free(name, port)
    prefect_home().mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home()),
        "PREFECT_API_DATABASE_CONNECTION_URL": prefect_database(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # seven more processes, for evaluations that nothing here asks for
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_UI_API_URL": f"{page('prefect')}/api",
    }
    environment.pop("PREFECT_API_URL", None)  # of another server
    module = [sys.executable, "-m"]
    root = ["--default-artifact-root", (home() / "mlartifacts").as_uri()]
    here = ["--host", "127.0.0.1", "--port"]
    commands = {
        "mlflow": [*module, "mlflow", "ui", "--backend-store-uri", tracking_uri(), *root, *here],
        "prefect": [*module, "prefect", "server", "start", *here],
    }
    console = Console(highlight=False)
    running = {}
    try:
        for name, command in commands.items():
            # a group of its own, so that the server's own children end with it
            running[name] = subprocess.Popen(
                [*command, str(UI_PORTS[name])], env=environment, start_new_session=True
            )
            console.print(f"{name:<8} {page(name)}")
        console.print("Ctrl-C ends both")
        while all(process.poll() is None for process in running.values()):
            time.sleep(0.5)
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            process.wait()
