"""Names of files inside artifacts that more than one stage knows, and of the graphs of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.config import Recipe

GRAPH, GRIDS = "model.onnx", "grids.safetensors"
# of the profile stage: the latency table, and which of its keys each size of each branch has
TABLE, LEVELS = "table.json", "levels.json"
# of a quantized export: how its integers are laid out, and what was left float
QUANTIZED = "quantize.json"
# of the verify stage: which test examples the teacher and the specialist got right
ANSWERS = "answers.npz"
DENSE = ("generalist", "teacher", "teacher-int8")
SERVED = ("specialist.onnx", "preprocess.json", "tokenizer.json")


def graph_names(recipe: Recipe) -> tuple[str, ...]:
    """The exported graphs of a run, in the order in which they are made.

    `pruned` is the float specialist. `shrunk` is there where structure and single weights both go,
    so that what the zeros pay can be told from what the smaller structure pays.
    """
    both = recipe.shrinks and bool(recipe.rungs)
    return (*DENSE, *(("shrunk",) if both else ()), "pruned", "specialist")


def ship(export: Path, into: Path) -> list[Path]:
    """Copy what is served out of the specialist's export; returns the files written."""
    names = {GRAPH: SERVED[0]}
    files = []
    for name in (GRAPH, *SERVED[1:]):
        if (export / name).is_file():
            files.append(Path(shutil.copyfile(export / name, into / names.get(name, name))))
    return files
