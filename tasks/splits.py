"""The examples of a split in memory and as Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Split:
    """Examples in order: encoded images or texts, class indices (-1 where unknown), digests."""

    inputs: tuple[bytes | str, ...]
    labels: tuple[int, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: Sequence[int]) -> Split:
        """Some of the examples, in the order of `rows`."""
        return Split(
            tuple(self.inputs[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            tuple(self.digests[row] for row in rows),
        )

    def sha256(self) -> str:
        """One digest of what the examples show, their classes and their order."""
        lines = (f"{d}\t{label}\n" for d, label in zip(self.digests, self.labels, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def content(self) -> str:
        """One digest of the very bytes, classes and order: two that show the same may differ.

        A model reads capitals, spaces and rotation marks that `digests` look past.
        """
        total = hashlib.sha256()
        for each, label in zip(self.inputs, self.labels, strict=True):
            raw = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
            total.update(f"{label} {len(raw)} ".encode() + raw)
        return total.hexdigest()

    def save(self, path: Path, modality: str) -> None:
        """Write as Parquet: columns image (binary) or text (string), label, digest."""
        kind = pa.binary() if modality == "image" else pa.string()
        columns = {
            modality: pa.array(self.inputs, kind),
            "label": pa.array(self.labels, pa.int64()),
            "digest": pa.array(self.digests, pa.string()),
        }
        pq.write_table(pa.table(columns), path)


def aside(pool: int, most: int = 256) -> int:
    """How many of a pool's inputs are set aside to judge by: a fifth, none of fewer than ten."""
    return min(most, pool // 5) if pool >= 10 else 0


def load_split(path: Path) -> Split:
    """Read what `Split.save` wrote."""
    table = pq.read_table(path)
    columns = (table.column(index).to_pylist() for index in range(3))
    inputs, labels, digests = (tuple(column) for column in columns)
    return Split(inputs, labels, digests)
