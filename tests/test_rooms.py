"""The import rule: flows -> tasks -> {models, compression, exports}, and who may use which library.

Read from the syntax tree, so imports inside functions, under ``TYPE_CHECKING`` and through
``importlib.import_module("...")`` count too, and nothing has to be importable.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Which rooms a room may import.
MAY_IMPORT = {
    "flows": {"flows", "tasks"},
    "tasks": {"tasks", "models", "compression", "exports"},
    "models": {"models"},
    "compression": {"compression"},
    "exports": {"exports"},
}
ROOMS = set(MAY_IMPORT)
# The numerics stay pure: nothing but these and the standard library.
COMPRESSION_LIBRARIES = {"torch", "scipy"}
# Orchestration, tracking, data sets and validation stop at the edge.
KEPT_OUT = {
    "models": {"prefect", "mlflow", "datasets", "pydantic"},
    "compression": {"prefect", "mlflow", "datasets", "pydantic"},
    "exports": {"prefect", "mlflow", "datasets", "pydantic"},
    "flows": {"mlflow", "torch", "numpy"},
    "tasks": set(),
}
# A stand-alone models-from-code script that is shipped to MLflow and never imported by winnow.
SERVED_SCRIPT = "exports/serving.py"
# torch only exports graphs; what is served must run without it.
EXPORTS_WITH_TORCH = {"exports/graph.py", "exports/parts.py"}
HEAVY = {"torch", "torchvision", "timm", "transformers"}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_names(source: str, module: str) -> Iterator[str]:
    """Every dotted name that `source`, the file `module` (as room/file.py), imports."""
    package = module.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(name)):
                yield name
            case ast.ImportFrom(level=level, module=name):
                base = package[: len(package) - level + 1]
                yield ".".join([*base, *([name] if name else [])])
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def breaches(source: str, module: str) -> list[str]:
    """What in `source` breaks the rule for its room; empty when all is well."""
    room = module.split("/")[0]
    found = []
    for name in imported_names(source, module):
        top = name.split(".")[0]
        if top in ROOMS and top not in MAY_IMPORT[room]:
            found.append(f"{module} imports {name}: {room} may import {sorted(MAY_IMPORT[room])}")
        if (
            room == "compression"
            and top not in COMPRESSION_LIBRARIES | ROOMS
            and top not in sys.stdlib_module_names
        ):
            found.append(f"{module} imports {name}: compression is torch, scipy and stdlib only")
        if top in KEPT_OUT[room] and not (module == SERVED_SCRIPT and top == "mlflow"):
            found.append(f"{module} imports {name}: kept out of {room}")
        if room == "exports" and top in HEAVY and module not in EXPORTS_WITH_TORCH:
            found.append(f"{module} imports {name}: only {sorted(EXPORTS_WITH_TORCH)} may")
    return found


def importers(library: str) -> set[str]:
    """Modules of the five rooms that import `library`."""
    return {
        name_of(path)
        for room in ROOMS
        for path in modules(room)
        for name in imported_names(path.read_text(encoding="utf-8"), name_of(path))
        if name.split(".")[0] == library
    }


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_keeps_the_import_rule(room: str) -> None:
    assert modules(room), f"{room}/ holds no module"
    assert [
        breach
        for path in modules(room)
        for breach in breaches(path.read_text(encoding="utf-8"), name_of(path))
    ] == []


def test_mlflow_is_imported_by_three_modules_of_tasks() -> None:
    """The way to its store, what a run leaves there, and the registry; nobody else."""
    ours = importers("mlflow") - {SERVED_SCRIPT}
    assert ours == {"tasks/mlflow_store.py", "tasks/tracking.py", "tasks/registry.py"}


def test_prefect_is_imported_by_tasks_and_flows_only() -> None:
    assert {name.split("/")[0] for name in importers("prefect")} <= {"tasks", "flows"}


def test_the_served_script_is_imported_by_nobody() -> None:
    module = SERVED_SCRIPT.removesuffix(".py").replace("/", ".")
    room, short = module.split(".")
    for path in (path for name in ROOMS for path in modules(name)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == room:
                assert short not in {alias.name for alias in node.names}, name_of(path)
        assert module not in set(imported_names(path.read_text(encoding="utf-8"), name_of(path)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flows/a.py", "import torch"),
        ("flows/a.py", "from numpy import array"),
        ("flows/a.py", "from models.heads import covers"),
        ("flows/a.py", "def f():\n    from compression import sweep"),
        ("tasks/a.py", "from flows import cli"),
        ("models/a.py", "import compression.sweep as s"),
        ("models/a.py", "from datasets import load_dataset"),
        ("models/a.py", "from ..compression import sweep"),
        ("compression/a.py", "import numpy as np"),
        ("compression/a.py", "from models import heads"),
        ("compression/a.py", "if True:\n    import pydantic"),
        ("exports/a.py", "import torch.onnx"),
        ("exports/a.py", "import mlflow"),
        ("exports/serving.py", "import torch"),
        ("exports/a.py", "import importlib\nimportlib.import_module('prefect')"),
    ],
)
def test_the_check_itself_finds(module: str, source: str) -> None:
    assert len(breaches(source, module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flows/a.py", "from tasks.config import Recipe\nimport prefect, typer, rich"),
        ("tasks/a.py", "import models, compression.sweep, exports\nfrom . import home"),
        ("compression/a.py", "import math, torch\nfrom scipy.optimize import brentq"),
        ("compression/a.py", "from compression.masks import masks_of\nfrom .masks import x"),
        ("models/a.py", "import torch, timm, transformers, numpy, safetensors.torch"),
        ("exports/graph.py", "import torch"),
        ("exports/serving.py", "import mlflow.pyfunc"),
    ],
)
def test_the_check_itself_lets_pass(module: str, source: str) -> None:
    assert breaches(source, module) == []
