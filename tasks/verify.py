"""Stage 7: accuracy with its interval, speed, size, parity and the verdict, from the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exports.runtime import host_profile
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRAPH, GRAPHS
from tasks.progress import Callback
from tasks.splits import load_split
from tasks.stage import stage


@stage(
    reads=("name", "target", "verify", "task.seed", "task.shots", "prune", "quantize", "sparsity"),
    # timings are this host's, and so is a verdict that rests on them
    outside=lambda _: {"host": json.dumps(host_profile(), sort_keys=True)},
)
def verify(
    recipe: Recipe,
    data: Artifact,
    generalist: Artifact,
    teacher: Artifact,
    *graphs: Artifact,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """Measure everything that the verdict rests on, from `graphs` in the order of `GRAPHS`."""
    from exports.card import card_markdown
    from exports.plots import tradeoff_png
    from tasks.judge import judge
    from tasks.measure import logits_of, time_graphs, timing_feed
    from tasks.reference import known_rows, torch_logits

    exported = dict(zip(GRAPHS, graphs, strict=True))
    files = {name: artifact.folder / GRAPH for name, artifact in exported.items()}
    served = exported["specialist"].folder
    test = load_split(data.folder / "test.parquet")
    progress(0, 4, "torch logits")
    reference = torch_logits(recipe, test, teacher)
    progress(1, 4, "accuracy")
    logits = logits_of(files, served, test.inputs)
    rows = known_rows(generalist, data.metrics["classes"])
    logits["generalist"] = logits["generalist"][:, rows] if rows else np.empty((0, 0))
    progress(2, 4, "latency")
    feed = timing_feed(served, test.inputs, recipe.verify.batch)
    timings = time_graphs(files, feed, recipe, recipe.verify.threads)
    # beside the headline; a runtime's threads and those of other processes get in each other's way
    ends = {name: files[name] for name in ("generalist", "specialist")}
    cores = int(host_profile()["usable_cores"])
    all_cores = time_graphs(ends, feed, recipe, cores)
    progress(3, 4, "verdict")
    report = judge(recipe, data, exported, test, reference, logits, timings, files)
    ratio, *interval = all_cores.ratio("generalist", "specialist", recipe.verify.confidence)
    report["speed"]["all_cores"] = {"threads": cores, "ratio": ratio, "ratio_ci": interval}
    tradeoff_png(report, into / "tradeoff.png")
    del report["models"]["pruned"]  # a step on the way: in the picture, not in the contract
    (into / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (into / "card.md").write_text(card_markdown(report), encoding="utf-8")
    return {key: report[key] for key in ("models", "accuracy", "speed", "sparsity", "verdict")}
