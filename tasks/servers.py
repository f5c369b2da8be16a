"""`winnow ui`: MLflow's and Prefect's own servers over the stores under <home>."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from rich.console import Console

from tasks.home import UI_PORTS, home, page, prefect_database, prefect_home, tracking_uri


def serve_pages() -> None:
    """Run both servers on 127.0.0.1 until Ctrl-C, or until one of them ends."""
    prefect_home().mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home()),
        "PREFECT_API_DATABASE_CONNECTION_URL": prefect_database(),
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
            running[name] = subprocess.Popen([*command, str(UI_PORTS[name])], env=environment)
            console.print(f"{name:<8} {page(name)}")
        console.print("Ctrl-C ends both")
        while all(process.poll() is None for process in running.values()):
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
