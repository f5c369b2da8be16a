"""A registered model with a line of champions made by hand, on a task whose files are on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import yaml

from tasks import promotion, registry
from tasks.artifacts import Artifact
from tasks.champions import SOURCES, remember, sources_read
from tasks.config import Recipe
from tasks.home import store
from tasks.prepare import prepare
from tasks.registry import Version
from tests.conftest import QUICK, WORDS, merged, text_rows, write_rows
from tests.tiny_specialists import text_specialist

NAME = "tiny"
CLASSES = sorted(WORDS)
# how many words of each class a version knows: the fewer, the less accurate
ALL, MOST, SOME, FEW = (
    {label: words[:count] for label, words in WORDS.items()} for count in (5, 4, 3, 1)
)


def rows_of(
    count: int, seed: int, without: Iterable[Mapping[str, str]] = ()
) -> list[dict[str, str]]:
    """Labelled sentences that are not among others."""
    taken = {row["text"] for row in without}
    return [row for row in text_rows(count, seed) if row["text"] not in taken]


def make_task(folder: Path) -> dict[str, str]:
    """Train and test files."""
    folder.mkdir(parents=True, exist_ok=True)
    train = text_rows(20, 1)
    return {
        "train": str(write_rows(folder / "train.jsonl", train)),
        "test": str(write_rows(folder / "test.jsonl", rows_of(60, 2, train))),
    }


def recipe_of(sources: Mapping[str, str], **changes: Any) -> Recipe:
    plain = {"name": NAME, "generalist": {"source": "hf:x"}, "task": dict(sources)}
    quick = merged(QUICK, {"verify": {"max_drop": 0.1, "repeats": 10}})
    return Recipe.model_validate(merged(merged(plain, quick), changes))


def add_version(
    folder: Path,
    recipe: Recipe,
    known: Mapping[str, Sequence[str]],
    *,
    verdict: str = "pass",
    teacher: Mapping[str, Sequence[str]] | None = None,
    remembers: bool = True,
) -> Version:
    """Prepare the recipe's task, register a specialist that knows some words; no alias moves."""
    data: Artifact = prepare.compute(recipe)
    text_specialist(folder, known)
    reference = remember(folder, data, recipe)
    if remembers:
        reference.save(folder / "reference.npz")
    accuracy, n = float(reference.right.mean()), len(reference.rows)
    report = {
        "models": {"specialist": {"accuracy": accuracy}},
        "accuracy": {"n": n},
        "task": {"classes": list(data.metrics["classes"])},
    }
    facts = {
        "path": f"{data.path}/test.parquet", "sha256": data.metrics["test"]["sha256"],
        "classes": list(data.metrics["classes"]), "kept": None,
        "teacher": None if teacher is None else _teacher(folder.name, teacher),
    }  # fmt: skip
    (folder / promotion.CARD).write_text("# tiny\n")
    (folder / promotion.RECIPE).write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (folder / promotion.REPORT).write_text(json.dumps(report))
    (folder / promotion.TEST).write_text(json.dumps(facts))
    with registry.pointed():
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name("checks")
        experiment = found.experiment_id if found else client.create_experiment(
            "checks", (store().parent / "mlartifacts").as_uri()
        )  # fmt: skip
        run = client.create_run(experiment).info.run_id
        client.set_terminated(run)
    made = registry.register(
        run,
        NAME,
        folder,
        identity={
            registry.DIGEST: registry.served_digest(folder),
            "winnow.test_sha256": data.metrics["test"]["sha256"],
        },
        tags={"winnow.run_id": run, "winnow.recipe": NAME, registry.VERDICT: verdict},
        example=["my card"],
        description="by hand",
        about="# tiny",
    ).version
    registry.tag(made, {SOURCES: sources_read(recipe, data)})
    return registry.find_version(NAME, made.number)


def _teacher(key: str, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A teacher's export in the store."""
    from tasks.artifacts import publish, workspace

    with workspace("export") as folder:
        text_specialist(folder, known)
        (folder / "specialist.onnx").rename(folder / "model.onnx")
        made = publish(folder, stage="export", key=key, metrics={}, seconds=1.0)
    return {"path": made.path, "sha256": made.sha256}


def crown(version: Version, *before: str) -> Version:
    """Make a version the champion, with those before it, and read it anew."""
    registry.crown(version, before, tags={}, about="")
    found = registry.champion_of(version.name)
    assert found is not None
    return found


def copied_home(made: Path, home: Path) -> None:
    """What tests change of a home that was made once: its database and its store.

    The registered files stay where they are.
    """
    shutil.copy(made / "mlflow.db", home / "mlflow.db")
    shutil.copytree(made / "store", home / "store")
