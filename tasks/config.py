"""The recipe: every knob with its default and its description.

Prefect's form and every error message are built from these descriptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from compression import schedules
from compression.training_steps import rung_steps
from tasks.methods import Distill, Prune, Shrink, Teacher
from tasks.precision import Quantize
from tasks.section import Section
from tasks.sections import (
    NAME,
    Augment,
    Generalist,
    Leaks,
    Limits,
    Sweep,
    Target,
    Task,
    Track,
    Verify,
)

__all__ = ["Recipe", "Task"]

# values that a stage may read though no field holds them
_IMPLIED = ("sparsity", "shrinks", "shrink_step")


class Recipe(Section):
    """Everything that one specialization needs to know."""

    name: str = Field(
        pattern=NAME,
        description="Name of the run's folder and of the registered model: letters, digits, . _ -",
    )
    generalist: Generalist = Field(description="The big pretrained model to start from.")
    task: Task = Field(description="The task's classes and its data.")
    leaks: Leaks = Field(
        default=Leaks.model_validate({}),
        description="What happens when support and test set share examples.",
    )
    target: Target = Field(
        default=Target.model_validate({}), description="Budgets that must hold for a pass."
    )
    teacher: Teacher = Field(
        default=Teacher.model_validate({}),
        description="How the generalist is adapted to the task, dense.",
    )
    augment: Augment = Field(
        default=Augment.model_validate({}), description="Random changes to training images."
    )
    prune: Prune = Field(
        default=Prune.model_validate({}), description="Task-aware layer-wise pruning."
    )
    shrink: Shrink = Field(
        default=Shrink.model_validate({}),
        description="Structured shrinking to the budgets of target.",
    )
    distill: Distill = Field(
        default=Distill.model_validate({}),
        description="Recovery between the rungs of gradual pruning.",
    )
    quantize: Quantize = Field(
        default=Quantize.model_validate({}), description="Low-precision weights and activations."
    )
    verify: Verify = Field(
        default=Verify.model_validate({}),
        description="What counts as a pass, and how it is measured.",
    )
    limits: Limits = Field(
        default=Limits.model_validate({}),
        description="What the card tells of inputs that the specialist was not made for.",
    )
    track: Track = Field(default=Track.model_validate({}), description="Where the run is recorded.")
    sweep: Sweep = Field(
        default=Sweep.model_validate({}), description="The points of `winnow sweep`."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Arithmetic of training; auto: bfloat16 where the processor has it.",
    )
    cache: Literal["on", "off"] = Field(
        "on", description="on: reuse finished stages whose inputs are unchanged; off: recompute."
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _is_achievable(self) -> Recipe:
        ratio = self.target.nonzero_ratio
        if ratio is not None and not self.shrinks and ratio * (1 - self.sparsity) > 1 + 1e-9:
            raise ValueError(
                f"target.nonzero_ratio: {ratio:g} cannot be reached with prune.sparsity "
                f"{self.sparsity:g}; leave prune.sparsity out or set {1 - 1 / ratio:.4g} or more"
            )
        rungs = self.distill.rungs
        if rungs is not None and (
            not rungs or sorted(set(rungs)) != rungs or rungs[0] <= 0 or rungs[-1] != self.sparsity
        ):
            raise ValueError(
                f"distill.rungs: {rungs} must rise from above 0 and end at prune.sparsity "
                f"({self.sparsity:g})"
            )
        if self.prune.pattern != "unstructured" and self.rungs != (self.pattern_sparsity,):
            raise ValueError(
                f"prune.pattern: {self.prune.pattern} is {self.pattern_sparsity:g} zeros in one "
                f"rung, not {', '.join(f'{rung:g}' for rung in self.rungs) or 0}; leave out "
                "prune.sparsity and distill.rungs"
            )
        self._adds_what_it_may()
        self._has_means()
        return self

    def _adds_what_it_may(self) -> None:
        """Refuse a ratio of nonzeros that compensation's own weights put out of reach."""
        ratio = self.target.nonzero_ratio
        if ratio is None or self.shrinks:
            return
        implied = self.prune.sparsity is None and self.prune.pattern == "unstructured"
        least = ratio * (1 - self.sparsity) > 1 - 1e-9
        rounds = self.quantize.format != "none"
        for name, adds in (
            ("prune", self.prune.compensation if self.rungs else "none"),
            ("quantize", self.quantize.compensation if rounds else "none"),
        ):
            if adds != "none" and (implied or least):
                raise ValueError(
                    f"target.nonzero_ratio: {ratio:g} with {name}.compensation {adds}, which adds "
                    f"weights, needs prune.sparsity above {1 - 1 / ratio:.4g}; give it"
                )

    def _has_means(self) -> None:
        """Refuse budgets that nothing in the recipe could move."""
        still = self.quantize.format == "none" and not self.shrinks
        if still and (self.target.speedup or 0) > 1:
            raise ValueError(
                f"target.speedup: {self.target.speedup:g} cannot be reached with quantize.format "
                "none and nothing in shrink.kinds but vocabulary; zeros alone buy no time: allow "
                "int8, or kinds such as heads, neurons, channels, blocks"
            )
        if self.verify.tokens is not None and self.verify.tokens > self.generalist.max_length:
            raise ValueError(
                f"verify.tokens: {self.verify.tokens} is above generalist.max_length "
                f"({self.generalist.max_length}), the longest text that is served; raise that or "
                "lower this"
            )

    @property
    def shrinks(self) -> bool:
        """Whether heads, neurons, channels or blocks are taken away to meet the budgets."""
        asked = self.target.shapes or self.shrink.path is not None
        return asked and bool(set(self.shrink.kinds) - {"vocabulary"})

    @property
    def trims(self) -> bool:
        """Whether vocabulary rows are taken away (texts only): they cost bytes, not time."""
        return self.target.bytes is not None and "vocabulary" in self.shrink.kinds

    @property
    def shrink_step(self) -> int:
        """Which step of shrinking this recipe is for; the last one where none was named."""
        return self.shrink.step or self.shrink.rungs

    @property
    def sparsity(self) -> float:
        """The share of zeros in what is left after shrinking.

        Given, else from the pattern, else none where structure is shrunk, else from the target,
        else 0.5.
        """
        if self.prune.sparsity is not None:
            return self.prune.sparsity
        if self.prune.pattern != "unstructured":
            return self.pattern_sparsity
        if self.shrinks:
            return 0.0
        ratio = self.target.nonzero_ratio
        return 1 - 1 / ratio if ratio is not None else 0.5

    @property
    def pattern_sparsity(self) -> float:
        """The share of zeros that an N:M pattern makes."""
        kept, group = map(int, self.prune.pattern.split(":"))
        return 1 - kept / group

    @property
    def rungs(self) -> tuple[float, ...]:
        """Sparsities that the ladder passes; empty where nothing is pruned."""
        if self.distill.rungs is not None:
            return tuple(self.distill.rungs)
        if self.prune.pattern != "unstructured" or self.sparsity == 0:
            return (self.sparsity,) if self.sparsity else ()
        schedule = schedules.METHODS.load(self.distill.schedule)
        found: tuple[float, ...] = schedule(self.sparsity, self.distill.rung_count)
        return found

    def at_rung(self, sparsity: float) -> Recipe:
        """The recipe of one rung, its steps resolved: nothing else of the ladder counts for it.

        Without `distill.total_steps` they depend on this rung alone, and ladders share it.
        """
        distill, total = self.distill, self.distill.total_steps
        ladder = (sparsity,) if total is None else self.rungs
        steps = rung_steps(
            ladder, steps=distill.steps, density_scaled=distill.density_scaled, total=total
        )[ladder.index(sparsity)]
        alone = {
            "schedule": "one_shot",
            "rungs": None,
            "steps": steps,
            "density_scaled": False,
            "total_steps": None,
        }
        prune = self.prune.model_copy(update={"sparsity": sparsity})
        return self.model_copy(update={"prune": prune, "distill": distill.model_copy(update=alone)})

    @property
    def steps(self) -> int:
        """How many rungs of shrinking there are."""
        return self.shrink.rungs if self.shrink.path is None else len(self.shrink.path)

    def at_step(self, step: int) -> Recipe:
        """The recipe of one rung of shrinking, counted from 1 to `steps`.

        On a path, a rung knows nothing of those after it: a longer path shares its beginning.
        """
        if self.shrink.path is None:
            return self.model_copy(update={"shrink": self.shrink.model_copy(update={"step": step})})
        target = Target.model_validate({"speedup": self.shrink.path[step - 1]})
        shrink = self.shrink.model_copy(update={"path": None, "rungs": 1, "step": 1})
        return self.model_copy(update={"target": target, "shrink": shrink})

    def planned(self) -> Recipe:
        """The recipe that sizes are chosen by: the format whose latencies decide."""
        shrink = self.shrink.model_copy(update={"plan_format": None})
        form = self.shrink.plan_format or self.quantize.format
        quantize = self.quantize.model_copy(update={"format": form})
        return self.model_copy(update={"shrink": shrink, "quantize": quantize})

    @property
    def further_seeds(self) -> range:
        """Seeds of the draws beyond the first."""
        return range(self.task.seed + 1, self.task.seed + self.task.seeds)

    def with_seed(self, seed: int) -> Recipe:
        """The same with another draw of the shots, of which only the verdict is wanted."""
        task = self.task.model_copy(update={"seed": seed, "seeds": 1})
        limits = self.limits.model_copy(update={"samples": 0})
        return self.model_copy(update={"task": task, "limits": limits})

    def unreported(self) -> Recipe:
        """The same without the study of calibration samples: one model a run is enough for it."""
        quantize = self.quantize.model_copy(update={"calibration_report": 0})
        return self.model_copy(update={"quantize": quantize})

    def untrained(self) -> Recipe:
        """The same shapes with as little training as will do: times do not depend on weights."""
        teacher = self.teacher.model_copy(update={"steps": 0})
        prune = self.prune.model_copy(update={"samples": min(self.prune.samples, 32)})
        shrink = self.shrink.model_copy(update={"profile": None})
        changes = {"teacher": teacher, "prune": prune, "shrink": shrink}
        return self.model_copy(update=changes)

    @property
    def model_name(self) -> str:
        """The name in MLflow's registry."""
        return self.track.model_name or self.name

    def values(self, paths: Iterable[str]) -> dict[str, Any]:
        """The JSON values at dotted `paths`, such as 'prune' or 'task.seed': what a stage reads."""
        plain = self.model_dump(mode="json")
        picked: dict[str, Any] = {}
        for path in paths:
            if path in _IMPLIED:  # not written, but what the written values amount to
                picked[path] = getattr(self, path)
                continue
            value: Any = plain
            for key in path.split("."):
                value = value[key]
            picked[path] = value
        return picked
