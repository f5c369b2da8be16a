"""The simulation of many workers against exact results of queueing networks."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "scale_simulation.py"
spec = importlib.util.spec_from_file_location("scale_simulation", FILE)
assert spec is not None and spec.loader is not None
scale: Any = importlib.util.module_from_spec(spec)
sys.modules["scale_simulation"] = scale
spec.loader.exec_module(scale)

PLAN = scale.Plan(
    stages={"one": 6.0, "two": 4.0},
    shared=frozenset(),
    stations=(),
    workers=1,
    hosts=1,
    specialists=2000,
)


def exact(think: float, demands: list[float], workers: int) -> float:
    """Throughput of a closed network by mean value analysis (Reiser and Lavenberg 1980).

    Exact where stations serve one at a time in exponential times; thinking may have any spread.
    """
    queue = [0.0] * len(demands)
    for n in range(1, workers + 1):
        held = [d * (1 + q) for d, q in zip(demands, queue, strict=True)]
        rate = n / (think + sum(held))
        queue = [rate * x for x in held]
    return rate


def rate(plan: Any) -> float:
    return plan.specialists / scale.simulate(plan).seconds


def test_one_worker_alone_takes_the_sum() -> None:
    assert rate(PLAN) == pytest.approx(1 / 10, rel=0.03)


@pytest.mark.parametrize("workers", [1, 4, 12, 40])
def test_queues_are_as_long_as_theory_has_them(workers: int) -> None:
    stations = (scale.Station("a", 1.0, 1, 10), scale.Station("b", 0.4, 1, 2))
    plan = replace(PLAN, stations=stations, workers=workers)
    assert rate(plan) == pytest.approx(exact(10.0, [1.0, 0.4], workers), rel=0.06)
    # a few percent: the last specialists of a fleet leave workers idle
    assert rate(plan) <= 1.05 * plan.at_most()


def test_the_first_station_to_saturate_is_the_largest_demand() -> None:
    stations = (scale.Station("a", 1.0, 4, 1), scale.Station("b", 0.5, 1, 1))
    plan = replace(PLAN, stations=stations)
    assert plan.saturates() == [("b", pytest.approx(11.5 / 0.5)), ("a", pytest.approx(11.5 * 4))]
    full = replace(plan, workers=100)
    assert rate(full) == pytest.approx(2.0, rel=0.05) and full.at_most() == pytest.approx(2.0)
    busy = scale.simulate(full).busy
    assert busy["b"] > 0.95 and 0.4 < busy["a"] < 0.6


def test_what_times_takes_turns_on_its_host() -> None:
    plan = replace(PLAN, stages={"teach": 1.0, "verify": 4.0}, workers=20, hosts=2)
    assert rate(plan) == pytest.approx(2 / 4, rel=0.05)
    assert scale.simulate(plan).busy["clock of a host"] > 0.95
    alone = replace(plan, hosts=20)
    assert rate(alone) == pytest.approx(20 / 5, rel=0.05)


def test_what_is_shared_is_made_once() -> None:
    plan = replace(PLAN, shared=frozenset({"one"}), specialists=500)
    assert scale.simulate(plan).seconds == pytest.approx(6 + 500 * 4, rel=0.05)


def test_a_measured_load_is_predicted_from_one_client() -> None:
    """What real servers would have answered, were they this queue."""
    told = [
        {"clients": n, "per_s": exact(0.02, [0.01], n), "cpu_s": 0.01, "busy": 1.0, "failed": 0}
        for n in (1, 2, 4, 8, 64)
    ]
    rows = scale.validated({"sqlite": {"load": {"prefect": told}}})
    assert len(rows) == 5 and all(abs(row["off"]) < 0.1 for row in rows)
    wrong = [{**told[0]}, {**told[1], "per_s": 9.0}, told[-1]]
    rows = scale.validated({"sqlite": {"load": {"prefect": wrong}}})
    assert abs(rows[1]["off"]) > 1


def test_a_set_up_is_made_from_measurements(tmp_path: Path) -> None:
    run = {name: {"requests": 200, "cpu_s": 4.0} for name in ("prefect", "mlflow")}
    facts = {
        "first": run, "seconds": {"teach": 60.0, "verify": 10.0, "total": 70.0},
        "store_bytes": 10**8, "mlflow_artifact_bytes": 10**7,
    }  # fmt: skip
    load = {"prefect": [{"clients": 1, "per_s": 50.0}, {"clients": 16, "per_s": 60.0}]}
    measured = {name: {"run": facts, "load": load} for name in ("sqlite", "postgres")}
    plan = scale.base_plan(measured, specialists=20, workers=8)
    assert plan.think == 70.0 and "total" not in plan.stages
    text = scale.report(measured, plan, [1, 8])
    assert "| PostgreSQL, 4 processes a server, 1 Gbit/s | 8 |" in text
    (four,) = [p for title, p in scale.setups(measured, plan) if "4 processes" in title]
    assert [x.demand for x in four.stations] == pytest.approx([1.0, 1.0, 0.88])
    scale.draw(measured, plan, [1, 8], tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
