"""What is calibrated on, and what is held out to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compression.losses import UNLABELLED
from tasks import batches
from tasks.artifacts import Artifact
from tasks.cache import import_closure
from tasks.config import Recipe, Task
from tasks.home import store
from tasks.prepare import prepare
from tasks.recipes import parse_recipe
from tasks.splits import Split
from tests.conftest import write_rows
from tests.tasks.recorded import every_stage

SHOTS = 128
CPU = torch.device("cpu")


class Shown:
    """Stands for decoded examples: remembers which they are."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def calibration(self, size: int, *, device: torch.device) -> Iterator[Split]:
        yield self.split


def prepared(pool: int) -> Artifact:
    """A prepared task of two classes; an input tells its own row, the pool after the shots."""
    folder = store() / "prepare" / "k"
    folder.mkdir(parents=True)
    for name, rows, labels in (
        ("support", range(SHOTS), [row * 2 // SHOTS for row in range(SHOTS)]),
        ("unlabelled", range(SHOTS, SHOTS + pool), [-1] * pool),
        ("generic", range(1000, 1100), [-1] * 100),
    ):
        texts = tuple(map(str, rows))
        Split(texts, tuple(labels), texts).save(folder / f"{name}.parquet", "text")
    facts = {"support": {"n": SHOTS}}
    return Artifact(stage="prepare", path="prepare/k", sha256="", key="k", metrics=facts)


def recipe(**prune: Any) -> Recipe:
    task = {"train": "a", "test": "b", "seed": 3}
    return parse_recipe({"name": "n", "generalist": {"source": "x"}, "task": task, "prune": prune})


def calibrated(
    data: Artifact, monkeypatch: pytest.MonkeyPatch, *, generic: bool = False, **prune: Any
) -> list[int]:
    monkeypatch.setattr(batches, "samples", lambda split, *_: Shown(split))
    bundle: Any = None
    shown = batches.calibration(recipe(**prune), data, bundle, generic=generic, at=CPU)
    (split,) = shown()
    return [int(text) for text in split.inputs]  # type: ignore[attr-defined]


def held(data: Artifact) -> set[int]:
    """As recovery and `held_out` set them aside."""
    labels = torch.tensor(batches.splits(data, "support", "unlabelled").labels)
    labels = torch.where(labels < 0, UNLABELLED, labels)
    *_, rows = batches.held_apart(labels, seed=recipe().task.seed)
    return set(rows.tolist())


@pytest.mark.parametrize("pool", [10, 100, 300, 600])
def test_what_is_held_out_is_not_calibrated_on(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(pool)
    rows, apart = calibrated(data, monkeypatch), held(data)
    assert len(apart) == pool // 5 and not apart & set(rows)
    assert rows[:SHOTS] == list(range(SHOTS))
    assert len(rows) == len(set(rows)) == min(512, SHOTS + pool - pool // 5)
    # what is left comes in the order of the whole draw
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(3)).flip(0) + SHOTS
    assert rows[SHOTS:] == [row for row in order.tolist() if row not in apart][: 512 - SHOTS]
    assert calibrated(data, monkeypatch, samples=40) == list(range(40))


@pytest.mark.parametrize("pool", [0, 9])
def test_shots_are_too_few_to_give_any_up(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(pool)
    rows, apart = calibrated(data, monkeypatch), held(data)
    assert sorted(rows) == list(range(SHOTS + pool))
    assert len(apart) == SHOTS // 8 and apart < set(range(SHOTS))


def test_generic_inputs_are_all_calibrated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = calibrated(prepared(100), monkeypatch, generic=True)
    assert sorted(rows) == list(range(1000, 1100))


def test_as_many_generic_inputs_are_drawn_as_the_tasks_own(tmp_path: Path) -> None:
    """Of 2 x 12 rows 4 are shots; of the pool of 20 rows 4 are held out."""
    rows = [
        {"text": f"{name} {at}", "label": name}
        for name, count in (("a", 12), ("b", 12), ("c", 40))
        for at in range(count)
    ]
    test = [{"text": f"test {name}", "label": name} for name in "ab"]
    task: dict[str, Any] = {
        "train": str(write_rows(tmp_path / "train.jsonl", rows)),
        "test": str(write_rows(tmp_path / "test.jsonl", test)),
        "classes": ["a", "b"],
        "shots": 2,
        "unlabelled": "rest",
    }
    data = prepare.compute(recipe(calibration="generic").model_copy(update={"task": Task(**task)}))
    assert data.metrics["unlabelled"]["n"] == data.metrics["generic"]["n"] == 20  # 4 + 20 - 4


@pytest.mark.parametrize("name", ["export", "prune", "quantize", "shrink", "smooth"])
def test_keys_cover_what_is_calibrated_on(name: str) -> None:
    (stage,) = (each for each in every_stage() if each.name == name)
    closure = import_closure(stage.body.__module__)
    assert {"tasks.batches", "tasks.splits"} <= set(closure)
    covered = {value for read in stage.reads for value in (read, f"{read}.samples")}
    assert {"task.seed", "prune.samples"} <= covered
