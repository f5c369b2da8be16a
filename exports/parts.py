"""Many parts of a network, traced to ONNX in one go and written as one file each.

Tracing costs seconds before it costs anything a layer (imports, registries, one decomposition and
one optimization pass a graph), so that all parts go through it as the outputs of one module and
are cut apart afterwards. One part after the other took 3 s each on an EPYC core, together 0.5 s.
"""

from __future__ import annotations

import inspect
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from exports.graph import export_onnx
from exports.onnxfile import GraphError, initializers, load_model, producers, save_model

Part = tuple[nn.Module, torch.Tensor]  # a module and the one tensor that it is called with

_INPUT, _OUTPUT = "x", "y"


class _Side(nn.Module):
    """Parts side by side: a tuple of outputs, each of one part on its own input."""

    def __init__(self, parts: Sequence[nn.Module], source: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

        def forward(self: _Side, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            both = zip(self.parts, source, strict=True)
            return tuple(part(inputs[index]) for part, index in both)

        # The tracer wants one named parameter a tensor, and their number is known only here.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ("self", *(f"{_INPUT}{index}" for index in range(max(source) + 1)))
        named = [inspect.Parameter(name, kind) for name in names]
        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        self.forward = types.MethodType(forward, self)  # a method: a copy calls its own parts


def parameter_bytes(module: nn.Module) -> int:
    """Return what a part's FP32 weights weigh."""
    return 4 * sum(parameter.numel() for parameter in module.parameters())


def rows_of(example: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the example repeated or cut to `rows` along its first axis, detached, on the CPU."""
    example = example.detach().to("cpu")
    return example[torch.arange(rows) % len(example)].contiguous()


def export_parts(parts: Mapping[str, Part], folder: Path) -> dict[str, Path]:
    """Write every part as an FP32 ONNX file of its own, with a free batch.

    Args:
        parts: by name, a module and its input, float (N, ...); parts whose inputs have one shape
            share one graph input of the trace. Each returns one tensor whose first axis is N.
        folder: where to write; the files have one input `x` and one output `y`.

    Returns:
        The file of each part.

    Raises:
        GraphError: no part, or one that cannot be traced.
    """
    if not parts:
        raise GraphError("export_parts: no part was given")
    shapes: dict[tuple[int, ...], int] = {}
    inputs: list[torch.Tensor] = []
    for _, example in parts.values():
        if tuple(example.shape[1:]) not in shapes:
            shapes[tuple(example.shape[1:])] = len(inputs)
            inputs.append(example)
    source = [shapes[tuple(example.shape[1:])] for _, example in parts.values()]
    together = _Side([module for module, _ in parts.values()], source)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "together.onnx"
        names = [f"{_INPUT}{index}" for index in range(len(inputs))]
        export_onnx(together, tuple(inputs), path, input_names=names, output_name="y0")
        model = load_model(path)
    if len(model.graph.output) != len(parts):
        raise GraphError(
            f"export_parts: the trace has {len(model.graph.output)} outputs, not {len(parts)}; "
            "every part must return one tensor"
        )
    cut = _Cutter(model)
    written: dict[str, Path] = {}
    for index, name in enumerate(parts):
        written[name] = folder / f"part{index}.onnx"
        save_model(cut.part(index, source[index]), written[name])
    return written


class _Cutter:
    """Takes one output of a graph with everything it needs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.stored, self.made_by = initializers(model), producers(model)
        nodes = model.graph.node
        self.position = {node.output[0]: place for place, node in enumerate(nodes)}

    def part(self, output: int, source: int) -> onnx.ModelProto:
        """Return the graph between input number `source` and output number `output`."""
        graph = self.model.graph
        nodes, tensors = self._needed(graph.output[output].name)
        made = onnx.ModelProto()
        made.ir_version = self.model.ir_version
        made.opset_import.extend(self.model.opset_import)
        made.graph.name = "part"
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(self.stored[name] for name in tensors)
        made.graph.input.append(graph.input[source])
        made.graph.output.append(graph.output[output])
        _rename(made, {graph.input[source].name: _INPUT, graph.output[output].name: _OUTPUT})
        return made

    def _needed(self, name: str) -> tuple[list[onnx.NodeProto], list[str]]:
        """Return the nodes, in their order, and the stored tensors behind a tensor."""
        queue, seen = [name], {name}
        nodes: dict[str, onnx.NodeProto] = {}
        while queue:
            node = self.made_by.get(queue.pop())
            if node is None or node.output[0] in nodes:
                continue
            nodes[node.output[0]] = node
            fresh = {given for given in node.input if given} - seen
            seen |= fresh
            queue.extend(fresh)
        ordered = sorted(nodes.values(), key=lambda node: self.position[node.output[0]])
        return ordered, sorted(name for name in seen if name in self.stored)


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they are written or read, and name the batch axis."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
