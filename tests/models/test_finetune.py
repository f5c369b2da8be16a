"""A teacher whose adaptation is killed at every step ends as if it had never been."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from models.generalists import load_generalist
from models.teacher import adapt
from tests.interrupted import limp, same
from tests.models.conftest import image_bundle
from tests.models.test_teacher import CPU, SETTINGS, colours, words


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_teacher(modality: str, tmp_path: Path, text_folder: Any) -> None:
    text = modality == "text"
    if text:  # dropout draws from the global generator
        generalist = load_generalist(f"hf:{text_folder('bert')}")
        support: Any = words(4)
    else:
        generalist, support = image_bundle("test_resnet", classes=7), colours(4)
    settings = dataclasses.replace(SETTINGS, steps=2, batch_size=8)

    def work(keeper: Any) -> Any:
        teacher, metrics = adapt(
            generalist.copy(),
            support,
            ("a", "b", "c"),
            settings=settings,
            device=CPU,
            keeper=keeper,
        )
        return metrics, dict(teacher.model.state_dict())

    whole = work(None)
    found, kills = limp(work, tmp_path)
    assert same(found, whole)
    # every step of both fine-tunings, and the choice between them
    assert kills == settings.steps * (2 if whole[0]["alpha"] else 1) + 1
