"""What every level of every branch costs in time, bytes and nonzeros, and how much may be spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from exports.latency_table import LatencyTable
from models.checkpoint import Bundle
from models.low_rank import factors_cost
from models.structure import prunable_layers
from models.units import Branch
from models.variants import block_inputs, variant, variant_key
from models.vocabulary import trim_vocabulary
from tasks import batches
from tasks.artifacts import Artifact
from tasks.blocks import BLOCK
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.precision import Quantize
from tasks.sizes import Size

Costs = dict[str, list[list[float]]]  # by budget's name, of each level of each branch

_OF_BYTES = 0.95  # the rest is for the graph: names, shapes, zero points


def costs_of(
    model: nn.Module,
    example: tuple[Tensor, ...],
    branches: Sequence[Branch],
    sizes: Mapping[str, Sequence[Size]],
    table: LatencyTable,
    quantize: Quantize,
) -> Costs:
    """Milliseconds, bytes and nonzeros of each level of each branch, as they will be served."""
    inputs, served = block_inputs(model, example), timed_as(quantize)
    counted: dict[str, tuple[float, float]] = {}
    costs: Costs = {"milliseconds": [], "bytes": [], "nonzero": []}
    for branch in branches:
        shape = tuple(inputs[branch.block].shape[1:])
        keys = [variant_key(branch, size, shape) for size in sizes[branch.name]]
        for key, size in zip(keys, sizes[branch.name], strict=True):
            if key not in counted:
                made = _layers(variant(model, branch, size))
                stored = sum(_stored(layer, quantize) + 4 * len(layer.weight) for layer in made)
                counted[key] = float(sum(layer.weight.numel() for layer in made)), stored
        costs["milliseconds"].append([table.branch_ms[key][served] for key in keys])
        costs["nonzero"].append([counted[key][0] for key in keys])
        costs["bytes"].append([counted[key][1] for key in keys])
    return costs


def timed_as(quantize: Quantize) -> str:
    """Which of a latency table's columns holds: 4 bits are computed with in float."""
    return "int8" if quantize.format == "int8" else "float32"


def limits_of(recipe: Recipe, generalist_ms: float, dense: Mapping[str, float]) -> dict[str, float]:
    """What the whole model may cost at this step, by budget's name.

    Step k of n may spend first^(1 - k/n) * last^(k/n): equal ratios from what the dense specialist
    costs (``dense``: milliseconds, bytes, nonzero) to what the recipe asks for.
    """
    asked, shrink = recipe.target, recipe.shrink
    last: dict[str, float] = {}
    times = [asked.latency_ms] if asked.latency_ms is not None else []
    if asked.speedup is not None:
        times.append(generalist_ms / asked.speedup)
    if times:
        last["milliseconds"] = min(times) * (1 - shrink.margin)
    if asked.bytes is not None:
        last["bytes"] = asked.bytes * _OF_BYTES
    if asked.nonzero_ratio is not None:
        last["nonzero"] = dense["nonzero"] / asked.nonzero_ratio
    share = recipe.shrink_step / shrink.rungs
    return {
        name: max(dense[name], limit) ** (1 - share) * limit**share for name, limit in last.items()
    }


def require_reachable(
    recipe: Recipe,
    costs: Costs,
    fixed: Mapping[str, float],
    generalist_ms: float,
    dense: Mapping[str, float],
) -> None:
    """Raise where the last step's budgets lie below what the smallest sizes cost.

    Args:
        costs: of each level of each branch. fixed: what is outside the branches, by budget's name.
    """
    last = recipe.at_step(recipe.shrink.rungs)
    for name, limit in limits_of(last, generalist_ms, dense).items():
        least = fixed[name] + sum(min(levels) for levels in costs[name])
        if least <= limit:
            continue
        asked = recipe.target
        if name == "milliseconds":
            least /= 1 - recipe.shrink.margin
            if asked.speedup is not None:
                what, value = "speedup", f"{asked.speedup:g}"
                reach = f"{math.floor(100 * generalist_ms / least) / 100:g}"
            else:
                what, value, reach = "latency_ms", f"{asked.latency_ms:g}", f"{least:.3g}"
        elif name == "bytes":
            what, value, reach = "bytes", f"{asked.bytes}", f"{math.ceil(least / _OF_BYTES)}"
        else:
            what, value = "nonzero_ratio", f"{asked.nonzero_ratio:g}"
            reach = f"{math.floor(100 * dense['nonzero'] / least) / 100:g}"
        raise RecipeError(
            f"target.{what}: {value} cannot be reached with the kinds in shrink.kinds "
            f"({', '.join(recipe.shrink.kinds)}); about {reach} can: ask for that, or allow more "
            "kinds or smaller sizes (shrink.multiple)"
        )


def dense_costs(
    model: nn.Module, example: tuple[Tensor, ...], quantize: Quantize, *, vocabulary: int
) -> dict[str, float]:
    """Bytes and nonzeros of a dense model as it will be served, but for the graph around it.

    Args:
        vocabulary: rows left of the largest table; 0 for all.
    """
    table_bits = {"int4": 4, "int8": 8}.get(quantize.embeddings, 32)
    layers = [x for layer in prunable_layers(model, example).values() for x in _layers(layer)]
    weights = sum(layer.weight.numel() for layer in layers)
    rest = float(sum(parameter.numel() for parameter in model.parameters()) - weights)
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    stored = 0.0
    for table in tables:
        count, width = table.shape
        rest -= count * width
        if vocabulary and count == max(len(other) for other in tables):
            count = min(count, vocabulary)
        scales = {4: width / BLOCK, 8: 1.0}.get(table_bits, 0.0)  # float32, one a block
        stored += count * (width * table_bits / 8 + 4 * scales)
    stored += sum(_stored(layer, quantize) for layer in layers)
    return {
        "bytes": stored + 4 * rest,  # biases are in rest
        "nonzero": float(weights),
    }


def vocabulary_left(recipe: Recipe, data: Artifact, bundle: Bundle) -> int:
    """Rows that trimming will leave of the table of words; 0 where nothing is trimmed."""
    if bundle.modality != "text" or not recipe.trims:
        return 0
    texts = [str(text) for text in batches.splits(data, "support", "unlabelled").inputs]
    trimmed = trim_vocabulary(bundle, texts, extra=recipe.shrink.vocabulary_extra)
    tables = [part for part in trimmed.model.modules() if isinstance(part, nn.Embedding)]
    return max(table.num_embeddings for table in tables)


def _layers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


def _stored(layer: nn.Linear | nn.Conv2d, quantize: Quantize) -> float:
    """Bytes of a layer but for its bias: weights, what their grid needs, factors beside it."""
    rows, columns = len(layer.weight), layer.weight[0].numel()
    bits = 4 if quantize.mean_bits is None else quantize.mean_bits
    found = _matrix(layer, rows, columns, bits, quantize)
    rank = quantize.compensation_rank
    if quantize.compensation != "none" and factors_cost(layer, rank):
        found += _matrix(layer, rank, columns, 4, quantize)
        found += _matrix(layer, rows, rank, 4, quantize)
    return found


def _matrix(layer: nn.Module, rows: int, columns: int, bits: float, quantize: Quantize) -> float:
    """Bytes of a matrix of a layer's kind."""
    if quantize.format == "int8":
        return rows * (columns + 4 + 1)  # a scale and a zero point a row
    if quantize.format == "int4" and isinstance(layer, nn.Linear):
        blocks = math.ceil(columns / BLOCK)
        filled = blocks * BLOCK if columns > 16 else 16  # the smallest block is of 16
        return rows * (filled * bits / 8 + 4 * blocks)
    return 4 * rows * columns
