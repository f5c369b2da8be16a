"""Numbers and tables as a person reads them in Markdown."""

from __future__ import annotations

import math
import re
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


def millions(number: float | None) -> str:
    """Return a count in millions as text."""
    return "" if number is None else f"{number / 1e6:,.2f} M"


def milliseconds(latency_ms: float | None) -> str:
    """Return a latency as text."""
    return "" if latency_ms is None else f"{latency_ms:.2f} ms"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    marks = ["---"] + [
        "---:" if _are_numbers([row[at] for row in rows]) else "---" for at in range(1, len(header))
    ]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(marks) + " |"]
    # a bar that was escaped already stays so
    escaped = ([re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows)
    lines += ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join(lines)


def _are_numbers(cells: Sequence[str]) -> bool:
    """Say whether most of the cells that hold something begin with a number."""
    told = [cell for cell in cells if cell]
    return sum(bool(re.match(r"[-+]?\d", cell)) for cell in told) * 2 > len(told)


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


def shortened(text: str, length: int) -> str:
    """Return the text in one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def plain(text: object) -> str:
    """Return a text of the user's in one line, such that Markdown shows it as it is.

    Only what Markdown would read as a sign is escaped: `card_lost` stays `card_lost`.
    """
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]<|~])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    line = re.sub(r"&(?=#?\w+;)", r"\&", line)
    return _BLOCK.sub(lambda found: f"{found[1]}\\{found[2]}", line)


# what begins a heading, a list, a rule or a quotation at the start of a line
_BLOCK = re.compile(r"^(\d*)((?<=\d)[.)](?=\s|$)|#{1,6}(?=\s|$)|[-+](?=\s|$)|[-=](?=[-=]+$)|>)")


def share(value: float | None) -> str:
    """Return a share of one as text with three places."""
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def points(value: float | None) -> str:
    """Return a share as points of a hundred; two places."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def points_range(ends: Sequence[float] | None) -> str:
    """Return an interval of shares as points, e.g. '-0.25 to 3.46'."""
    return "" if not ends else f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float | None) -> str:
    """Return a p-value as text."""
    return "" if p is None else "below 0.001" if p < 0.001 else f"{p:.3f}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
