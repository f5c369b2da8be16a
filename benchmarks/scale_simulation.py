"""1,000 specialists on 100 workers, on paper: where it saturates, and what holds it.

    python benchmarks/scale_simulation.py --measured benchmarks/results/scale-measured.json \
        --out benchmarks/scale.md --picture docs/scale.png

A discrete-event simulation (simpy) of a closed network: a worker computes a stage, asks Prefect's
server and MLflow's for what the stage needs, writes its artifact, and goes on; each server answers
one request a process at a time. The times, requests and bytes are those that
`benchmarks/scale_measure.py` found on real servers. Before it plans, it is held against them: the
simulated requests a second of 1, 2, 4, ... clients against those that were measured.

The bounds beside it are the asymptotic ones of a closed network (Denning and Buzen 1978, The
operational analysis of queueing network models, section 8): with Z seconds of computing and D_i of
station i a specialist, N workers finish at most min(N / (Z + sum D), 1 / max D) a second, and
station i saturates near N* = (Z + sum D) / D_i.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import simpy

_SPREAD = 0.2  # of a stage's time from run to run, as a standard deviation of its logarithm
_GIGABIT = 125_000_000.0  # bytes a second
_TIMED = ("profile", "verify", "compare")  # stages that take turns on a host: they time


@dataclass(frozen=True)
class Station:
    """Something that all workers share.

    Attributes:
        seconds: that one specialist takes of it, over its whole run.
        servers: how many it serves at once.
        visits: in how many requests these seconds come.
    """

    name: str
    seconds: float
    servers: int = 1
    visits: int = 100

    @property
    def demand(self) -> float:
        """Seconds a specialist takes of the whole station."""
        return self.seconds / self.servers


@dataclass(frozen=True)
class Plan:
    """A set-up.

    Attributes:
        stages: seconds of each stage of one specialist, by name, in order.
        shared: names of stages that a fleet makes once, and not once a specialist.
        stations: what all share.
        workers: processes that compute, one specialist at a time each.
        hosts: machines that they are on; what times takes turns on each.
    """

    stages: Mapping[str, float]
    shared: frozenset[str]
    stations: tuple[Station, ...]
    workers: int
    hosts: int
    specialists: int

    @property
    def think(self) -> float:
        """Seconds that a specialist computes."""
        return sum(x for name, x in self.stages.items() if name not in self.shared)

    @property
    def turns(self) -> float:
        """Seconds of it in which no other on the same host may time."""
        return sum(x for name, x in self.stages.items() if name in _TIMED)

    def at_most(self) -> float:
        """Specialists a second: the asymptotic bound."""
        every = self.think + sum(each.seconds for each in self.stations)
        most = [self.workers / every]
        most += [1 / each.demand for each in self.stations if each.demand]
        if self.turns:
            most.append(min(self.hosts, self.workers) / self.turns)
        return min(most)

    def saturates(self) -> list[tuple[str, float]]:
        """Workers from which each station is the limit, the first one first."""
        every = self.think + sum(each.seconds for each in self.stations)
        return sorted(
            ((each.name, every / each.demand) for each in self.stations if each.demand),
            key=lambda pair: pair[1],
        )


@dataclass(frozen=True)
class Outcome:
    """What a simulated fleet came to.

    Attributes:
        seconds: until the last specialist was done.
        busy: by station, the share of its time in use; 'workers' is the share that computed.
        waited: by station, mean seconds that a specialist waited for it in all.
    """

    seconds: float
    busy: dict[str, float]
    waited: dict[str, float]


class _Shared:
    """A station in the simulation, with what is counted there."""

    def __init__(self, world: simpy.Environment, servers: int) -> None:
        self.world, self.servers = world, servers
        self.resource = simpy.Resource(world, capacity=servers)
        self.used, self.waited = 0.0, 0.0

    def serve(self, seconds: float) -> Generator[Any, Any, None]:
        came = self.world.now
        with self.resource.request() as turn:
            yield turn
            self.waited += self.world.now - came
            yield self.world.timeout(seconds)
            self.used += seconds


def simulate(plan: Plan, seed: int = 0) -> Outcome:
    """Run a plan to its end."""
    world, draw = simpy.Environment(), random.Random(seed)
    stations = {each.name: _Shared(world, each.servers) for each in plan.stations}
    clocks = [_Shared(world, 1) for _ in range(plan.hosts)]
    left = simpy.Container(world, capacity=max(1, plan.specialists), init=plan.specialists)
    computed = [0.0]

    def compute(name: str, seconds: float, host: int) -> Generator[Any, Any, None]:
        took = seconds * math.exp(draw.gauss(-(_SPREAD**2) / 2, _SPREAD))  # its mean is `seconds`
        computed[0] += took
        if name in _TIMED:
            yield from clocks[host].serve(took)
        else:
            yield world.timeout(took)

    def ask(share: float) -> Generator[Any, Any, None]:
        """What a stage asks of the stations, its requests gathered into one or a few."""
        for each in plan.stations:
            visits = max(1, round(each.visits * share))
            batch = min(visits, 4)  # so many events are enough: the seconds are what counts
            for _ in range(batch):
                seconds = each.seconds * share / batch
                yield from stations[each.name].serve(draw.expovariate(1.0) * seconds)

    def worker(at: int) -> Generator[Any, Any, None]:
        yield world.timeout(draw.random() * min(30.0, plan.think))  # they do not begin as one
        while left.level >= 1:
            yield left.get(1)
            stages = [pair for pair in plan.stages.items() if pair[0] not in plan.shared]
            for name, seconds in stages:
                yield from compute(name, seconds, at % plan.hosts)
                yield from ask(1 / len(stages))

    def everything() -> Generator[Any, Any, None]:
        for name, seconds in plan.stages.items():
            if name in plan.shared:
                yield from compute(name, seconds, 0)
        count = min(plan.workers, plan.specialists)
        yield simpy.AllOf(world, [world.process(worker(at)) for at in range(count)])

    world.run(until=world.process(everything()))
    total = max(world.now, 1e-9)
    waiting = {**stations, "clock of a host": _together(clocks)}
    return Outcome(
        seconds=total,
        busy={
            **{name: each.used / (total * each.servers) for name, each in stations.items()},
            "clock of a host": max(each.used for each in clocks) / total,
            "workers": computed[0] / (total * plan.workers),
        },
        waited={name: each.waited / max(1, plan.specialists) for name, each in waiting.items()},
    )


def _together(clocks: Sequence[_Shared]) -> _Shared:
    both = clocks[0]
    total = _Shared(both.world, len(clocks))
    total.used, total.waited = sum(x.used for x in clocks), sum(x.waited for x in clocks)
    return total


# --- from measurements ------------------------------------------------------------------------


def stations_of(
    measured: Mapping[str, Any], database: str, *, processes: int = 1, bytes_a_second: float = 0.0
) -> tuple[Station, ...]:
    """The stations of one database's measurements.

    Args:
        processes: of each server; on SQLite one writes at a time whatever their number.
        bytes_a_second: of the artifact store.
    """
    run = measured[database]["run"]["first"]
    servers = 1 if database == "sqlite" else processes
    found = [
        Station(name, run[name]["cpu_s"], servers, max(1, run[name]["requests"]))
        for name in ("prefect", "mlflow")
    ]
    facts = measured[database]["run"]
    moved = facts["store_bytes"] + facts["mlflow_artifact_bytes"]
    if bytes_a_second:
        found.append(Station("artifact store", moved / bytes_a_second, 1, len(facts["seconds"])))
    dask = measured.get("scheduler_s")
    if dask:
        found.append(Station("scheduler", dask, 1, 1))
    return tuple(found)


def simulated_load(cpu_s: float, pause_s: float, clients: int) -> float:
    """Requests a second of a closed loop of clients on one server: what `load` measures.

    Args:
        cpu_s: of the server, a request.
        pause_s: between a client's requests: its own time, found with one client.
    """
    many = 200 * clients
    plan = Plan(
        stages={"pause": pause_s},
        shared=frozenset(),
        stations=(Station("server", cpu_s, 1, 1),),
        workers=clients,
        hosts=1,
        specialists=many,
    )
    return many / simulate(plan).seconds


def validated(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measured against simulated requests a second, by database, server and number of clients.

    The pause of a client follows from one client alone (its round trip less the server's time);
    all other rows are predictions. A server's seconds a request are wall seconds of a processor
    that it had to share: those with most clients tell them.
    """
    rows = []
    for database in ("sqlite", "postgres"):
        for name, loads in ((measured.get(database) or {}).get("load") or {}).items():
            first, last = loads[0], loads[-1]
            seconds = min(1 / last["per_s"], 1 / first["per_s"])
            pause = max(0.0, 1 / first["per_s"] - seconds)
            for row in loads:
                found = simulated_load(seconds, pause, int(row["clients"]))
                rows.append(
                    {
                        "database": database,
                        "server": name,
                        "clients": row["clients"],
                        "measured": row["per_s"],
                        "simulated": found,
                        "off": found / row["per_s"] - 1,
                    }
                )
    return rows


def report(measured: Mapping[str, Any], base: Plan, counts: Sequence[int]) -> str:
    """The tables, as Markdown."""
    lines = ["## Held against the real servers", ""]
    lines += ["| database | server | clients | measured /s | simulated /s | off |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in validated(measured):
        lines.append(
            f"| {row['database']} | {row['server']} | {row['clients']} | {row['measured']:.1f} | "
            f"{row['simulated']:.1f} | {row['off']:+.0%} |"
        )
    lines += ["", "## What a specialist asks", ""]
    lines += [
        "| database | server | requests | processor s | s a request |",
        "|---|---|---|---|---|",
    ]
    for database in ("sqlite", "postgres"):
        for name in ("prefect", "mlflow") if measured.get(database) else ():
            row = measured[database]["run"]["first"][name]
            each = row["cpu_s"] / max(1, row["requests"])
            lines.append(
                f"| {database} | {name} | {row['requests']} | {row['cpu_s']:.1f} | {each:.4f} |"
            )
    lines += ["", f"## {base.specialists:,} specialists", ""]
    lines += ["| set-up | workers | hours | of the bound | workers compute | busiest | waits |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for title, plan in setups(measured, base):
        for workers in counts:
            each = replace(plan, workers=workers, hosts=max(1, workers // 4))
            lines.append(f"| {title} | {workers:,} | {_row(each)} |")
    lines += ["", "## From how many workers on", "", "| set-up | station | saturates at |"]
    lines += ["|---|---|---|"]
    for title, plan in setups(measured, base):
        for name, least in plan.saturates():
            lines.append(f"| {title} | {name} | {least:,.0f} workers |")
    return "\n".join(lines) + "\n"


def _row(plan: Plan) -> str:
    found = simulate(plan)
    bound = plan.specialists / plan.at_most()
    name, busy = max(
        ((x, y) for x, y in found.busy.items() if x != "workers"), key=lambda pair: pair[1]
    )
    waits = sum(found.waited.values())
    return (
        f"{found.seconds / 3600:.2f} | {bound / found.seconds:.0%} | {found.busy['workers']:.0%} | "
        f"{name} {busy:.0%} | {waits:.0f} s"
    )


def setups(measured: Mapping[str, Any], base: Plan) -> Iterator[tuple[str, Plan]]:
    """The set-ups that are compared, by name."""
    yield "SQLite", replace(base, stations=stations_of(measured, "sqlite"))
    if measured.get("postgres"):
        for processes in (1, 4):
            stations = stations_of(
                measured, "postgres", processes=processes, bytes_a_second=_GIGABIT
            )
            many = "process" if processes == 1 else "processes"
            title = f"PostgreSQL, {processes} {many} a server, 1 Gbit/s"
            yield title, replace(base, stations=stations)


def draw(measured: Mapping[str, Any], base: Plan, counts: Sequence[int], path: Path) -> None:
    """The picture: specialists an hour against workers, simulated, and their bounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for title, plan in setups(measured, base):
        several = [replace(plan, workers=n, hosts=max(1, n // 4)) for n in counts]
        found = [3600 * each.specialists / simulate(each).seconds for each in several]
        (line,) = axes.loglog(counts, found, "o-", label=title, markersize=4)
        bounds = [3600 * each.at_most() for each in several]
        axes.loglog(counts, bounds, ":", color=line.get_color())
    axes.set(xlabel="workers", ylabel="specialists an hour (dotted: the bound)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def base_plan(measured: Mapping[str, Any], specialists: int, workers: int) -> Plan:
    """One specialist's stages, as they were timed; what a fleet shares is made once."""
    seconds = dict(measured.get("stages") or measured["sqlite"]["run"]["seconds"])
    seconds.pop("total", None)
    shared = {name for name in seconds if name in ("load", "export generalist")}
    return Plan(
        stages=seconds,
        shared=frozenset(shared),
        stations=(),
        workers=workers,
        hosts=max(1, workers // 4),
        specialists=specialists,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="report.json of a run whose times to plan with")
    parser.add_argument("--specialists", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 30, 100, 200, 400])
    parser.add_argument("--out", type=Path, help="Markdown to write; left out: printed only")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    if options.report:
        measured["stages"] = json.loads(options.report.read_text(encoding="utf-8"))["seconds"]
    plan = base_plan(measured, options.specialists, max(options.workers))
    text = report(measured, plan, options.workers)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.picture:
        draw(measured, plan, options.workers, options.picture)


if __name__ == "__main__":
    main()
