"""Which engine carries a fleet: Dask or Ray, through Prefect's own task runners.

For each engine, against one real Prefect server: how long until a first task is back, what a task
costs on top, memory and open ports of an idle engine of two workers, what it adds to the
installation, whether a task survives the death of its worker, and whether resources are kept to.
Seconds of the clock depend on what else the machine does; processor seconds (of the engine's and
the driver's processes together) hardly do.

    python benchmarks/engines.py [--ray-python PYTHON] [--tasks 100] [--out FILE.md]

Ray is measured in an environment of its own (`pip install prefect-ray`), named by its interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

MARK = "WINNOW_ENGINE_RUN"  # in the environment of everything that a measured engine starts
WORKERS = 2
HOLD_SECONDS = 3.0  # longer than a busy machine needs to hand out the next task


def nothing(number: int) -> int:
    return number


def die_once(marker: str) -> str:
    """Kill the worker the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def hold_device(number: int) -> tuple[float, float, str]:
    start = time.time()
    time.sleep(HOLD_SECONDS)
    return start, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def processes() -> list[int]:
    """Every process that bears this run's mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={os.environ[MARK]}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def cpu_seconds(own: list[int]) -> float:
    ticks = 0
    for pid in own:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(x) for x in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def megabytes(own: list[int]) -> float:
    """Proportional set size: what the processes share is counted once."""
    total = 0
    for pid in own:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def listening(own: list[int]) -> int:
    """TCP ports on which the processes listen."""
    sockets = set()
    for pid in own:
        try:
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                name = os.readlink(handle)
                if name.startswith("socket:["):
                    sockets.add(name[8:-1])
        except OSError:
            continue
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                ports.add(fields[1].rpartition(":")[2])
    return len(ports)


def added_megabytes(name: str, base: str = "prefect") -> tuple[float, int]:
    """Size and number of the distributions that `name` needs and `base` does not."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def closure(start: str) -> set[str]:
        known: set[str] = set()
        waiting = [(start, "")]
        while waiting:
            each, extra = waiting.pop()
            try:
                asked = distribution(each).requires or []
            except PackageNotFoundError:  # an optional one
                continue
            if extra == "" and canonicalize_name(each) in known:
                continue
            known.add(canonicalize_name(each))
            for text in asked:
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    waiting.append((need.name, ""))
                    waiting += [(need.name, more) for more in need.extras if more != extra]
        return known

    more = closure(name) - closure(base)
    size = 0
    for each in more:
        for file in distribution(each).files or []:
            path = Path(str(file.locate()))
            size += path.stat().st_size if path.is_file() else 0
    return size / 1e6, len(more)


def runner(engine: str) -> Any:
    if engine == "dask":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from distributed import SpecCluster
        from prefect_dask import DaskTaskRunner

        from flows.runners import _local

        # what `winnow fleet --workers 2` starts, with pretended GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
        return DaskTaskRunner(cluster_class=SpecCluster, cluster_kwargs=_local(WORKERS, WORKERS))
    if engine == "ray":
        from prefect_ray import RayTaskRunner

        # as little as it does with, and as patient as a busy machine makes necessary
        os.environ.update(RAY_raylet_start_wait_time_s="600")
        how: dict[str, Any] = {"num_cpus": WORKERS, "num_gpus": WORKERS}
        how |= {"include_dashboard": False, "object_store_memory": 100_000_000}
        return RayTaskRunner(init_kwargs={**how, "log_to_driver": False})
    raise SystemExit(f"--measure: {engine} is no engine")


def with_device(engine: str) -> Any:
    if engine == "dask":
        import dask

        return dask.annotate(resources={"GPU": 1})
    from prefect_ray.context import remote_options

    return remote_options(num_gpus=1)


def measure(engine: str, tasks: int) -> dict[str, Any]:
    from prefect import Task, flow

    def task(function: Any) -> Any:
        return Task(function, name=function.__name__.replace("_", " "))

    row: dict[str, Any] = {"engine": engine}

    @flow
    def plain() -> None:
        started = time.perf_counter()
        for at in range(tasks):
            task(nothing)(at)
        row["ms_a_task"] = 1e3 * (time.perf_counter() - started) / tasks

    started = time.perf_counter()
    if engine == "none":
        plain()
        row["cpu_seconds"] = cpu_seconds(processes())
        return row

    @flow(task_runner=runner(engine))
    def study() -> None:
        task(nothing).submit(0).result()
        row["first_seconds"] = time.perf_counter() - started
        others = [pid for pid in processes() if pid != os.getpid()]
        row["processes"], row["megabytes"] = len(others), megabytes(others)
        row["ports"] = listening(processes())
        [each.result() for each in [task(nothing).submit(at) for at in range(20)]]
        begun, used = time.perf_counter(), cpu_seconds(processes())
        [each.result() for each in [task(nothing).submit(at) for at in range(tasks)]]
        row["ms_a_task"] = 1e3 * (time.perf_counter() - begun) / tasks
        row["cpu_ms_a_task"] = 1e3 * (cpu_seconds(processes()) - used) / tasks
        with with_device(engine):
            handles = [task(hold_device).submit(at) for at in range(6)]
        spans = [each.result() for each in handles]
        edges = sorted([(a, 1) for a, _, _ in spans] + [(b, -1) for _, b, _ in spans])
        now = most = 0
        for _, step in edges:
            now += step
            most = max(most, now)
        row["devices_at_once"], row["devices"] = most, sorted({device for *_, device in spans})
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            future = task(die_once).submit(str(Path(folder, "marker")))
            try:
                row["after_death"] = future.result()
            except BaseException as error:
                row["after_death"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            row["after_death_seconds"] = time.perf_counter() - begun
        row["cpu_seconds"] = cpu_seconds(processes())

    study()
    row["added_mb"], row["added_packages"] = added_megabytes(f"prefect-{engine}")
    return row


def server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return process, url
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("the Prefect server did not start")


def table(rows: list[dict[str, Any]]) -> str:
    named = {
        "first_seconds": "first task back (s)",
        "ms_a_task": "a task, all at once (ms)",
        "cpu_ms_a_task": "the same, processor (ms)",
        "processes": "processes beside the driver",
        "megabytes": "their memory (MB)",
        "ports": "listening TCP ports",
        "added_mb": "added to the installation (MB)",
        "added_packages": "packages added",
        "devices_at_once": "tasks at once on 2 devices",
        "devices": "devices they saw",
        "after_death": "a task whose worker is killed",
        "after_death_seconds": "seconds until it is back",
        "cpu_seconds": "processor seconds in all",
    }
    lines = [
        "| | " + " | ".join(row["engine"] for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for key, title in named.items():
        cells = [row.get(key, "") for row in rows]
        told = [
            f"{x:.1f}" if isinstance(x, float) else ", ".join(x) if isinstance(x, list) else str(x)
            for x in cells
        ]
        lines.append(f"| {title} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray-python", default=None, help="interpreter that has prefect-ray")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1, help="of everything; medians are told")
    parser.add_argument("--only", choices=("none", "dask", "ray"), default=None)
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to add to and to tell")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.tasks)), flush=True)
        return
    engines = [("none", sys.executable), ("dask", sys.executable)]
    if asked.ray_python:
        engines.append(("ray", asked.ray_python))
    engines = [each for each in engines if asked.only in (None, each[0])]
    rows: dict[str, list[dict[str, Any]]] = {}
    if asked.rows and asked.rows.exists():
        for line in asked.rows.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row["engine"], []).append(row)
    with tempfile.TemporaryDirectory() as folder:
        process, url = server(Path(folder))
        try:
            for _ in range(asked.repeats):
                for engine, python in engines:
                    environment = {
                        **os.environ,
                        MARK: uuid.uuid4().hex,
                        "PREFECT_API_URL": url,
                        "PREFECT_HOME": folder,
                        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
                        "RAY_USAGE_STATS_ENABLED": "0",
                        "DO_NOT_TRACK": "1",
                    }
                    command = [python, __file__, "--measure", engine, "--tasks", str(asked.tasks)]
                    done = subprocess.run(
                        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=1500
                    )
                    line = next((x for x in done.stdout.splitlines()[::-1] if x[:1] == "{"), None)
                    if line is None:
                        raise SystemExit(f"{engine}: {done.stdout[-500:]}")
                    rows.setdefault(engine, []).append(json.loads(line))
                    print(line, file=sys.stderr, flush=True)
                    if asked.rows:
                        with asked.rows.open("a", encoding="utf-8") as kept:
                            kept.write(line + "\n")
        finally:
            process.terminate()
            process.wait()
    middle = [
        sorted(each, key=lambda row: row["ms_a_task"])[len(each) // 2] for each in rows.values()
    ]
    page = table(middle)
    print(page)
    if asked.out:
        asked.out.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
