"""A tiny recipe on disk for tests that run `winnow` in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import QUICK, merged


def tiny_recipe(folder: Path, generalist: str, task: dict[str, str], **changes: Any) -> Path:
    """A recipe that takes seconds; returns its path.

    Args:
        generalist: source of the generalist.
        task: sources of the task's data.
        changes: nested values over those of the tests' quick recipe.
    """
    plain = {"name": "tiny", "generalist": {"source": generalist}, "task": dict(task)}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(merged(plain, QUICK), changes)), encoding="utf-8")
    return path
