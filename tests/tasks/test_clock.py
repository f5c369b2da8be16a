"""Times from a busy host: told by their spread, retaken, doubted, and not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports.latency import Timings
from exports.verdict import verdict
from tasks import clock
from tasks.artifacts import publish, workspace
from tasks.config import Recipe
from tasks.stage import stage, without_prefect


def timings(slow: float) -> Timings:
    """A generalist whose every third call takes `slow` times as long, and a steady specialist."""
    times = np.where(np.arange(90) % 3 == 0, slow, 1.0)
    return Timings({"generalist": 4 * times, "specialist": np.ones(90)})


def test_the_spread_is_the_third_quartile_over_the_first_decile() -> None:
    assert timings(1.0).spread("generalist") == 1.0
    assert timings(3.0).spread("generalist") == 3.0
    assert timings(3.0).spread("specialist") == 1.0


def test_times_of_a_busy_host_are_retaken_and_the_steadiest_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = [timings(3.0), timings(1.8), timings(2.5), timings(1.0)]
    calls = iter(taken)
    monkeypatch.setattr(clock, "time_graphs", lambda *_: next(calls))
    recipe: Any = Recipe.model_validate(
        {"name": "x", "generalist": {"source": "hf:x"}, "task": {"train": "a", "test": "b"}}
    )
    assert clock._steadiest({}, {}, recipe) is taken[1]  # three tries, the second the best
    assert clock._steadiest({}, {}, recipe) is taken[3]  # steady at once: no second try


def test_a_doubted_budget_is_neither_held_nor_missed() -> None:
    speed = {"name": "speedup", "asked": 5, "at_least": True, "doubt": "the host was busy"}
    for measured in (4.0, 9.0):
        found = verdict((0.0, 0.01), 0.02, [{**speed, "measured": measured}])
        assert found["status"] == "inconclusive"
        assert f"speedup is {measured:g}, but the host was busy" in found["reasons"]
    assert verdict((0.03, 0.05), 0.02, [{**speed, "measured": 9.0}])["status"] == "fail"


def test_a_provisional_result_is_made_again(home: Path) -> None:
    made: list[bool] = []

    def measure(recipe: Recipe, *, into: Path, progress: Any) -> dict[str, Any]:
        made.append(True)
        (into / "x").write_text("x")
        return {"provisional": len(made) == 1}

    measure.__module__ = "tasks.digests"  # any module of the rooms: its source is in the key
    timed = stage()(measure)
    recipe = Recipe.model_validate(
        {"name": "x", "generalist": {"source": "hf:x"}, "task": {"train": "a", "test": "b"}}
    )
    with without_prefect():
        for _ in range(3):
            timed(recipe)
    assert len(made) == 2


def test_publishing_over_a_provisional_result_leaves_one(home: Path) -> None:
    for text in ("first", "second"):
        with workspace("timed") as folder:
            (folder / "x").write_text(text)
            artifact = publish(folder, stage="timed", key="k", metrics={}, seconds=0)
    assert (artifact.folder / "x").read_text() == "second" and artifact.intact()
