"""From measurements to report.json, schema 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from compression.interplay import interplay
from exports.latency import Timings
from exports.parity import first_broken
from exports.runtime import host_profile
from exports.statistics import calibration_error, examples_to_settle, mcnemar, per_class_drops
from exports.verdict import paired_interval, smallest_passable_n, verdict, wilson
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import LEVELS, QUANTIZED
from tasks.ledger import ledger, predicted_ms

_COMPARED = ("generalist", "teacher", "pruned", "specialist")
_ENDS = ("generalist", "specialist")
BUSY = 2.0  # times that spread more than this tell nothing (see `exports.latency.Timings.spread`)
_CORNERS = {
    "dense": "teacher",
    "sparse": "pruned",
    "quantized": "teacher-int8",
    "both": "specialist",
}


@dataclass(frozen=True)
class Measured:
    """What the exported graphs did, by name of the graph.

    Attributes:
        labels: true classes (N,).
        logits: (N, K); the generalist's empty where it does not know the classes.
        timings: of all graphs, interleaved.
        counts: parameters, nonzeros and bytes in each file.
    """

    labels: np.ndarray
    logits: Mapping[str, np.ndarray]
    timings: Timings
    counts: Mapping[str, Mapping[str, int]]

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """Which examples each graph got right, bool (N,), by graph."""
        known = {name: x for name, x in self.logits.items() if len(x)}
        return {name: x.argmax(1) == self.labels for name, x in known.items()}


def judge(
    recipe: Recipe,
    data: Artifact,
    generalist: Artifact,
    measured: Measured,
    parity: list[dict[str, Any]],
    steps: Mapping[str, Artifact],
    served: Path,
) -> dict[str, Any]:
    """Put everything measured into a report and decide.

    Args:
        parity: the chain of conversions, hop by hop (`tasks.parity`).
        steps: what was made on the way, by stage: 'leaks', and 'profile', 'shrink' and 'trim'
            where there were.
        served: the specialist's export.
    """
    asked, facts, right = recipe.verify, data.metrics, measured.right
    timings, counts = measured.timings, measured.counts
    profile = steps["profile"].json_file(LEVELS) if "profile" in steps else None
    structure = steps["shrink"].metrics["structure"] if "shrink" in steps else []
    models = {
        name: {
            **{key: counts[name][key] for key in ("parameters", "nonzero", "bytes")},
            **_accuracy(right.get(name), asked.confidence),
            "latency_ms": timings.median_ms[name],
        }
        for name in _COMPARED
    }
    models["generalist"]["licence"] = generalist.metrics["licence"]
    first, last = counts["generalist"], counts["specialist"]
    ratio, *ratio_ci = timings.ratio("generalist", "specialist", asked.confidence)
    leaked = steps["leaks"].json_file("leaks.json")
    report = {
        "schema": 1,
        "task": {
            "name": recipe.name,
            "shots": recipe.task.shots,
            "seed": recipe.task.seed,
            **{key: facts[key] for key in ("modality", "classes", "support", "test")},
            "leaks": leaked["exact"] + leaked["near"],
        },
        "models": models,
        "accuracy": accuracy_facts(recipe, data, measured),
        "speed": {
            "runtime": "cpu",
            "batch": asked.batch,
            "threads": asked.threads,
            "ratio": ratio,
            "ratio_ci": ratio_ci,
            "repeats": asked.repeats,
            "spread": {name: round(timings.spread(name), 3) for name in _ENDS},
            **_foreseen(recipe, profile, structure),
        },
        "sparsity": {
            "nonzero_ratio": first["prunable_nonzero"] / max(1, last["prunable_nonzero"]),
            "nonzero_ratio_all": first["nonzero"] / max(1, last["nonzero"]),
            "bytes_ratio": first["bytes"] / last["bytes"],
            "ledger": ledger(
                recipe,
                timings,
                counts,
                structure=structure,
                profile=profile,
                vocabulary=_rows(steps.get("trim")),
            ),
        },
        "interplay": asdict(
            interplay(**{key: float(right[name].mean()) for key, name in _CORNERS.items()})
        ),
        "parity": parity,
        "leaks": leaked,
        "host": host_profile(),
    }
    if structure:
        report["structure"] = structure
    quantized = served / QUANTIZED
    if quantized.is_file():
        report["quantize"] = json.loads(quantized.read_text(encoding="utf-8"))
    report["verdict"] = _verdict(recipe, report)
    return report


def accuracy_facts(recipe: Recipe, data: Artifact, measured: Measured) -> dict[str, Any]:
    """The drop from teacher to specialist with all that is known of it, the report's `accuracy`."""
    confidence, labels = recipe.verify.confidence, measured.labels
    teacher, specialist = measured.right["teacher"], measured.right["specialist"]
    drop, low, high, method = paired_interval(teacher, specialist, confidence)
    lost, gained = int((teacher & ~specialist).sum()), int((~teacher & specialist).sum())
    rows, by = per_class_drops(labels, teacher, specialist, data.metrics["classes"], confidence)
    found = {
        name: calibration_error(
            softmax(measured.logits[name].astype(np.float64), axis=1),
            labels,
            confidence,
            seed=recipe.task.seed,
        )
        for name in ("teacher", "specialist")
    }
    return {
        "drop": drop,
        "drop_ci": [low, high],
        "max_drop": recipe.verify.max_drop,
        "confidence": confidence,
        "method": method,
        "n": len(labels),
        "mcnemar": {"lost": lost, "gained": gained, "p": mcnemar(lost, gained)},
        "per_class": rows,
        "per_class_method": by,
        "calibration": found,
    }


def _accuracy(right: np.ndarray | None, confidence: float) -> dict[str, Any]:
    if right is None:
        return {"accuracy": None, "accuracy_ci": None}
    interval = wilson(int(right.sum()), len(right), confidence)
    return {"accuracy": float(right.mean()), "accuracy_ci": list(interval)}


def _rows(trimmed: Artifact | None) -> dict[str, int] | None:
    return None if trimmed is None else {key: trimmed.metrics[key] for key in ("full", "kept")}


def _foreseen(
    recipe: Recipe,
    profile: Mapping[str, Any] | None,
    structure: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the latency table said of the specialist, and where that table is from."""
    if profile is None:
        return {}
    source = {key: profile[key] for key in ("source", "cpu", "same_host", "tokens")}
    found = predicted_ms(structure, profile)
    if recipe.quantize.format != "int8":  # planned for another format than is served
        found.pop("int8", None)
    return {"predicted_ms": found, "profile": source}


def _budgets(recipe: Recipe, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    specialist, asked = report["models"]["specialist"], recipe.target
    measured = {
        "speedup": (report["speed"]["ratio"], True),
        "latency_ms": (specialist["latency_ms"], False),
        "bytes": (specialist["bytes"], False),
        "nonzero_ratio": (report["sparsity"]["nonzero_ratio"], True),
    }
    spread = max(report["speed"]["spread"].values())
    busy = (
        f"the host was busy: times of one graph spread {spread:.1f}-fold; run it again when "
        "nothing else runs"
    )
    return [
        {
            "name": name,
            "asked": getattr(asked, name),
            "measured": value,
            "at_least": at_least,
            "doubt": busy if name in ("speedup", "latency_ms") and spread > BUSY else None,
        }
        for name, (value, at_least) in measured.items()
        if getattr(asked, name) is not None
    ]


def _verdict(recipe: Recipe, report: Mapping[str, Any]) -> dict[str, Any]:
    asked, accuracy = recipe.verify, report["accuracy"]
    needed = examples_to_settle(
        accuracy["mcnemar"]["lost"],
        accuracy["mcnemar"]["gained"],
        accuracy["n"],
        asked.max_drop,
        asked.confidence,
    )
    found = verdict(accuracy["drop_ci"], asked.max_drop, _budgets(recipe, report), needed=needed)
    least = smallest_passable_n(asked.max_drop, asked.confidence)
    if accuracy["n"] < least:
        found["reasons"].append(asked.too_small(accuracy["n"], least))
    broken = first_broken(report["parity"])
    if broken is not None:
        # more test examples would not mend it
        reasons = [broken, *found["reasons"]]
        found = {**found, "status": "fail", "reasons": reasons, "needed": None}
    return found
