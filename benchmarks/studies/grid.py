"""Models, tasks and seeds of the studies, and the recipe of one cell."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_times import MINILM, source_of

Row = dict[str, Any]


RESNET, DEIT, CONVNEXT = "resnet50-tin200", "deit_small-tin200", "convnext_nano-tin200"
MOBILENET = "mobilenetv2_100-in1k"
# three tasks a model where the data has them: imagenette5 is all there is for MobileNetV2
TASKS: dict[str, tuple[str, ...]] = {
    DEIT: ("vehicles", "pets", "wildlife"),
    MINILM: ("banking", "travel", "sst2"),
    RESNET: ("vehicles", "pets", "wildlife"),
    CONVNEXT: ("vehicles", "pets", "wildlife"),
    MOBILENET: ("imagenette5",),
}
FOLDERS = {
    "imagenette5": "imagenette5",
    "sst2": "sst2",
    "banking": "clinc150",
    "travel": "clinc150",
}
SEEDS = (0, 1, 2)
# with 64 examples a class, 64 shots leave nothing for a pool
NO_POOL = {("imagenette5", 64)}
# every class is the task's, so generic inputs come from elsewhere
GENERIC = {"imagenette5": "tiny-imagenet", "sst2": "clinc150"}


def recipe_of(
    model: str, task: str, *, shots: int = 16, seed: int = 0, pool: bool = False, **changes: Any
) -> dict[str, Any]:
    """A recipe with SOURCES and GENERALISTS in place of folders; float32 unless told."""
    folder = FOLDERS.get(task, "tiny-imagenet")
    data = f"SOURCES/{folder}"
    recipe: dict[str, Any] = {
        "name": f"{model}-{task}",
        "generalist": {"source": f"GENERALISTS/{model}"},
        "task": {
            "train": f"{data}/train.parquet",
            "test": f"{data}/test.parquet",
            "classes": f"CLASSES/{task}",
            "shots": shots,
            "seed": seed,
            "unlabelled": "rest" if pool and (task, shots) not in NO_POOL else None,
        },
        "quantize": {"format": "none"},
        # the test sets are small and shared: a study tells what it finds, it does not decide
        "leaks": {"exact": "warn", "near": "ignore"},
    }
    return merged(recipe, changes)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested values replaced."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        found[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return found


def at_path(path: str, value: Any) -> dict[str, Any]:
    """'a.b' and 1 -> {'a': {'b': 1}}."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def accepted(changes: dict[str, Any]) -> bool:
    """Whether this version's recipes take these values: not every method is in every version."""
    from pydantic import ValidationError

    from tasks.config import Recipe

    plain = recipe_of(DEIT, "vehicles")
    plain["task"]["classes"] = []
    try:
        Recipe.model_validate(merged(plain, changes))
    except ValidationError:
        return False
    return True


def first_accepted(path: str, values: Sequence[Any]) -> Any | None:
    """The first of `values` that a recipe takes at `path`; None where it takes none."""
    return next((value for value in values if accepted(at_path(path, value))), None)


def filled(row: Row, home: Path, generalists: Path) -> dict[str, Any]:
    """The row's recipe with its folders and class names."""
    sources = json.loads((home / "sources" / "sources.json").read_text())
    text = json.dumps(row["recipe"]).replace("SOURCES/", f"{home / 'sources'}/")
    values: dict[str, Any] = json.loads(text)
    values["task"]["classes"] = sources[values["task"]["classes"].removeprefix("CLASSES/")]
    name = values["generalist"]["source"].removeprefix("GENERALISTS/")
    values["generalist"]["source"] = source_of(name, generalists)
    return values


def grid(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(model, task, seed): whole rounds of models and tasks, one seed after the other."""
    most = max(len(tasks) for tasks in TASKS.values())
    return [
        (model, tasks[at], seed)
        for seed in args.seeds
        for at in range(most)
        for model, tasks in TASKS.items()
        if at < len(tasks) and (not args.models or model in args.models)
    ]
