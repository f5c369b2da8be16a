"""`winnow up`: everything that runs unattended; `deploy` and `ui`: parts of it alone."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import one_line_errors, quiet, terminate

_DEPLOYMENTS = typer.Option(
    "--deployments",
    metavar="FILE",
    help="A prefect.yaml; left out, the one here, else winnow's own.",
)


def up(
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; left out, WINNOW_HOST, else 127.0.0.1."),
    ] = None,
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's server.")] = 5000,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Whether to run flows here.")
    ] = True,
    deploy: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="Whether to put the deployments there.")
    ] = True,
    runs: Annotated[
        int, typer.Option(min=1, help="Flow runs at once; two disturb each other's measurements.")
    ] = 1,
    deployments: Annotated[Path | None, _DEPLOYMENTS] = None,
) -> None:
    """Run Prefect's and MLflow's servers, the deployments and a worker until Ctrl-C.

    A server that PREFECT_API_URL or MLFLOW_TRACKING_URI names elsewhere is used instead of one of
    its own. What ends is started again; logs are under WINNOW_HOME/logs.
    """
    with one_line_errors():
        from tasks.home import home, require_writable
        from tasks.up import Options
        from tasks.up import up as run

        require_writable(home(), "WINNOW_HOME")
        signal.signal(signal.SIGTERM, terminate)
        run(Options(host, prefect_port, mlflow_port, worker, deploy, runs, deployments))


def deploy(deployments: Annotated[Path | None, _DEPLOYMENTS] = None) -> None:
    """Put the deployments of prefect.yaml on the server that PREFECT_API_URL names.

    Those that neither the file nor the code changes stay as they are, with what was altered in
    Prefect's pages.
    """
    with one_line_errors():
        quiet()
        from tasks.deployments import deploy as put
        from tasks.up import find_deployments

        for each in put(find_deployments(deployments), Path.cwd()):
            typer.echo(": ".join(filter(None, [each.name, each.told])) + f" ({each.action})")


def ui() -> None:
    """Serve MLflow's and Prefect's pages on this machine until Ctrl-C."""
    with one_line_errors():
        from tasks.up import serve_pages

        signal.signal(signal.SIGTERM, terminate)
        serve_pages()
