"""The processes of `winnow up`: Prefect's server, MLflow's server, Prefect's worker."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from tasks.home import home, prefect_database, prefect_home, tracking_uri
from tasks.servers import (
    LOOPBACK,
    POOL,
    Servers,
    allowed_hosts,
    free_port,
    names_of,
    own_origins,
    url_of,
    with_our_code,
)
from tasks.supervise import Service

# of the servers alone: a flow run has no business with them
_SERVERS_OWN = (
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_API_AUTH_STRING",
    "WINNOW_MLFLOW_DATABASE",
    "WINNOW_ARTIFACTS",
)


def prefect_service(servers: Servers) -> Service:
    """Prefect's server with its pages, schedules and automations."""
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    # an API_URL would be another server's
    environment.pop("PREFECT_API_URL", None)
    environment.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", prefect_database())
    environment.setdefault("PREFECT_UI_API_URL", f"{servers.prefect_page}/api")
    # Prefect lets any web page that a browser of this machine shows call it, loopback or not
    environment.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", ",".join(own_origins(servers)))
    where = ["--host", servers.host, "--port", str(servers.prefect_port)]
    command = [sys.executable, "-m", "prefect", "server", "start", *where]
    return Service("prefect", command, environment, f"{servers.prefect}/health")


def mlflow_service(servers: Servers) -> Service:
    """MLflow's server: records, registry, and the files unless a folder of this host holds them."""
    environment = {
        **os.environ,
        # by the environment: an argument with a password is shown to every user of the machine
        "MLFLOW_BACKEND_STORE_URI": mlflow_database(),
        # seven more processes, for evaluations that nothing here asks for
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    destination = os.environ.get("WINNOW_ARTIFACTS") or str(home() / "mlartifacts")
    if "://" not in destination:
        destination = Path(destination).expanduser().absolute().as_uri()
    environment["MLFLOW_ARTIFACTS_DESTINATION"] = destination
    if not serves_files(servers):
        # commands that use the database itself then find the files, too
        environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = (home() / "mlartifacts").as_uri()
    else:
        environment.pop("MLFLOW_DEFAULT_ARTIFACT_ROOT", None)
    if not servers.loopback:
        environment.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", ",".join(allowed_hosts(servers)))
        origins = [servers.mlflow_page]
        origins += [url_of(name, servers.mlflow_port) for name in names_of(servers)]
        environment.setdefault(
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", ",".join(dict.fromkeys(origins))
        )
    where = ["--host", servers.host, "--port", str(servers.mlflow_port), "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    return Service("mlflow", command, environment, f"{servers.mlflow}/health")


def worker_service(servers: Servers, runs: int) -> Service:
    """Prefect's worker of this machine, which starts a process a flow run.

    Args:
        runs: flow runs at once; two on one machine would disturb each other's measurements.
    """
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in _SERVERS_OWN},
        **servers.for_clients,
        "PREFECT_HOME": str(prefect_home()),
        "PREFECT_UI_URL": servers.prefect_page,
        "WINNOW_MLFLOW_PAGE": servers.mlflow_page,
        "WINNOW_HOME": str(home()),
        "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        # lines appear in the log when they are printed
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": with_our_code(),
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    command += ["--name", socket.gethostname(), "--type", "process", "--limit", str(runs)]
    command += ["--with-healthcheck", "--install-policy", "never"]
    # it ends its runs, and each of them tells the server and MLflow what became of it
    return Service("worker", command, environment, f"http://{LOOPBACK}:{port}/health", grace=60)


def mlflow_database() -> str:
    """WINNOW_MLFLOW_DATABASE, else the store that commands use without a server."""
    named = os.environ.get("WINNOW_MLFLOW_DATABASE")
    if named:
        return named
    uri = tracking_uri()
    return f"sqlite:///{home() / 'mlflow.db'}" if uri.startswith("http") else uri


def serves_files(servers: Servers) -> bool:
    """Whether files go through MLflow's server: always where more than this host is to reach them.

    With everything under <home> they do not: `winnow specialize` without a server uses the same
    database, and finds only files whose own place the database names.
    """
    named = ("WINNOW_ARTIFACTS", "WINNOW_MLFLOW_DATABASE")
    return not servers.loopback or any(os.environ.get(name) for name in named)
