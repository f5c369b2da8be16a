"""Methods by name: a package a stage, a module a method, imported when it is asked for.

Adding a method is one file, with the function that its package's docstring describes, and one
entry in that package's table. Names are known without importing torch: recipes are checked, and
forms drawn, by programs that never compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


class Registry(Mapping[str, str]):
    """Name -> module, of the alternatives of one stage.

    Args:
        field: the recipe's field that chooses, such as ``prune.method``.
        function: what every module defines.
        methods: dotted module by name; the first is not special, defaults are the recipe's.
    """

    def __init__(self, field: str, function: str, methods: Mapping[str, str]) -> None:
        self.field, self.function = field, function
        self._methods = dict(methods)

    def __getitem__(self, name: str) -> str:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def require(self, name: str) -> str:
        """The name itself.

        Raises:
            ValueError: it names no method; the message lists those there are.
        """
        if name not in self._methods:
            raise ValueError(f"must be one of {', '.join(self._methods)}")
        return name

    def load(self, name: str) -> Any:
        """The function of the method called ``name``.

        Raises:
            ValueError: as :meth:`require`.
        """
        return getattr(import_module(self._methods[self.require(name)]), self.function)
