"""A process that promotes and is killed on the way: the script of test_promotion_killed.py.

It forks for every moment, so that MLflow is imported once. A moment is the count of what SQLAlchemy
tells: before a statement, after it, at a commit. Each child works on a copy of the database, kills
itself with SIGKILL at its moment, and another child looks at what is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tasks import registry
from tasks.promotion import promote, roll_back

NAME = "tiny"
MOMENTS = ("before_cursor_execute", "after_cursor_execute", "commit")


def work(plan: dict[str, str], between: Callable[[], object] = lambda: None) -> None:
    """What is interrupted: a new version is registered, then (after `between`) promoted."""
    folder = Path(plan["challenger"])
    identity = {
        registry.DIGEST: registry.served_digest(folder),
        registry.VERDICT: "pass",
    }
    made = registry.register(
        plan["run_id"],
        NAME,
        folder,
        identity=identity,
        tags={"winnow.run_id": plan["run_id"]},
        example=["my card"],
        description="the challenger",
        about="",
    )
    between()
    promote(f"{NAME}/{made.version.number}")


def at_moment(act: Callable[[int, str], None]) -> None:
    """Call `act` with the number and the statement of every moment."""
    count = 0

    def heard(kind: str) -> Callable[..., None]:
        def listen(*arguments: object) -> None:
            nonlocal count
            count += 1
            act(count, str(arguments[2]) if kind.endswith("execute") else kind)

        return listen

    for kind in MOMENTS:
        event.listen(Engine, kind, heard(kind))


def child(home: Path, body: Callable[[], object]) -> tuple[int, object]:
    """Fork; returns the wait status and what the body returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.environ["WINNOW_HOME"] = str(home)
        try:
            os.write(write, json.dumps(body()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    told = b""
    while part := os.read(read, 65536):
        told += part
    os.close(read)
    return os.waitpid(pid, 0)[1], json.loads(told or b"null")


def state(home: Path) -> dict[str, object]:
    """Aliases in the database, and what the champion answers."""
    with sqlite3.connect(home / "mlflow.db") as base:
        aliases = base.execute("select alias, version from registered_model_aliases").fetchall()
        whole = base.execute("pragma integrity_check").fetchone()[0]
    with registry.pointed():
        served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(["card"])
    return {"aliases": aliases, "whole": whole, "label": served["label"].tolist()}


def recover(plan: dict[str, str]) -> list[str]:
    """After the crash the same work goes through, and back again."""
    work(plan)
    after = registry.champion_of(NAME)
    back = roll_back(NAME)
    assert after is not None
    return [after.number, back["version"]]


def main() -> None:
    """Print a JSON line a moment."""
    plan = json.loads(sys.stdin.read())
    origin, scratch = Path(plan["home"]), Path(plan["scratch"])

    def fresh(name: str) -> Path:
        home = scratch / name
        shutil.copytree(origin, home, ignore=shutil.ignore_patterns("mlartifacts"))
        return home

    def listed() -> tuple[list[str], int, float]:
        heard: list[str] = []
        marks: list[int] = []
        at_moment(lambda _, statement: heard.append(statement))
        started = time.monotonic()
        work(plan, lambda: marks.append(len(heard)))
        return heard, marks[0], time.monotonic() - started

    _, told = child(fresh("whole"), listed)
    assert isinstance(told, list)
    statements, registered, seconds = told
    moves = [
        at
        for at, text in enumerate(statements, 1)
        if "registered_model_aliases" in text and not text.startswith("SELECT")
    ]
    even = [
        *np.linspace(1, registered, 5).astype(int).tolist(),
        *np.linspace(registered + 1, len(statements), 14).astype(int).tolist(),
    ]
    near = [at for move in moves for at in range(move - 1, move + 3)]

    for moment in sorted({*even, *near}):

        def die(count: int, _: str, moment: int = moment) -> None:
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def killed(die: Callable[[int, str], None] = die) -> None:
            at_moment(die)
            work(plan)

        home = fresh(f"at-{moment}")
        status, _ = child(home, killed)
        found = {
            "moment": moment,
            "of": len(statements),
            "from": registered + 1,
            "moved": moves[-1],
            "status": status,
        }
        found |= {"state": child(home, lambda home=home: state(home))[1]}
        if moment in moves:
            found |= {"recovered": child(home, lambda: recover(plan))[1]}
        print(json.dumps(found), flush=True)

    for at in np.linspace(0.3, 0.95, 3):  # and by the clock, between statements too
        home = fresh(f"clock-{at:.2f}")

        def timed(after: float = float(at) * seconds) -> None:
            # the default action of SIGALRM would do; SIGKILL is what is asked for
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
            work(plan)

        status, _ = child(home, timed)
        found = {"seconds": float(at) * seconds, "status": status}
        print(
            json.dumps(found | {"state": child(home, lambda home=home: state(home))[1]}), flush=True
        )


if __name__ == "__main__":
    main()
