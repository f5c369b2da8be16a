"""The forms an INT8 graph can be written in; all carry the same integers and scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from exports.fused import check_same_grids, fuse_linears
from exports.graph import match_arrays
from exports.grids import Activation, WeightGrid
from exports.masks import simplify_masks
from exports.onnxfile import attribute, layers, load_model, save_model
from exports.placement import Residual
from exports.quantize import quantize_qdq
from exports.tokens_first import tokens_first

Route = Literal["static", "fused", "dynamic"]
Stem = Literal["int8", "float"]
Ranges = Mapping[str, tuple[float, float]]


def write_route(
    fp32: Path,
    out: Path,
    *,
    route: Route,
    weights: Mapping[str, WeightGrid],
    ranges: Ranges,
    activation: Activation,
    exclude: Iterable[str] = (),
    residual: Residual = "int8",
) -> bool:
    """Write one form of the INT8 graph.

    Args:
        fp32: the float graph, whose weights are the grids' values.
        out: the file to write; replaced in one step.
        route: 'static', 'fused' or 'dynamic'.
        weights: see `quantize_qdq`, as the arguments after it.
        ranges: (low, high) by tensor.
        activation: 'uint8' or 'int8'.
        exclude: names in `weights` to leave float.
        residual: how residual branches of convolutions are added.

    Returns:
        Whether the route differs from 'static' on this graph.

    Raises:
        QuantizationError: as `quantize_qdq`, or the rewritten file lost a layer's grid.
    """
    quantize_qdq(
        fp32,
        out,
        weights=weights,
        ranges=ranges,
        activation=activation,
        exclude=exclude,
        residual=residual,
    )
    if route == "static":
        return False
    model, before = load_model(out), load_model(out)
    rewritten = fuse_linears(model, "dynamic" if route == "dynamic" else "static")
    if not rewritten:
        return False
    simplify_masks(model)
    tokens_first(model)
    check_same_grids(before, model)
    save_model(model, out)
    check_same_grids(before, load_model(out))
    return True


def stem_of(path: Path, weights: Mapping[str, WeightGrid] | None = None) -> str | None:
    """Return the first convolution: the plain one that reads the graph's input, if there is one.

    Args:
        path: the FP32 file.
        weights: grids by name; the stem's name among them instead of its initializer's, None
            where they do not have it.
    """
    model = load_model(path)
    inputs = {value.name for value in model.graph.input}
    stem = next(
        (
            layer.weight
            for layer in layers(model)
            if layer.is_conv
            and layer.node.input[0] in inputs
            and attribute(layer.node, "group", 1) == 1
        ),
        None,
    )
    if stem is None or weights is None or stem in weights:
        return stem
    known = {layer.weight for layer in layers(model)}
    grids = {name: grid.values() for name, grid in weights.items() if name not in known}
    return next((n for n, w in match_arrays(model, grids).items() if w == stem), None)
