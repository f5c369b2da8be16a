"""A stage: a plain function from a recipe and artifacts to files, run as a cached Prefect task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Artifact, publish, published, workspace
from tasks.cache import stage_key
from tasks.config import Recipe
from tasks.home import home
from tasks.progress import watching

if TYPE_CHECKING:
    from prefect import Task

# Prefect is imported by the functions that need it: a stage's `body` also runs on machines
# without an orchestrator (benchmarks on a GPU machine call it directly).

# body(recipe, *inputs, into=folder to fill, progress=callback) -> metrics
Body = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Finished:
    """A stage of the current flow run: what it made, or found made, and the values it read."""

    title: str
    artifact: Artifact
    reused: bool
    values: dict[str, Any]


_finished: ContextVar[list[Finished] | None] = ContextVar("winnow_finished", default=None)

_prefix: ContextVar[str] = ContextVar("winnow_prefix", default="")


@contextmanager
def titled(prefix: str) -> Iterator[None]:
    """Put a text before the titles of the stages that run inside the block."""
    token = _prefix.set(prefix)
    try:
        yield
    finally:
        _prefix.reset(token)


_bare: ContextVar[bool] = ContextVar("winnow_bare", default=False)


@contextmanager
def without_prefect() -> Iterator[None]:
    """Run the stages inside the block in this process, on machines that have no orchestrator."""
    token = _bare.set(True)
    try:
        yield
    finally:
        _bare.reset(token)


@contextmanager
def recording() -> Iterator[list[Finished]]:
    """Collect the stages that run, or are reused, inside the block."""
    stages: list[Finished] = []
    token = _finished.set(stages)
    try:
        yield stages
    finally:
        _finished.reset(token)


class Stage:
    """Calls `body` unless an intact artifact with the same key was published before."""

    def __init__(
        self,
        body: Body,
        reads: tuple[str, ...],
        splits: tuple[str, ...] | None,
        outside: Callable[[Recipe], Mapping[str, str]] | None,
        when: Callable[..., bool] | None,
    ) -> None:
        self.body, self.reads, self.splits, self.outside = body, reads, splits, outside
        self.when = when
        self.name = body.__name__
        self._runs = 0
        self.__doc__ = body.__doc__

    @cached_property
    def task(self) -> Task[..., Artifact]:
        """The Prefect task around the body."""
        from prefect import Task

        def run(recipe: Recipe, inputs: list[Artifact], key: str, title: str) -> Artifact:
            self._runs += 1
            return self._make(recipe, inputs, key, title)

        # Deterministic numerics get no retries. The key is computed before the call (`key`),
        # because Prefect's own policies hash a path's text, and the task's own lines only.
        return Task(
            run,
            name=self.name,
            description=self.body.__doc__,
            cache_key_fn=lambda _, arguments: arguments["key"],
            persist_result=True,
            result_serializer="json",
            task_run_name="{title}",
        )

    def _make(self, recipe: Recipe, inputs: Sequence[Artifact], key: str, title: str) -> Artifact:
        with watching().stage(title) as progress, workspace(self.name) as folder:
            started = time.perf_counter()
            metrics = self.body(recipe, *inputs, into=folder, progress=progress)
            seconds = round(time.perf_counter() - started, 3)
            return publish(folder, stage=self.name, key=key, metrics=metrics, seconds=seconds)

    def compute(self, recipe: Recipe, *inputs: Artifact) -> Artifact:
        """Reuse, or make and publish, without Prefect."""
        with without_prefect():
            return self(recipe, *inputs)

    def _digest(self, artifact: Artifact) -> str:
        """What of an input this stage depends on: all of it, or the splits that it reads."""
        if self.splits is None or artifact.stage != "prepare":
            return artifact.sha256
        facts = artifact.metrics
        read = {name: (facts.get(name) or {}).get("sha256") for name in self.splits}
        return json.dumps({"classes": facts["classes"], **read}, sort_keys=True)

    def key(self, recipe: Recipe, *inputs: Artifact) -> str:
        """The cache key of this stage for this recipe and these inputs."""
        all_count = self.when is None or self.when(*inputs)
        counted = [artifact for artifact in inputs if all_count or artifact.stage != "prepare"]
        return stage_key(
            self.name,
            self.body.__module__,
            inputs=[self._digest(artifact) for artifact in counted],
            values=recipe.values(self.reads) if all_count else {},
            outside=self.outside(recipe) if self.outside and all_count else {},
        )

    def _reusable(self, key: str) -> Artifact | None:
        """What was published under a key, unless it called itself provisional."""
        found = published(self.name, key)
        return None if found is not None and found.metrics.get("provisional") else found

    def _orchestrated(
        self, recipe: Recipe, inputs: list[Artifact], key: str, title: str
    ) -> tuple[Artifact, bool]:
        # Prefect remembers that a key was computed; whether its folder is still whole it cannot
        # know, so a hit without an intact folder is refreshed.
        stale = recipe.cache == "off" or self._reusable(key) is None
        task = self.task.with_options(result_storage=home() / "results", refresh_cache=stale)
        runs = self._runs
        artifact = task(recipe, inputs, key, title)
        return artifact, self._runs == runs

    def __call__(self, recipe: Recipe, *inputs: Artifact, title: str | None = None) -> Artifact:
        """Run as a Prefect task of the current flow, or reuse what an earlier run published."""
        title, key = _prefix.get() + (title or self.name), self.key(recipe, *inputs)
        if _bare.get():
            known = None if recipe.cache == "off" else self._reusable(key)
            artifact, reused = known or self._make(recipe, inputs, key, title), known is not None
        else:
            artifact, reused = self._orchestrated(recipe, list(inputs), key, title)
        if reused:
            watching().reused(title, artifact)
        stages = _finished.get()
        if stages is not None:
            stages.append(Finished(title, artifact, reused, recipe.values(self.reads)))
        return artifact


def stage(
    *,
    reads: tuple[str, ...] = (),
    splits: tuple[str, ...] | None = None,
    outside: Callable[[Recipe], Mapping[str, str]] | None = None,
    when: Callable[..., bool] | None = None,
) -> Callable[[Body], Stage]:
    """Turn a body into a stage.

    Args:
        reads: dotted recipe values that the body uses; a change of any other is not its concern.
        splits: those of the prepared task that the body reads; None: all of them.
        outside: digests of what the body reads from outside the store, by name.
        when: of the inputs; where false, the body looks at neither data, nor values, nor outside.
    """
    return lambda body: Stage(body, reads, splits, outside, when)
