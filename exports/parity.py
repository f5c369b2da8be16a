"""The chain of conversions, hop by hop: how far apart are the logits before and after each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

BOUNDS = ("max_abs", "agreement", "drop")
Kind = Literal["conversion", "compression"]


def hop(
    name: str, logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    """Compare one hop's logits on the same examples.

    Args:
        name: e.g. 'torch->onnx'.
        logits_a, logits_b: before and after, (N, K).
        labels: true classes (N,), or None.

    Returns:
        {"hop", "max_abs", "agreement", "accuracy"}: largest logit difference, share of examples
        with the same label, accuracy after the hop (None without labels). `max_abs` is NaN where
        either side is not finite.

    Raises:
        ValueError: shapes differ or there is no example.
    """
    if logits_a.shape != logits_b.shape or logits_a.ndim != 2 or len(logits_a) == 0:
        raise ValueError(f"hop {name!r}: logits of shape {logits_a.shape} and {logits_b.shape}")
    difference = np.abs(logits_a.astype(np.float64) - logits_b.astype(np.float64))
    before, after = logits_a.argmax(axis=1), logits_b.argmax(axis=1)
    return {
        "hop": name,
        "max_abs": float(difference.max()),
        "agreement": float((before == after).mean()),
        "accuracy": None if labels is None else float((after == np.asarray(labels)).mean()),
    }


def break_of(
    hops: Iterable[Mapping[str, Any]], bounds: Mapping[str, Mapping[str, float]]
) -> str | None:
    """Return why the first broken hop is broken, or None when every bound holds.

    Args:
        hops: results of `hop`, in order.
        bounds: by hop name, any of `max_abs` (at most), `agreement` (at least) and `drop` (at most
            so much accuracy below the hop before).

    Raises:
        ValueError: a bound that does not exist.
    """
    previous: float | None = None
    for result in hops:
        name, limits = result["hop"], bounds.get(result["hop"], {})
        unknown = set(limits) - set(BOUNDS)
        if unknown:
            raise ValueError(f"bound {min(unknown)!r} of {name}: not one of {', '.join(BOUNDS)}")
        # 'not (a <= b)' rather than 'a > b': NaN breaks every bound.
        if "max_abs" in limits and not result["max_abs"] <= limits["max_abs"]:
            return (
                f"parity {name}: logits differ by {result['max_abs']:.3g}, "
                f"allowed {limits['max_abs']:.3g}"
            )
        if "agreement" in limits and not result["agreement"] >= limits["agreement"]:
            return (
                f"parity {name}: labels agree on {result['agreement']:.4f} of the examples, "
                f"required {limits['agreement']:.4f}"
            )
        accuracy = result["accuracy"]
        if "drop" in limits and previous is not None and accuracy is not None:
            drop = previous - accuracy
            if not drop <= limits["drop"]:
                return f"parity {name}: accuracy drops by {drop:.4f}, allowed {limits['drop']:.4f}"
        previous = accuracy if accuracy is not None else previous
    return None


def judged(
    row: Mapping[str, Any],
    limits: Mapping[str, float],
    *,
    kind: Kind = "conversion",
    runtime: str = "cpu",
    node: Mapping[str, Any] | None = None,
    why: str | None = None,
) -> dict[str, Any]:
    """Complete a row of the report's chain.

    Args:
        row: a result of `hop`.
        limits: its bounds, as in `break_of`; none for a compression, which the verdict judges.
        kind: what the hop does.
        runtime: what runs what is after it.
        node: the first node whose output departs (`exports.departure`), where one does: such a
            hop is broken even where its labels still agree.
        why: another reason for which it is broken.

    Returns:
        `row` with "kind", "runtime", "broken", "node" and "why" (one line, None where it holds);
        a largest difference that is no number becomes None, for JSON.
    """
    reason = why or break_of([row], {row["hop"]: limits})
    if reason is None and node is not None:
        reason = f"parity {row['hop']}: a node's output departs"
    if reason is not None and node is not None:
        reason = f"{reason}; first at {_place(node)}"
    largest = row["max_abs"]
    return {
        **row,
        "max_abs": largest if np.isfinite(largest) else None,
        "kind": kind,
        "runtime": runtime,
        "broken": reason is not None,
        "node": None if node is None else dict(node),
        "why": reason,
    }


def _place(node: Mapping[str, Any]) -> str:
    """Return where a departure is, in a few words."""
    kind = f" ({node['op']})" if node["op"] else ""
    return f"{node['name']}{kind}, {node['tensor']} is off by {node['error']:.2g}"


def first_broken(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Return why the first broken hop of a chain is broken, None where all hold.

    What breaks one hop may show in those after it, so that the first is the one to mend.
    """
    return next((row["why"] for row in rows if row["broken"]), None)
