"""Which norm feeds which layers and nothing else: where a scale can move from one to the others.

Found by running the model and looking at every function that takes a norm's output. A norm whose
output also goes elsewhere (BERT's, which the residual path adds) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Feed", "find_feeds", "norms"]

_READING = (F.linear, F.conv2d, torch.conv2d)


@dataclass(frozen=True)
class Feed:
    """A norm and the layers that read it, by module name."""

    norm: str
    layers: tuple[str, ...]


class _Readers(TorchFunctionMode):
    """For every watched tensor: the parameters' owners that read it, None for anything else."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self.owners = owners  # layer by the id of its weight
        self.read: dict[int, list[str | None]] = {}
        self.alive: list[Tensor] = []  # so that an id stays its own

    def watch(self, tensor: Tensor) -> None:
        self.read[id(tensor)] = []
        self.alive.append(tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not any(isinstance(part, Tensor) for part in tree_leaves(result)):
            return result  # a question, such as the shape
        for at, tensor in enumerate(tree_leaves((args, dict(kwargs)))):
            # a dropout at rest hands the same tensor on
            if isinstance(tensor, Tensor) and id(tensor) in self.read and result is not tensor:
                layer = None
                if func in _READING and at == 0 and len(args) > 1:
                    layer = self.owners.get(id(args[1]))
                self.read[id(tensor)].append(layer)
        return result


def norms(model: nn.Module) -> dict[str, nn.LayerNorm]:
    """LayerNorms with a weight and a bias a channel, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.weight is not None
        and module.bias is not None
    }


def _takes_a_scale(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding in ((0, 0), "valid")
        return plain and type(layer).__name__ == "Conv2d"  # Conv2dSame pads by itself
    return isinstance(layer, nn.Linear)


@torch.no_grad()
def find_feeds(model: nn.Module, example: tuple[Tensor, ...]) -> list[Feed]:
    """Return the norms whose output is read by Linear or unpadded Conv2d layers alone.

    A norm, or a layer, that runs more than once is left out, and so is one whose weight is shared.
    """
    layers = {name: module for name, module in model.named_modules() if _takes_a_scale(module)}
    owners = {id(module.weight): name for name, module in layers.items()}
    watched = norms(model)
    readers = _Readers(owners)
    returned: dict[str, list[int]] = {name: [] for name in watched}
    calls: dict[str, int] = {}
    handles = []
    for name, norm in watched.items():

        def after(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
            readers.watch(output)
            returned[name].append(id(output))

        handles.append(norm.register_forward_hook(after))
    for name, layer in layers.items():

        def before(_: nn.Module, __: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        handles.append(layer.register_forward_pre_hook(before))
    training = {module for module in model.modules() if module.training}
    try:
        model.eval()
        with readers:
            model(*example)
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()

    found = []
    shared = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    for name, outputs in returned.items():
        if len(outputs) != 1:
            continue
        names = [layer for layer in readers.read[outputs[0]] if layer is not None]
        parameters = [watched[name].weight, *(layers[layer].weight for layer in names)]
        if (
            names
            and len(names) == len(readers.read[outputs[0]])
            and all(calls.get(layer) == 1 for layer in names)
            and all(shared.count(id(parameter)) == 1 for parameter in parameters)
        ):
            found.append(Feed(name, tuple(names)))
    return found
