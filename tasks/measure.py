"""Running the exported files in ONNX Runtime: logits on the test set, and time.

Every graph is fed by the preprocessing and the tokenizer that were exported with it: a specialist
whose vocabulary was trimmed numbers its tokens in another way than its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exports.latency import Timings, interleaved
from exports.preprocess import TextPreprocess, load_preprocess
from exports.runtime import host_profile, session
from exports.specialist import Specialist
from tasks.config import Recipe
from tasks.host_clock import host_clock
from tasks.layout import GRAPH

Raws = Sequence[bytes | str]
Feed = dict[str, np.ndarray]
_WARMUP = 10


def logits_of(exported: Mapping[str, Path], raws: Raws) -> dict[str, np.ndarray]:
    """Outputs (N, width of the graph's own head) of every exported folder on the same inputs."""
    cores = int(host_profile()["usable_cores"])
    found = {}
    for name, folder in exported.items():
        opened = session(folder / GRAPH, cores)
        width = opened.get_outputs()[0].shape[1]
        preprocess, _ = load_preprocess(folder)
        found[name] = Specialist(opened, preprocess, tuple(map(str, range(width)))).logits(raws)
    return found


def typical_tokens(served: Path, shots: Raws, recipe: Recipe) -> int | None:
    """The length of the timed texts: asked for, or the shots' median; None for images."""
    preprocess, _ = load_preprocess(served)
    if not isinstance(preprocess, TextPreprocess):
        return None
    if recipe.verify.tokens is not None:
        return recipe.verify.tokens
    return int(np.median([len(row) for row in preprocess.encode([str(shot) for shot in shots])]))


def timing_feeds(
    exported: Mapping[str, Path],
    raws: Raws,
    recipe: Recipe,
    tokens: int | None,
    *,
    exact: bool = False,
) -> dict[str, Feed]:
    """By graph, a batch of the same inputs to time.

    Texts are those whose length under the first graph's tokenizer is nearest to ``tokens``. With
    `verify.tokens`, or where `exact`, every row is repeated or cut to that length: its numbers do
    not change the time. Otherwise a graph takes as many tokens as its own tokenizer makes of them.
    """
    batch = recipe.verify.batch
    chosen: list[bytes | str] = [raws[at % len(raws)] for at in range(batch)]
    feeds: dict[str, Feed] = {}
    for name, folder in exported.items():
        preprocess, _ = load_preprocess(folder)
        if not isinstance(preprocess, TextPreprocess):
            feeds[name] = preprocess(chosen)
            continue
        assert tokens is not None
        if not feeds:
            rows = preprocess.encode([str(raw) for raw in raws])
            nearest = sorted(range(len(raws)), key=lambda at: abs(len(rows[at]) - tokens))
            chosen = [raws[nearest[at % len(nearest)]] for at in range(batch)]
        own = preprocess.encode([str(raw) for raw in chosen])
        if exact or recipe.verify.tokens is not None:
            own = [np.resize(row, tokens).tolist() for row in own]
        feeds[name] = preprocess.pad(own)
    return feeds


def time_graphs(
    files: Mapping[str, Path], feeds: Mapping[str, Feed], recipe: Recipe, threads: int
) -> Timings:
    """Interleaved wall times of every graph on its own input; nothing else is timed meanwhile."""
    opened = {name: session(path, threads) for name, path in files.items()}
    repeats = recipe.verify.repeats
    with host_clock():
        return interleaved(opened, feeds, warmup=_WARMUP, repeats=repeats, seed=recipe.task.seed)
