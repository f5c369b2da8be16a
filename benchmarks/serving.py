"""Throughput of the served specialist against the served generalist, one process each.

    python benchmarks/serving.py runs/demo [--rounds 30] [--requests 20]

Both are graphs in ONNX Runtime behind MLflow's scoring server, one worker and one thread each, so
that what differs is the model. Rounds are interleaved in shuffled order; between its turns a server
idles. `overhead` is what an empty request costs: HTTP, JSON and MLflow, the same for both, which no
smaller model can take away. `in process` is `Specialist.predict` on the same inputs.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from exports.latency import Timings
from exports.runtime import host_profile
from exports.specialist import MODEL_FILE, Specialist
from tasks.cache import ROOT, import_closure
from tasks.export import export
from tasks.layout import GRAPH, SERVED
from tasks.load import load
from tasks.mlflow_store import pointed
from tasks.prepare import prepare
from tasks.recipes import load_recipe
from tasks.splits import load_split

NAMES = ("generalist", "specialist")
# inputs a request, and inputs a batch in process
BATCHES = (1, 8, 32)


def folders_of(run: Path, scratch: Path) -> tuple[dict[str, Path], list[Any]]:
    """The two folders to serve, and the raw inputs of the test set; stages are reused."""
    recipe = load_recipe(run / "recipe.yaml")
    data = prepare.compute(recipe)
    dense = export.compute(recipe, data, load.compute(recipe))
    folders = {name: scratch / name for name in NAMES}
    for folder in folders.values():
        folder.mkdir()
    for name in SERVED:
        if (run / name).is_file():
            shutil.copy(run / name, folders["specialist"])
        source = dense.folder / (GRAPH if name == MODEL_FILE else name)
        if source.is_file():
            shutil.copy(source, folders["generalist"] / name)
    # the generalist's outputs have names of their own, or none
    model = onnx.load(folders["generalist"] / MODEL_FILE, load_external_data=False)
    width = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    settings = json.loads((folders["generalist"] / "preprocess.json").read_text(encoding="utf-8"))
    if len(settings["labels"]) != width:
        settings["labels"] = [str(row) for row in range(width)]
        (folders["generalist"] / "preprocess.json").write_text(json.dumps(settings))
    return folders, list(load_split(data.folder / "test.parquet").inputs)


def pack(folder: Path, target: Path) -> Path:
    """A folder as an MLflow model, as the registry would hold it."""
    code = target.with_name(f"{target.name}-code")
    for module, path in import_closure("exports.specialist").items():
        place = code.joinpath(*module.split("."))
        place = place / "__init__.py" if path.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    with pointed():
        mlflow.pyfunc.save_model(
            path=target,
            python_model=str(ROOT / "exports" / "serving.py"),
            artifacts={"specialist": str(folder)},
            code_paths=[str(path) for path in code.iterdir()],
            pip_requirements=["mlflow"],
            model_config={"provider": "cpu", "threads": 1},
        )
    return target


@contextmanager
def served(model: Path) -> Iterator[http.client.HTTPConnection]:
    """A server in a process of its own; yields a connection that stays open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model)]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": _path()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            for _ in range(480):
                try:
                    connection.request("GET", "/ping")
                    connection.getresponse().read()
                    break
                except OSError:
                    connection.close()
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(log.read().decode()[-2000:]) from None
                    time.sleep(0.25)
            yield connection
        finally:
            connection.close()
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def post(connection: http.client.HTTPConnection, body: bytes) -> None:
    """One request; raises where the answer is not 200."""
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {told.decode()[:500]}")


def interleave(calls: Mapping[str, Callable[[], None]], rounds: int, seed: int) -> Timings:
    """Time the calls round by round in shuffled order, milliseconds; one round goes untimed."""
    order, shuffler = list(calls), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            if number:
                times[name].append((time.perf_counter() - start) * 1e3)
    return Timings({name: np.asarray(values) for name, values in times.items()}, seed)


def bodies(raws: Sequence[Any], batch: int, count: int) -> list[bytes]:
    """`count` requests of `batch` inputs each; images as base64 text."""
    texts = [
        raw if isinstance(raw, str) else base64.b64encode(raw).decode()
        for raw in (raws[at % len(raws)] for at in range(batch * count))
    ]
    parts = [texts[at * batch : (at + 1) * batch] for at in range(count)]
    return [json.dumps({"inputs": part}).encode() for part in parts]


def measure(
    folders: Mapping[str, Path], raws: Sequence[Any], rounds: int, requests: int, scratch: Path
) -> list[dict[str, Any]]:
    """Rows of the table: way, inputs at once, inputs a second of each, ratio and interval."""
    rows = []

    def note(way: str, batch: int, timings: Timings, inputs: int) -> None:
        ratio, low, high = timings.ratio(*NAMES)
        rates = {name: inputs / timings.median_ms[name] * 1e3 for name in NAMES}
        rows.append({"way": way, "batch": batch, **rates, "ratio": ratio, "ratio_ci": [low, high]})

    with ExitStack() as stack:
        models = {name: pack(folder, scratch / f"{name}-model") for name, folder in folders.items()}
        connections = {name: stack.enter_context(served(model)) for name, model in models.items()}

        def round_of(name: str, sent: Sequence[bytes]) -> Callable[[], None]:
            def call() -> None:
                connections[name].close()  # the server hangs up on who has been quiet for seconds
                connections[name].connect()
                for body in sent:
                    post(connections[name], body)

            return call

        for batch in BATCHES:
            count = max(1, requests // batch)
            sent = bodies(raws, batch, count)
            timings = interleave({n: round_of(n, sent) for n in NAMES}, rounds, batch)
            note("http", batch, timings, batch * count)
        empty = [json.dumps({"inputs": []}).encode()] * requests
        timings = interleave({n: round_of(n, empty) for n in NAMES}, rounds, 0)
        note("http, overhead", 0, timings, requests)

    opened = {name: Specialist.load(folder) for name, folder in folders.items()}
    for batch in BATCHES:
        count = max(1, requests // batch)
        chosen = [raws[at % len(raws)] for at in range(batch * count)]

        def answer(
            name: str, batch: int = batch, chosen: Sequence[Any] = tuple(chosen)
        ) -> Callable[[], None]:
            def call() -> None:
                for start in range(0, len(chosen), batch):
                    opened[name].predict(chosen[start : start + batch])

            return call

        timings = interleave({n: answer(n) for n in NAMES}, rounds, batch)
        note("in process", batch, timings, len(chosen))
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table."""
    host = host_profile()
    table = Table(title=f"{host['cpu']}, onnxruntime {host['onnxruntime']}, one thread a model")
    for heading in ("way", "inputs at once", "generalist /s", "specialist /s", "ratio (95 %)"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        low, high = row["ratio_ci"]
        table.add_row(
            row["way"],
            str(row["batch"] or "-"),
            *(f"{row[name]:,.0f}" for name in NAMES),
            f"{row['ratio']:.2f}x [{low:.2f}, {high:.2f}]",
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run's folder, such as runs/demo")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=32, help="inputs a round")
    parser.add_argument("--json", type=Path, help="file for the rows")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="winnow-") as place:
        scratch = Path(place)
        folders, raws = folders_of(asked.run, scratch)
        rows = measure(folders, raws, asked.rounds, asked.requests, scratch)
    show(rows)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
