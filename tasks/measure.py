"""Running the exported files in ONNX Runtime: logits on the test set, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exports.latency import Timings, interleaved
from exports.preprocess import TextPreprocess, load_preprocess
from exports.runtime import host_profile, session
from exports.specialist import Specialist
from tasks.config import Recipe

Raws = Sequence[bytes | str]
_WARMUP = 10


def logits_of(graphs: Mapping[str, Path], served: Path, raws: Raws) -> dict[str, np.ndarray]:
    """Outputs (N, width of the graph's own head) of every graph on the same raw inputs."""
    preprocess, _ = load_preprocess(served)
    cores = int(host_profile()["usable_cores"])
    found = {}
    for name, path in graphs.items():
        opened = session(path, cores)
        width = opened.get_outputs()[0].shape[1]
        model = Specialist(opened, preprocess, tuple(map(str, range(width))))
        found[name] = model.logits(raws)
    return found


def timing_feed(served: Path, raws: Raws, batch: int) -> dict[str, np.ndarray]:
    """A batch of test inputs to time; texts are those nearest to the median length in tokens."""
    preprocess, _ = load_preprocess(served)
    if isinstance(preprocess, TextPreprocess):
        rows = preprocess.encode([str(raw) for raw in raws])
        middle = int(np.median([len(row) for row in rows]))
        nearest = sorted(rows, key=lambda row: abs(len(row) - middle))
        return preprocess.pad([nearest[at % len(nearest)] for at in range(batch)])
    return preprocess([raws[at % len(raws)] for at in range(batch)])


def time_graphs(
    graphs: Mapping[str, Path], feed: Mapping[str, np.ndarray], recipe: Recipe, threads: int
) -> Timings:
    """Interleaved wall times of every graph on one input."""
    opened = {name: session(path, threads) for name, path in graphs.items()}
    repeats = recipe.verify.repeats
    return interleaved(opened, feed, warmup=_WARMUP, repeats=repeats, seed=recipe.task.seed)
