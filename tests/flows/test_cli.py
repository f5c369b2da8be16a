"""The command line beside `specialize`: help, report, predict, doctor."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from tasks import doctor
from tasks import home as places
from tasks.summary import print_summary

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_help_names_the_commands_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom flows.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'datasets', 'onnxruntime', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("specialize", "predict", "report", "doctor", "ui"):
        assert command in done.stdout


def test_without_a_command_the_help_is_shown() -> None:
    code, output = run()
    assert code == 2 and "specialize" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nowhere"), "nowhere/report.json is not there"),
        (("predict", "nowhere", "x"), "neither a run's folder nor a registered model"),
        (("predict", ".", "x"), "specialist.onnx: no such file"),
        (("predict", "models:/nobody/1", "x"), "models:/nobody/1 is not in sqlite:"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert code == 2
    assert output.startswith("winnow: ") and output.count("\n") == 1
    assert words in output


def test_a_foreign_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"schema": 9}))
    code, output = run("report", str(tmp_path))
    assert code == 2 and "not a report of this version" in output


def test_doctor_reports_host_packages_and_stores(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whether this machine's disk is full is not for this test to say
    monkeypatch.setattr(doctor, "FREE_GB", -1)
    code, output = run("doctor")
    for word in ("host", "kernels", "onnxruntime", "torch", str(home), "sqlite:"):
        assert word in output
    assert code == 0, output


def test_doctor_says_that_the_disk_is_nearly_full(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "FREE_GB", 10**9)
    code, output = run("doctor")
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("look")]
    assert "fewer than 1000000000: winnow gc" in line


def test_doctor_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "file" / "inner"))
    code, output = run("doctor")
    assert code == 1
    assert "is a file" in output


def test_ui_says_which_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setitem(places.UI_PORTS, "prefect", taken.getsockname()[1])
        code, output = run("ui")
    assert code == 2
    assert output.startswith("winnow: --prefect-port: prefect cannot listen on 127.0.0.1:")


@pytest.mark.slow
def test_ui_serves_both_pages_and_ends_with_all_its_children(home: Path) -> None:
    ports = {}
    for name in ("mlflow", "prefect"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
    script = (
        "import sys, tasks.home as h\n"
        f"h.UI_PORTS.update({ports!r})\n"
        "from flows.cli import app\napp(['ui'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for path in (f"{ports['mlflow']}/health", f"{ports['prefect']}/api/health"):
            assert answers(f"http://127.0.0.1:{path}"), path
    finally:
        process.terminate()
        process.wait(30)
    for port in ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


def answers(address: str) -> bool:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=2) as response:
                return response.status == 200
        except OSError:
            time.sleep(0.5)
    return False


def test_the_table_fits_eighty_characters() -> None:
    facts = {"parameters": 123_456_789, "nonzero": 123_456_789, "bytes": 123_456_789}
    measured = {"accuracy": 0.897, "accuracy_ci": [0.874, 0.917], "latency_ms": 123.4}
    report = {
        "task": {"name": "n", "classes": ["a", "b"], "shots": 16, "test": {"n": 768}},
        "models": {name: facts | measured for name in ("generalist", "teacher", "specialist")},
        "accuracy": {"drop": 0, "drop_ci": [0, 0], "confidence": 0.95, "method": "m", "n": 768},
        "speed": {"ratio": 1, "ratio_ci": [1, 1], "runtime": "cpu", "batch": 1, "threads": 1},
        "sparsity": {"bytes_ratio": 1, "nonzero_ratio": 1, "nonzero_ratio_all": 1},
        "verdict": {"status": "pass", "reasons": []},
    }
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert "…" not in stream.getvalue()
    assert sum("0.897 (0.874-0.917)" in line for line in lines) == 3
