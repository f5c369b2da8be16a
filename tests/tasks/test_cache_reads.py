"""What bodies really read and run, held against what their keys cover: on tiny runs, for real."""

from __future__ import annotations

import ast
import json
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from flows.chain import begin, make
from flows.family import make_family
from tasks.cache import _WIRING, ROOMS, import_closure
from tasks.config import _IMPLIED, Recipe
from tasks.seeds import spread
from tasks.stage import _OF_THE_RUN, without_prefect
from tests.conftest import QUICK, merged, text_rows, write_rows
from tests.tasks.recorded import Recorder, every_stage, leaves, recorded

ROOT = Path(__file__).parents[2]

# Fields that name something outside the store: its content is in the key, not its name.
OUTSIDE = {
    "load": {"generalist.source"},
    "prepare": {"task.train", "task.test", "task.unlabelled", "task.generic"},
    "profile": {"shrink.profile"},
    "verify": {"limits.outside", "task.train", "task.test"},
}
# The chain of shrinking, pruning and trimming under budgets that a model so small can meet.
SHRUNK = {
    "target": {"bytes": 80_000, "speedup": 0.5, "nonzero_ratio": 1.2},
    "shrink": {"rungs": 2, "steps": 2, "generations": 1, "offspring": 2, "vocabulary_extra": 0},
    "quantize": {"embeddings": "int8"},
    "verify": {"repeats": 5},
    "limits": {"samples": 8},
    "task": {"unlabelled": "rest"},
}
SWEPT = {
    "prune": {"sparsity": None},
    "shrink": {"steps": 2, "generations": 1, "offspring": 2, "kinds": ["neurons"]},
    "sweep": {"speedups": [0.4], "sparsities": [0.5], "formats": ["float32", "int8"]},
    "verify": {"repeats": 5},
}


class Ran:
    """Files of our rooms whose functions ran, by the stage that was running."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.files: dict[str, set[str]] = {}
        self._places: dict[str, str | None] = {}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not self.recorder.running:
            return
        file = frame.f_code.co_filename
        if file not in self._places:
            inside = file.startswith(f"{ROOT}/") and not file.startswith(f"{ROOT}/.venv")
            self._places[file] = file.removeprefix(f"{ROOT}/") if inside else None
        place = self._places[file]
        if place is not None and place.partition("/")[0] in ROOMS:
            self.files.setdefault(self.recorder.running[-1], set()).add(place)


@contextmanager
def watched() -> Iterator[tuple[Recorder, Ran]]:
    with recorded() as recorder, without_prefect():
        ran = Ran(recorder)
        threading.setprofile(ran.note)
        sys.setprofile(ran.note)
        try:
            yield recorder, ran
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]


def run(recipe: Recipe, chain: Callable[[Recipe], Any]) -> tuple[Recorder, Ran]:
    with watched() as (recorder, ran):
        chain(recipe)
    check_values(recorder)
    check_metrics(recorder)
    check_code(ran)
    return recorder, ran


def one(recipe: Recipe) -> None:
    make(recipe, begin(recipe))


def check_values(recorder: Recorder) -> None:
    """Every value that was read is declared, implied, or stands for content in the key."""
    declared = {stage.name: stage.reads for stage in every_stage()}
    for name, values in recorder.values.items():
        found = {
            value
            for value in values
            if not any(value == each or value.startswith(f"{each}.") for each in declared[name])
        }
        assert found <= OUTSIDE.get(name, set()), f"{name} reads {sorted(found)} undeclared"


def check_metrics(recorder: Recorder) -> None:
    """Every metric that was read counts in the key of its reader."""
    splits = {stage.name: stage.splits for stage in every_stage()}
    for (name, source), metrics in recorder.metrics.items():
        assert not metrics & _OF_THE_RUN, f"{name} reads {metrics} of {source}"
        known = splits[name]
        if source == "prepare" and known is not None:
            assert metrics <= {"classes", "modality", *known}, f"{name} reads {metrics} of prepare"


def check_code(ran: Ran) -> None:
    """Every file of ours that ran is in the code that the key covers, or is named as wiring."""
    modules = {stage.name: stage.body.__module__ for stage in every_stage()}
    for name, files in ran.files.items():
        covered = {
            path.relative_to(ROOT).as_posix() for path in import_closure(modules[name]).values()
        }
        others = {
            file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for file in files - covered
        }
        assert others <= _WIRING, f"{name} runs {sorted(others - _WIRING)} beyond its key"


def recipe_of(source: str, data: dict[str, str], **changes: Any) -> Recipe:
    plain = {"name": "tiny", "generalist": {"source": source}, "task": dict(data)}
    return Recipe.model_validate(merged(merged(plain, QUICK), changes))


def with_fallback(source: str, folder: Path) -> str:
    """The text generalist with a tokenizer whose vocabulary can be trimmed."""
    shutil.copytree(source.removeprefix("hf:"), folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    words = spec["model"]["vocab"]
    spec["model"] = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": words,
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return f"hf:{folder}"


def test_the_first_stages_of_a_text(text_task: dict[str, str], text_generalist: str) -> None:
    recorder, ran = run(recipe_of(text_generalist, text_task), begin)
    assert set(recorder.values) >= {"prepare", "load"}
    assert "task.shots" in recorder.values["prepare"]
    assert "models/generalists.py" in ran.files["load"]


def test_what_sizes_cost_is_in_shrink_s_key(text_generalist: str) -> None:
    """All that is read for the costs of levels, which no run of the other tests does in 4 bits."""
    from models.generalists import load_generalist
    from models.units import branches
    from tasks.batches import blank
    from tasks.budgets import costs_of, dense_costs

    bundle = load_generalist(text_generalist)
    batch = blank(bundle)
    found = branches(bundle.model, batch)
    sizes = {branch.name: [tuple(unit.groups for unit in branch.units)] for branch in found}
    times = SimpleNamespace(branch_ms=defaultdict(lambda: {"float32": 1.0, "int8": 1.0}))
    for wanted in (
        {"format": "int4", "mean_bits": 3.0, "compensation": "eora", "compensation_rank": 4},
        {"format": "int8"},
        {"format": "none", "embeddings": "int4"},
    ):
        recipe = recipe_of(text_generalist, {"train": "a", "test": "b"}, quantize=wanted)
        with recorded() as recorder:
            recorder.running.append("shrink")
            costs_of(bundle.model, batch, found, sizes, times, recipe.quantize)  # type: ignore[arg-type]
            dense_costs(bundle.model, batch, recipe.quantize, vocabulary=0)
        assert "quantize.format" in recorder.values["shrink"]
        check_values(recorder)


@pytest.mark.slow
def test_a_whole_run_of_a_text(
    text_task: dict[str, str], text_generalist: str, tmp_path: Path
) -> None:
    source = with_fallback(text_generalist, tmp_path / "generalist")
    recorder, ran = run(recipe_of(source, text_task, **SHRUNK), one)
    assert {"shrink", "prune", "trim", "quantize", "export", "profile", "verify"} <= set(ran.files)
    # nothing is declared that no run reads: it would recompute what is the same
    assert "shrink.profile" not in recorder.values["shrink"]


@pytest.mark.slow
def test_a_whole_run_of_images(image_task: dict[str, str], image_generalist: str) -> None:
    changes = {"limits": {"samples": 8}, "target": {"speedup": 0.5}, "shrink": SHRUNK["shrink"]}
    recorder, _ = run(recipe_of(image_generalist, image_task, **changes), one)
    assert "augment.flip" in recorder.values["teach"]
    assert not any(value.startswith("augment") for value in recorder.values["export"])


@pytest.mark.slow
def test_a_sweep(text_task: dict[str, str], text_generalist: str) -> None:
    recorder, _ = run(
        recipe_of(text_generalist, text_task, **SWEPT),
        lambda recipe: make_family(recipe, begin(recipe)),
    )
    assert "task.seed" in recorder.values["held_out"]
    assert {"kl"} <= recorder.metrics["compare", "held_out"]


@pytest.mark.slow
def test_several_draws_in_four_bits(
    text_task: dict[str, str], text_generalist: str, tmp_path: Path
) -> None:
    def draws(recipe: Recipe) -> None:
        made = [make(each, begin(each)) for each in (recipe, recipe.with_seed(1))]
        spread(recipe, *(each.verified for each in made))

    # what is in the test set is no calibration
    other = str(write_rows(tmp_path / "other.jsonl", text_rows(8, 7)))
    changes = {
        "quantize": {"format": "int4", "bits": "integer", "mean_bits": 5.0},
        "prune": {"calibration": "generic", "pattern": "2:4", "sparsity": None},
        "task": {"generic": other},
        "limits": {"samples": 8, "outside": other},
    }
    recorder, _ = run(recipe_of(text_generalist, text_task, **changes), draws)
    assert "task.seed" in recorder.values["spread"]


def constants_of_wiring(text: str) -> set[str]:
    """Constants that a module's source imports from the wiring, whose source is in no key."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in _WIRING:
            names = {alias.name for alias in node.names}
            found |= {f"{node.module}.{name}" for name in names if name.isupper()}
    return found


def test_no_stage_computes_with_a_constant_of_the_wiring() -> None:
    """Its change would recompute nothing; what only names a recipe's values is in the key."""
    files: dict[str, Path] = {}
    for stage in every_stage():
        files |= import_closure(stage.body.__module__)
    for name, path in files.items():
        found = constants_of_wiring(path.read_text(encoding="utf-8")) - {"tasks.methods.RECOVERY"}
        assert not found, f"{name} takes {sorted(found)}: move it to a module that keys cover"
    assert constants_of_wiring("from tasks.precision import BLOCK, Quantize") == {
        "tasks.precision.BLOCK"
    }


def test_the_check_itself_finds(text_task: dict[str, str], text_generalist: str) -> None:
    recorder = Recorder()
    recorder.values["teach"] = {"track.experiment"}
    with pytest.raises(AssertionError, match=r"teach reads \['track.experiment'\]"):
        check_values(recorder)
    recorder.metrics["teach", "prepare"] = {"test"}
    with pytest.raises(AssertionError, match="teach reads"):
        check_metrics(recorder)
    ran = Ran(recorder)
    ran.files["load"] = {"compression/sweep.py"}
    with pytest.raises(AssertionError, match="beyond its key"):
        check_code(ran)


def test_every_declared_value_exists() -> None:
    known = [*leaves(), *_IMPLIED]
    for stage in every_stage():
        for declared in stage.reads:
            matches = [x for x in known if x == declared or x.startswith(f"{declared}.")]
            assert matches, f"{stage.name} declares {declared}, which no recipe holds"
