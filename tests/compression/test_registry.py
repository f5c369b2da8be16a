"""Every registered method is there, tells its source, and is chosen by a recipe's field."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import compression
from compression.registry import Registry


def packages() -> list[ModuleType]:
    found = [
        importlib.import_module(f"compression.{found.name}")
        for found in pkgutil.iter_modules(compression.__path__)
        if found.ispkg
    ]
    return [package for package in found if hasattr(package, "METHODS")]


METHODS = [
    pytest.param(package, name, id=f"{package.METHODS.field}-{name}")
    for package in packages()
    for name in package.METHODS
]


@pytest.mark.parametrize(("package", "name"), METHODS)
def test_a_method_is_one_documented_module(package: ModuleType, name: str) -> None:
    methods: Registry = package.METHODS
    assert methods[name].startswith(f"{package.__name__}.")
    function = methods.load(name)
    assert function.__doc__
    told = inspect.getdoc(importlib.import_module(methods[name]))
    assert told is not None
    assert "arXiv" in told or "doi" in told or "No paper" in told, "its source is not told"
    assert methods.function in (package.__doc__ or "")


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_every_module_of_a_package_is_registered(package: ModuleType) -> None:
    found = {f"{package.__name__}.{x.name}" for x in pkgutil.iter_modules(package.__path__)}
    private = {name for name in found if name.rpartition(".")[2].startswith("_")}
    assert set(package.METHODS.values()) == found - private


def test_an_unknown_name_is_told_those_there_are() -> None:
    methods = Registry("a.b", "solve", {"one": "compression.one", "two": "compression.two"})
    with pytest.raises(ValueError, match="must be one of one, two"):
        methods.load("three")
