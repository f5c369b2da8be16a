"""`kill -9` while a version is registered and promoted: always one champion that answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.promotion import promote
from tests.tasks.test_promotion import (  # noqa: F401  (fixtures)
    FEW,
    NAME,
    Register,
    empty_store,
    register,
)
from tests.tiny_specialists import text_specialist

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_exactly_one_champion_always_loadable(
    register: Register,  # noqa: F811
    home: Path,
    tmp_path: Path,
) -> None:
    version = register(FEW)
    promote(f"{NAME}/{version.number}")
    challenger = text_specialist(tmp_path / "challenger")
    for name in ("recipe.yaml", "test.json", "card.md"):
        shutil.copy(tmp_path / "made-0" / name, challenger)
    plan = {
        "home": str(home),
        "scratch": str(tmp_path / "scratch"),
        "challenger": str(challenger),
        "run_id": version.tags["winnow.run_id"],
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("promote_and_die.py"))],
        input=json.dumps(plan),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_further()])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    moments = [row for row in rows if "moment" in row]
    assert len(moments) >= 20 and len(rows) - len(moments) == 3
    seen: list[int] = []
    for row in rows:
        left = row["state"]
        assert left["aliases"] in ([["champion", 1]], [["champion", 2]]), row
        assert left["whole"] == "ok" and left["label"] == ["card"], row
        seen.append(left["aliases"][0][1])
    for row in moments:
        assert row["status"] == signal.SIGKILL, row
        if row["moment"] <= row["moved"]:
            assert row["state"]["aliases"] == [["champion", 1]], row
        if "recovered" in row:
            assert row["recovered"][0] != "1" and row["recovered"][1] == "1", row
    assert set(seen) == {1, 2}
    first = moments[0]
    print(
        f"killed at {len(moments)} moments of {first['of']} (promoting begins with "
        f"{first['from']}, the alias moves at {first['moved']}) and at "
        f"{len(rows) - len(moments)} by the clock: version 1 is champion after {seen.count(1)}, "
        f"version 2 after {seen.count(2)}; each loads and answers"
    )


def _further() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
