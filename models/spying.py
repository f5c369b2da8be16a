"""What torch computes on the way: the result of every operator, in order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["torch_tensors"]

_aten = torch.ops.aten


class _Recorder(TorchDispatchMode):
    """Keeps a copy of every float tensor that an operator makes from activations."""

    def __init__(self, stored: set[int]) -> None:
        super().__init__()
        self.stored = stored  # storages of the parameters: their views are no results
        self.within: list[str] = []  # modules that are running, outermost first
        self.alive: dict[tuple[int, int], Tensor] = {}  # by storage and size
        self.tensors: dict[str, np.ndarray] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _aten.addmm.default:  # a graph multiplies and adds the bias in two nodes
            self._keep("mm", _aten.mm.default(*args[1:3]))
        first = result[0] if isinstance(result, tuple | list) and result else result
        if isinstance(first, Tensor):
            self._keep(str(func).removeprefix("aten."), first)
        return result

    def _keep(self, operator: str, tensor: Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        again = (place, tensor.numel()) in self.alive and tensor._is_view()
        if again or not tensor.is_floating_point() or place in self.stored:
            return
        self.alive[place, tensor.numel()] = tensor  # so that no later result takes its place
        module = self.within[-1] if self.within else ""
        key = f"{len(self.tensors):05d} {module} {operator}"
        self.tensors[key] = tensor.detach().to("cpu", torch.float32, copy=True).numpy()


@torch.no_grad()
def torch_tensors(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Run a model once and return every float tensor that its operators make.

    Attention is run written out, as graphs have it; products with a bias also count without it.

    Args:
        model: called as `model(*batch)`; left as it was.
        batch: a few examples on the CPU.

    Returns:
        float32 arrays in the order of computation, the model's output last, by
        'NUMBER MODULE OPERATOR'.
    """
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    for module in plain.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]
    own = [*plain.parameters(), *plain.buffers()]
    recorder = _Recorder({tensor.untyped_storage().data_ptr() for tensor in own})
    for name, module in plain.named_modules():
        module.register_forward_pre_hook(_entering(recorder.within, name))
        module.register_forward_hook(_leaving(recorder.within))
    with recorder:
        output = plain(*batch)
    return {**recorder.tensors, "output": output.detach().numpy()}


def _entering(within: list[str], name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        within.append(name)

    return hook


def _leaving(within: list[str]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        within.pop()

    return hook
