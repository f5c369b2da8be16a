"""The processes of a study: their results are written as they come, and none outlives the study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# a module: processes are spawned, and import what they run
STUDY = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})

def work(row, jobs):
    Path(row["told"]).write_text(str(os.getpid()))
    jobs.put({{"id": row["id"]}})
    if row["slow"]:
        time.sleep(600)

def score(job):
    return {{**job, "by": os.getpid()}}

if __name__ == "__main__":
    from benchmarks.pool import run_pool
    rows = [{{"id": n, "slow": n == 1, "told": f"{{sys.argv[1]}}/told-{{n}}"}} for n in range(2)]
    run_pool(rows, work, score, Path(sys.argv[1], "rows.jsonl"), gpus="", per_gpu=1, scorers=1,
             minutes=10)
"""


def test_a_killed_study_leaves_no_process_and_keeps_its_rows(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(STUDY.format(root=str(ROOT)), encoding="utf-8")
    study = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    written, told = tmp_path / "rows.jsonl", tmp_path / "told-1"
    try:
        for _ in range(600):
            if told.exists() and told.read_text() and len(written.read_text().splitlines()) == 2:
                break
            time.sleep(0.1)
        rows = [json.loads(line) for line in written.read_text().splitlines()]
        assert [row["id"] for row in rows] == [0, 1]
        processes = {int(told.read_text()), *(row["by"] for row in rows)}
        assert len(processes) == 2 and all(running(pid) for pid in processes)
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    for _ in range(100):
        if not any(running(pid) for pid in processes):
            break
        time.sleep(0.1)
    assert not [pid for pid in processes if running(pid)]


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
