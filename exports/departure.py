"""The first node of a graph whose output departs from a reference.

Where the reference is the graph before the hop, `exports.pairing` holds every node against its
counterpart. Measured on healthy INT8 files, 4 examples: the logits' relative error 0.02
(ResNet-18), 0.04 (DeiT-S), 0.06 (ConvNeXt-nano), 0.05 (MiniLM), 0.23 (MobileNetV2, up to 0.33 on
the way); the largest that one node adds to right inputs 0.03, 0.05, 0.13, 0.08 and 0.03, and 0.17
in a table of 4 bits.

Where the reference is no graph but what torch computed, its tensors are found again by their
numbers; see `departure_from_values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx

from exports.alike import Known, layouts, relative_error
from exports.onnxfile import load_model
from exports.pairing import TABLES, Check, Feed, Pair, first_wrong, tells
from exports.runtime import run_logits, session
from exports.spying import spied

Departure: TypeAlias = dict[str, Any]


class Tolerance(NamedTuple):
    """Relative errors that one node may add.

    Attributes:
        floats: where nothing is rounded.
        weight: of a channel of a stored weight, twice as much in 4 bits; see
            `exports.alike.weight_error`.
        rounding: of activations in 8 bits; see `exports.alike.rounding_error`. A lost zero point
            costs 0.7.
    """

    floats: float
    weight: float
    rounding: float

    def of(self, check: Check) -> float:
        """Return what a comparison may show."""
        if check.kind == "weight":
            return self.weight * (2 if check.node.op_type in ("MatMulNBits", *TABLES) else 1)
        return self.rounding if check.kind == "rounding" else self.floats


FLOAT, HALF = Tolerance(1e-3, 1e-3, 1e-3), Tolerance(0.05, 0.05, 0.05)
INT8, CLOSER = Tolerance(0.05, 0.3, 0.3), Tolerance(0.02, 0.2, 0.15)


def first_departure(
    reference: Path | Mapping[str, np.ndarray],
    candidate: Path,
    feed: Feed,
    *,
    tolerance: Tolerance,
    threads: int = 1,
    provider: str = "cpu",
) -> Departure | None:
    """Name the first node of a graph whose output departs from what the reference computes.

    Args:
        reference: the graph before the hop, or tensors by name in the order in which they were
            computed, the output last (`models.spying.torch_tensors`).
        candidate: the graph after the hop.
        feed: a few examples; texts of one length, with more tokens than rows.
        tolerance: what one node may add: `FLOAT`, `HALF`, `INT8`, or `CLOSER` where an INT8 file
            is known to be wrong.
        threads, provider: of the candidate's session.

    Returns:
        {"name", "op", "tensor", "error", "error_before"}: the node, its operator, its output (or
        the stored weight that is wrong), that tensor's relative error as the graph runs, and the
        largest one that its inputs carry; None where no node departs.
    """
    if not isinstance(reference, Path):
        return departure_from_values(reference, candidate, feed, tolerance=tolerance.floats)
    pair = Pair(reference, candidate, feed, threads=threads, provider=provider)
    floats = [name for name, x in pair.carried.items() if x.dtype.kind == "f" and x.size > 1]
    if 2 * len(pair.matched) < len(floats):  # another exporter's names: numbers must do
        return departure_from_values(pair.expected, candidate, feed, tolerance=tolerance.floats)
    for check in pair.checks():
        if check.local <= tolerance.of(check):
            continue
        node = check.node
        if check.tensor in node.output:
            node = pair.narrowed(check)
        tensor = check.tensor if node is check.node else node.output[0]
        return _named(node, tensor, check.error, check.before)
    kept = pair.carried[pair.model.graph.output[0].name]
    return _fused(kept, candidate, feed, tolerance.rounding, threads, provider)


def departure_from_values(
    reference: Mapping[str, np.ndarray], candidate: Path, feed: Feed, *, tolerance: float
) -> Departure | None:
    """Do `first_departure` where tensors are found again by their numbers alone.

    A node departs when no tensor of the reference holds its output in any layout, and nothing
    that depends on it is found either; for float graphs, where equal means 1e-3.
    """
    model = load_model(candidate)
    made = {name: x for name, x in spied(model, feed).items() if x.dtype.kind == "f"}
    known = [x for x in reference.values() if x.dtype.kind == "f"]
    output = model.graph.output[0].name
    got, end = made[output], known[-1]
    if got.shape == end.shape and relative_error(got, end) <= tolerance:
        return _fused(end, candidate, feed, tolerance)
    among = Known(known)
    errors = {
        name: among.error(values, tolerance)
        for name, values in made.items()
        if tells(values) and name != output
    }
    right = {name: error is not None for name, error in errors.items()}
    node = first_wrong(list(model.graph.node), right.get, {output})
    if node is None:
        return None
    name = node.output[0]
    before = max((errors.get(x) or 0.0 for x in node.input), default=0.0)
    # its counterpart is the reference's first tensor of that size that is found nowhere
    there = Known(made.values())
    same = [x for x in known if x.size == made[name].size]
    lost = [x for x in same if there.error(x, tolerance) is None] or same
    options = layouts(lost[0], made[name].shape) if lost else iter(())
    error = min((relative_error(made[name], option) for option in options), default=np.inf)
    return _named(node, name, error, before)


def _fused(
    expected: np.ndarray,
    candidate: Path,
    feed: Feed,
    tolerance: float,
    threads: int = 1,
    provider: str = "cpu",
) -> Departure | None:
    """Run the file as it is served: where every node by itself is right, a fusion may be wrong."""
    opened = session(candidate, threads, provider)
    error = relative_error(run_logits(opened, feed), expected)
    if error <= tolerance:
        return None
    name, output = "a fusion of ONNX Runtime", opened.get_outputs()[0].name
    return {
        "name": name,
        "op": "",
        "tensor": output,
        "error": _plain(error),
        "error_before": 0.0,
    }


def _named(node: onnx.NodeProto, tensor: str, error: float, before: float) -> Departure:
    """Return a departure as the report holds it."""
    return {
        "name": node.name or node.output[0],
        "op": node.op_type,
        "tensor": tensor,
        "error": _plain(error),
        "error_before": _plain(before),
    }


def _plain(error: float) -> float:
    """Return a number that JSON holds."""
    return float(min(np.nan_to_num(error, nan=np.inf), 1e9))
