"""A page of tables and of lines that must hold, printed and kept."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


class Page:
    """What is printed, kept for the file.

    Attributes:
        lines: of the page so far.
        broken: what must hold and does not.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken: list[str] = []

    def say(self, *paragraphs: str) -> None:
        """Headings and prose, wrapped, an empty line after each."""
        for text in paragraphs:
            self._print(*textwrap.wrap(text, 100, break_on_hyphens=False), "")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows are printed as they come."""
        self._print("| " + " | ".join(head) + " |", "|" + "---|" * len(head))
        for row in rows:
            self._print("| " + " | ".join(row) + " |")
        self._print("")

    def must(self, text: str, holds: bool) -> None:
        """A line that is checked."""
        self.say(f"{'Holds' if holds else 'BROKEN'}: {text}.")
        if not holds:
            self.broken.append(text)

    def text(self) -> str:
        """The page as a file."""
        return "\n".join(self.lines).rstrip() + "\n"

    def _print(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)


def percent(value: float) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * value:.1f}"
