"""Which weights of a layer go, and what the others become.

A method is a module with

    prune(problem: LayerProblem, rule: MaskRule) -> Solved

`rule` holds the asked count or pattern and the weights that are zero already (see
compression.masks); counts are exact. Nothing is written to the layer. Where several rules
cost less together than one after the other, the module also has

    prune_several(problem: LayerProblem, rules: Sequence[MaskRule]) -> Iterator[Solved]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from compression.registry import Registry

if TYPE_CHECKING:
    from compression.masks import MaskRule
    from compression.problem import LayerProblem, Solved

METHODS = Registry(
    "prune.method",
    "prune",
    {
        "sweep": "compression.pruners.sweep",
        "magnitude": "compression.pruners.magnitude",
        "wanda": "compression.pruners.wanda",
        "obs": "compression.pruners.obs",
    },
)


def prune_several(
    method: str, problem: LayerProblem, rules: Sequence[MaskRule]
) -> Iterator[Solved]:
    """A layer's answers under each rule in turn, by the method called ``method``."""
    prune, module = METHODS.load(method), import_module(METHODS[method])
    together = getattr(module, "prune_several", None)
    if together is None:
        yield from (prune(problem, rule) for rule in rules)
    else:
        yield from together(problem, rules)
