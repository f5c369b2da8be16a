"""Fences around what a run reads and writes: paths that stay in their folder, bounded sizes.

Data and checkpoints come from others. A table's cell, a link in a folder or a manifest must not
name a file elsewhere on this machine, and a small file must not unfold into more than fits.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from pathlib import Path

from tasks.errors import DataError

MAX_TEXT = 1_000_000  # characters of one example: a long book; models read its first pages
MAX_NAME = 1000  # characters of a class's name
MAX_COLUMNS = 4096  # of a table; reading takes time and memory by the column
MAX_IMAGE_BYTES = 500_000_000  # of one encoded image; 100 megapixels without compression are 300 MB
_SHARE_OF_MEMORY = 0.5  # what one source may take of the machine's
_SHARE_OF_FREE = 0.8
_UNFOLDED_TIMES = 1_000
_GIGABYTE = 1e9


def there(path: Path) -> bool:
    """Whether a path exists; a name that no file system takes does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name may be, or a folder that is closed
        return False


def inside(folder: Path, path: Path) -> bool:
    """Whether a path, all its links followed, lies in a folder or below it."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links is nowhere
        return False


def require_inside(folder: Path, files: list[Path], where: str) -> None:
    """Raise `DataError` where a link leads out of its folder."""
    root = folder.resolve()
    for path in files:
        # resolving costs a call of the system for each part: a file without links needs none
        linked = path.is_symlink() or any(p.is_symlink() for p in _between(folder, path))
        if linked and not inside(root, path):
            raise DataError(
                f"{where}: {path} is a link to a file outside this folder; put a copy in its place "
                "or set task.allow_outside_files: true"
            )


def _between(folder: Path, path: Path) -> list[Path]:
    return [parent for parent in path.parents if parent != folder and folder in parent.parents]


def is_one_line(text: str) -> bool:
    """Whether a text is free of line breaks, control characters and broken Unicode."""
    return text.isprintable() or not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


def require_folded(total: int, size: int, where: str) -> None:
    """Raise `DataError` where a file of `size` bytes unfolds to a `total` that nobody could mean.

    Real columns that repeat themselves unfold to hundreds of times what they take in Parquet.
    """
    most = max(_GIGABYTE, _UNFOLDED_TIMES * size)
    if total > most:
        raise DataError(
            f"{where}: {size:,} bytes that unfold to more than {most / _GIGABYTE:.1f} GB; give a "
            "damaged file anew, one that is meant so as .jsonl"
        )


def room() -> int:
    """How many bytes one source may take in memory: half of what this machine, or group, has.

    At most what is free at the moment, so that two runs at once do not both take a half.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container's own limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    most = int(total * _SHARE_OF_MEMORY)
    with suppress(OSError, ValueError, StopIteration):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        most = min(most, int(_SHARE_OF_FREE * 1024 * int(free.split()[1])))
    return most


def require_room(needed: float, where: str) -> None:
    """Raise `DataError` where a source needs more memory than it may take."""
    if needed > room():
        raise DataError(
            f"{where}: unfolds to more than {room() / _GIGABYTE:.1f} GB, what this machine can "
            "spare; give a part of it, or take a machine with more memory"
        )
