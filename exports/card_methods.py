"""The card's sections on what was taken away, what that pays, and how the rest is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exports.markdown import markdown_table, milliseconds, times


def ledger_section(report: Mapping[str, Any]) -> str:
    """Return the speed, the sparsity and what each kind of compression pays."""
    lines = []
    speed, sparsity = report.get("speed"), report.get("sparsity")
    if speed:
        low, high = speed["ratio_ci"]
        lines.append(
            f"The specialist is {speed['ratio']:.2f} times faster than the generalist "
            f"({low:.2f} to {high:.2f}; {speed['runtime']}, batch {speed['batch']}, "
            f"{speed['threads']} thread{'s' if speed['threads'] != 1 else ''}, median of "
            f"{speed['repeats']} interleaved rounds)."
        )
        lines += _foreseen(report)
    if sparsity:
        lines.append(
            f"It has {sparsity['nonzero_ratio']:.2f} times fewer nonzero prunable weights "
            f"({sparsity['nonzero_ratio_all']:.2f} times over all parameters) in a file "
            f"{sparsity['bytes_ratio']:.2f} times smaller."
        )
        ledger = sparsity.get("ledger") or []
        if ledger:
            header = ["kind", "taken", "nominal", "runtime", "measured speed", "pays in time"]
            rows = [
                [
                    str(entry["kind"]),
                    _taken(entry),
                    times(entry["nominal"]),
                    str(entry["runtime"]),
                    times(entry["measured_ratio"]),
                    "yes" if entry["pays"] else "no",
                    times(entry.get("bytes_ratio")),
                ]
                for entry in ledger
            ]
            lines.append(markdown_table([*header, "fewer bytes"], rows))
            if any("bytes only" in row[0] for row in rows):
                lines.append(
                    "This runtime has no kernels for single zeros: they save bytes once the file "
                    "is compressed, and no time."
                )
            if any("how" in entry for entry in ledger):
                lines.append(
                    "Kinds of structure are timed alone, a block at a time; the other rows are "
                    "whole graphs."
                )
    return "\n\n".join(lines)


def _taken(entry: Mapping[str, Any]) -> str:
    """Return how many of a kind are left, where the ledger tells."""
    return f"{entry['kept']:,} of {entry['full']:,} left" if "full" in entry else ""


def _foreseen(report: Mapping[str, Any]) -> list[str]:
    """Return what the latency table promised, beside what was measured."""
    predicted = report["speed"].get("predicted_ms") or {}
    if not predicted:
        return []
    form = "int8" if "int8" in predicted else "float32"
    measured = report["models"]["specialist"]["latency_ms"]
    source = report["speed"].get("profile", {})
    text = (
        f"Its sizes were chosen from latencies of every size of every block: predicted "
        f"{predicted[form]:.2f} ms, measured {measured:.2f} ms."
    )
    if not source.get("same_host", True):
        text += f" The latencies are another machine's ({source['cpu']})."
    return [text]


def structure_section(report: Mapping[str, Any]) -> str:
    """Return the size of every branch that lost something, beside what it had."""
    branches = report.get("structure") or []
    rows = [
        [
            str(branch["branch"]),
            str(branch["kind"]),
            _size(branch["size"]) if any(branch["size"]) else "gone",
            _size(branch["full"]),
        ]
        for branch in branches
        if list(branch["size"]) != list(branch["full"])
    ]
    if not rows:
        return ""
    whole = len(branches) - len(rows)
    told = f"\n\n{whole} other branches are whole." if whole else ""
    return markdown_table(["branch", "kind", "left", "of"], rows) + told


def _size(groups: Sequence[int]) -> str:
    """Return the groups of a branch's units as text."""
    return " + ".join(str(count) for count in groups)


def quantize_section(report: Mapping[str, Any]) -> str:
    """Return the form of the served integers, what stayed float, and why."""
    facts = report.get("quantize")
    if not facts:
        return ""
    told = [f"Weights as {facts['format']}"]
    if facts.get("route"):
        told.append(f"route {facts['route']}, activations as {facts['activation']}")
    if facts.get("embeddings", "none") != "none":
        told.append(f"embedding tables as {facts['embeddings']}")
    parts = ["; ".join(told) + "."]
    floats = facts.get("float_layers") or []
    if floats:
        parts.append(f"Left float, because they cost the most: {', '.join(floats)}.")
    routes = facts.get("routes") or []
    if routes:
        rows = [
            [
                f"{row['route']}, {row['activation']}"
                + (", float stem" if row["stem"] == "float" else ""),
                milliseconds(row["ms"]),
                "" if row["agreement"] is None else f"{row['agreement']:.4f}",
                "yes" if row["chosen"] else str(row["rejected"] or ""),
            ]
            for row in routes
        ]
        parts.append(markdown_table(["form", "latency", "same label as float", "chosen"], rows))
    calibration = facts.get("calibration") or []
    if calibration:
        rows = [
            [str(row["samples"]), f"{row['kl']:.4f}", f"{row['agreement']:.4f}"]
            for row in calibration
        ]
        header = ["calibration examples", "KL to float", "same label"]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)
