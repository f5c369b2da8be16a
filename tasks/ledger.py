"""What each kind of compression takes, and whether that pays on the runtime that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from exports.latency import Timings
from exports.onnxfile import array, initializers, load_model, save_model
from tasks.config import Recipe

# Dense and half-zero weights run the same float kernels, yet measured 1.00 to 1.04 of each other on
# shared cores, intervals above 1 included: a smaller gain is the noise of order and placement.
WORTH = 1.05
RUNTIME = "onnxruntime cpu"
TRIMMED = "vocabulary"  # the graph that has nothing but a smaller vocabulary

_KINDS = ("heads", "neurons", "channels")
_BITS = {"int8": 8, "int4": 4, "none": 32}


def ledger(
    recipe: Recipe,
    timings: Timings,
    counts: Mapping[str, Mapping[str, int]],
    *,
    structure: Sequence[Mapping[str, Any]] = (),
    profile: Mapping[str, Any] | None = None,
    vocabulary: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """One row a kind: what was taken, what that is worth on paper, and in time as measured.

    A kind of structure alone is timed branch by branch (the latency table); everything else as a
    whole graph beside the dense float one, in the same interleaved rounds.

    Args:
        counts: census of each timed graph.
        structure: {"branch", "full", "size"} of every branch, after the last rung.
        profile: levels.json of the profile stage, where structure was shrunk.
        vocabulary: {"full", "kept"} rows, where they were trimmed.
    """
    rows = _structure_rows(structure, profile) if profile is not None else []
    whole: list[tuple[str, float, str, str, dict[str, Any]]] = []
    if any(entry["size"] != entry["full"] for entry in structure):
        name = "shrunk" if "shrunk" in counts else "pruned"
        nominal = counts["teacher"]["prunable"] / max(1, counts[name]["prunable"])
        whole.append(("structure", nominal, "teacher", name, {}))
    if vocabulary is not None and TRIMMED in counts:
        nominal = vocabulary["full"] / vocabulary["kept"]
        whole.append((TRIMMED, nominal, "teacher", TRIMMED, dict(vocabulary)))
    if recipe.sparsity:
        before = "shrunk" if "shrunk" in counts else "teacher"
        kind = f"{recipe.prune.pattern} {recipe.sparsity:.0%}, bytes only"
        whole.append((kind, 1 / (1 - recipe.sparsity), before, "pruned", {}))
    bits: float = _BITS[recipe.quantize.format]
    if recipe.quantize.format == "int4":
        bits = recipe.quantize.mean_bits or bits
    if bits < 32:
        whole.append((recipe.quantize.format, 32 / bits, "teacher", "teacher-int8", {}))
    left = max(1, counts["specialist"]["prunable_nonzero"])
    together = counts["teacher"]["prunable_nonzero"] / left * 32 / bits
    whole.append(("together", together, "teacher", "specialist", {}))
    for kind, nominal, before, after, facts in whole:
        measured, low, _ = timings.ratio(before, after, recipe.verify.confidence)
        # between the two graphs of both, the vocabulary goes as well
        apart = before == "teacher" or vocabulary is None
        smaller = counts[before]["bytes"] / counts[after]["bytes"] if apart else None
        rows.append(_row(kind, nominal, measured, bool(low > WORTH), smaller, **facts))
    return rows


def _row(
    kind: str, nominal: float, measured: float, pays: bool, smaller: float | None, **facts: Any
) -> dict[str, Any]:
    return {
        "kind": kind,
        **facts,
        "nominal": nominal,
        "runtime": RUNTIME,
        "measured_ratio": measured,
        "pays": pays,
        "bytes_ratio": smaller,
    }


def _structure_rows(
    structure: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of heads, neurons, channels and blocks, each as if it alone had been taken."""
    branches = {branch["name"]: branch for branch in profile["branches"]}
    dense = profile["dense_ms"]["float32"]
    taken: dict[str, dict[str, float]] = {}
    for entry in structure:
        branch = branches[entry["branch"]]
        levels = {tuple(level["size"]): level["ms"]["float32"] for level in branch["levels"]}
        full, size = tuple(entry["full"]), tuple(entry["size"])
        gone = not any(size)
        kinds = {unit["kind"] for unit in branch["units"]}
        blocks = taken.setdefault("blocks", {"full": 0, "kept": 0, "saved": 0.0})
        blocks["full"] += 1
        blocks["kept"] += not gone
        if gone:
            blocks["saved"] += levels[full] - levels[size]
            continue
        for kind in _KINDS:
            if kind not in kinds:
                continue
            sums = taken.setdefault(kind, {"full": 0, "kept": 0, "saved": 0.0})
            rows = [at for at, unit in enumerate(branch["units"]) if unit["kind"] == kind]
            sums["full"] += sum(full[at] for at in rows)
            sums["kept"] += sum(size[at] for at in rows)
            sums["saved"] += levels[full] - levels[size]
    found = []
    for kind in (*_KINDS, "blocks"):
        if kind not in taken or taken[kind]["kept"] == taken[kind]["full"]:
            continue
        sums = taken[kind]
        ratio = dense / max(dense - sums["saved"], 1e-9)
        facts = {"full": int(sums["full"]), "kept": int(sums["kept"]), "how": "latency table"}
        nominal = sums["full"] / max(1, sums["kept"])
        found.append(_row(kind, nominal, ratio, ratio > WORTH, None, **facts))
    return found


def predicted_ms(
    structure: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]
) -> dict[str, float]:
    """By format, what the latency table says of the whole model at these sizes."""
    found = dict(profile["dense_ms"])
    branches = {branch["name"]: branch for branch in profile["branches"]}
    for entry in structure:
        levels = {
            tuple(level["size"]): level["ms"] for level in branches[entry["branch"]]["levels"]
        }
        full, size = levels[tuple(entry["full"])], levels[tuple(entry["size"])]
        for fmt in found:
            found[fmt] -= full[fmt] - size[fmt]
    return found


def with_fewer_rows(graph: Path, out: Path, full: int, kept: int) -> bool:
    """Write `graph` with its vocabulary table cut to its first `kept` rows.

    Which rows stay does not change a lookup's time. Returns whether a table of `full` rows was
    found.
    """
    model = load_model(graph)
    stored = initializers(model)
    for node in model.graph.node:
        table = stored.get(node.input[0]) if node.op_type == "Gather" else None
        if table is not None and len(table.dims) == 2 and table.dims[0] == full:
            cut = np.ascontiguousarray(array(table)[:kept])
            table.CopyFrom(numpy_helper.from_array(cut, table.name))
            save_model(model, out)
            return True
    return False
