"""A stage: a plain function from a recipe and artifacts to files, run as a cached Prefect task."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Artifact, lock_of, publish, published, touch, touch_key, workspace
from tasks.cache import stage_key
from tasks.config import Recipe
from tasks.digests import changed
from tasks.errors import UserError, bad_input
from tasks.home import home
from tasks.locks import if_free, locked
from tasks.memory import keep_freed
from tasks.partial import Partial
from tasks.progress import watching
from tasks.runs import under_way

if TYPE_CHECKING:
    from prefect import Task

# Prefect is imported by the functions that need it: a stage's `body` also runs on machines
# without an orchestrator (benchmarks on a GPU machine call it directly).

# Metrics of a stage that tell of the run that made it, not of what later stages work on: another
# bar for the verdict leaves the data, and all that follows, as it is.
_OF_THE_RUN = {"passable_n", "provisional", "spared_seconds"}

# body(recipe, *inputs, into=folder to fill, progress=callback) -> metrics; a long one also takes
# keeper=where it keeps what it has so far, or None
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


# keys that were made, not found made, inside the current call of a stage
_made: ContextVar[list[str] | None] = ContextVar("winnow_made", default=None)


@contextmanager
def recording() -> Iterator[list[Finished]]:
    """Collect the stages that run, or are reused, inside the block.

    A block around this one gets them as well when this one ends, however it ends.
    """
    outer, stages = _finished.get(), list[Finished]()
    token = _finished.set(stages)
    try:
        with under_way():
            yield stages
    finally:
        _finished.reset(token)
        if outer is not None:
            outer.extend(stages)


def record(stages: Sequence[Finished]) -> None:
    """Add stages that ran in another process to those that are collected here."""
    known = _finished.get()
    if known is not None:
        known.extend(stages)


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
        self._keeps = "keeper" in inspect.signature(body).parameters
        self.__doc__ = body.__doc__

    @cached_property
    def task(self) -> Task[..., Artifact]:
        """The Prefect task around the body."""
        from prefect import Task

        def run(
            recipe: Recipe, inputs: list[Artifact], key: str, title: str, outside: dict[str, str]
        ) -> Artifact:
            return self._obtain(recipe, inputs, key, title, outside)

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

    def _obtain(
        self,
        recipe: Recipe,
        inputs: Sequence[Artifact],
        key: str,
        title: str,
        outside: Mapping[str, str],
    ) -> Artifact:
        """Make the artifact, unless another run made it while this one waited for its turn."""

        def waiting(holder: str) -> None:
            watching().say(f"  {title}: waiting for another run that makes it ({holder})")

        with locked(lock_of(self.name, key), waiting):
            found = None if recipe.cache == "off" else self._reusable(key)
            if found is not None:
                return found
            made = _made.get()
            if made is not None:
                made.append(key)
            return self._make(recipe, inputs, key, title, outside)

    def _make(
        self,
        recipe: Recipe,
        inputs: Sequence[Artifact],
        key: str,
        title: str,
        outside: Mapping[str, str],
    ) -> Artifact:
        keep_freed()
        partial = Partial.of(self.name, key)
        if recipe.cache == "off":
            partial.remove()
        further = {"keeper": partial} if self._keeps else {}
        with watching().stage(title) as progress, workspace(self.name, key) as folder:
            started = time.perf_counter()
            try:
                metrics = self.body(recipe, *inputs, into=folder, progress=progress, **further)
                self._require_unchanged(recipe, inputs, title, outside)
            except bad_input():
                partial.remove()  # the same comes out next time: there is nothing to go on with
                raise
            seconds = round(time.perf_counter() - started + partial.spent, 3)
            artifact = publish(folder, stage=self.name, key=key, metrics=metrics, seconds=seconds)
        partial.remove()
        return artifact

    def _require_unchanged(
        self,
        recipe: Recipe,
        inputs: Sequence[Artifact],
        title: str,
        outside: Mapping[str, str],
    ) -> None:
        """Raise where what the body read need not be what the key was made of.

        Published, it would be reused wherever the content is again what it was before.
        """
        gone = changed(outside, self._outside(recipe, inputs))
        if gone:
            raise UserError(f"{', '.join(gone)} changed while it was read ({title}); run again")
        for artifact in self._counted(inputs):
            if not artifact.intact():
                raise UserError(
                    f"{title}: another run made its {artifact.stage} anew, or removed it, while it "
                    "was read; run again"
                )

    def _forget(self, key: str) -> None:
        """Remove what a run that was killed right after publishing had kept."""
        partial = Partial.of(self.name, key)
        if partial.folder.exists():
            with if_free(lock_of(self.name, key)) as free:
                if free:
                    partial.remove()

    def compute(self, recipe: Recipe, *inputs: Artifact) -> Artifact:
        """Reuse, or make and publish, without Prefect."""
        with without_prefect():
            return self(recipe, *inputs)

    def _digest(self, artifact: Artifact) -> str:
        """What of an input this stage depends on: all of it, or the splits that it reads.

        Metrics count as files do: some stages return nothing else, and later ones read them.
        """
        kept = json.loads(artifact.model_dump_json(include={"metrics"}))["metrics"]  # as read back
        facts = {name: x for name, x in kept.items() if name not in _OF_THE_RUN}
        if self.splits is not None and artifact.stage == "prepare":
            told = {name: facts.get(name) for name in ("classes", "modality")}
            content = {name: facts["content"].get(name) for name in self.splits}
            return json.dumps({**told, **content}, sort_keys=True)
        whole = json.dumps(facts, sort_keys=True).encode()
        return f"{artifact.sha256} {hashlib.sha256(whole).hexdigest()}"

    def key(self, recipe: Recipe, *inputs: Artifact) -> str:
        """The cache key of this stage for this recipe and these inputs."""
        return self._key(recipe, inputs, self._outside(recipe, inputs))

    def _key(self, recipe: Recipe, inputs: Sequence[Artifact], outside: Mapping[str, str]) -> str:
        return stage_key(
            self.name,
            self.body.__module__,
            inputs=[self._digest(artifact) for artifact in self._counted(inputs)],
            values=recipe.values(self.reads) if self._all_count(inputs) else {},
            outside=outside,
        )

    def _all_count(self, inputs: Sequence[Artifact]) -> bool:
        return self.when is None or self.when(*inputs)

    def _counted(self, inputs: Sequence[Artifact]) -> list[Artifact]:
        every = self._all_count(inputs)
        return [artifact for artifact in inputs if every or artifact.stage != "prepare"]

    def _outside(self, recipe: Recipe, inputs: Sequence[Artifact]) -> dict[str, str]:
        return dict(self.outside(recipe)) if self.outside and self._all_count(inputs) else {}

    def _reusable(self, key: str) -> Artifact | None:
        """What was published under a key, unless it called itself provisional."""
        touch_key(self.name, key)
        found = published(self.name, key)
        return None if found is not None and found.metrics.get("provisional") else found

    def _orchestrated(
        self,
        recipe: Recipe,
        inputs: list[Artifact],
        key: str,
        title: str,
        outside: dict[str, str],
        known: Artifact | None,
    ) -> Artifact:
        # Prefect remembers that a key was computed; whether its folder is still whole it cannot
        # know, so a hit without an intact folder is refreshed.
        from tasks.crashed import without_mark

        task = self.task.with_options(
            result_storage=home() / "results", refresh_cache=known is None
        )
        with without_mark():
            return task(recipe, inputs, key, title, outside)

    def __call__(self, recipe: Recipe, *inputs: Artifact, title: str | None = None) -> Artifact:
        """Run as a Prefect task of the current flow, or reuse what an earlier run published."""
        title, outside = _prefix.get() + (title or self.name), self._outside(recipe, inputs)
        key = self._key(recipe, inputs, outside)
        known = None if recipe.cache == "off" else self._reusable(key)
        made: list[str] = []
        token = _made.set(made)
        try:
            if _bare.get():
                artifact = known or self._obtain(recipe, inputs, key, title, outside)
            else:
                artifact = self._orchestrated(recipe, list(inputs), key, title, outside, known)
        finally:
            _made.reset(token)
        reused = not made
        if reused:
            artifact = known or artifact  # the store's word: Prefect's record may be older than it
            self._forget(key)
        touch(artifact)
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
