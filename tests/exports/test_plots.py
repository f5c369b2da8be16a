from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image

from exports.plot_calibration import calibration_figure
from exports.plot_classes import per_class_figure
from exports.plot_front import front_figure
from exports.plot_style import LIGHT, themed
from exports.plots import card_pictures
from tests.exports.reports import full_report, full_sweep, with_classes
from tests.exports.test_card import REPORT


def drawn(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("full", [True, False])
def test_the_trade_off_is_reproducible(full: bool) -> None:
    report = copy.deepcopy(REPORT)
    if full:
        report["models"]["pruned"] = dict(report["models"]["teacher"], accuracy=0.962)
        report["models"]["generalist"]["accuracy"] = 0.9
        report["accuracy"]["max_drop"] = 0.03
    first, second = card_pictures(report), card_pictures(report)
    assert first == second
    assert drawn(first["tradeoff.png"]).shape[1] > 800


def test_pictures_are_reproducible_and_dark_where_asked() -> None:
    first, second = (card_pictures(full_report(), full_sweep()) for _ in range(2))
    assert first == second
    for name in ("tradeoff", "per-class", "calibration", "front"):
        light, dark = drawn(first[f"{name}.png"]), drawn(first[f"{name}-dark.png"])
        assert light[0, 0].tolist() == [255, 255, 255]
        assert dark[0, 0].max() < 60
        assert light.shape == dark.shape


def test_the_card_gets_a_picture_for_what_it_tells_and_no_other() -> None:
    report = full_report()
    every = card_pictures(report, full_sweep())
    light = {"tradeoff.png", "per-class.png", "calibration.png", "front.png"}
    assert set(every) == light | {name.replace(".png", "-dark.png") for name in light}
    del report["accuracy"]["per_class"], report["accuracy"]["calibration"]
    assert set(card_pictures(report)) == {"tradeoff.png", "tradeoff-dark.png"}


def test_classes_stand_in_the_order_of_their_loss_and_the_worse_ones_stand_out() -> None:
    report = with_classes([f"k{at}" for at in range(5)])
    report["accuracy"]["per_class"].reverse()
    with themed() as colours:
        (axes,) = per_class_figure(report, colours).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["k0 (10)", "k1 (11)", "k2 (12)", "k3 (13)", "k4 (14)"]
    found = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    by_label = {c.get_label(): c for c in found}
    worse, others = by_label["worse than chance explains"], by_label["within chance"]
    assert np.allclose(worse.lines[0].get_xydata(), [[20.0, 0]])
    assert to_hex(worse.lines[0].get_color()) == LIGHT.bad
    assert np.allclose(others.lines[0].get_xdata(), [19.9, 19.8, 19.7, 19.6])
    (segments,) = worse.lines[2]
    assert np.allclose(segments.get_segments()[0][:, 0], [10, 30])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the largest loss on top


@pytest.mark.parametrize("count", [0, 1, 2, 50, 51, 150])
def test_any_number_of_classes_fits(count: int) -> None:
    # names that matplotlib could take for formulas, that are long, or that the font lacks
    names = [f"$x_{{{at}}}^ {'long ' * 12}" if at % 2 else f"分類 {at}" for at in range(count)]
    with themed() as colours:
        figure = per_class_figure(with_classes(names), colours)
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert len(labels) == count
    assert len(figure.axes) == (1 if count <= 50 else 2)
    report = with_classes(names)
    assert ("per-class.png" in card_pictures(report)) == (count > 0)
    if not count:
        return
    height, width, _ = drawn(card_pictures(report)["per-class.png"]).shape
    assert width > 1000 and height < 2200


def test_calibration_is_drawn_where_it_was_measured() -> None:
    report = full_report()
    with themed() as colours:
        panels = calibration_figure(report, colours).axes
    for axes, name in zip(panels, ("teacher", "specialist"), strict=True):
        facts = report["accuracy"]["calibration"][name]
        expected = [[point["confidence"], point["accuracy"]] for point in facts["curve"]]
        assert np.allclose(axes.containers[0].lines[0].get_xydata(), expected)
        assert f"{100 * facts['ece']:.1f} points" in axes.get_title(loc="left")


def test_the_front_the_ring_and_the_fills_are_the_sweeps() -> None:
    sweep = full_sweep()
    with themed() as colours:
        figure = front_figure(sweep, colours)
    picked = next(point for point in sweep["points"] if point["point"] == sweep["picked"])
    for axes, key, unit in zip(
        figure.axes, ("latency_ms", "bytes", "nonzero"), (1.0, 1e-6, 1e-6), strict=True
    ):
        lines = axes.get_lines()
        (front,) = [line for line in lines if line.get_drawstyle() == "steps-post"]
        on_it = sorted((p for p in sweep["points"] if p["front"][key]), key=lambda p: p[key])
        assert np.allclose(front.get_xydata(), [[p[key] * unit, p["accuracy"]] for p in on_it])
        (ring,) = [line for line in lines if line.get_markersize() > 15]
        assert np.allclose(ring.get_xydata(), [[picked[key] * unit, picked["accuracy"]]])
        assert axes.get_xlim()[0] == 0
        points = {
            tuple(np.round(line.get_xydata()[0], 6)): line
            for line in lines
            if line.get_marker() in ("o", "D") and line.get_markersize() < 15
        }
        for point in sweep["points"]:
            mark = points[tuple(np.round([point[key] * unit, point["accuracy"]], 6))]
            assert mark.get_marker() == {"float32": "o", "int8": "D"}[point["format"]]
            half = mark.get_fillstyle() == "left"
            empty = to_hex(mark.get_markerfacecolor()) == LIGHT.paper
            assert point["status"] == ("inconclusive" if half else "fail" if empty else "pass")


def test_a_sweep_that_picked_nothing_has_no_ring() -> None:
    sweep = full_sweep() | {"picked": None}
    with themed() as colours:
        figure = front_figure(sweep, colours)
    assert not [x for axes in figure.axes for x in axes.get_lines() if x.get_markersize() > 15]
