"""Where tasks run: in this process without Dask, or on real Dask workers with a real Prefect."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.runners import Here, engine, require_engine, visible_gpus
from tasks import worker_hosts
from tasks.embedded import embedded_prefect
from tasks.errors import RecipeError, UserError
from tasks.worker_hosts import as_sent, look, require_fit, sender
from tests.flows import on_workers

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_one_process_imports_nothing_of_dask() -> None:
    script = (
        "import sys\nfrom flows.fleet import fleet_flow\nfrom flows.sweep import sweep_flow\n"
        "from flows.runners import engine\n"
        "with engine() as where: assert where.workers == 1\n"
        "assert not {'dask', 'distributed', 'prefect_dask'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_here_does_work_when_it_is_asked_for_and_once() -> None:
    where = Here()
    done = where.submit(on_workers.hold, "a", seconds=0)
    assert done.result()[2] == os.getpid() and done.result() == done.result()
    failed = where.submit(on_workers.fail, "b")
    with pytest.raises(ZeroDivisionError):
        failed.result()
    assert list(where.as_done([failed])) == [failed]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"workers": 0}, "--workers: 0 is none"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "name one"),
        ({"scheduler": "somewhere"}, "--scheduler: somewhere is not an address"),
        ({"scheduler": "tcp://127.0.0.1:9"}, "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_faults_are_one_line(how: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.runners._JOIN_SECONDS", 0.5)
    with pytest.raises((RecipeError, UserError)) as told, engine(**how):
        pass
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_forms_scheduler_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.runtime import deployment

    monkeypatch.setattr(deployment, "id", "0", raising=False)
    with pytest.raises(RecipeError, match=r"scheduler: tcp://x:1 is not the one that"):
        require_engine(1, "tcp://x:1")
    monkeypatch.setenv("WINNOW_SCHEDULER", "tcp://x:1")
    require_engine(1, "tcp://x:1")


def test_the_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert visible_gpus(2) == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(2) == []


def facts(**changes: Any) -> dict[str, Any]:
    plain = {
        "host": "other", "same_host": False, "code": "c", "python": (3, 11), "shares_home": True,
        "shares_out": True, "unreachable": {},
    }  # fmt: skip
    return {"tcp://x:1": {**plain, **changes}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": [3, 12]}, "runs Python 3.12, this is 3.11; use one version"),
        ({"code": "d"}, "has another version of winnow"),
        (
            {"unreachable": {"PREFECT_API_URL": "refused"}},
            r"PREFECT_API_URL: worker tcp://x:1 \(other\) gets no answer from http://a:\*\*\*@p/api",
        ),
        ({"shares_home": False}, "WINNOW_HOME: worker tcp://x:1 .* does not see /home"),
    ],
)
def test_a_worker_that_cannot_do_its_part_is_named(changes: Any, words: str) -> None:
    known = worker_hosts.Sender(
        "/home", "/out", "t", "http://a:secret1@p/api", "http://m", "c", (3, 11), "boot"
    )
    require_fit(known, facts(), shared=True)
    with pytest.raises(UserError, match=words):
        require_fit(known, facts(**changes), shared=True)


def test_a_database_in_a_file_is_one_hosts() -> None:
    known = worker_hosts.Sender("/h", "/o", "t", "http://p", "sqlite:///x.db", "c", (3, 11), "b")
    require_fit(known, facts(same_host=True), shared=False)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: worker .* is another host"):
        require_fit(known, facts(), shared=False)


def test_a_token_tells_what_is_shared(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sender(tmp_path / "out", "http://127.0.0.1:9/api") as told:
        found = look(told)
        assert found["shares_home"] and found["shares_out"] and found["same_host"]
        assert found["code"] == told.code and set(found["unreachable"]) == {"PREFECT_API_URL"}
        monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "own"))
        with as_sent(told, "billing") as (folder, seen):
            assert seen and folder == tmp_path / "out" / "billing"
            assert os.environ["WINNOW_HOME"] == str(home)
            assert "MLFLOW_TRACKING_URI" not in os.environ  # the embedded store of that home
        assert os.environ["WINNOW_HOME"] == str(tmp_path / "own")
        for place in (home, tmp_path / "out"):
            (place / told.token).unlink()
        assert not look(told)["shares_home"]
        with as_sent(told, "billing") as (folder, seen):
            assert not seen and folder is not None and folder.name == "billing"
            assert os.environ["WINNOW_HOME"] == str(tmp_path / "own")
    assert not list(home.glob(".token-*"))


LOOPBACK = "0100007F"


def listening(pid: int) -> set[str]:
    """The IPv4 addresses, as the kernel writes them, that a process listens at."""
    links = [
        path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()
    ]
    own = {name[8:-1] for name in links if name.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in own}


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An embedded server for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(tmp_path_factory.mktemp("runners-home")))
        with embedded_prefect():
            yield


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_tasks_that_take_a_gpu_never_outnumber_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretended devices: two of three workers have one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with engine(workers=3, gpus=2) as where, where.sent_from(tmp_path, gpu=True) as told:
        assert told is None and where.beside and where.workers == 3
        on_gpu = [where.submit(on_workers.hold, "g", gpu=True, seconds=0.4) for _ in range(6)]
        rest = [where.submit(on_workers.hold, "c", seconds=0.4) for _ in range(6)]
        assert set(where.as_done([*on_gpu, *rest])) == {*on_gpu, *rest}
        spans = [handle.result() for handle in on_gpu]
        pids = {handle.result()[2] for handle in [*on_gpu, *rest]}
        assert {where_from for pid in [os.getpid(), *pids] for where_from in listening(pid)} == {
            LOOPBACK
        }
    assert {device for *_, device in spans} <= {"0", "1"}
    for (a0, a1, pid, device), (b0, b1, other, second) in itertools.combinations(spans, 2):
        if a0 < b1 and b0 < a1:
            assert pid != other and device != second
    assert len(pids) == 3 and os.getpid() not in pids


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_task_outlives_its_worker_but_does_not_kill_them_all_for_ever(tmp_path: Path) -> None:
    with engine(workers=2) as where:
        once = where.submit(on_workers.die_once, "once", marker=str(tmp_path / "marker"))
        assert once.result() == "survived"
        with pytest.raises(ZeroDivisionError):
            where.submit(on_workers.fail, "fail").result()
        with pytest.raises(Exception, match=r"(?i)killed|worker"):
            where.submit(on_workers.always_die, "always").result()
        assert where.submit(on_workers.hold, "after", seconds=0).result()[2] != os.getpid()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_no_gpu_is_said_before_anything_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (
        pytest.raises(UserError, match="no worker offers a GPU"),
        engine(workers=2, gpus=1) as where,
        where.sent_from(tmp_path, gpu=True),
    ):
        pass
