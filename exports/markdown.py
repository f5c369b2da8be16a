"""Numbers and tables as a person reads them in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exports.verdict import wilson


def accuracy_text(accuracy: float | None, n: int, confidence: float = 0.95) -> str:
    """Return an accuracy with its Wilson interval, e.g. '0.940 (0.918 to 0.956)'."""
    if accuracy is None:
        return "does not know these classes"
    low, high = wilson(round(accuracy * n), n, confidence)
    return f"{accuracy:.3f} ({low:.3f} to {high:.3f})"


def megabytes(size: float | None) -> str:
    """Return a size in bytes as text."""
    return "" if size is None else f"{size / 1e6:,.1f} MB"


def milliseconds(latency_ms: float | None) -> str:
    """Return a latency as text."""
    return "" if latency_ms is None else f"{latency_ms:.2f} ms"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; numbers stand to the right of the first column."""
    lines = [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |",
    ]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines += ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join(lines)


def ratio_of(base: float | None, value: float | None) -> float | None:
    """Return base over value where both are known."""
    return base / value if base and value else None


def times(ratio: float | None) -> str:
    """Return a ratio as text."""
    if ratio is None or not math.isfinite(ratio):
        return ""
    return f"{ratio:.2f}x"


def count(value: int | None) -> str:
    """Return a count as text."""
    return "" if value is None else f"{value:,}"
