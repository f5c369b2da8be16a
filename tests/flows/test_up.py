"""`winnow up`: what it starts, how it is told otherwise, and the whole of it with real servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from exports.specialist import Specialist
from flows.cli import app
from tasks import servers as rooms
from tasks.errors import UserError
from tasks.servers import Servers, free_port, planned, warnings_of
from tasks.services import mlflow_service, prefect_service, serves_files, worker_service
from tasks.tracking import run_url
from tests.conftest import QUICK, merged

ROOT = Path(__file__).parents[2]
NAMES = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_UI_URL",
    "MLFLOW_TRACKING_URI",
    "WINNOW_ARTIFACTS",
    "WINNOW_HOST",
    "WINNOW_MLFLOW_DATABASE",
    "WINNOW_MLFLOW_PAGE",
)
SECRET = "Gehe1mnis-of-the-database"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def plan(host: str | None = None) -> Servers:
    return planned(host, free_port(), free_port())


def listens_on(servers: Servers) -> set[str]:
    """The addresses that the services are told to listen on."""
    commands = [list(prefect_service(servers).command), list(mlflow_service(servers).command)]
    found = {command[command.index("--host") + 1] for command in commands}
    return found | {worker_service(servers, 1).environment["PREFECT_WORKER_WEBSERVER_HOST"]}


def test_nothing_but_loopback_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listens_on(plan()) == {"127.0.0.1"}
    assert warnings_of(plan()) == []
    monkeypatch.setenv("WINNOW_HOST", "0.0.0.0")
    assert listens_on(plan()) == {"127.0.0.1", "0.0.0.0"}  # the worker's sign of life stays here
    assert listens_on(plan("localhost")) == {"localhost", "127.0.0.1"}  # an option wins


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", 1), ("127.0.0.2", 1), ("localhost", 1), ("::1", 1), ("0.0.0.0", 0), ("::", 0)],
)
def test_whoever_lets_others_in_is_warned(host: str, loopback: bool) -> None:
    told = warnings_of(Servers(host, 4200, 5000))
    assert bool(told) is not bool(loopback)
    assert all("asks nobody for a password" in line for line in told)


def test_a_password_of_prefect_is_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:word")
    told = warnings_of(Servers("0.0.0.0", 4200, 5000))
    assert len(told) == 1 and "MLflow" in told[0]
    assert plan().for_clients["PREFECT_API_AUTH_STRING"] == "me:word"


def test_links_lead_to_where_people_are(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = Servers("0.0.0.0", 4200, 5000)
    assert everywhere.prefect == "http://127.0.0.1:4200/api"
    assert everywhere.prefect_page == f"http://{socket.getfqdn()}:4200"
    assert Servers("::1", 4200, 5000).mlflow == "http://[::1]:5000"
    monkeypatch.setenv("PREFECT_UI_URL", "https://flows.example/")
    monkeypatch.setenv("WINNOW_MLFLOW_PAGE", "https://models.example")
    environment = worker_service(everywhere, 1).environment
    assert environment["PREFECT_UI_URL"] == "https://flows.example"
    assert environment["WINNOW_MLFLOW_PAGE"] == "https://models.example"
    assert environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert run_url("1", "ab") == "https://models.example/#/experiments/1/runs/ab"
    monkeypatch.delenv("WINNOW_MLFLOW_PAGE")
    assert run_url("1", "ab") == "http://127.0.0.1:5000/#/experiments/1/runs/ab"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@models.example:99/x/")
    assert run_url("1", "ab") == "https://models.example:99/x/#/experiments/1/runs/ab"


def test_only_pages_of_these_servers_may_call_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.security_utils import (  # the rules that the server itself goes by
        get_allowed_hosts_from_env,
        is_allowed_host_header,
        should_block_cors_request,
    )

    environment = prefect_service(Servers("127.0.0.1", 4200, 5000)).environment
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",") == [
        "http://127.0.0.1:4200",
        "http://localhost:4200",
    ]
    monkeypatch.setenv("WINNOW_MLFLOW_PAGE", "https://models.example")
    environment = mlflow_service(Servers("0.0.0.0", 4200, 5000)).environment
    name = "MLFLOW_SERVER_ALLOWED_HOSTS"
    monkeypatch.setenv(name, environment[name])
    hosts = get_allowed_hosts_from_env() or []
    for asked in ("127.0.0.1:5000", "models.example", f"{socket.getfqdn()}:5000"):
        assert is_allowed_host_header(hosts, asked)
    assert not is_allowed_host_header(hosts, "evil.example")
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert not should_block_cors_request("https://models.example", "POST", origins)
    assert should_block_cors_request("http://evil.example", "POST", origins)


def test_a_database_and_a_bucket_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://winnow:{SECRET}@db:5432"
    monkeypatch.setenv("WINNOW_MLFLOW_DATABASE", f"{url}/mlflow")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"{url}/prefect")
    monkeypatch.setenv("WINNOW_ARTIFACTS", "s3://bucket/files")
    with pytest.raises(UserError, match=r"postgresql\+asyncpg") as caught:
        plan()
    assert SECRET not in str(caught.value)
    name = "PREFECT_API_DATABASE_CONNECTION_URL"
    monkeypatch.setenv(name, os.environ[name].replace("sql:", "sql+asyncpg:"))
    found = plan()
    mlflow, prefect = mlflow_service(found), prefect_service(found)
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"{url}/mlflow"
    assert mlflow.environment["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://bucket/files"
    assert "MLFLOW_DEFAULT_ARTIFACT_ROOT" not in mlflow.environment  # through the server
    assert prefect.environment[name] == os.environ[name]
    worker = worker_service(found, 1)
    # every user of the machine sees arguments; a flow run needs no database
    for service in (mlflow, prefect, worker):
        assert SECRET not in " ".join(service.command)
    assert SECRET not in " ".join(worker.environment.values())


def test_without_them_files_lie_where_a_run_without_a_server_finds_them(home: Path) -> None:
    environment = mlflow_service(plan()).environment
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{home / 'mlflow.db'}"
    assert environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == (home / "mlartifacts").as_uri()
    assert serves_files(Servers("0.0.0.0", 4200, 5000))  # others cannot write there


def test_a_missing_driver_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms.importlib.util, "find_spec", lambda name: None)
    for name, value, remedy in (
        ("WINNOW_MLFLOW_DATABASE", "postgresql://u:pass-word@h/d", r"psycopg2; .*winnow\[postgres"),
        ("WINNOW_ARTIFACTS", "s3://bucket", r"boto3; .*winnow\[s3\]"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"^{name}: .*{remedy}") as caught:
            plan()
        assert "pass-word" not in str(caught.value)
        monkeypatch.delenv(name)


def test_a_server_that_runs_elsewhere_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # the line that `winnow up` prints for other terminals must not keep it from starting again
    own = planned(None, 4299, 5299)
    monkeypatch.setenv("PREFECT_API_URL", own.prefect)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5299")
    again = planned(None, 4299, 5299)
    assert (again.prefect_elsewhere, again.mlflow_elsewhere) == (None, None)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(UserError, match=r"^PREFECT_API_URL: no server answers at"):
        planned(None, 4299, 5299)


def test_two_servers_do_not_listen_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"^--mlflow-port: {port} is Prefect's port as well"):
        planned(None, port, port)
    # of a server that runs elsewhere the port here is of no account
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.invalid:4200/api")
    monkeypatch.setattr(rooms, "answers", lambda url: True)
    assert planned(None, port, port).mlflow_elsewhere is None


def test_bad_options_are_one_line_and_leave_nothing(home: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, told in (
            (["--prefect-port", port], rf"^winnow: --prefect-port: .*127.0.0.1:{port} "),
            (["--mlflow-port", port], rf"^winnow: --mlflow-port: .*127.0.0.1:{port} "),
            (["--prefect-port", "99999"], "^winnow: --prefect-port: 99999 is no port"),
            (["--mlflow-port", "0"], "^winnow: --mlflow-port: 0 is no port"),
            (["--host", "no.such.host.invalid"], "^winnow: --host: no.such.host.invalid"),
            (["--deployments", str(tmp_path / "x.yaml")], "^winnow: --deployments: .*x.yaml"),
        ):
            given = {"--prefect-port": str(free_port()), "--mlflow-port": str(free_port())}
            given |= dict(zip(options[::2], options[1::2], strict=True))
            done = CliRunner().invoke(
                app, ["up", *(part for pair in given.items() for part in pair)]
            )
            assert done.exit_code == 2, done.output
            assert re.search(told, done.stderr)
            assert done.stderr.count("\n") == 1
    assert not (home / "up.json").exists()


def test_the_page_of_docs_names_what_is_there() -> None:
    told = (ROOT / "docs" / "deployment.md").read_text()
    options = {
        o for p in get_command(app).commands["up"].params for o in [*p.opts, *p.secondary_opts]
    }
    named = set(re.findall(r"`(--[a-z-]+)", told)) - {"--scheduler"}
    assert {"--host", "--no-deploy", "--runs"} <= named <= options
    tables = told.split("\n## ")
    rows = next(part for part in tables if part.startswith("What is deployed"))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert re.findall(r"^\| ([a-z]+) \|", rows, re.M)[1:] == [each["name"] for each in deployments]
    rows = next(part for part in tables if part.startswith("The environment"))
    code = "".join(path.read_text() for path in (ROOT / "tasks").glob("*.py"))
    for name in re.findall(r"`([A-Z_]{5,})`", rows):
        assert name in code, name


def test_what_the_page_exports_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    pytest.importorskip("boto3")
    told = (ROOT / "docs" / "deployment.md").read_text()
    parts = told.split("\n## ")
    wanted = [part for part in parts if part.startswith(("PostgreSQL", "An object store"))]
    exports = dict(re.findall(r"\b([A-Z][A-Z0-9_]{4,})=([^\s#]+)", "".join(wanted)))
    assert {"WINNOW_MLFLOW_DATABASE", "WINNOW_ARTIFACTS"} < set(exports)
    for name, value in exports.items():
        monkeypatch.setenv(name, value)
    found = plan()
    prefect, mlflow = prefect_service(found).environment, mlflow_service(found).environment
    name = "PREFECT_API_DATABASE_CONNECTION_URL"
    assert prefect[name] == exports[name]
    assert mlflow["MLFLOW_BACKEND_STORE_URI"] == exports["WINNOW_MLFLOW_DATABASE"]
    assert mlflow["MLFLOW_ARTIFACTS_DESTINATION"] == exports["WINNOW_ARTIFACTS"]
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL"):
        assert mlflow[name] == exports[name]


class Up:
    """A running `winnow up`."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int]) -> None:
        self.process, self.lines = process, list[str]()
        self.prefect = f"http://127.0.0.1:{ports['prefect']}/api"
        self.mlflow = f"http://127.0.0.1:{ports['mlflow']}"

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return
        raise AssertionError("\n".join(self.lines))

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Prefect's answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.prefect}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def until(self, holds: Callable[[], Any], seconds: float = 600) -> Any:
        """Wait until something holds, also over moments in which the server is away."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(OSError, ValueError):
                found = holds()
                if found:
                    return found
            time.sleep(0.5)
        raise AssertionError("\n".join(self.lines))

    def run(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Run a deployment to its end; returns the flow run."""
        number = self.ask(f"deployments/name/{deployment}")["id"]
        started = self.ask(f"deployments/{number}/create_flow_run", {"parameters": parameters})

        def over() -> Any:
            found = self.ask(f"flow_runs/{started['id']}")
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return dict(self.until(over))


@contextmanager
def up(folder: Path, environment: Mapping[str, str]) -> Iterator[Up]:
    """`winnow up` in a folder; it must end by itself when asked, with all that it started."""
    ports = {name: free_port() for name in ("prefect", "mlflow")}
    command = [sys.executable, "-m", "flows.cli", "up"]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = Up(process, ports)
    try:
        found.read_until("Ctrl-C")
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
        assert not (Path(os.environ["WINNOW_HOME"]) / "up.json").exists()
        for port in ports.values():
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(120)
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def recipe(text_task: dict[str, str], generalist: str) -> dict[str, Any]:
    plain = {"name": "tiny", "generalist": {"source": generalist}, "task": dict(text_task)}
    return merged(plain, QUICK)


@pytest.mark.slow
def test_it_runs_unattended(home: Path, tmp_path: Path) -> None:
    # every three seconds, so that the schedule itself is what starts a run
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for each in deployments["deployments"]:
        if each["name"] == "watch":
            each["schedules"] = [{"interval": 3}]
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(deployments))
    with up(tmp_path, {}) as found:
        told = "\n".join(found.lines)
        for name in ("specialize", "sweep", "fleet", "recheck", "watch", "respecialize"):
            assert f"deployed {name}/{name}" in told
        assert f"PREFECT_API_URL={found.prefect}" in told

        def scheduled_runs_over() -> int:
            asked = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
            runs = found.ask("flow_runs/filter", asked)
            return sum(1 for run in runs if run["auto_scheduled"])

        found.until(lambda: scheduled_runs_over() >= 1)
        # a second one for the same stores is refused
        command = [sys.executable, "-m", "flows.cli", "up"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        second = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert second.returncode == 2 and "it runs already" in second.stderr
        running = json.loads((home / "up.json").read_text())["running"]
        assert set(running) == {"prefect", "mlflow", "worker"}
        before = scheduled_runs_over()
        for word in running.values():
            os.kill(int(word.split(":")[2]), signal.SIGKILL)
        found.until(lambda: found.ask("health"))
        found.until(
            lambda: urllib.request.urlopen(f"{found.mlflow}/health", timeout=5).close() is None
        )
        found.until(lambda: scheduled_runs_over() >= before + 2)
        logs = {path.name for path in (home / "logs").iterdir()}
        assert logs == {"prefect.log", "mlflow.log", "worker.log"}


@pytest.mark.slow
def test_postgres_and_s3_hold_a_run_and_give_it_back(
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    text_task: dict[str, str],
    text_generalist: str,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from local_servers import database_server, postgres_programs

    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed here (apt-get install postgresql)")
    boto3 = pytest.importorskip("boto3")
    psycopg2 = pytest.importorskip("psycopg2")
    moto = pytest.importorskip("moto.server")
    folder = tmp_path_factory.mktemp("work")
    keys = {"AWS_ACCESS_KEY_ID": "winnow", "AWS_SECRET_ACCESS_KEY": SECRET}
    bucket = moto.ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    bucket.start()
    try:
        place = f"http://127.0.0.1:{bucket._port}"
        names = {k.lower(): v for k, v in keys.items()}
        s3 = boto3.client("s3", endpoint_url=place, region_name="us-east-1", **names)
        s3.create_bucket(Bucket="winnow")
        cluster = tmp_path_factory.mktemp("cluster") / "postgres"
        with database_server(cluster, ["prefect", "mlflow"]) as databases:
            # trusted here, so any password will do; it must not be seen anywhere
            urls = {k: re.sub(r"//([^@/]*)@", rf"//\1:{SECRET}@", databases[k]) for k in databases}
            urls = {k: v.replace("postgresql+psycopg2", "postgresql") for k, v in urls.items()}
            environment = {
                "PREFECT_API_DATABASE_CONNECTION_URL": re.sub(
                    r"^postgresql(\+\w+)?:", "postgresql+asyncpg:", urls["prefect"]
                ),
                "WINNOW_MLFLOW_DATABASE": urls["mlflow"],
                "WINNOW_ARTIFACTS": "s3://winnow/files",
                "MLFLOW_S3_ENDPOINT_URL": place,
                "AWS_DEFAULT_REGION": "us-east-1",
                **keys,
            }
            with up(folder, environment) as found:
                run = found.run(
                    "specialize/specialize", {"recipe": recipe(text_task, text_generalist)}
                )
                assert run["state_type"] == "COMPLETED", run["state"]["message"]
                report = json.loads((folder / "runs/tiny/report.json").read_text())
                own = report["mlflow"]["run_id"]
                with psycopg2.connect(urls["mlflow"]) as sql, sql.cursor() as cursor:
                    cursor.execute("select count(*) from runs where status = 'FINISHED'")
                    assert cursor.fetchone()[0] == 1 + len(report["seconds"]) - 1  # and each stage
                    cursor.execute("select value from tags where key = 'prefect.flow_run_url'")
                    told = {row[0] for row in cursor.fetchall()}
                    page = found.prefect.removesuffix("/api")
                    assert told == {f"{page}/runs/flow-run/{run['id']}"}
                sql.close()
                with psycopg2.connect(urls["prefect"]) as sql, sql.cursor() as cursor:
                    cursor.execute("select state_type from flow_run where id = %s", (run["id"],))
                    assert cursor.fetchone()[0] == "COMPLETED"
                sql.close()
                kept = s3.list_objects_v2(Bucket="winnow", Prefix="files/")["Contents"]
                kept = {entry["Key"].partition(own)[2]: entry["Size"] for entry in kept}
                for name in ("card.html", "specialist.onnx", "report.json"):
                    assert (
                        kept[f"/artifacts/{name}"] == (folder / "runs/tiny" / name).stat().st_size
                    )
                # who loads it knows neither the bucket nor its keys
                script = (
                    "import json, mlflow, sys\n"
                    "model = mlflow.pyfunc.load_model('models:/tiny@champion')\n"
                    "answers = model.predict(json.loads(sys.argv[1]))\n"
                    "print(json.dumps(answers['label'].tolist()))"
                )
                texts = ["my card chip is lost", "where is the parcel", "refund my money please"]
                loaded = subprocess.run(
                    [sys.executable, "-c", script, json.dumps(texts)],
                    env={**os.environ, "MLFLOW_TRACKING_URI": found.mlflow},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                answered = json.loads(loaded.stdout.splitlines()[-1])
                straight = Specialist.load(folder / "runs" / "tiny").predict(texts)
                assert answered == [row["label"] for row in straight]
                shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
                assert SECRET not in shown
            logs = [path.read_text(errors="replace") for path in (home / "logs").iterdir()]
            assert SECRET not in "\n".join([*logs, *found.lines])
            assert not (home / "mlflow.db").exists()
            assert not (home / "prefect" / "prefect.db").exists()
    finally:
        bucket.stop()
