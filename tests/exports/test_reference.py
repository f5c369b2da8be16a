"""What a version remembers comes back as it was, and tells known from new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exports.preprocess import InputError
from exports.reference import (
    Reference,
    kept_rows_of,
    load_reference,
    log_softmax,
    shortened,
    table_of,
)


def reference() -> Reference:
    logits = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]], np.float32)
    return Reference(
        classes=("ä", "b", "c"),
        test=table_of(["one", "two", "three", "four"]),
        labels=np.array([0, 2, 2, 1], np.int32),
        judged=np.array([True, True, True, False]),
        support=table_of(["five"]),
        rows=np.array([0, 1, 2], np.int32),
        log_probabilities=log_softmax(logits),
    )


def test_it_comes_back(tmp_path: Path) -> None:
    made = reference()
    made.save(tmp_path / "reference.npz")
    found = load_reference(tmp_path / "reference.npz")
    assert found.classes == made.classes
    for name in ("test", "labels", "judged", "support", "rows", "log_probabilities"):
        assert (getattr(found, name) == getattr(made, name)).all(), name
    assert found.known[shortened("three")] == 2 and shortened("five") not in found.known
    assert found.learnt == {shortened("five")}
    assert found.right.tolist() == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"\x80\x04pickle", None])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "reference.npz"
    if content is None:
        np.savez(path, classes=np.array(["a"]), other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="not what winnow wrote"):
        load_reference(path)
    with pytest.raises(InputError, match="no such file"):
        load_reference(tmp_path / "none.npz")


def test_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, classes=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not what winnow wrote"):
        load_reference(path)


def test_rows_are_capped_and_drawn_by_the_seed() -> None:
    judged = np.ones(5000, bool)
    judged[::2] = False
    rows = kept_rows_of(judged, 3, most=100)
    assert len(set(rows.tolist())) == 100 and judged[rows].all() and (np.diff(rows) > 0).all()
    assert (rows == kept_rows_of(judged, 3, most=100)).all()
    assert (rows != kept_rows_of(judged, 4, most=100)).any()
    assert kept_rows_of(np.array([True, False, True]), 0).tolist() == [0, 2]


def test_log_softmax_of_far_logits() -> None:
    found = log_softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    assert np.exp(found).sum(axis=1) == pytest.approx([1, 1])
    assert found[1] == pytest.approx(np.log(0.5))
