"""What a version remembers of the examples that it was learnt from and judged on.

No example is kept: digests that tell a known example from a new one, labels, and the class
probabilities of some of the test set, against which later inputs are held.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from exports.preprocess import InputError

REFERENCE = "reference.npz"
MOST_ROWS = 1000  # of the test set, whose probabilities are kept
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Reference:
    """The examples behind a version.

    Attributes:
        classes: names that `labels` index, in the order of the probabilities' columns.
        test, support: shortened digests, uint8 (N, 16) and (S, 16).
        labels: of the test examples, int32 (N,).
        judged: whether a test example counted for the verdict, bool (N,).
        rows: test examples whose probabilities are kept, int32 (M,).
        log_probabilities: float32 (M, K).
    """

    classes: tuple[str, ...]
    test: np.ndarray
    labels: np.ndarray
    judged: np.ndarray
    support: np.ndarray
    rows: np.ndarray
    log_probabilities: np.ndarray

    @cached_property
    def known(self) -> dict[bytes, int]:
        """The row of every test example by its digest."""
        return {digest.tobytes(): row for row, digest in enumerate(self.test)}

    @cached_property
    def learnt(self) -> frozenset[bytes]:
        """Digests of the support set."""
        return frozenset(digest.tobytes() for digest in self.support)

    @property
    def right(self) -> np.ndarray:
        """Whether the kept rows were answered right, bool (M,)."""
        return self.log_probabilities.argmax(axis=1) == self.labels[self.rows]

    def save(self, path: Path) -> None:
        """Write as .npz."""
        np.savez_compressed(
            path,
            allow_pickle=False,
            classes=np.array(self.classes, dtype=np.str_),
            test=self.test,
            labels=self.labels,
            judged=self.judged,
            support=self.support,
            rows=self.rows,
            log_probabilities=self.log_probabilities,
        )


def load_reference(path: Path) -> Reference:
    """Read what `Reference.save` wrote.

    Raises:
        InputError: no such file, or not such a file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        classes = tuple(str(name) for name in arrays.pop("classes"))
        return Reference(classes=classes, **arrays)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it belongs beside specialist.onnx") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        raise InputError(f"{path}: not what winnow wrote ({problem})") from None


def shortened(digest: str) -> bytes:
    """Return 16 bytes that stand for an example's digest."""
    return hashlib.sha256(digest.encode()).digest()[:_DIGEST_BYTES]


def table_of(digests: Sequence[str]) -> np.ndarray:
    """Return shortened digests as uint8 (N, 16)."""
    joined = b"".join(map(shortened, digests))
    return np.frombuffer(joined, np.uint8).reshape(-1, _DIGEST_BYTES).copy()


def kept_rows_of(judged: np.ndarray, seed: int, most: int = MOST_ROWS) -> np.ndarray:
    """Return the judged rows, at most `most` of them drawn with `seed`, in rising order (M,)."""
    rows = np.flatnonzero(judged)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng([seed, 5]).choice(rows, most, replace=False))
    return rows.astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log class probabilities, float32 (N, K)."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True, initial=-np.inf)
    return (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))).astype(np.float32)
