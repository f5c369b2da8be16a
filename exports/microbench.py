"""Time small graphs in the surroundings that they have in a whole network.

A block timed by itself meets what it does not meet inside its network. Each of these was seen to
move predictions of whole networks by 5 to 30 %:

- ONNX Runtime keeps chains of convolutions in a blocked channel layout (float) or in 8-bit tensors
  from end to end, while a block alone converts at both borders and its residual sum falls back to
  plain float. So such parts stand between convolutions (`surround`).
- A graph that runs now and then pays for cold code at every node, and one that lost its branch has
  fewer nodes. So a part is repeated where its shapes let it (`repeat`), with weights of its own:
  of equal weights the later copies run warm.
- Told the shape of hidden states, the runtime fuses other nodes than in a whole network, where
  that shape is lost in the embeddings. So it is not told (`prepared`).

What the surroundings cost is equal for all sizes of a part and cancels in their differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exports.grids import Activation, WeightGrid
from exports.latency import interleaved
from exports.onnxfile import array, initializers, layers, load_model, producers, save_model
from exports.placement import Residual, place
from exports.quantize import quantize_qdq
from exports.runtime import session

__all__ = [
    "Bench",
    "Lower",
    "in_conv_chain",
    "lower_static",
    "prepared",
    "repeat",
    "surround",
    "time_benches",
]

Lower = Callable[[Path, Path], None]  # writes the INT8 form of an FP32 file

_DUMMY_RANGE = 3.0
_EXIT_CHANNELS = 16  # a whole register of 32-bit floats: the blocked layout lasts to the end
_REPEATED = 3
_WARMUP = 2
_QUARTILE = 25
_OPSET, _IR_VERSION = 20, 10


@dataclass(frozen=True)
class Bench:
    """One file to time, the feed that it takes, and how often it holds the part of interest."""

    path: Path
    feed: Mapping[str, np.ndarray]
    copies: int = 1


def lower_static(activation: Activation, residual: Residual) -> Lower:
    """Return the lowering to static 8-bit form on made-up ranges: for time, not for accuracy.

    Weights lie on the row-max grid. The runtime's kernels take one time whatever the numbers.
    """

    def lower(fp32: Path, out: Path) -> None:
        model = load_model(fp32)
        stored = initializers(model)
        weights = {
            layer.weight: _row_max_grid(array(stored[layer.weight]), layer.rows_axis)
            for layer in layers(model)
        }
        made_by = producers(model)
        ranges = {
            name: _range(made_by.get(name)) for name in place(model, weights, residual).ranged
        }
        quantize_qdq(
            fp32, out, weights=weights, ranges=ranges, activation=activation, residual=residual
        )

    return lower


def _row_max_grid(weight: np.ndarray, rows_axis: int) -> WeightGrid:
    """Return the symmetric grid whose last step is each output channel's largest weight."""
    weight = weight.T if rows_axis == 1 else weight
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return WeightGrid(np.clip(np.rint(weight / rows), -127, 127).astype(np.int8), scale)


def _range(maker: onnx.NodeProto | None) -> tuple[float, float]:
    """Return a made-up range; from 0 after a Relu or Clip, or the runtime keeps that node."""
    positive = maker is not None and maker.op_type in ("Relu", "Clip")
    return (0.0 if positive else -_DUMMY_RANGE), _DUMMY_RANGE


def in_conv_chain(path: Path) -> bool:
    """Return whether a part hands on 8-bit images when it is given 8-bit images.

    Args:
        path: an FP32 part (input `x`, output `y`, as `exports.parts` writes them).
    """
    model = load_model(path)
    if _rank(model.graph.input[0]) != 4 or _rank(model.graph.output[0]) != 4:
        return False
    output = model.graph.output[0].name
    surround(model)
    weights = [layer.weight for layer in layers(model)]
    return output in place(model, weights, "int8").landed


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """Return a tensor's shape without its rows; (C, H, W) of an image."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


def surround(model: onnx.ModelProto) -> None:
    """Put a part between convolutions, in place.

    Before it: relu(conv(u) + conv(u)) of one channel u, which ends like a residual block, in
    whatever form residual sums have. After it: a convolution to a few channels and their mean.
    """
    graph = model.graph
    entry, leave = graph.input[0], graph.output[0]
    channels, height, width = _sizes(entry)
    random = np.random.default_rng(0)

    def stored(name: str, *shape: int) -> str:
        values = random.standard_normal(shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, f"around_{name}"))
        return f"around_{name}"

    before = []
    for side in ("a", "b"):
        weight, bias = stored(f"{side}_w", channels, 1, 1, 1), stored(f"{side}_b", channels)
        before.append(helper.make_node("Conv", ["u", weight, bias], [f"around_{side}"]))
    before.append(helper.make_node("Add", ["around_a", "around_b"], ["around_sum"]))
    before.append(helper.make_node("Relu", ["around_sum"], [entry.name]))
    weight, bias = (
        stored("exit_w", _EXIT_CHANNELS, _sizes(leave)[0], 1, 1),
        stored("exit_b", _EXIT_CHANNELS),
    )
    after = [
        helper.make_node("Conv", [leave.name, weight, bias], ["around_exit"]),
        helper.make_node("GlobalAveragePool", ["around_exit"], ["around_mean"]),
    ]
    nodes = [*before, *graph.node, *after]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(kept)
    shape: list[str | int | None] = ["batch", 1, height, width]
    graph.input.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, shape))
    shape = ["batch", _EXIT_CHANNELS, 1, 1]
    graph.output.append(helper.make_tensor_value_info("around_mean", TensorProto.FLOAT, shape))


def repeat(model: onnx.ModelProto, times: int, *, separate: bool = False) -> None:
    """Put a part after itself, in place, each time with weights of its own.

    A file that is called once in a while pays for every node's cold code and data; the second and
    later copies do not, nor do the blocks of a network. The copies' weights are rolled by a row:
    of equal ones the runtime's later copies run warm (a quarter faster), a network's do not.

    Args:
        model: a part whose output has its input's shape.
        times: how often it stands there afterwards.
        separate: put a depthwise convolution of one weight a channel after each copy but the
            last, as the convolutions of other blocks stand around a block that lost its own.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = model.graph
    entry, leave = graph.input[0].name, graph.output[0].name
    del graph.node[:], graph.initializer[:]
    if separate:
        channels = _sizes(graph.input[0])[0]
        ones = np.ones((channels, 1, 1, 1), np.float32)
        graph.initializer.append(numpy_helper.from_array(ones, "between_weight"))
        zeros = np.zeros(channels, np.float32)
        graph.initializer.append(numpy_helper.from_array(zeros, "between_bias"))
    before = entry
    for turn in range(times):
        last = turn == times - 1
        names = {entry: before, leave: leave if last else f"{leave}_{turn}", "": ""}
        for tensor in part.graph.initializer:
            graph.initializer.append(_rolled(tensor, turn))
            graph.initializer[-1].name = f"{tensor.name}_{turn}"
        for node in part.graph.node:
            copied = graph.node.add()
            copied.CopyFrom(node)
            copied.name = f"{node.name}_{turn}"
            copied.input[:] = [names.get(name, f"{name}_{turn}") for name in node.input]
            copied.output[:] = [names.get(name, f"{name}_{turn}") for name in node.output]
        before = names[leave]
        if separate and not last:
            inputs = [before, "between_weight", "between_bias"]
            graph.node.append(helper.make_node("Conv", inputs, [f"between_{turn}"], group=channels))
            before = f"between_{turn}"


def _rolled(tensor: onnx.TensorProto, rows: int) -> onnx.TensorProto:
    """Return a copy of a stored tensor; of weights, with their rows in another order."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
        copied = onnx.TensorProto()
        copied.CopyFrom(tensor)
        return copied
    return numpy_helper.from_array(np.roll(array(tensor), rows, axis=0), tensor.name)


def prepared(part: Path, example: np.ndarray, *, chained: bool) -> Bench:
    """Write the file to time for a part: repeated where its shapes let it, in its surroundings.

    Args:
        part: an FP32 part (input `x`, output `y`).
        example: its input, as many rows as a call has.
        chained: whether to put it between convolutions.
    """
    model = load_model(part)
    entry, leave = model.graph.input[0], model.graph.output[0]
    times = _REPEATED if _sizes(entry) == _sizes(leave) else 1
    repeat(model, times, separate=chained)
    feed = {entry.name: example}
    if chained:
        _, height, width = _sizes(entry)
        pixels = np.random.default_rng(0).standard_normal((len(example), 1, height, width))
        feed = {"u": pixels.astype(np.float32)}
        surround(model)
    elif _rank(entry) == 3:
        # Inside a network the runtime does not know the shape of hidden states: it is lost in the
        # embeddings. Told it, it would fuse the residual sum with the norm, which is slower.
        for dim in (*entry.type.tensor_type.shape.dim, *leave.type.tensor_type.shape.dim):
            dim.Clear()
    out = part.with_suffix(".timed.onnx")
    save_model(model, out)
    return Bench(out, feed, times)


def bare(bench: Bench, out: Path) -> Bench:
    """Write a graph that only copies the input of `bench`: what calling a session costs."""
    ((name, values),) = bench.feed.items()
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    shape = ["batch", *values.shape[1:]]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "bare",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), out)
    return Bench(out, bench.feed)


def time_benches(
    benches: Mapping[str, Bench], *, threads: int, repeats: int, seed: int = 0
) -> dict[str, float]:
    """Return each file's time in milliseconds, all timed together in shuffled order.

    The lower quartile of the rounds: it is within a per cent of the median where the host is
    quiet, and stays there where other processes take the processor now and then (two of them on
    two cores doubled a median of 20 ms and moved the lower quartile by 0.3).

    Args:
        benches: files and feeds by name; all sessions are open at once.
        threads: threads inside one operator.
        repeats: timed rounds.
        seed: seed of the order within a round.
    """
    sessions = {name: session(bench.path, threads) for name, bench in benches.items()}
    feeds = {name: bench.feed for name, bench in benches.items()}
    rounds = interleaved(sessions, feeds, warmup=_WARMUP, repeats=repeats, seed=seed).rounds_ms
    return {name: float(np.percentile(times, _QUARTILE)) for name, times in rounds.items()}
