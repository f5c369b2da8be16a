"""Does the recheck cry wolf, and does it see the wolf? Drift without labels, on known draws.

    python benchmarks/drift_simulation.py [--draws 200] [--out drift.md]

A model that knows its probabilities answers inputs of a test set (the reference) and new inputs;
labels are drawn from its own softmax. The new inputs come from the same distribution, or are less
clear, or of other classes, or partly noise. Shares of the draws in which drift is found, and in
which drift together with the estimated accuracy says that more than 4 points are lost.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exports.drift import drift, estimated_drop
from exports.reference import log_softmax

MAX_DROP = 0.04
SHARP = 3.0
Random = np.random.Generator


def rows(n: int, k: int, random: Random, sharpness: float = SHARP) -> np.ndarray:
    return random.normal(0, 1, (n, k)) * sharpness


def same(n: int, k: int, random: Random) -> np.ndarray:
    return rows(n, k, random)


def unclear(n: int, k: int, random: Random) -> np.ndarray:
    return rows(n, k, random, 0.6 * SHARP)


def other_shares(n: int, k: int, random: Random) -> np.ndarray:
    """The first class four times as likely as it was."""
    return rows(n, k, random) + np.log([4.0] + [1.0] * (k - 1))


def noise(n: int, k: int, random: Random) -> np.ndarray:
    """A third is nothing that the model knows."""
    found = rows(n, k, random)
    found[: n // 3] = rows(n // 3, k, random, 0.3 * SHARP)
    return found


KINDS: dict[str, Callable[[int, int, Random], np.ndarray]] = {
    "same": same,
    "less clear": unclear,
    "other shares": other_shares,
    "a third noise": noise,
}


def answered(logits: np.ndarray, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities, and whether each answer was right."""
    found = log_softmax(logits)
    drawn = (random.random((len(found), 1)) > np.exp(found).cumsum(axis=1)).sum(axis=1)
    return found, found.argmax(axis=1) == drawn.clip(0, found.shape[1] - 1)


def true_accuracy(kind: str, k: int) -> float:
    logits = KINDS[kind](100_000, k, np.random.default_rng(1))
    return float(np.exp(log_softmax(logits)).max(axis=1).mean())


def cell(kind: str, k: int, m: int, n: int, draws: int) -> tuple[float, float, float]:
    """Shares of draws: drift found, loss found with it, true drop inside the interval."""
    classes = [f"class {at}" for at in range(k)]
    drop = true_accuracy("same", k) - true_accuracy(kind, k)
    found = np.zeros((draws, 3))
    for at in range(draws):
        random = np.random.default_rng([at, k, m, n, list(KINDS).index(kind)])
        before, right = answered(rows(m, k, random), random)
        seen, _ = answered(KINDS[kind](n, k, random), random)
        drifted = drift(before, seen, classes)["drifted"]
        low, high = estimated_drop(before, right, seen, seed=at, draws=200)["drop_ci"]
        found[at] = drifted, drifted and low > MAX_DROP, low <= drop <= high
    return tuple(found.mean(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    given = parser.parse_args()
    lines = [
        "# Drift without labels: false alarms and power",
        "",
        f"What `benchmarks/drift_simulation.py --draws {given.draws}` prints: percent of draws.",
        "*found* is drift, *loss* is drift with an estimated loss above 4 points for sure, on",
        "which a recheck asks for a new one; *covers* is how often the interval of the estimated",
        "drop holds the true one. Asked are at most 5 % of alarms where nothing has changed.",
        "",
        "| new inputs | classes | true drop | test set | new | found | loss | covers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, k, m, n in itertools.product(KINDS, (2, 12), (200, 1000), (50, 200, 1000)):
        drop = 100 * (true_accuracy("same", k) - true_accuracy(kind, k))
        shares = " | ".join(f"{100 * x:.0f}" for x in cell(kind, k, m, n, given.draws))
        lines.append(f"| {kind} | {k} | {drop:.1f} | {m} | {n} | {shares} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
