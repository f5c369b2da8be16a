from __future__ import annotations

import numpy as np
import pytest

from exports.calibrate import calibrate
from exports.calibration_report import calibration_report, cut_at, default_sizes
from exports.divergence import divergence
from exports.onnxfile import GraphError
from exports.quantize import quantize_qdq
from exports.runtime import run_logits, session

from .conftest import Exported, grids_of


def test_sizes_double_up_to_all() -> None:
    assert default_sizes(50) == [8, 16, 32, 50]
    assert default_sizes(16) == [8, 16]
    assert default_sizes(3) == [3]


def test_batches_are_cut_where_a_size_is_reached() -> None:
    feeds = [{"x": np.arange(10)}, {"x": np.arange(10, 15)}, {"x": np.arange(15, 30)}]
    parts = cut_at(feeds, [3, 12, 20])
    assert [size for _, size in parts] == [3, None, 12, None, 20]
    done = 0
    for part, size in parts:
        assert np.array_equal(part["x"], np.arange(done, done + len(part["x"])))
        done += len(part["x"])
        assert size is None or size == done


@pytest.mark.parametrize("rule", ["minmax", "percentile"])
def test_each_row_is_what_calibrating_on_so_many_gives(exported, tmp_path, rule) -> None:
    """Oracle: calibrate afresh on the first samples, quantize, run and compare."""
    item: Exported = exported("deit")
    feeds = [item.feed(12, 0), item.feed(8, 1)]
    pixels = np.concatenate([feed["pixel_values"] for feed in feeds])
    grids = grids_of(item.fp32)
    rows = calibration_report(
        item.fp32, weights=grids, feeds=feeds, activation="uint8", rule=rule, percentile=99.0
    )
    assert [row.samples for row in rows] == [8, 16, 20]
    exact = run_logits(session(item.fp32), feeds)
    for row in rows:
        ranges = calibrate(
            item.fp32, [{"pixel_values": pixels[: row.samples]}], rule=rule, percentile=99.0
        )
        out = tmp_path / "q.onnx"
        quantize_qdq(item.fp32, out, weights=grids, ranges=ranges, activation="uint8")
        expected = divergence(exact, run_logits(session(out), feeds))
        assert row.agreement == expected.agreement
        assert row.kl == pytest.approx(expected.kl, rel=0.2)  # percentiles see other bins
        if rule == "minmax":
            assert row.kl == expected.kl
    assert rows[-1].moved == 0.0 < rows[0].moved
    if rule == "minmax":  # ranges only grow
        assert rows[0].moved >= rows[1].moved


def test_sizes_beyond_the_samples_are_refused(exported) -> None:
    item: Exported = exported("deit")
    with pytest.raises(GraphError, match="there are 4 samples"):
        calibration_report(
            item.fp32,
            weights=grids_of(item.fp32),
            feeds=[item.feed(4)],
            activation="uint8",
            sizes=[8],
        )
