"""Champions as recheck and watch see them: files, recipe, and what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from exports.preprocess import InputError
from exports.reference import (
    REFERENCE,
    Reference,
    kept_rows_of,
    load_reference,
    log_softmax,
    table_of,
)
from exports.specialist import Specialist
from tasks import promotion
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import source_digest
from tasks.errors import RecipeError
from tasks.plain_yaml import plain_yaml
from tasks.recipes import parse_recipe
from tasks.registry import Version, champion_of, fetch_sound, fetch_whole, find_version
from tasks.splits import load_split

# a version's tag: names and digests of the sources that its run read, as JSON
SOURCES = "winnow.sources"
_FIELDS = ("train", "test", "unlabelled")
_REST = "rest"  # `tasks.data.REST`, whose import takes two seconds


@dataclass(frozen=True)
class Served:
    """A version, fetched and opened.

    Attributes:
        reference: None in versions that were registered before there was one.
        teacher: the teacher's export, where it is in this store.
    """

    version: Version
    folder: Path
    recipe: Recipe
    report: Mapping[str, Any]
    specialist: Specialist
    reference: Reference | None
    teacher: Path | None

    @property
    def first(self) -> dict[str, Any]:
        """Its accuracy on its own test set: {"right", "n", "accuracy"}."""
        accuracy = float(self.report["models"]["specialist"]["accuracy"])
        n = int(self.report["accuracy"]["n"])
        return {"right": round(accuracy * n), "n": n, "accuracy": accuracy}


def champion_named(name: str) -> Version:
    """The champion of a registered model; raises `RecipeError` where there is none."""
    newest, champion = find_version(name), champion_of(name)
    if champion is None:
        raise RecipeError(
            f"NAME: {newest.name} has no champion; `winnow promote {newest.told}` makes one"
        )
    return champion


def opened_version(version: Version, into: Path, *, loads: bool = True) -> Served:
    """Fetch a version, make sure that it answers, and read what travels with it.

    Args:
        loads: also make sure that MLflow loads it, as a server does; that takes a second.

    Raises:
        RecipeError: it is not whole, does not load, or was not made by winnow.
    """
    folder = fetch_sound(version, into) if loads else fetch_whole(version, into)
    facts = _json(version, folder / promotion.TEST)
    try:
        reference = load_reference(folder / REFERENCE)
    except InputError:
        reference = None
    return Served(
        version,
        folder,
        recipe_of(version, folder),
        _json(version, folder / promotion.REPORT),
        promotion.answering(folder),
        reference,
        _teacher(facts.get("teacher")),
    )


def recipe_of(version: Version, folder: Path) -> Recipe:
    """The recipe that travels with a version; raises `RecipeError`."""
    try:
        plain = plain_yaml((folder / promotion.RECIPE).read_text(encoding="utf-8"))
    except OSError:
        raise RecipeError(
            f"MODEL: {version.told} holds no {promotion.RECIPE}; run its recipe again"
        ) from None
    return parse_recipe(plain, f"MODEL: {version.told}, {promotion.RECIPE}")


def _json(version: Version, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RecipeError(
            f"MODEL: {version.told} holds no {path.name}; run its recipe again"
        ) from None


def _teacher(facts: Mapping[str, str] | None) -> Path | None:
    """The folder of the teacher's export where it is still whole in this store."""
    if facts is None:
        return None
    artifact = Artifact.model_validate({"stage": "export", "key": "", **facts})
    return artifact.folder if artifact.intact() else None


def remember(
    folder: Path, data: Artifact, recipe: Recipe, kept: Sequence[int] | None = None
) -> Reference:
    """What a specialist's version is to remember of its examples.

    Args:
        folder: of specialist.onnx and its preprocessing.
        kept: rows of the test set that were judged; None: all.
    """
    test = load_split(data.folder / "test.parquet")
    # of all that trained or calibrated it, labelled or not: none of it is new to this version
    learnt = [
        digest
        for name in ("support", "unlabelled", "generic")
        if (path := data.folder / f"{name}.parquet").is_file()
        for digest in pq.read_table(path, columns=["digest"]).column(0).to_pylist()
    ]
    judged = np.zeros(len(test), bool)
    judged[list(range(len(test)) if kept is None else kept)] = True
    rows = kept_rows_of(judged, recipe.task.seed)
    specialist = promotion.answering(folder)
    logits = specialist.logits([test.inputs[row] for row in rows])
    # columns by the task's order of classes, whatever the file's is
    columns = [specialist.labels.index(name) for name in data.metrics["classes"]]
    return Reference(
        classes=tuple(data.metrics["classes"]),
        test=table_of(test.digests),
        labels=np.array(test.labels, np.int32),
        judged=judged,
        support=table_of(learnt),
        rows=rows,
        log_probabilities=log_softmax(logits)[:, columns],
    )


def sources_named(recipe: Recipe) -> dict[str, str]:
    """The sources that a recipe draws examples from, by field."""
    named = {field: getattr(recipe.task, field) for field in _FIELDS}
    return {field: name for field, name in named.items() if name not in (None, _REST)}


def sources_read(recipe: Recipe, data: Artifact) -> str:
    """The tag `SOURCES` of a run that prepared `data`: {field: {"name", "digest"}}.

    The digests are those of when the sources were read: what changed while the run went on is a
    change.
    """
    read = data.metrics.get("sources", {})
    facts = {
        field: {"name": name, "digest": read.get(field, "")}
        for field, name in sources_named(recipe).items()
    }
    return json.dumps(facts)


def sources_of(version: Version) -> dict[str, dict[str, str]]:
    """What the tag `SOURCES` of a version holds; empty where it has none."""
    return dict(json.loads(version.tags.get(SOURCES, "{}")))


def digests_now(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Digests by field of what the sources hold now."""
    return {field: source_digest(facts["name"]) for field, facts in sources.items()}


def specialized_with(versions: Sequence[Version], digests: Mapping[str, str]) -> Version | None:
    """The newest version that was made of sources with these digests, None where there is none."""
    for version in versions:
        made = {field: facts["digest"] for field, facts in sources_of(version).items()}
        if made and made == dict(digests):
            return version
    return None
