"""Names of files inside artifacts that more than one stage knows."""

from __future__ import annotations

import shutil
from pathlib import Path

GRAPH, GRIDS = "model.onnx", "grids.safetensors"
GRAPHS = ("generalist", "teacher", "pruned", "teacher-int8", "specialist")
SERVED = ("specialist.onnx", "preprocess.json", "tokenizer.json")


def ship(export: Path, into: Path) -> list[Path]:
    """Copy what is served out of the specialist's export; returns the files written."""
    names = {GRAPH: SERVED[0]}
    files = []
    for name in (GRAPH, *SERVED[1:]):
        if (export / name).is_file():
            files.append(Path(shutil.copyfile(export / name, into / names.get(name, name))))
    return files
