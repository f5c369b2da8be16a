"""The last stage but one: accuracy with its interval, speed, size, parity and the verdict."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from exports.runtime import host_profile
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import GRAPH, QUANTIZED, graph_names
from tasks.progress import Callback
from tasks.splits import load_split
from tasks.stage import stage

_TOLD = ("models", "accuracy", "speed", "sparsity", "verdict")


@stage(
    reads=(
        "name",
        "target",
        "verify",
        "task.seed",
        "task.shots",
        "prune",
        "quantize",
        "sparsity",
        "shrinks",
    ),
    # timings are this host's, and so is a verdict that rests on them
    outside=lambda _: {"host": json.dumps(host_profile(), sort_keys=True)},
)
def verify(
    recipe: Recipe,
    data: Artifact,
    generalist: Artifact,
    teacher: Artifact,
    *made: Artifact,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """Measure everything that the verdict rests on.

    `made` holds the exports in the order of `graph_names`, and what was made on the way to them
    and the report tells of: the profile, the last step of shrinking, the trimmed model.
    """
    from exports.card import card_markdown
    from exports.census import census
    from exports.plots import tradeoff_png
    from tasks.cuda import cuda_rows
    from tasks.judge import Measured, judge
    from tasks.ledger import TRIMMED, with_fewer_rows
    from tasks.measure import logits_of, time_graphs, timing_feeds, typical_tokens
    from tasks.reference import known_rows, torch_logits

    exports = [artifact for artifact in made if artifact.stage == "export"]
    steps = {artifact.stage: artifact for artifact in made if artifact.stage != "export"}
    exported = dict(zip(graph_names(recipe), exports, strict=True))
    folders = {name: artifact.folder for name, artifact in exported.items()}
    test = load_split(data.folder / "test.parquet")
    shots = load_split(data.folder / "support.parquet").inputs
    progress(0, 4, "torch logits")
    reference = torch_logits(recipe, test, teacher)
    progress(1, 4, "accuracy")
    logits = logits_of(folders, test.inputs)
    rows = known_rows(generalist, data.metrics["classes"])
    logits["generalist"] = logits["generalist"][:, rows] if rows else np.empty((0, 0))
    progress(2, 4, "latency")
    tokens = typical_tokens(folders["teacher"], shots, recipe)
    feeds = timing_feeds(folders, test.inputs, recipe, tokens)
    files = {name: folder / GRAPH for name, folder in folders.items()}
    counts = {
        name: census(files[name], artifact.json_file("prunable.json"))
        for name, artifact in exported.items()
    }
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        timed = dict(files)
        if "trim" in steps:  # the teacher with nothing but a smaller vocabulary
            rows_kept, cut = steps["trim"].metrics, Path(scratch, GRAPH)
            if with_fewer_rows(files["teacher"], cut, rows_kept["full"], rows_kept["kept"]):
                timed[TRIMMED] = cut
                ids = np.minimum(feeds["teacher"]["input_ids"], rows_kept["kept"] - 1)
                feeds[TRIMMED] = {**feeds["teacher"], "input_ids": ids}
                counts[TRIMMED] = {"bytes": cut.stat().st_size}
        timings = time_graphs(timed, feeds, recipe, recipe.verify.threads)
        on_gpu = cuda_rows(recipe, files, feeds, counts, Path(scratch))
    # beside the headline; a runtime's threads and those of other processes get in each other's way
    ends = {name: files[name] for name in ("generalist", "specialist")}
    cores = int(host_profile()["usable_cores"])
    all_cores = time_graphs(ends, feeds, recipe, cores)
    progress(3, 4, "verdict")
    measured = Measured(np.array(test.labels), reference, logits, timings, counts)
    report = judge(recipe, data, measured, steps, exported["specialist"].folder / QUANTIZED)
    ratio, *interval = all_cores.ratio("generalist", "specialist", recipe.verify.confidence)
    report["speed"]["all_cores"] = {"threads": cores, "ratio": ratio, "ratio_ci": interval}
    if tokens is not None:
        for name in ("teacher", "specialist"):  # a smaller vocabulary cuts words into more
            key = "tokens" if name == "teacher" else "specialist_tokens"
            report["speed"][key] = feeds[name]["input_ids"].shape[1]
    report["sparsity"]["ledger"] += on_gpu
    tradeoff_png(report, into / "tradeoff.png")
    del report["models"]["pruned"]  # a step on the way: in the picture, not in the contract
    (into / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (into / "card.md").write_text(card_markdown(report), encoding="utf-8")
    return {key: report[key] for key in _TOLD}
