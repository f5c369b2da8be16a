"""Tells which values of a recipe a stage's body really reads, while it runs for real."""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

import tasks
from tasks.artifacts import Artifact
from tasks.config import _IMPLIED, Recipe
from tasks.section import Section
from tasks.stage import Stage


def places(kind: type[Section] = Recipe, at: str = "") -> dict[type[Section], str]:
    """By class of section, its dotted place in a recipe, '' for the recipe itself."""
    found = {kind: at}
    for name, field in kind.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                found |= places(inner, f"{at}.{name}" if at else name)
    return found


def leaves(kind: type[Section] = Recipe, at: str = "") -> list[str]:
    """Dotted names of all values that a recipe holds."""
    found = []
    for name, field in kind.model_fields.items():
        path = f"{at}.{name}" if at else name
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, Section)
        found += leaves(inner, path) if nested else [path]
    return found


PLACES = places()
ALIASES = {"track.register_model": "track.register"}


def every_stage() -> list[Stage]:
    """The stages of all modules of `tasks`, each once, by name."""
    found: dict[str, Stage] = {}
    for path in sorted(Path(tasks.__path__[0]).glob("*.py")):
        if "\n@stage(" in path.read_text(encoding="utf-8"):
            for value in vars(importlib.import_module(f"tasks.{path.stem}")).values():
                if isinstance(value, Stage):
                    found.setdefault(value.name, value)
    return [found[name] for name in sorted(found)]


class Recorder:
    """What bodies read, by stage: values of the recipe, and metrics of their inputs."""

    def __init__(self) -> None:
        self.values: dict[str, set[str]] = defaultdict(set)
        self.metrics: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.running: list[str] = []
        self.inside_implied = 0

    def read(self, path: str) -> None:
        if self.running and not self.inside_implied:
            self.values[self.running[-1]].add(path)


class Told(dict[str, Any]):
    """An artifact's metrics that note which of them are looked at."""

    def __init__(self, metrics: dict[str, Any], noted: set[str]) -> None:
        super().__init__(metrics)
        self.noted = noted

    def __getitem__(self, name: str) -> Any:
        self.noted.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.noted.add(name)
        return super().get(name, default)


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Record every read of a recipe's value that a stage's body makes inside the block.

    Only bodies count: what the flow or a key looks at is another matter. A section that is dumped
    whole counts as read whole.
    """
    recorder = Recorder()
    plain = Section.__getattribute__
    dump = Section.model_dump

    def look(self: Section, name: str) -> Any:
        kind = type(self)
        if not recorder.running or kind not in PLACES or name.startswith("_"):
            return plain(self, name)
        path = f"{PLACES[kind]}.{name}".lstrip(".")
        if kind is Recipe and name in _IMPLIED:
            recorder.read(name)
            recorder.inside_implied += 1
            try:
                return plain(self, name)
            finally:
                recorder.inside_implied -= 1
        value = plain(self, name)
        if name in kind.model_fields and not isinstance(value, Section):
            recorder.read(ALIASES.get(path, path))
        return value

    def whole(self: Section, *args: Any, **options: Any) -> dict[str, Any]:
        for path in leaves(type(self), PLACES[type(self)]):
            recorder.read(path)
        return dump(self, *args, **options)

    def watched(stage: Stage) -> Any:
        body = stage.body

        @functools.wraps(body)
        def run(recipe: Recipe, *given: Artifact, **options: Any) -> dict[str, Any]:
            for each in given:
                noted = recorder.metrics[stage.name, each.stage]
                object.__setattr__(each, "metrics", Told(each.metrics, noted))
            recorder.running.append(stage.name)
            try:
                return body(recipe, *given, **options)
            finally:
                recorder.running.pop()

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", look)
        patch.setattr(Section, "model_dump", whole)
        for stage in every_stage():
            patch.setattr(stage, "body", watched(stage))
        yield recorder
