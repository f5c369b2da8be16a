"""`winnow up`: the servers, the deployments and a worker, kept running until Ctrl-C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tasks.errors import UserError
from tasks.fences import there
from tasks.gone_runs import mark_gone_runs
from tasks.home import UI_PORTS, home, prefect_home
from tasks.secrets import redacted
from tasks.servers import LOOPBACK, POOL, ROOT, Servers, planned, warnings_of, with_our_code
from tasks.services import mlflow_service, prefect_service, serves_files, worker_service
from tasks.supervise import Supervisor, alone, end_leftovers

_DEPLOY_SECONDS = 300


@dataclass(frozen=True)
class Options:
    """What `winnow up` is asked for.

    Args:
        host: the address to listen on; None: WINNOW_HOST, else 127.0.0.1.
        runs: flow runs that the worker executes at once.
        deployments: a prefect.yaml; None: the one here, else winnow's own.
    """

    host: str | None = None
    prefect_port: int = UI_PORTS["prefect"]
    mlflow_port: int = UI_PORTS["mlflow"]
    worker: bool = True
    deploy: bool = True
    runs: int = 1
    deployments: Path | None = None


def up(options: Options, console: Console | None = None) -> None:
    """Start everything, say where it is, keep it running until a signal's handler raises.

    Raises:
        UserError: of one line, where something cannot start; nothing is left running then.
    """
    console = console or Console(highlight=False)

    def say(text: str) -> None:
        console.print(redacted(text), markup=False, soft_wrap=True)

    with alone(home() / "up.lock", "up"):
        end_leftovers(home() / "up.json", say)
        servers = planned(options.host, options.prefect_port, options.mlflow_port)
        file = find_deployments(options.deployments) if options.deploy else None
        for warning in warnings_of(servers):
            say(f"warning: {warning}")
        prefect_home().mkdir(parents=True, exist_ok=True)
        with Supervisor(home() / "logs", home() / "up.json", say) as supervisor:
            started = []
            if servers.prefect_elsewhere is None:
                started.append(prefect_service(servers))
            if servers.mlflow_elsewhere is None:
                started.append(mlflow_service(servers))
            for service in started:
                supervisor.start(service)
            for service in started:
                supervisor.wait(service.name)
            _say_of_files(servers, say)
            say(f"prefect  {servers.prefect_page}  runs, forms, schedules")
            say(f"mlflow   {servers.mlflow_page}  records, models")
            if file is not None:
                for line in _deploy(servers, file):
                    say(f"deployed {line}")
            if options.worker:
                with suppress(OSError, ValueError, KeyError):  # a convenience: no reason to stop
                    for name in mark_gone_runs(servers.prefect, POOL):
                        say(f"flow run {name}: its process is gone; marked as crashed")
                supervisor.start(worker_service(servers, options.runs))
                supervisor.wait("worker")
                say(f"worker   of the pool {POOL}, {options.runs} at once, in {Path.cwd()}")
            say(f"logs     {home() / 'logs'}")
            say("to use these servers from another terminal:")
            say("  export " + " ".join(f"{k}={v}" for k, v in _exported(servers).items()))
            say("Ctrl-C ends everything")
            supervisor.watch()


def serve_pages() -> None:
    """`winnow ui`: both servers over the stores under <home>, without deployments and worker."""
    up(Options(LOOPBACK, UI_PORTS["prefect"], UI_PORTS["mlflow"], worker=False, deploy=False))


def find_deployments(named: Path | None) -> Path:
    """The prefect.yaml to deploy: the one named, the one in this folder, or winnow's own."""
    if named is not None:
        if not there(named) or not named.is_file():
            raise UserError(f"--deployments: {named} is no file; name a prefect.yaml")
        return named.absolute()
    for folder in (Path.cwd(), ROOT):
        if (folder / "prefect.yaml").is_file():
            return folder / "prefect.yaml"
    raise UserError(
        "--deployments: there is no prefect.yaml here; run this in winnow's folder, name one, or "
        "say --no-deploy"
    )


def _exported(servers: Servers) -> dict[str, str]:
    return {k: v for k, v in servers.for_clients.items() if k != "PREFECT_API_AUTH_STRING"}


def _deploy(servers: Servers, file: Path) -> list[str]:
    """Deploy in a process of its own: this one stays without Prefect, so small for weeks."""
    environment = {**os.environ, **servers.for_clients}
    environment["PREFECT_HOME"] = str(prefect_home())
    environment["PYTHONPATH"] = with_our_code()
    command = [sys.executable, "-m", "flows.cli", "deploy", "--deployments", str(file)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_DEPLOY_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"up: deploying {file} took more than {_DEPLOY_SECONDS} s; is this machine very busy? "
            "Try again"
        ) from None
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"up: {told.removeprefix('winnow: ')}")
    return done.stdout.splitlines()


def _say_of_files(servers: Servers, say: Callable[[str], None]) -> None:
    """Warn of experiments whose files lie in a folder of this host, where others are to log."""
    if servers.mlflow_elsewhere or not serves_files(servers):
        return
    request = urllib.request.Request(
        f"{servers.mlflow}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer).get("experiments", [])
        local = [e["name"] for e in found if e["artifact_location"].startswith(("/", "file:"))]
        local = [name for name in local if name != "Default"]
        if local:
            say(
                f"warning: MLflow's experiments {', '.join(local)} keep their files in a folder of "
                "this host, as runs without a server made them: runs on other hosts cannot write "
                "there; name another one in the recipe's track.experiment"
            )
