"""Use a finished specialist: from a run's folder or from the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exports.specialist import Specialist
from tasks.errors import RecipeError


def predict(model: str, inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Label and probability of each input: texts, or paths of images."""
    if Path(model).is_dir():
        return Specialist.load(Path(model)).predict(list(inputs))
    if not model.startswith(("models:/", "runs:/")):
        raise RecipeError(
            f"MODEL: {model} is neither a run's folder nor a registered model; "
            "give one, such as runs/demo or models:/NAME@champion"
        )
    # MLflow takes two seconds to import, and a folder needs none of it
    from tasks.tracking import fetch_model

    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        return Specialist.load(fetch_model(model, Path(scratch))).predict(list(inputs))
