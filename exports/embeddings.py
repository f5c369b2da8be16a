"""Store embedding tables as 8-bit or 4-bit integers, dequantized row by row as they are looked up.

In a small encoder the tables are half of the file (MiniLM: 47 of 91 MB), and a lookup touches a
few rows only, so this buys bytes and costs no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exports.onnxfile import (
    GraphError,
    array,
    drop_unused,
    initializers,
    load_model,
    replace_nodes,
    require_opset,
    save_model,
)

MICROSOFT = "com.microsoft"
SCALE_SUFFIX = "_row_scale"  # marks a table's scales, so that a census does not count them
_SMALLEST_BLOCK = 16  # GatherBlockQuantized takes powers of two from here on
_ON_GRID = 1e-6  # relative


@dataclass(frozen=True)
class EmbeddingGrid:
    """A table as integers with one scale a block of each row (symmetric, no zero point).

    Attributes:
        integers: int8 (V, D), within [-128, 127] or [-8, 7].
        scale: float32 (V, D / block).
        block: numbers that share a scale; D for one scale a row.
        bits: 8 or 4.
    """

    integers: np.ndarray
    scale: np.ndarray
    block: int
    bits: int

    def values(self) -> np.ndarray:
        """Return the table the grid stands for, float32 (V, D)."""
        rows, width = self.integers.shape
        blocks = self.integers.reshape(rows, -1, self.block).astype(np.float32)  # (V, D/b, b)
        return (blocks * self.scale.astype(np.float32)[..., None]).reshape(rows, width)


# name, grid, scales, indices, output -> the stored table and the nodes that look rows up
_Maker = Callable[
    [str, EmbeddingGrid, str, str, str], tuple[onnx.TensorProto, list[onnx.NodeProto]]
]


def embedding_tables(path: Path) -> dict[str, tuple[int, int]]:
    """Return the float tables that the graph looks rows up in: initializer -> (V, D)."""
    model = load_model(path)
    stored = initializers(model)
    tables: dict[str, tuple[int, int]] = {}
    for node in _lookups(model):
        tensor = stored.get(node.input[0])
        if tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            tables[tensor.name] = (tensor.dims[0], tensor.dims[1])
    return tables


def quantize_embeddings(path: Path, out: Path, tables: Mapping[str, EmbeddingGrid]) -> None:
    """Replace embedding tables by their grids.

    8 bits with one scale a row: Gather(int8) -> Cast -> Mul by the gathered scale, all standard
    operators. Several blocks a row, and 4 bits: com.microsoft GatherBlockQuantized.

    Args:
        path: a graph with float tables; its other layers may be quantized already.
        out: the file to write (may be `path`).
        tables: grids by initializer name, or by any name whose numbers are the table's in the
            graph (on the grid).

    Raises:
        GraphError: a table is not there, is not looked up, or its grid does not fit.
    """
    model = load_model(path)
    stored = initializers(model)
    for name, grid in _resolve(model, tables).items():
        _check(name, grid, tuple(stored[name].dims))
        if grid.bits == 8 and grid.block == grid.integers.shape[1]:
            make = _gather_rows
        else:
            make = _gather_blocks
            require_opset(model, MICROSOFT)
        _replace(model, name, grid, make)
    drop_unused(model)
    save_model(model, out)


def _lookups(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the Gather nodes that pick rows."""
    return [
        node
        for node in model.graph.node
        if node.op_type == "Gather"
        and not any(item.name == "axis" and item.i != 0 for item in node.attribute)
    ]


def _resolve(
    model: onnx.ModelProto, tables: Mapping[str, EmbeddingGrid]
) -> dict[str, EmbeddingGrid]:
    """Return the grids by initializer name."""
    stored = initializers(model)
    looked_up = dict.fromkeys(n.input[0] for n in _lookups(model) if n.input[0] in stored)
    found: dict[str, EmbeddingGrid] = {}
    for name, grid in tables.items():
        if name in looked_up:
            found[name] = grid
            continue
        values = grid.values()
        tolerance = _ON_GRID * max(float(np.abs(values).max(initial=0.0)), 1e-30)
        same = [
            table
            for table in looked_up
            if tuple(stored[table].dims) == values.shape
            and stored[table].data_type == TensorProto.FLOAT
            and np.abs(array(stored[table]) - values).max(initial=0.0) <= tolerance
        ]
        if not same:
            raise GraphError(
                f"table {name!r}: no looked-up table of shape {values.shape} in the ONNX file "
                "holds its numbers; give the initializer's name or export the table on its grid"
            )
        unused = [table for table in same if table not in found]
        found[(unused or same)[0]] = grid
    return found


def _check(name: str, grid: EmbeddingGrid, expected: tuple[int, ...]) -> None:
    """Refuse a grid that does not fit its table or its operator."""
    rows_width = grid.integers.shape
    if rows_width != expected:
        raise GraphError(f"table {name!r}: integers have shape {rows_width}, the graph {expected}")
    rows, width = rows_width
    if grid.bits not in (4, 8) or grid.integers.dtype != np.int8:
        raise GraphError(f"table {name!r}: {grid.bits} bits of {grid.integers.dtype}; 4 or 8, int8")
    if width % grid.block or grid.scale.shape != (rows, width // grid.block):
        raise GraphError(
            f"table {name!r}: scales of shape {grid.scale.shape} for blocks of {grid.block} in "
            f"rows of {width}; expected (V, D / block)"
        )
    limit = 2 ** (grid.bits - 1)
    if grid.integers.min(initial=0) < -limit or grid.integers.max(initial=0) >= limit:
        raise GraphError(f"table {name!r}: integers leave [-{limit}, {limit - 1}]")
    whole_row = grid.bits == 8 and grid.block == width
    power = grid.block >= _SMALLEST_BLOCK and grid.block & (grid.block - 1) == 0
    if not whole_row and not power:
        raise GraphError(
            f"table {name!r}: block {grid.block}; the runtime takes powers of two from 16 on, "
            "or whole rows at 8 bits"
        )


def _replace(model: onnx.ModelProto, name: str, grid: EmbeddingGrid, make: _Maker) -> None:
    """Swap every lookup of a table; the float tensor stays only for other readers."""
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    lookups = {node.output[0] for node in _lookups(model) if node.input[0] == name}
    scale_name = f"{name}{SCALE_SUFFIX}"
    graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(grid.scale, np.float32), scale_name)
    )
    stored = False
    for node in graph.node:
        if node.output[0] not in lookups:
            nodes.append(node)
            continue
        tensor, new = make(name, grid, scale_name, node.input[1], node.output[0])
        if not stored:
            graph.initializer.append(tensor)
            stored = True
        nodes += new
    replace_nodes(model, nodes)


def _gather_rows(
    name: str, grid: EmbeddingGrid, scale: str, indices: str, out: str
) -> tuple[onnx.TensorProto, list[onnx.NodeProto]]:
    """int8 rows and their scales, gathered side by side and multiplied."""
    table = f"{name}_quantized"
    tensor = numpy_helper.from_array(np.ascontiguousarray(grid.integers), table)
    return tensor, [
        helper.make_node("Gather", [table, indices], [f"{out}_rows"], f"{out}/rows", axis=0),
        helper.make_node("Gather", [scale, indices], [f"{out}_steps"], f"{out}/steps", axis=0),
        helper.make_node(
            "Cast", [f"{out}_rows"], [f"{out}_floats"], f"{out}/cast", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{out}_floats", f"{out}_steps"], [out], f"{out}/scale"),
    ]


def _gather_blocks(
    name: str, grid: EmbeddingGrid, scale: str, indices: str, out: str
) -> tuple[onnx.TensorProto, list[onnx.NodeProto]]:
    """Blocks of uint8 with an implied zero point of 2^(bits - 1), two to a byte at 4 bits.

    The packed uint8 layout, low half first, is the one that needs no 4-bit tensor type.
    """
    table = f"{name}_quantized"
    shifted = (grid.integers.astype(np.int16) + 2 ** (grid.bits - 1)).astype(np.uint8)
    if grid.bits == 4:
        shifted = shifted[:, 0::2] | (shifted[:, 1::2] << 4)  # (V, D / 2)
    tensor = numpy_helper.from_array(np.ascontiguousarray(shifted), table)
    node = helper.make_node(
        "GatherBlockQuantized",
        [table, indices, scale],
        [out],
        f"{out}/lookup",
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=grid.block,
        bits=grid.bits,
    )
    return tensor, [node]


def unpack(tensor: onnx.TensorProto, bits: int) -> np.ndarray:
    """Return the integers that `_gather_blocks` stored, int8 (V, D)."""
    bytes_ = numpy_helper.to_array(tensor)
    if bits == 4:
        rows, half = bytes_.shape
        halves = np.stack((bytes_ & 15, bytes_ >> 4), axis=-1)  # (V, D / 2, 2)
        bytes_ = halves.reshape(rows, 2 * half)
    return (bytes_.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
