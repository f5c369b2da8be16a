"""The examples of a page of docs/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(?:<!-- test: (\w+) -->\n)?```(python|sh)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of code of a page."""

    line: int
    kind: str  # '', or what its comment says: 'server', 'cuda', 'postgres'
    language: str
    code: str

    @property
    def over_http(self) -> bool:
        return self.kind == "server" or "127.0.0.1" in self.code

    @property
    def from_registry(self) -> bool:
        """Whether it needs nothing but what a serving machine has."""
        return self.language == "python" and not re.search(
            "from (exports|tasks|flows|datasets)", self.code
        )


def examples(page: Path) -> list[Example]:
    """All blocks of Python and shell, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Example(text[: match.start(2)].count("\n") + 1, match[1] or "", match[2], match[3])
        for match in _BLOCK.finditer(text)
    ]
