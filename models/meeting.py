"""Which weights meet the batch itself: found by following the batch through a forward pass.

A weight that meets only constants (the network of a table of relative positions), or that is
computed with before it meets the batch (a standardised convolution), is in no exported graph as it
stands in the model: what is done to its numbers can be neither kept nor counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Meetings"]


class Meetings(TorchDispatchMode):
    """While it is entered, notes which of the weights are in one operation with the batch.

    What an operation makes of the batch is the batch. Tensors are known by their storage, so that
    a view, and a write through one, are followed too.

    Args:
        batch: the tensors of one batch.
        weights: by name.

    Attributes:
        met: names of the weights that met the batch.
    """

    def __init__(self, batch: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.met: set[str] = set()
        self._batch = set(_storages(batch))
        self._names: dict[int, list[str]] = {}  # by storage: weights may be shared
        for name, weight in weights.items():
            for storage in _storages(weight):
                self._names.setdefault(storage, []).append(name)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = set(_storages((args, dict(kwargs or {}))))
        given = set(_storages(result))
        if taken & self._batch:
            self._batch |= given
            for storage in taken & self._names.keys():
                self.met.update(self._names[storage])
        elif func is torch.ops.aten.lift_fresh.default:
            self._batch -= given
        else:  # new memory may lie where a tensor of the batch was
            self._batch -= given - taken
        return result


def _storages(tree: Any) -> Iterator[int]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()._cdata
