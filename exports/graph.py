"""Turn a torch model into an ONNX file, and find the torch weights again in it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from exports.onnxfile import (
    LARGEST_BYTES,
    GraphError,
    array,
    drop_unused,
    initializers,
    layers,
    load_model,
    save_model,
)

OPSET = 20  # the first with Gelu as one operator; QuantizeLinear is per channel since 13
_TRACE_ROWS = 2  # a batch of one would be baked into the graph as a constant
# tracing patches torch itself for a while: two threads at once would see each other's patches
_TRACING = threading.Lock()
_TRACE_TOKENS = 3  # at least this many, and never as many as rows: equal sizes may be unified


def export_onnx(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str],
    output_name: str = "logits",
    opset: int = OPSET,
) -> None:
    """Write `model` as one ONNX file whose batch (and sequence) length is free.

    Args:
        model: called as `model(*example)`; exported in eval mode on the CPU, left as it was.
        example: one batch; float inputs (N, C, H, W) get a free N, integer inputs (N, T) a free
            N and T. Its numbers do not matter.
        path: the file to write; replaced in one step.
        input_names: one graph input name for every tensor of `example`.
        output_name: the graph's output name.
        opset: ONNX operator set of the file.

    Raises:
        GraphError: the names do not fit the example, or the model is too large for one file or
            cannot be traced.
    """
    if len(input_names) != len(example):
        raise GraphError(f"input_names: {len(input_names)} names for {len(example)} inputs")
    _require_room(model)
    frozen = copy.deepcopy(model).to("cpu", torch.float32).eval()
    _use_plain_attention(frozen)
    batch = tuple(_trace_input(tensor) for tensor in example)
    dynamic = tuple(_dynamic_axes(tensor) for tensor in batch)
    with _TRACING, _quiet():
        try:
            program = torch.onnx.export(
                frozen,
                batch,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(input_names),
                output_names=[output_name],
                opset_version=opset,
                verbose=False,
            )
        except Exception as problem:  # torch.onnx raises many types; all mean the same here
            reason = _cause(problem)
            raise GraphError(f"the model could not be traced to ONNX: {reason}") from problem
    if program is None:  # only None where the caller asked for a file, which we did not
        raise GraphError("torch.onnx.export returned no program")
    graph_model = program.model_proto
    _clean(graph_model, opset)
    for value, tensor in zip(graph_model.graph.input, batch, strict=True):
        _name_axes(value, tensor.dtype.is_floating_point)
    _name_axes(graph_model.graph.output[0], True)
    save_model(graph_model, path)


def _require_room(model: nn.Module) -> None:
    """Refuse a model whose weights, in float32, no ONNX file holds: before minutes of tracing."""
    size = sum(
        value.numel() * (4 if value.is_floating_point() else value.element_size())
        for value in (*model.parameters(), *model.buffers())
    )
    if size > LARGEST_BYTES:
        raise GraphError(
            f"the model has {size / 1e9:.2f} GB of weights in float32, one ONNX file holds "
            f"{LARGEST_BYTES / 1e9:.0f} GB; choose a smaller generalist"
        )


def _trace_input(tensor: torch.Tensor) -> torch.Tensor:
    """Return the example with as many rows (and tokens) as a general trace needs."""
    tensor = tensor.detach().to("cpu")
    rows = torch.arange(_TRACE_ROWS) % len(tensor)
    tensor = tensor[rows]
    if not tensor.dtype.is_floating_point and tensor.ndim == 2:
        tokens = max(_TRACE_TOKENS, tensor.shape[1])
        tensor = tensor[:, torch.arange(tokens) % tensor.shape[1]]
    return tensor.contiguous()


def _dynamic_axes(tensor: torch.Tensor) -> dict[int, object]:
    """Return which axes of an input are free: the batch, and the tokens of integer inputs."""
    axes: dict[int, object] = {0: torch.export.Dim.DYNAMIC}
    if not tensor.dtype.is_floating_point and tensor.ndim == 2:
        axes[1] = torch.export.Dim.DYNAMIC
    return axes


def _use_plain_attention(model: nn.Module) -> None:
    """Turn timm's fused attention off: its trace shuffles shapes at run time.

    The fused operator decomposes into Shape, Slice, Concat and Reshape nodes around every key
    transpose; written out, it is MatMul, Softmax, MatMul. DeiT-S INT8 at 128 px: 8.9 -> 8.0 ms.
    """
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]


def _cause(problem: BaseException) -> str:
    """Return kind and first line of what was raised first: the exporter wraps it in advice."""
    seen = [problem]
    while (inner := _inner(seen[-1])) is not None and inner not in seen:
        seen.append(inner)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(seen[-1])).strip()
    return ": ".join([type(seen[-1]).__name__, *text.splitlines()[:1]])


def _inner(problem: BaseException) -> BaseException | None:
    hidden = problem.__suppress_context__
    return problem.__cause__ or (None if hidden else problem.__context__)


class _Hushed:
    """A stream that drops what this thread writes; another one's progress bar goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write, or only seem to."""
        return len(text) if self._thread == threading.get_ident() else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (prints, dumps, warnings, log lines) off the terminal."""
    every = dict(logging.root.manager.loggerDict)
    names = ("torch", "onnxscript", "onnx_ir")
    # torch gives many of its loggers a level of their own, which the parent's does not overrule
    own = [name for name in every if name.startswith("torch.") and logging.getLogger(name).level]
    loggers = [logging.getLogger(name) for name in (*names, *own)]
    levels = [logger.level for logger in loggers]
    hushed = contextlib.redirect_stderr(_Hushed(sys.stderr))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), hushed:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _clean(model: onnx.ModelProto, opset: int) -> None:
    """Drop what the exporter leaves behind and a served file must not carry.

    - value_info: stale after weights are transposed ('Inferred shape and existing shape differ'
      breaks quantization). It also makes the runtime slower: with it ONNX Runtime 1.31 fuses
      Add + LayerNormalization into SkipLayerNormalization, which on one thread takes 33 us where
      the two take 10 (MiniLM at 16 tokens: FP32 4.6 ms with it, 4.2 without; INT8 2.0 and 1.7).
    - metadata_props and doc_string: source lines and absolute paths of the exporting machine.
    """
    graph = model.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.doc_string = ""
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.node):
        del item.metadata_props[:]
        item.doc_string = ""
    default = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not default or default[0].version < opset:
        version = default[0].version if default else "none"
        raise GraphError(f"opset: the exporter wrote {version}, asked for {opset}")
    drop_unused(model)


def _name_axes(value: onnx.ValueInfoProto, is_float: bool) -> None:
    """Give the free axes readable names instead of the tracer's s43, s53."""
    for index, dim in enumerate(value.type.tensor_type.shape.dim):
        if index == 0:
            dim.dim_param = "batch"
        elif index == 1 and not is_float:
            dim.dim_param = "sequence"


def match_layers(path: Path, weights: dict[str, np.ndarray]) -> dict[str, str]:
    """Find torch weights in an FP32 ONNX file by their numbers.

    The exporter renames and transposes Linear weights, so names do not tell. Embedding tables
    (the data of a Gather) are found as well as Linear and Conv weights.

    Args:
        path: the file.
        weights: torch weights by layer name, in torch's layout: (out, in) or (out, in/g, kh, kw)
            or (vocabulary, width).

    Returns:
        The initializer that holds each layer's weight.

    Raises:
        GraphError: a weight is not in the file: of another model, or folded by the tracer, as are
            layers that run on a constant and weights that are computed from others.
    """
    return match_arrays(load_model(path), weights)


def match_arrays(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> dict[str, str]:
    """Do `match_layers` on a graph in memory."""
    stored = initializers(model)
    axis_of = {layer.weight: layer.rows_axis for layer in layers(model)}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    candidates: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for name in dict.fromkeys((*axis_of, *tables)):
        if name in stored and stored[name].data_type == onnx.TensorProto.FLOAT:
            values = array(stored[name])
            values = values.T if axis_of.get(name, 0) == 1 else values
            candidates.setdefault(values.shape, []).append((name, values))
    found: dict[str, str] = {}
    for layer, weight in weights.items():
        same = [
            name
            for name, values in candidates.get(tuple(weight.shape), [])
            if np.array_equal(values, weight)
        ]
        if not same:
            raise GraphError(
                f"layer {layer!r}: no weight of shape {tuple(weight.shape)} in the ONNX file holds "
                "its numbers. The tracer folds a layer whose input does not depend on the batch "
                "and one that computes its weight (weight standardisation); leave such layers "
                "out, and export the very model that the weights come from"
            )
        # Layers with equal numbers may share one stored tensor or have one each.
        unused = [name for name in same if name not in found.values()]
        found[layer] = (unused or same)[0]
    return found
