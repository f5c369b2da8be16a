"""Times of the graphs that a study made, on the machine that has nothing else to do."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from benchmarks.studies.grid import TASKS, Row
from benchmarks.studies.provenance import commit, machine, processor
from benchmarks.studies.tables import read


def time_graphs(args: argparse.Namespace, methods: Collection[str]) -> None:
    """One thread, batch 1, interleaved with the teacher's float graph; first seed, first task."""
    os.environ["WINNOW_HOME"] = str(args.home.resolve())
    import numpy as np

    from exports.latency import interleaved
    from exports.runtime import session
    from tasks.home import store

    found = [row for row in read([args.rows], failures=False) if row.get("graph")]
    # of the timing: the graphs may have been made elsewhere and before
    where = {"device": processor(), "machine": machine(), "commit": commit()}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in found:
        if row["seed"] == 0 and row["task"] == TASKS[row["model"]][0] and row["method"] in methods:
            groups[row["model"], row["task"]].append(row)
    for (model, _), members in groups.items():
        dense = next((row["teacher_graph"] for row in members if "teacher_graph" in row), None)
        if dense is None:
            continue
        paths = {row["method"]: store() / row["graph"] / "model.onnx" for row in members}
        paths["teacher"] = store() / dense / "model.onnx"
        opened = {name: session(path, 1) for name, path in paths.items()}
        feeds: dict[str, dict[str, Any]] = {}
        for name, each in opened.items():
            feeds[name] = {}
            for x in each.get_inputs():
                shape = [
                    n if isinstance(n, int) else at
                    for n, at in zip(x.shape, (1, 32, 0, 0), strict=False)
                ]
                kind = np.float32 if "float" in x.type else np.int64
                feeds[name][x.name] = np.ones(shape, kind)
        times = interleaved(opened, feeds, warmup=10, repeats=args.repeats, seed=0)
        with args.out.open("a") as out:
            for row in members:
                ratio, low, high = times.ratio("teacher", row["method"])
                names = ("study", "model", "task", "seed", "method", "steps")
                told = {key: row[key] for key in names}
                line = {
                    "id": f"peers-time/{model}/{row['method']}",
                    "block": "time",
                    **told,
                    **where,
                    "speed": ratio,
                    "speed_low": low,
                    "speed_high": high,
                    "milliseconds": times.median_ms[row["method"]],
                    "spread": times.spread(row["method"]),
                    "command": "python benchmarks/study_peers.py time --home HOME --rows ROWS "
                    "--out FILE",
                }
                out.write(json.dumps(line) + "\n")
                print(f"{model} {row['method']}: {ratio:.2f}x [{low:.2f}, {high:.2f}]", flush=True)
