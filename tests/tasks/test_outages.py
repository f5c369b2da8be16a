"""Servers away, databases locked, disks full: known by their real errors, waited for or told."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RecipeError, UserError
from tasks.outages import (
    Away,
    is_away,
    is_busy,
    is_full,
    patiently,
    raise_if_away,
    require_reachable,
    told,
)
from tests.spaces import in_small_disk, require_namespaces

ROOT = Path(__file__).parents[2]
# each writes with a library of its own until the disk is full, and says what is told of the error
WRITERS = """
import json, os, sqlite3, sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from tasks.outages import is_full, told

home = Path(os.environ["WINNOW_HOME"])
big = np.random.default_rng(0).random((1 << 18,))  # 2 MB

def plain():
    (home / "file").write_bytes(big.tobytes())

def sqlite():
    connection = sqlite3.connect(home / "x.db")
    connection.execute("create table t (x blob)")
    connection.execute("insert into t values (?)", (big.tobytes(),))
    connection.commit()

def parquet():
    pq.write_table(pa.table({"x": big}), home / "x.parquet")

def safetensors():
    save_file({"x": big}, home / "x.safetensors")

def graph():
    tensor = onnx.numpy_helper.from_array(big, "x")
    made = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(made), home / "x.onnx")

for write in (plain, sqlite, parquet, safetensors, graph):
    try:
        write()
        line = None
    except Exception as error:
        line = told(error) if is_full(error) else f"not known: {error!r}"
    for left in home.iterdir():
        left.unlink()
    print(json.dumps([write.__name__, line]))
"""


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_every_library_that_writes_tells_of_a_full_disk_in_the_same_line(tmp_path: Path) -> None:
    require_namespaces()
    place = tmp_path / "small"
    done = in_small_disk(place, 1, [sys.executable, "-c", WRITERS], WINNOW_HOME=str(place))
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(found) == {"plain", "sqlite", "parquet", "safetensors", "graph"}
    for name, line in found.items():
        assert line is not None and line.startswith(f"{place}: no space left ("), (name, line)
        assert "bytes free); make room, `winnow gc`" in line and "\n" not in line


def test_the_place_that_an_error_names_is_told_and_codes_count(tmp_path: Path, home: Path) -> None:
    elsewhere = tmp_path / "out" / "deep" / "file"
    for code in (errno.ENOSPC, errno.EDQUOT):
        line = told(OSError(code, os.strerror(code), str(elsewhere)))
        assert line is not None and line.startswith(f"{tmp_path}: no space left (")
        inside = told(OSError(code, os.strerror(code), str(home / "store" / "x")))
        assert inside is not None and inside.startswith(f"{home}: no space left (")
    line = told(OSError(errno.EROFS, "Read-only file system", str(elsewhere)))
    assert line is not None and line.startswith(f"{tmp_path}: is read-only")


def test_a_reason_behind_another_error_is_found_and_one_that_was_handled_is_not() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert is_full(error) and told(error) is not None
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("something else") from None
    except RuntimeError as error:
        assert not is_full(error) and told(error) is None


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RuntimeError("CUDA out of memory"), UserError("mine")]
)
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception) -> None:
    assert told(error) is None and not is_away(error) and not is_busy(error)
    raise_if_away(error)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(call)
    assert len(calls) == 1


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("create table t (x)")
    holder.execute("begin immediate")

    def write() -> str:
        with sqlite3.connect(path, timeout=0) as other:
            other.execute("insert into t values (1)")
        other.close()
        return "written"

    error = caught(write)
    assert is_busy(error) and not is_away(error) and not is_full(error)
    with pytest.raises(Away, match="database stayed locked"):
        raise_if_away(error)
    release = threading.Timer(1.0, holder.execute, ["commit"])
    release.start()
    assert patiently(write, 60) == "written"
    release.join()
    holder.execute("begin immediate")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        patiently(write, 0.5)
    holder.close()


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_is_waited_for_as_long_as_asked(home: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://user:s3cret@127.0.0.1:{port}"
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI: no server answers") as refused:
        require_reachable(uri)
    assert "s3cret" not in str(refused.value)
    error = caught(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5))
    assert is_away(error) or isinstance(error, OSError)
    with pytest.raises(Away):
        raise_if_away(ConnectionRefusedError(111, "Connection refused"))
    started: list[HTTPServer] = []

    def start() -> None:
        started.append(HTTPServer(("127.0.0.1", port), _Health))
        started[0].handle_request()
        started[0].server_close()

    late = threading.Timer(1.0, start)
    late.start()
    before = time.monotonic()
    require_reachable(f"http://127.0.0.1:{port}", 60)
    assert time.monotonic() - before > 0.5
    late.join()


def test_what_the_clients_of_both_servers_raise_is_known() -> None:
    """Real errors of requests and httpx, from a port where nobody listens."""
    import httpx
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        for get in (requests.get, httpx.get):
            error = caught(lambda get=get: get(url, timeout=5))  # type: ignore[misc]
            assert is_away(error), error
            line = told(error)
            assert line is not None and "went away" in line and "\n" not in line
            try:
                raise RuntimeError("API request failed") from error
            except RuntimeError as behind:
                assert is_away(behind)


def test_the_settings_that_give_prefect_four_minutes_are_set_before_it_is_imported() -> None:
    code = (
        "import tasks; from prefect.settings import get_current_settings as s; "
        "print(s().client.max_retries)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_CLIENT_MAX_RETRIES"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    # waits of 2, 4, 8, ... seconds between tries
    assert sum(2**n for n in range(1, int(done.stdout) + 1)) >= 240
