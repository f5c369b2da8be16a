"""What others would make of a teacher: whole branches gone, Torch-Pruning, ONNX Runtime, SetFit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.grid import MINILM, Row
from benchmarks.studies.models import made, narrowed
from benchmarks.studies.planning import folder_of
from benchmarks.studies.provenance import ROOT

if TYPE_CHECKING:
    from tasks.artifacts import Artifact
    from tasks.config import Recipe


def weights_of(model: Artifact) -> int:
    """Weights of the Linear and Conv2d layers of a bundle."""
    from torch import nn

    from models.checkpoint import load_bundle

    parts = load_bundle(model.folder).model.modules()
    return sum(x.weight.numel() for x in parts if isinstance(x, nn.Linear | nn.Conv2d))


def shallow(recipe: Recipe, data: Artifact, teacher: Artifact, share: float) -> Artifact:
    """Whole branches gone, to at most the weights that half the width leaves."""
    limit = weights_of(narrowed(recipe, data, teacher, share))

    def make(folder: Path) -> dict[str, Any]:
        import torch

        from compression.losses import temperature_kl
        from models import shrinking
        from models.checkpoint import load_bundle, save_bundle
        from models.units import branches
        from tasks import batches

        at = batches.device()
        bundle = load_bundle(teacher.folder)
        found = [b for b in branches(bundle.model, batches.blank(bundle)) if b.removable]
        batch = next(iter(batches.calibration(recipe, data, bundle, generic=False, at=at)()))

        def without(gone: list[Any]) -> Any:
            return shrinking.shrink(bundle, {u.name: [] for b in gone for u in b.units})

        def run(model: Any) -> torch.Tensor:
            with torch.no_grad():
                return model.to(at)(*batch)

        target = run(without([]).model)
        harm = {b.name: float(temperature_kl(run(without([b]).model), target, 1.0)) for b in found}
        gone: list[Any] = []
        for branch in sorted(found, key=lambda b: harm[b.name]):
            gone.append(branch)
            smaller = without(gone)
            left = sum(
                x.weight.numel()
                for x in smaller.model.modules()
                if isinstance(x, torch.nn.Linear | torch.nn.Conv2d)
            )
            if left <= limit:
                break
        smaller.model = smaller.model.cpu()
        save_bundle(smaller, folder)
        return {"gone": [branch.name for branch in gone], "weights": left, "limit": limit}

    return made("narrowed", {"depth": limit}, make, data, teacher)


def _peer(script: str, job: dict[str, Any], folder: Path) -> None:
    """Run one of benchmarks/peers in the peers' environment."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        raise RuntimeError("PEER_PYTHON names no interpreter (benchmarks/peers.txt)")
    told = folder / "job.json"
    told.write_text(json.dumps(job))
    found = subprocess.run(
        [python, str(ROOT / "benchmarks" / "peers" / script), str(told), str(folder)],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise RuntimeError(f"{script}: {found.stderr.strip()[-400:]}")


def torch_pruning(
    recipe: Recipe, data: Artifact, teacher: Artifact, ours: Artifact, steps: int
) -> Artifact:
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "data": data.model_dump(),
        "steps": steps,
        "teacher": teacher.model_dump(),
        "weights": weights_of(ours),
    }

    def make(folder: Path) -> dict[str, Any]:
        _peer("torch_pruning_teacher.py", job, folder)
        return dict(json.loads((folder / "facts.json").read_text()))

    return made("peer", {"torch-pruning": steps, "weights": job["weights"]}, make, data, teacher)


def setfit(row: Row, recipe: Recipe, data: Artifact, most: int) -> Path:
    name = recipe.generalist.source
    model = name.partition(":")[2]
    if name.startswith("hf:package:"):
        model = str(folder_of(MINILM, Path("nowhere")))
    job = {
        "folder": str(data.folder),
        "model": model,
        "seed": row["seed"],
        "max_steps": most,
    }

    def make(folder: Path) -> dict[str, Any]:
        _peer("setfit_shots.py", job, folder)
        return dict(json.loads((folder / "facts.json").read_text()))

    return made("peer", {"setfit": job["max_steps"], "seed": row["seed"]}, make, data).folder


def onnxruntime(recipe: Recipe, data: Artifact, teacher: Artifact, how: str) -> Artifact:
    """The teacher's float graph through ONNX Runtime's quantizer, all defaults."""
    from tasks.export import export

    graph = export.compute(recipe, data, teacher)

    def make(folder: Path) -> dict[str, Any]:
        import torch
        from onnxruntime.quantization import (
            CalibrationDataReader,
            quantize_dynamic,
            quantize_static,
        )

        from models.checkpoint import load_bundle
        from tasks import batches

        for path in graph.folder.iterdir():
            if path.name in ("preprocess.json", "tokenizer.json", "prunable.json"):
                shutil.copy(path, folder / path.name)
        source, target = str(graph.folder / "model.onnx"), str(folder / "model.onnx")
        if how == "dynamic":
            quantize_dynamic(source, target)
            return {}
        bundle = load_bundle(teacher.folder)
        shown = batches.calibration(recipe, data, bundle, generic=False, at=torch.device("cpu"))()
        names = batches.INPUTS[bundle.modality]

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds = batches.feeds(shown, names)

            def get_next(self) -> Any:
                return next(self.feeds, None)

        quantize_static(source, target, Reader())
        return {}

    return made("peer", {"onnxruntime": how}, make, data, graph)
