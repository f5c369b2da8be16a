"""From measurements to report.json, schema 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compression.interplay import interplay
from exports.latency import Timings
from exports.parity import break_of, hop
from exports.runtime import host_profile
from exports.verdict import paired_interval, smallest_passable_n, verdict, wilson
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.layout import LEVELS
from tasks.ledger import ledger, predicted_ms

_COMPARED = ("generalist", "teacher", "pruned", "specialist")
_HOPS = {
    "torch->onnx": ("torch", "teacher"),
    "onnx->pruned": ("teacher", "pruned"),
    "pruned->int8": ("pruned", "specialist"),
}


@dataclass(frozen=True)
class Measured:
    """What the exported graphs did, by name of the graph.

    Attributes:
        labels: true classes (N,).
        reference: the teacher's logits in torch, (N, K).
        logits: (N, K); the generalist's empty where it does not know the classes.
        timings: of all graphs, interleaved.
        counts: parameters, nonzeros and bytes in each file.
    """

    labels: np.ndarray
    reference: np.ndarray
    logits: Mapping[str, np.ndarray]
    timings: Timings
    counts: Mapping[str, Mapping[str, int]]


def judge(
    recipe: Recipe,
    data: Artifact,
    measured: Measured,
    steps: Mapping[str, Artifact],
    quantized: Path,
) -> dict[str, Any]:
    """Put everything measured into a report and decide.

    Args:
        steps: what was made on the way, by stage: 'profile', 'shrink' and 'trim' where there were.
        quantized: the JSON file that tells how the specialist was quantized, where it was.
    """
    asked, facts, labels = recipe.verify, data.metrics, measured.labels
    logits, timings, counts = measured.logits, measured.timings, measured.counts
    right = {name: x.argmax(1) == labels for name, x in logits.items() if len(x)}
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
    drop, low, high, method = paired_interval(
        right["teacher"], right["specialist"], asked.confidence
    )
    first, last = counts["generalist"], counts["specialist"]
    ratio, *ratio_ci = timings.ratio("generalist", "specialist", asked.confidence)
    sparsity = {
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
    }
    corners = {
        "dense": "teacher",
        "sparse": "pruned",
        "quantized": "teacher-int8",
        "both": "specialist",
    }
    joint = interplay(**{key: float(right[name].mean()) for key, name in corners.items()})
    before = {**logits, "torch": measured.reference}
    parity = [hop(name, before[a], logits[b], labels) for name, (a, b) in _HOPS.items()]
    report = {
        "schema": 1,
        "task": {
            "name": recipe.name,
            "shots": recipe.task.shots,
            "seed": recipe.task.seed,
            **{key: facts[key] for key in ("modality", "classes", "support", "test", "leaks")},
        },
        "models": models,
        "accuracy": {
            "drop": drop,
            "drop_ci": [low, high],
            "max_drop": asked.max_drop,
            "confidence": asked.confidence,
            "method": method,
            "n": len(labels),
        },
        "speed": {
            "runtime": "cpu",
            "batch": asked.batch,
            "threads": asked.threads,
            "ratio": ratio,
            "ratio_ci": ratio_ci,
            "repeats": asked.repeats,
            **_foreseen(profile, structure),
        },
        "sparsity": sparsity,
        "interplay": asdict(joint),
        "parity": parity,
        "host": host_profile(),
    }
    if structure:
        report["structure"] = structure
    if quantized.is_file():
        report["quantize"] = json.loads(quantized.read_text(encoding="utf-8"))
    report["verdict"] = _verdict(recipe, report)
    return report


def _accuracy(right: np.ndarray | None, confidence: float) -> dict[str, Any]:
    if right is None:
        return {"accuracy": None, "accuracy_ci": None}
    interval = wilson(int(right.sum()), len(right), confidence)
    return {"accuracy": float(right.mean()), "accuracy_ci": list(interval)}


def _rows(trimmed: Artifact | None) -> dict[str, int] | None:
    return None if trimmed is None else {key: trimmed.metrics[key] for key in ("full", "kept")}


def _foreseen(
    profile: Mapping[str, Any] | None, structure: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the latency table said of the specialist, and where that table is from."""
    if profile is None:
        return {}
    source = {key: profile[key] for key in ("source", "cpu", "same_host", "tokens")}
    return {"predicted_ms": predicted_ms(structure, profile), "profile": source}


def _budgets(recipe: Recipe, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    specialist, asked = report["models"]["specialist"], recipe.target
    measured = {
        "speedup": (report["speed"]["ratio"], True),
        "latency_ms": (specialist["latency_ms"], False),
        "bytes": (specialist["bytes"], False),
        "nonzero_ratio": (report["sparsity"]["nonzero_ratio"], True),
    }
    return [
        {"name": name, "asked": getattr(asked, name), "measured": value, "at_least": at_least}
        for name, (value, at_least) in measured.items()
        if getattr(asked, name) is not None
    ]


def _verdict(recipe: Recipe, report: Mapping[str, Any]) -> dict[str, Any]:
    asked, accuracy = recipe.verify, report["accuracy"]
    found = verdict(accuracy["drop_ci"], asked.max_drop, _budgets(recipe, report))
    needed = smallest_passable_n(asked.max_drop, asked.confidence)
    if accuracy["n"] < needed:
        found["reasons"].append(asked.too_small(accuracy["n"], needed))
    bounds = {
        "torch->onnx": {"max_abs": asked.parity_max_abs},
        "pruned->int8": {"agreement": asked.parity_agreement},
    }
    broken = break_of(report["parity"], bounds)
    if broken is not None:
        found = {"status": "fail", "reasons": [broken, *found["reasons"]]}
    return found
