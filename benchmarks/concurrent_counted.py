"""What concurrent runs were to leave in MLflow and Prefect, against what their tables hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def numbers(values: Any) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of every number that a run's metrics hold; a list is a history."""
    for name, value in branches(values):
        for step, entry in enumerate(value if isinstance(value, list) else [value]):
            for inner, number in branches(entry, name):
                if isinstance(number, int | float) and math.isfinite(number):
                    yield inner, step, float(number)


def branches(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested dictionaries."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from branches(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of every value of a recipe."""
    return sorted((name, str(value)[:5000]) for name, value in branches(values))


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    import psycopg2

    connection = psycopg2.connect(database)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    finally:
        connection.close()


def counted(
    folder: Path, databases: Mapping[str, str], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What every run was to leave, against what is there."""
    done = [run for run in runs if "error" not in run]
    mlflow = databases["mlflow"]
    alive = rows(
        mlflow,
        "select r.run_uuid, r.name, r.status, t.value, s.value from runs r "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId' "
        "left join tags s on s.run_uuid = r.run_uuid and s.key = 'winnow.sha256' "
        "where r.lifecycle_stage = 'active'",
    )
    nested: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run, name, _, parent, sha256 in alive:
        if parent:
            nested.setdefault((parent, name), []).append((run, sha256))
    wanted: dict[str, tuple[Any, Any]] = {}
    short, examples = Counter[str](), list[str]()
    for run in done:
        wanted[run["run"]] = run["params"], run["metrics"]
        for title, stage in run["stages"].items():
            found = nested.pop((run["run"], title), [])
            short["nested runs expected"] += 1
            short["nested runs missing"] += not found
            short["nested runs twice"] += len(found) > 1
            for own, sha256 in found[:1]:
                short["nested runs of another artifact"] += sha256 != stage["sha256"]
                wanted[own] = stage["params"], stage["metrics"]
    short["nested runs of no stage"] = sum(len(x) for x in nested.values())
    there_params = Counter(
        (r, k, v) for r, k, v in rows(mlflow, "select run_uuid, key, value from params")
    )
    there_metrics = Counter(
        (r, k, int(s), float(v))
        for r, k, s, v in rows(mlflow, "select run_uuid, key, step, value from metrics")
        if r in wanted
    )
    want_params = Counter((r, k, v) for r, (params, _) in wanted.items() for k, v in params)
    want_metrics = Counter(
        (r, k, int(s), float(v)) for r, (_, metrics) in wanted.items() for k, s, v in metrics
    )
    for name, want, there in (
        ("params", want_params, there_params),
        ("metrics", want_metrics, there_metrics),
    ):
        short[f"{name} expected"] = want.total()
        lost = want - there
        further = Counter({row: n for row, n in (there - want).items() if row[0] in wanted})
        short[f"{name} missing"] = lost.total()
        short[f"{name} twice or changed"] = further.total()
        examples += [f"{name}: missing {row}" for row in list(lost)[:3]]
        examples += [f"{name}: too much {row}" for row in list(further)[:3]]
    kept = Counter[tuple[str, str]]()
    for path in (folder / "artifacts").rglob("*"):
        parts = path.relative_to(folder / "artifacts").parts
        if path.is_file() and "artifacts" in parts:
            at = parts.index("artifacts")
            kept[parts[at - 1], "/".join(parts[at + 1 :])] += 1
    files = {(run["run"], name) for run in done for name in run["files"]}
    files |= {(own, "artifact.json") for own in wanted if own not in {r["run"] for r in done}}
    short["artifact files expected"] = len(files)
    short["artifact files missing"] = sum(1 for key in files if not kept[key])
    versions = rows(mlflow, "select name, version, source, run_id from model_versions")
    short["versions expected"] = len(done)
    made = {f"models:/{name}/{number}" for name, number, *_ in versions}
    short["versions missing"] = sum(1 for run in done if run["model"] not in made)
    short["versions twice"] = len(versions) - len({run["model"] for run in done} & made)
    prefect = databases["prefect"]
    flows = dict(rows(prefect, "select state_type::text, count(*) from flow_run group by 1"))
    tasks = dict(rows(prefect, "select state_type::text, count(*) from task_run group by 1"))
    return {
        "runs": len(runs),
        "finished": len(done),
        "errors": sorted({run["error"] for run in runs if "error" in run}),
        **{key: int(value) for key, value in short.items()},
        "mlflow runs by status": dict(Counter(status for _, _, status, _, _ in alive)),
        "prefect flow runs": {str(k): int(v) for k, v in flows.items()},
        "prefect task runs": {str(k): int(v) for k, v in tasks.items()},
        "examples": examples,
        "task runs expected": sum(len(run["stages"]) + 1 for run in done),
    }
