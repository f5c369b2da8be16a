"""Every example of docs/operations.md, run as it stands there; every complaint that it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest

from exports.runtime import host_profile
from tasks import registry
from tests.flows.pages import Example, examples
from tests.quiet import QUIET
from tests.tiny_specialists import text_specialist

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
ROOMS = ("compression", "exports", "flows", "models", "tasks")
HERE = Path(sys.executable).parent
NAME = "support-intents"
pytestmark = QUIET


ALL = examples(PAGE)


def the(fragment: str) -> Example:
    (found,) = [each for each in ALL if fragment in each.code]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in it: two registered versions, and what a run leaves beside."""
    folder = tmp_path_factory.mktemp("operations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(folder / ".winnow"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        before: list[str] = []
        for made in (
            text_specialist(folder / "one", {"card": ["card"]}),
            text_specialist(folder / "two"),
        ):
            (made / "host.json").write_text(json.dumps(host_profile()))
            with registry.pointed():
                client = mlflow.MlflowClient()
                where = (folder / ".winnow" / "mlartifacts" / made.name).as_uri()
                run = client.create_run(client.create_experiment(made.name, where)).info.run_id
            version = registry.register(
                run,
                NAME,
                made,
                identity={
                    registry.DIGEST: registry.served_digest(made),
                    registry.VERDICT: "pass",
                },
                tags={},
                example=["my card"],
                description="",
                about="",
            ).version
            registry.crown(version, before, tags={}, about="")
            before = [version.number, *before]
    return folder


def run(example: Example, folder: Path, codes: tuple[int, ...] = (0,), **environment: str) -> str:
    """Run a block in a folder; returns what it printed."""
    left_out = ("WINNOW_HOME", "PYTHONPATH", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
    plain = {key: value for key, value in os.environ.items() if key not in left_out}
    plain |= {"PATH": f"{HERE}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-W", "ignore", "-c"]
    command = python if example.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*command, example.code],
        cwd=folder, env={**plain, **environment}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode in codes, f"{PAGE.name}, line {example.line}:\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_is_looked_at_below() -> None:
    """A new block needs a new test: those here know what theirs should do."""
    fragments = ("du -sh", "live.backup", "tar -xf", "winnow predict", "pg_dump", "pg_restore")
    fragments += ("mlflow db upgrade", "winnow doctor", "curl", "search_runs", "winnow gc")
    assert len(ALL) == len(fragments)
    assert [the(fragment) for fragment in fragments] == ALL


@pytest.mark.slow
def test_a_backup_brings_the_champion_back(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "running"
    shutil.copytree(place, folder)
    _moved(place, folder)
    (folder / ".winnow" / "prefect").mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / ".winnow" / "prefect" / "prefect.db")) as database:
        database.execute("create table flow_run (id text)")
        database.execute("insert into flow_run values ('kept')")
        database.commit()
    asked = the("winnow predict")
    before = run(asked, folder)
    assert before.strip()
    # somebody writes meanwhile: the copy is whole all the same
    with closing(sqlite3.connect(folder / ".winnow" / "mlflow.db")) as writer:
        writer.execute("begin immediate")
        run(the("live.backup"), folder)
        writer.rollback()
    shutil.rmtree(folder / ".winnow")
    run(the("tar -xf"), folder)
    assert run(asked, folder) == before
    with closing(sqlite3.connect(folder / ".winnow" / "prefect" / "prefect.db")) as database:
        assert database.execute("select id from flow_run").fetchall() == [("kept",)]


def _moved(before: Path, after: Path) -> None:
    """Let a copied MLflow database name its files where the copy lies."""
    with closing(sqlite3.connect(after / ".winnow" / "mlflow.db")) as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
            ("logged_models", "artifact_location"),
        ):
            database.execute(
                f"update {table} set {column} = replace({column}, ?, ?)", (str(before), str(after))
            )
        database.commit()


def test_the_doctor_finds_all_well_but_perhaps_the_disk(place: Path) -> None:
    # this machine's disk may be nearly full, which the doctor is right to say
    told = run(the("winnow doctor"), place, codes=(0, 1))
    looks = [line for line in told.splitlines() if line.startswith("look")]
    assert all("GB free, fewer than" in line for line in looks)
    assert "3 experiments" in told and NAME in told


@pytest.mark.parametrize("fragment", ["du -sh", "search_runs", "mlflow db upgrade"])
def test_what_only_looks_works(place: Path, fragment: str) -> None:
    told = run(the(fragment), place)
    if fragment == "du -sh":
        assert "mlflow.db" in told and "mlartifacts" in told
    if fragment == "search_runs":
        assert told.strip() == "0 runs have failed"


@pytest.mark.slow
def test_gc_leaves_the_registry(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "running"
    shutil.copytree(place, folder)
    _moved(place, folder)
    stale = folder / ".winnow" / "store" / "teach" / ("0" * 64)
    stale.mkdir(parents=True)
    manifest = {"stage": "teach", "path": f"teach/{'0' * 64}", "sha256": "", "key": "0" * 64}
    (stale / "artifact.json").write_text(json.dumps(manifest))
    for path in (stale / "artifact.json", stale):
        os.utime(path, (1e9, 1e9))
    told = run(the("winnow gc"), folder)
    assert not stale.exists() and "removed" in told
    assert run(the("winnow predict"), folder).strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Path, dict[str, str]]]:
    """A PostgreSQL, its commands, and the environment that names it."""
    from benchmarks.local_servers import database_server, postgres_programs

    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here")
    # not below pytest's own folder, which the server's user may not enter
    with tempfile.TemporaryDirectory(prefix="winnow-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with database_server(folder / "postgres", ("prefect", "mlflow")) as databases:
            port = str(urlsplit(databases["mlflow"]).port)
            environment = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "winnow"}
            yield programs, environment


def test_a_dump_of_postgres_comes_back(
    cluster: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    binaries, environment = cluster

    def sql(database: str, text: str) -> str:
        command: list[Any] = [binaries / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]
        return subprocess.run(
            [*command, "-c", text],
            env={**os.environ, **environment}, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip

    environment["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    sql("mlflow", "create table versions (name text); insert into versions values ('1')")
    run(the("pg_dump"), tmp_path, **environment)
    for database in ("mlflow", "prefect"):
        sql("postgres", f"drop database {database}")
        sql("postgres", f"create database {database}")
    run(the("pg_restore"), tmp_path, **environment)
    assert sql("mlflow", "select name from versions") == "1"


def test_health_is_asked_where_up_serves() -> None:
    """The addresses of the page are those of `winnow up`; test_up.py asks them."""
    from tasks.home import UI_PORTS

    code = the("curl").code
    assert f":{UI_PORTS['prefect']}/api/health" in code and f":{UI_PORTS['mlflow']}/health" in code


def complaints() -> list[str]:
    """The first column of the last table."""
    table = PAGE.read_text(encoding="utf-8").partition("## What to do when")[2]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("words", complaints())
def test_a_complaint_of_the_page_is_one_of_ours(words: str) -> None:
    sources = [path.read_text() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    # a text is often written over several lines of source, with values in between
    texts = [re.sub(r'"\s*\n\s*f?"', "", source) for source in sources]
    assert any(words in text for text in texts), f"nothing of ours says {words!r}"


def test_the_table_is_there() -> None:
    assert len(complaints()) >= 12


def test_limits_are_those_of_the_code() -> None:
    from exports import preprocess
    from tasks import plain_yaml

    table = PAGE.read_text(encoding="utf-8").partition("## Limits")[2]
    assert f"| a text | {preprocess.MAX_CHARACTERS:,} characters" in table
    megapixels, megabytes = preprocess.MAX_PIXELS // 10**6, preprocess.MAX_BYTES // 10**6
    assert f"| an image | {megapixels} megapixels, {megabytes} MB encoded" in table
    assert f"| a recipe | {plain_yaml.MAX_BYTES // 10**6} MB |" in table
