from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from exports.calibrate import calibrate
from exports.divergence import divergence, first_rows
from exports.grids import WeightGrid
from exports.onnxfile import initializers, layers, load_model
from exports.quantize import quantize_qdq
from exports.runtime import run_logits, session
from exports.sensitivity import find_float, layer_sensitivity

from .conftest import Exported, grids_of


class Spoilt:
    """quantize_qdq, but some layers' grids turn coarse: they must be found and left float."""

    def __init__(self, scales: Mapping[str, float]) -> None:
        self.scales = scales
        self.asked: list[frozenset[str]] = []

    def __call__(
        self,
        fp32: Path,
        out: Path,
        *,
        weights: Mapping[str, WeightGrid],
        exclude: Iterable[str],
        **others: object,
    ) -> None:
        self.asked.append(frozenset(exclude))
        spoilt = {
            name: WeightGrid(grid.integers, grid.scale * np.float32(self.scales.get(name, 1.0)))
            for name, grid in weights.items()
        }
        quantize_qdq(fp32, out, weights=spoilt, exclude=exclude, **others)  # type: ignore[arg-type]


@pytest.fixture
def deit(exported) -> tuple[Exported, dict]:
    item: Exported = exported("deit")
    ranges = calibrate(item.fp32, [item.feed(16, 1)])
    shared = {
        "weights": grids_of(item.fp32),
        "ranges": ranges,
        "feeds": [item.feed(16, 1), item.feed(8, 2)],
        "activation": "uint8",
    }
    return item, shared


def test_divergence_is_the_textbook_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((7, 5)).astype(np.float32) for _ in range(2))
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    q = np.exp(b) / np.exp(b).sum(1, keepdims=True)
    found = divergence(a, b)
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)
    assert found.agreement == float((a.argmax(1) == b.argmax(1)).mean())
    same = divergence(a, a)
    assert same.kl == 0.0 and same.agreement == 1.0 and same.samples == 7
    broken = divergence(a, np.full_like(a, np.nan))
    assert not broken.holds(1e9, None)  # NaN holds no bound


def test_first_rows_cut_the_last_batch() -> None:
    feeds = [{"x": np.arange(5)}, {"x": np.arange(5, 9)}, {"x": np.arange(9, 12)}]
    assert [list(feed["x"]) for feed in first_rows(feeds, 7)] == [[0, 1, 2, 3, 4], [5, 6]]
    assert [len(feed["x"]) for feed in first_rows(feeds, 5)] == [5]


def test_rows_are_the_graphs_they_name(deit, tmp_path) -> None:
    """Oracle: quantize by hand all but one layer, and one layer alone."""
    item, shared = deit
    rows = layer_sensitivity(item.fp32, **shared, mode="without", samples=10)
    assert [row.layer for row in sorted(rows, key=lambda r: r.layer)] == sorted(shared["weights"])
    assert [row.kl for row in rows] == sorted(row.kl for row in rows)
    alone = layer_sensitivity(item.fp32, **shared, mode="alone", samples=10)
    assert [row.kl for row in alone] == sorted((row.kl for row in alone), reverse=True)
    feed = {name: values[:10] for name, values in shared["feeds"][0].items()}
    exact = run_logits(session(item.fp32), feed)
    names, out = list(shared["weights"]), tmp_path / "q.onnx"
    for row, others in ((rows[0], False), (alone[0], True)):
        exclude = [n for n in names if (n != row.layer) == others]
        keywords = {k: shared[k] for k in ("weights", "ranges", "activation")}
        quantize_qdq(item.fp32, out, **keywords, exclude=exclude)
        expected = divergence(exact, run_logits(session(out), feed))
        assert (row.kl, row.agreement) == (expected.kl, expected.agreement)


def test_nothing_is_measured_where_the_bound_holds(deit) -> None:
    item, shared = deit
    quantize = Spoilt({})
    choice = find_float(item.fp32, **shared, max_kl=10.0, min_agreement=0.0, quantize=quantize)
    assert choice.holds and choice.layers == () == choice.rows
    assert quantize.asked == [frozenset()]
    assert choice.before == choice.after and choice.before.samples == 24


def test_the_spoilt_layers_are_found_and_no_others(deit) -> None:
    item, shared = deit
    model = load_model(item.fp32)
    linear = [layer.weight for layer in layers(model) if not layer.is_conv and not layer.is_head]
    spoilt = {linear[1], linear[4]}
    quantize = Spoilt(dict.fromkeys(spoilt, 0.2))
    clean = find_float(item.fp32, **shared, max_kl=10.0).before.kl
    by_layer = {f"layer {n}": g for n, g in shared["weights"].items()}  # found by numbers
    on_grid = item.fp32.with_name("deit-on-grid.onnx")
    stored = initializers(model)
    for layer in layers(model):
        values = shared["weights"][layer.weight].values()
        values = values.T if layer.rows_axis == 1 else values
        stored[layer.weight].raw_data = np.ascontiguousarray(values).tobytes()
    on_grid.write_bytes(model.SerializeToString())
    choice = find_float(
        on_grid,
        **{**shared, "weights": by_layer},
        max_kl=3 * clean,
        max_share=0.5,
        samples=12,
        quantize=quantize,
    )
    assert set(choice.layers) == {f"layer {name}" for name in spoilt}
    assert choice.holds and choice.after.kl <= 3 * clean < choice.before.kl
    assert {row.layer for row in choice.rows if row.kept} == set(choice.layers)
    assert len(choice.rows) == len(by_layer)
    # measured: all, each layer once, all on the samples, then a few more at most
    assert len(quantize.asked) <= len(by_layer) + 2 + 8


def test_the_share_is_a_ceiling_and_a_missed_bound_is_said(deit) -> None:
    item, shared = deit
    names = list(shared["weights"])
    quantize = Spoilt(dict.fromkeys(names, 0.3))
    share = 2 / len(names)
    choice = find_float(
        item.fp32, **shared, max_kl=1e-6, max_share=share, samples=8, quantize=quantize
    )
    assert not choice.holds and len(choice.layers) == 2
    assert choice.to_dict()["layers"] == choice.layers
    nothing = find_float(item.fp32, **shared, max_kl=0.0, max_share=0.0)
    assert not nothing.holds and nothing.layers == ()
    with pytest.raises(ValueError, match="give a bound"):
        find_float(item.fp32, **shared)


def test_the_layer_before_a_pooling_can_stay_float(exported) -> None:
    """ResNet's stem float: the pooled tensor then needs a range of its own."""
    item: Exported = exported("resnet")
    rows = layer_sensitivity(
        item.fp32,
        weights=grids_of(item.fp32),
        ranges=calibrate(item.fp32, [item.feed(8)]),
        feeds=[item.feed(4)],
        activation="uint8",
        mode="alone",
        samples=4,
    )
    assert all(np.isfinite(row.kl) and row.kl >= 0 for row in rows)
