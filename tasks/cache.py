"""Cache keys: a stage's result is reused only where nothing that it depends on has changed.

A key covers the input artifacts' digests, the recipe values that the stage reads, the content of
data and weights outside the store, the source files that the stage's module reaches by imports in
our rooms, and the versions of Python and of the libraries that compute.

Not part of it: paths, the home, the device, the number of threads or workers. A GPU, a processor
with bfloat16 or another OMP_NUM_THREADS sums floats in another order, so the same key computed
elsewhere may differ in the last digits; each is an equally good result of the same recipe, and the
first one that is made is the one that all later runs share. Stages that time something do depend
on the host: they name it in their key (`tasks.this_host`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "compression", "exports", "tasks")

# Wiring that every stage shares: what it decides reaches a stage as values in its key, or not at
# all, so that a new bar or tag does not recompute every model.
_WIRING = {
    "tasks",
    "tasks.artifacts",
    "tasks.cache",
    "tasks.config",
    "tasks.embedded",
    "tasks.errors",
    "tasks.home",
    "tasks.hub",
    "tasks.locks",
    "tasks.methods",
    "tasks.partial",
    "tasks.precision",
    "tasks.progress",
    "tasks.processes",
    "tasks.recipes",
    "tasks.run_page",
    "tasks.section",
    "tasks.secrets",
    "tasks.sections",
    "tasks.stage",
    "tasks.tracking",
}

# The libraries whose version can change a stage's result.
_LIBRARIES = (
    "datasets",
    "imagehash",
    "ml-dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "pandas",
    "pillow",
    "pyarrow",
    "rapidfuzz",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "tokenizers",
    "torch",
    "transformers",
)


def stage_key(
    stage: str,
    module: str,
    *,
    inputs: Iterable[str],
    values: Mapping[str, Any],
    outside: Mapping[str, str],
    root: Path = ROOT,
) -> str:
    """The full SHA-256 key of one run of a stage.

    Args:
        module: dotted name of the stage's module.
        inputs: digests of the input artifacts, in order.
        values: recipe values that the stage reads.
        outside: digests of what it reads from outside the store.
    """
    parts = {
        "stage": stage,
        "inputs": list(inputs),
        "values": dict(values),
        "outside": dict(outside),
        "code": code_digest(module, root),
        "libraries": versions(),
    }
    plain = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that compute, and Python's own (its Unicode tables)."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def code_digest(module: str, root: Path = ROOT) -> str:
    """SHA-256 over the source files that `module` reaches by imports within the rooms."""
    total = hashlib.sha256()
    for name, path in sorted(import_closure(module, root).items()):
        total.update(f"{name}\0{_looked_at(path)[0]}\0".encode())
    return total.hexdigest()


def import_closure(module: str, root: Path = ROOT) -> dict[str, Path]:
    """Modules within the rooms that `module` imports, directly or not, at any level of the file.

    Those that a registry names in a string count as imported, whichever is chosen.

    A package's `__init__` counts as soon as anything inside the package is imported.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name, root)
        if path is None or name in found or (name in _WIRING and name != module):
            continue
        found[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        waiting += _imports(name, path, root)
    return found


def _source(name: str, root: Path) -> Path | None:
    if name.partition(".")[0] not in ROOMS:
        return None
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(name: str, path: Path, root: Path) -> list[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    for level, base, names in _looked_at(path)[1]:
        if level:
            above = package.split(".")[: len(package.split(".")) - level + 1]
            base = ".".join([*above, base] if base else above)
        # `from package import name` may name a module or something inside one
        found += [base, *(f"{base}.{alias}" for alias in names)]
    return [target for target in found if _source(target, root) is not None]


# an import: how many packages up it starts, what it imports from, the names it takes from there
_Import = tuple[int, str, tuple[str, ...]]
_MODULE = re.compile(r"(models|compression|exports)(\.\w+)+")


def _looked_at(path: Path) -> tuple[str, tuple[_Import, ...]]:
    """A source file's SHA-256 and its imports; read again only once it has changed."""
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, *_: int) -> tuple[str, tuple[_Import, ...]]:
    content = path.read_bytes()
    found: list[_Import] = []
    for node in ast.walk(ast.parse(content, filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append((node.level, node.module or "", names))
        elif isinstance(node, ast.Constant) and _MODULE.fullmatch(str(node.value)):
            # a registry's modules are imported by the names that it lists
            found.append((0, str(node.value), ()))
    return hashlib.sha256(content).hexdigest(), tuple(found)
