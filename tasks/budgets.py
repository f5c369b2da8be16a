"""What every level of every branch costs in time, bytes and nonzeros, and how much may be spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from exports.latency_table import LatencyTable
from models.checkpoint import Bundle
from models.structure import prunable_layers
from models.units import Branch
from models.variants import block_inputs, variant, variant_key
from models.vocabulary import trim_vocabulary
from tasks import batches
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.sizes import Size

Costs = dict[str, list[list[float]]]  # by budget's name, of each level of each branch

# beside a weight of one byte, a row of an INT8 layer stores its bias, scale and zero point
_ROW_BYTES = 4 + 4 + 1
_OF_BYTES = 0.95  # the rest is for the graph: names, shapes, zero points


def costs_of(
    model: nn.Module,
    example: tuple[Tensor, ...],
    branches: Sequence[Branch],
    sizes: Mapping[str, Sequence[Size]],
    table: LatencyTable,
    served: str,
) -> Costs:
    """Milliseconds, bytes and nonzeros of each level of each branch, served as int8 or float32."""
    inputs = block_inputs(model, example)
    counted: dict[str, tuple[int, int]] = {}
    costs: Costs = {"milliseconds": [], "bytes": [], "nonzero": []}
    for branch in branches:
        shape = tuple(inputs[branch.block].shape[1:])
        keys = [variant_key(branch, size, shape) for size in sizes[branch.name]]
        for key, size in zip(keys, sizes[branch.name], strict=True):
            if key not in counted:
                counted[key] = _weights(variant(model, branch, size))
        a_weight, a_row = (1, _ROW_BYTES) if served == "int8" else (4, 4)
        costs["milliseconds"].append([table.branch_ms[key][served] for key in keys])
        costs["nonzero"].append([float(counted[key][0]) for key in keys])
        costs["bytes"].append(
            [float(counted[key][0] * a_weight + counted[key][1] * a_row) for key in keys]
        )
    return costs


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
    model: nn.Module, example: tuple[Tensor, ...], served: str, *, table_bits: int, vocabulary: int
) -> dict[str, float]:
    """Bytes and nonzeros of a dense model as it will be served, but for the graph around it.

    Args:
        table_bits: precision of embedding tables, 4, 8 or 32.
        vocabulary: rows left of the largest table; 0 for all.
    """
    layers = list(prunable_layers(model, example).values())
    weights, rows = map(sum, zip(*(_weights(layer) for layer in layers), strict=True))
    rest = float(sum(parameter.numel() for parameter in model.parameters()) - weights)
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    stored = 0.0
    for table in tables:
        count, width = table.shape
        rest -= count * width
        if vocabulary and count == max(len(other) for other in tables):
            count = min(count, vocabulary)
        scales = {4: width / 32, 8: 1.0}.get(table_bits, 0.0)  # float32, one a block
        stored += count * (width * table_bits / 8 + 4 * scales)
    a_weight, a_row = (1, _ROW_BYTES - 4) if served == "int8" else (4, 0)  # biases are in rest
    return {
        "bytes": weights * a_weight + rows * a_row + stored + 4 * rest,
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


def _weights(module: nn.Module) -> tuple[int, int]:
    """(weights, rows) of the Linear and Conv2d layers in a module."""
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    return sum(x.weight.numel() for x in layers), sum(x.weight.shape[0] for x in layers)
