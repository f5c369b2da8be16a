from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exports.calibrate import Histogram, calibrate, needed_tensors, observe, range_of
from exports.graph import export_onnx
from exports.onnxfile import GraphError
from exports.placement import place

from .conftest import Exported, load_model


def quantization_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = np.rint(-low / step)
    integers = np.clip(np.rint(values / step) + zero, 0, 255)
    return float(np.square((integers - zero) * step - values).mean())


def histogram_of(values: np.ndarray, parts: int = 5) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, parts):
        histogram.add(part)
    return histogram


def test_minmax_is_exact_and_every_number_is_counted_as_the_reach_grows() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values *= np.geomspace(1e-3, 50, values.size).astype(np.float32)  # outgrows the reach often
    histogram = histogram_of(values, parts=40)
    assert histogram.counts.sum() == values.size
    assert range_of(histogram, "minmax") == (float(values.min()), float(values.max()))


def test_percentile_leaves_out_the_asked_share() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    low, high = range_of(histogram_of(values), "percentile", percentile=99.0)
    outside = ((values < low) | (values > high)).mean()
    assert outside == pytest.approx(0.01, abs=1e-3)
    positive = np.abs(values)
    low, high = range_of(histogram_of(positive), "percentile", percentile=99.0)
    assert low == 0.0
    assert (positive > high).mean() == pytest.approx(0.01, abs=1e-3)


def test_mse_beats_minmax_on_outliers_and_is_near_brute_force() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(100_000), [30.0, -25.0]]).astype(np.float32)
    low, high = range_of(histogram_of(values), "mse")
    found = quantization_error(values, low, high)
    assert found < 0.85 * quantization_error(values, float(values.min()), float(values.max()))
    fractions = np.linspace(0.1, 1, 16)
    brute = min(
        quantization_error(values, -25.0 * f, 30.0 * g) for f in fractions for g in fractions
    )
    assert found <= 1.2 * brute


def test_mse_leaves_a_well_filled_range_alone() -> None:
    values = np.random.default_rng(0).uniform(-1, 2, 100_000).astype(np.float32)
    low, high = range_of(histogram_of(values), "mse")
    assert low == pytest.approx(-1, abs=0.05) and high == pytest.approx(2, abs=0.05)


def test_ranges_hold_zero() -> None:
    for values in (np.full(10, 3.0, np.float32), np.full(10, -3.0, np.float32), np.zeros(10)):
        for rule in ("minmax", "mse", "percentile"):
            low, high = range_of(histogram_of(values.astype(np.float32)), rule)
            assert low <= 0 <= high


def test_observed_extremes_are_the_activations_of_the_graph(exported) -> None:
    item: Exported = exported("resnet")
    feeds = [item.feed(3, 0), item.feed(10, 1)]  # more rows than one run takes
    tensors = needed_tensors(item.fp32)
    seen = observe(item.fp32, feeds, tensors)
    assert set(seen) == set(tensors)
    pixels = np.concatenate([feed["pixel_values"] for feed in feeds])
    assert seen["pixel_values"].low == pixels.min() and seen["pixel_values"].high == pixels.max()
    assert seen["pixel_values"].counts.sum() == pixels.size
    relus = [n.output[0] for n in load_model(item.fp32).graph.node if n.op_type == "Relu"]
    assert all(seen[name].low >= 0 for name in relus if name in seen)


@pytest.mark.parametrize("residual", ["float", "int8"])
@pytest.mark.parametrize("family", ["resnet", "convnext", "deit", "bert"])
def test_everything_that_the_placement_needs_is_calibrated(exported, family, residual) -> None:
    model = load_model(exported(family).fp32)
    weights = [tensor.name for tensor in model.graph.initializer]
    needed = place(model, weights, residual).ranged
    assert needed and set(needed) <= set(needed_tensors(exported(family).fp32))


def test_progress_counts_batches(exported) -> None:
    item: Exported = exported("bert")
    seen: list[tuple[int, int]] = []
    calibrate(
        item.fp32,
        [item.feed(2, seed) for seed in range(3)],
        total=3,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_single_layer_needs_the_range_of_its_input_alone(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),), path, input_names=["x"])
    x = np.linspace(-1, 3, 24, dtype=np.float32).reshape(3, 8)
    assert calibrate(path, [{"x": x}]) == {"x": (-1.0, 3.0)}


def test_bad_calibration_is_named(exported) -> None:
    item: Exported = exported("resnet")
    with pytest.raises(GraphError, match="no batch"):
        calibrate(item.fp32, [])
    with pytest.raises(ValueError, match="rule: 'median'"):
        calibrate(item.fp32, [item.feed(1)], rule="median")  # type: ignore[arg-type]
    broken = item.feed(1)
    broken["pixel_values"][0, 0, 0, 0] = np.nan
    with pytest.raises(GraphError, match=r"tensor '.*not finite"):
        calibrate(item.fp32, [broken])
    with pytest.raises(GraphError, match="'nowhere'"):
        observe(item.fp32, [item.feed(1)], ["nowhere"])
