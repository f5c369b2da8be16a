"""Two hosts of a test network: network namespaces with a cable between them, made here.

One holds the servers (Prefect, MLflow, Dask's scheduler), the command and a worker, the other a
worker. Each has a host name of its own. Where they are to share no folder, the second one's view of
the first one's folders is empty (a mount namespace).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST, SECOND = ("winnow-a", "10.77.0.1"), ("winnow-b", "10.77.0.2")
_PATIENCE_SECONDS = 600


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces joined by a cable; gone afterwards."""
    (one, here), (two, there) = FIRST, SECOND
    commands = [
        f"ip netns add {one}",
        f"ip netns add {two}",
        f"ip link add {one} netns {one} type veth peer name {two} netns {two}",
    ]
    for name, address in ((one, here), (two, there)):
        commands += [
            f"ip -n {name} addr add {address}/24 dev {name}",
            f"ip -n {name} link set {name} up",
            f"ip -n {name} link set lo up",
        ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "del", name], check=False)


def on(host: str, command: Sequence[str], hide: Sequence[Path] = ()) -> list[str]:
    """The command on a host, which sees nothing in the folders of `hide`."""
    covers = "".join(f"mount -t tmpfs none {folder}; " for folder in hide)
    script = f'hostname {host}; {covers}exec "$@"'
    within = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", *command]
    return ["ip", "netns", "exec", host, *within]


@contextlib.contextmanager
def serving(
    commands: Sequence[tuple[str, Sequence[str], Sequence[Path], dict[str, str]]], logs: Path
) -> Iterator[None]:
    """Processes that run meanwhile, each with a log; their groups are ended afterwards."""
    started = []
    try:
        for at, (host, command, hide, environment) in enumerate(commands):
            with (logs / f"{at}-{host}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        on(host, command, hide),
                        env={**os.environ, **environment},
                        stdout=log,
                        stderr=log,
                        cwd=ROOT,
                        start_new_session=True,
                    )
                )
        yield
    finally:
        for process in started[::-1]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(host: str, address: str) -> None:
    """Until a web address answers on a host."""
    script = f"import urllib.request; urllib.request.urlopen({address!r}, timeout=5)"
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        command = ["ip", "netns", "exec", host, sys.executable, "-c", script]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(2)
    raise SystemExit(f"{address} does not answer on {host}")


def two_hosts(file: Path, out: Path, own_homes: bool) -> None:
    """Run a fleet over both; prints its page, where each member ran, and what must hold."""
    if os.geteuid() or shutil.which("ip") is None:
        print("skipped: network namespaces need root and iproute2")
        return
    (one, here), (two, _) = FIRST, SECOND
    home, own, results, logs = (out.absolute() / x for x in ("home", "own", "results", "logs"))
    for folder in (home, own, results, logs):
        folder.mkdir(parents=True, exist_ok=True)
    python, hide = sys.executable, [home, results] if own_homes else []
    prefect, mlflow = f"http://{here}:4200/api", f"http://{here}:5000"
    scheduler = f"tcp://{here}:8786"
    plain = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(out.absolute() / "prefect"),
    }
    serve_prefect = [python, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    serve_prefect += ["--host", here, "--port", "4200", "--log-level", "error"]
    serve_mlflow = [python, "-m", "mlflow", "server", "--host", here, "--port", "5000"]
    serve_mlflow += ["--workers", "1", "--allowed-hosts", f"{here}:5000"]
    serve_mlflow += ["--backend-store-uri", f"sqlite:///{out.absolute()}/mlflow.db"]
    serve_mlflow += ["--artifacts-destination", str(out.absolute() / "mlartifacts")]
    schedule = [python, "-m", "distributed.cli.dask_scheduler", "--host", here, "--no-dashboard"]
    servers = [
        (one, serve_prefect, [], {**plain, "PREFECT_UI_ENABLED": "0"}),
        (one, serve_mlflow, [], plain),
        (one, schedule, [], plain),
    ]
    with network():
        worker = [python, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1"]
        worker += ["--memory-limit", "0", "--no-dashboard"]
        workers = [
            (one, [*worker, "--local-directory", str(out.absolute() / "a")], [], plain),
            (
                two,
                [*worker, "--local-directory", str(out.absolute() / "b")],
                hide,
                {**plain, "WINNOW_HOME": str(own)},
            ),
        ]
        with serving([*servers, *workers], logs):
            wait_for(one, f"{prefect}/health")
            wait_for(one, f"{mlflow}/health")
            wait_for_workers(one, scheduler, len(workers))
            command = [python, "-m", "flows.cli", "fleet", str(file.absolute())]
            command += ["--out", str(results), "--scheduler", scheduler]
            environment = {
                **os.environ,
                **plain,
                "WINNOW_HOME": str(home),
                "PREFECT_API_URL": prefect,
                "MLFLOW_TRACKING_URI": mlflow,
            }
            done = subprocess.run(on(one, command), env=environment, cwd=ROOT, check=False)
    print((results / "fleet.md").read_text(encoding="utf-8"))
    report = json.loads((results / "fleet.json").read_text(encoding="utf-8"))
    for row in report["members"]:
        made = [stage["title"] for stage in row["stages"] if not stage["reused"]]
        print(f"{row['member']} on {row['host']}: {row['status']}, made {len(made)} stages")
    hosts = {row["host"] for row in report["members"]}
    graphs = [results / row["member"] / "specialist.onnx" for row in report["members"]]
    loads = [stage for row in report["members"] for stage in row["stages"]]
    loaded = sum(not s["reused"] for s in loads if s["title"] == "load")
    print(f"exit code {done.returncode}; hosts {', '.join(sorted(hosts))}")
    print(f"results in place: {sum(path.is_file() for path in graphs)} of {len(graphs)}")
    print(f"the generalist was loaded {loaded} more times than the once for all")


def wait_for_workers(host: str, scheduler: str, count: int) -> None:
    """Until so many workers have joined."""
    script = (
        "from distributed import Client\n"
        f"with Client({scheduler!r}, timeout={_PATIENCE_SECONDS}) as c: "
        f"c.wait_for_workers({count}, timeout={_PATIENCE_SECONDS})"
    )
    subprocess.run(["ip", "netns", "exec", host, sys.executable, "-c", script], check=True)
