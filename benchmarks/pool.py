"""Rows of a study over processes: some make models (a GPU each, or none), others score them.

Used by `specialists.py` and `speed.py`. Every result is written as it comes, so that a study that
is stopped goes on where it was.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing as mp
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _end_with_parent(parent: int) -> None:
    """A study that is killed takes its processes along: prctl(2), PR_SET_PDEATHSIG, Linux alone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


def _make(
    work: Callable[[Row, Any], None],
    rows: Any,
    jobs: Any,
    failed: Any,
    gpu: int | None,
    until: float,
    parent: int,
) -> None:
    _end_with_parent(parent)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    while time.time() < until:
        try:
            row = rows.get_nowait()
        except queue.Empty:
            return
        try:
            work(row, jobs)
        except (
            Exception
        ):  # one row must not end the others; the study ends with an error all the same
            traceback.print_exc()
            failed.set()


def _score(
    score: Callable[[Row], Row],
    jobs: Any,
    results: Any,
    failed: Any,
    cores: list[int],
    parent: int,
) -> None:
    _end_with_parent(parent)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.sched_setaffinity(0, cores)
    while (job := jobs.get()) is not None:
        try:
            results.put(score(job))
        except Exception:  # as above
            traceback.print_exc()
            failed.set()


def run_pool(
    wanted: Iterable[Row],
    work: Callable[[Row, Any], None],
    score: Callable[[Row], Row],
    written: Path,
    *,
    gpus: str,
    per_gpu: int,
    scorers: int,
    minutes: float,
) -> None:
    """Work through rows; every job that `work` puts into its queue is scored and written.

    Args:
        work, score: functions of a module (processes are spawned).
        written: JSON lines, appended to.
        gpus: such as '0,1'; empty for the CPU. per_gpu, scorers: processes.
        minutes: after which no further row is begun.

    Raises:
        SystemExit: a row failed; the others are written.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    context = mp.get_context("spawn")
    rows, jobs, results = context.Queue(), context.Queue(), context.Queue()
    failed = context.Event()
    for row in wanted:
        rows.put(row)
    until = time.time() + 60 * minutes
    devices = [int(gpu) for gpu in gpus.split(",") if gpu] or [None]
    makers = [
        context.Process(target=_make, args=(work, rows, jobs, failed, gpu, until, os.getpid()))
        for gpu in devices
        for _ in range(per_gpu)
    ]
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // scorers)
    scoring = [
        context.Process(
            target=_score,
            args=(
                score,
                jobs,
                results,
                failed,
                cores[i * share : (i + 1) * share] or cores,
                os.getpid(),
            ),
        )
        for i in range(scorers)
    ]
    for process in (*makers, *scoring):
        process.start()
    ended = False
    with written.open("a") as out:
        while any(process.is_alive() for process in scoring) or not results.empty():
            if not ended and not any(process.is_alive() for process in makers):
                ended = True
                for _ in scoring:
                    jobs.put(None)
            try:
                result = results.get(timeout=1)
            except queue.Empty:
                continue
            out.write(json.dumps(result) + "\n")
            out.flush()
    if failed.is_set():
        raise SystemExit("some rows failed; their tracebacks are above, the others are written")
