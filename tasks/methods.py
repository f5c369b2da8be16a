"""Sections of a recipe that say how it is done: teaching, shrinking, pruning, recovering."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from compression import (
    allocators,
    compensations,
    pruners,
    schedules,
    scores,
)
from compression import trained as ways  # a field is called trained
from tasks.section import Amount, Count, OneOf, Section, rising_speeds

Kind = Literal["heads", "neurons", "channels", "blocks", "vocabulary"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Teacher(Section):
    """How the generalist is adapted to the task, dense."""

    steps: Count = Field(60, ge=0, description="Fine-tuning steps; 0 trains the head alone.")
    batch_size: Count = Field(32, ge=2, description="Examples a fine-tuning step.")
    lr: Amount | None = Field(
        None, gt=0, description="Peak learning rate of the body; left out: 1e-5 image, 1e-4 text."
    )
    head_lr: Amount = Field(1e-3, gt=0, description="Peak learning rate of the head.")
    weight_decay: Amount = Field(0.01, ge=0, description="AdamW's weight decay.")
    folds: Count = Field(4, ge=2, description="Folds of the cross-validation in the support set.")


class Prune(Section):
    """Task-aware layer-wise pruning."""

    method: Annotated[str, OneOf(pruners.METHODS)] = Field(
        "sweep",
        description="How a layer is solved; sweep: the column sweep with error feedback, in "
        "SparseGPT's form. The others are baselines (docs/methods.md).",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of zeros in the prunable weights, 0 to below 1; left out: what "
        "target.nonzero_ratio asks for, else what the pattern says, else 0.5.",
    )
    pattern: str = Field(
        "unstructured",
        description="unstructured, or N:M to keep N of every M consecutive weights, such as 2:4.",
    )
    allocation: Annotated[str, OneOf(allocators.METHODS)] = Field(
        "uniform",
        description="How many of the zeros each layer takes; uniform: the same share everywhere; "
        "evolutionary: searched by what the whole model loses, which takes minutes.",
    )
    generations: Count = Field(
        40, ge=0, description="Generations of the evolutionary allocation's search."
    )
    offspring: Count = Field(16, ge=1, description="Candidates a generation of that search.")
    calibration: Literal["task", "generic"] = Field(
        "task", description="Inputs that the layers are solved for: the task's own, or other ones."
    )
    samples: Count = Field(512, ge=1, description="Most examples used for calibration.")
    rows_per_column: Amount | None = Field(
        8.0, gt=0, description="Inputs a layer's Hessian sees for each of its columns; null: all."
    )
    compensation: Annotated[str, OneOf(compensations.METHODS)] = Field(
        "none",
        description="What is put beside a pruned layer to make good what it lost, before any "
        "training; eora: a dense layer of low rank, which costs weights and time.",
    )
    compensation_rank: Count = Field(
        16, ge=1, description="Rank of that layer; where it would not save a weight there is none."
    )
    keep_dense: list[str] = Field(
        default_factory=lambda: ["stem"],
        description="Layers to leave dense: 'stem' for the first, or parts of module names.",
    )
    rel_damp: Amount = Field(
        0.01, gt=0, description="Damping of each Hessian, as a share of its mean diagonal."
    )

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, value: str) -> str:
        if value == "unstructured":
            return value
        match = re.fullmatch(r"(\d+):(\d+)", value)
        if not match or not 0 < int(match[1]) < int(match[2]):
            raise ValueError("must be 'unstructured' or N:M with 0 < N < M, such as 2:4")
        return value

    @field_validator("allocation")
    @classmethod
    def _a_pattern_shares_evenly(cls, value: str, given: ValidationInfo) -> str:
        pattern = given.data.get("pattern", "unstructured")
        if pattern != "unstructured" and value != "uniform":
            raise ValueError(f"must be uniform: pattern {pattern} fixes every layer's share")
        return value


class Shrink(Section):
    """Structured shrinking: heads, neurons, channels, blocks and vocabulary rows go for good.

    It happens where `target` has a speedup, a latency_ms or a bytes budget.
    """

    kinds: list[Kind] = Field(
        default_factory=lambda: list(KINDS),
        description="What may be taken away: heads, neurons, channels, blocks, vocabulary; an "
        "empty list takes nothing.",
    )
    rungs: int = Field(
        2, ge=1, le=20, description="Steps on the way to the budget, each with its recovery."
    )
    path: list[float] | None = Field(
        None,
        min_length=1,
        max_length=50,
        description="Speeds over the generalist to pass one after the other, rising, instead of "
        "equal steps to the budgets; the last one is where it ends.",
    )
    steps: Count | None = Field(
        None, ge=0, description="Distillation steps a rung; left out: three times distill.steps."
    )
    plan_format: Literal["int8", "int4", "none"] | None = Field(
        None,
        description="Format whose latencies decide about the sizes; left out: quantize.format.",
    )
    search: Literal["evolutionary", "dynamic"] = Field(
        "evolutionary",
        description="How the sizes are chosen: dynamic for the best sum of layer errors alone, "
        "evolutionary to refine that by swaps judged on the whole model.",
    )
    score: Annotated[str, OneOf(scores.METHODS)] = Field(
        "obs",
        description="Which heads, neurons and channels leave a layer; obs: those whose work the "
        "others take up best. The others are baselines (docs/methods.md).",
    )
    update: Literal["obs", "none"] = Field(
        "obs",
        description="What becomes of the weights that stay; obs: they are solved anew to take up "
        "the work of what left; none: they stay as they are until the recovery.",
    )
    generations: Count = Field(20, ge=0, description="Generations of the evolutionary search.")
    offspring: Count = Field(16, ge=1, description="Candidates a generation of the search.")
    margin: float = Field(
        0.05, ge=0, lt=0.5, description="Share of the time budget to stay below when predicting."
    )
    multiple: Count = Field(
        16, ge=1, description="Numbers of neurons and channels are multiples of this."
    )
    vocabulary_extra: Count = Field(
        8000,
        ge=0,
        description="Vocabulary rows to keep beyond those that the task's texts and the "
        "tokenizer's fallback use, in vocabulary order (roughly by frequency); they go only where "
        "target.bytes is asked for. Text only.",
    )
    profile: str | None = Field(
        None,
        description="Latencies to plan with, a file that `winnow profile RECIPE --out FILE` wrote "
        "on the machine that serves; left out: they are measured here.",
    )
    # for the flow, not for people: hidden from forms
    step: SkipJsonSchema[Count | None] = Field(
        None, ge=1, description="Which rung of shrink.rungs a stage climbs; the flow sets it."
    )

    @field_validator("path")
    @classmethod
    def _path_rises(cls, value: list[float] | None) -> list[float] | None:
        return None if value is None else rising_speeds(value)

    @field_validator("kinds")
    @classmethod
    def _each_kind_once(cls, value: list[Kind]) -> list[Kind]:
        return [kind for kind in KINDS if kind in value]  # one order: one cache key


class Distill(Section):
    """Gradual pruning with recovery: rungs of {prune, distil from the teacher, masks held}."""

    schedule: Annotated[str, OneOf(schedules.METHODS)] = Field(
        "halving",
        description="Sparsities on the way; halving: half of what remains each time; one_shot: "
        "the target at once; cubic: distill.rung_count of them, the first steps the largest.",
    )
    rungs: list[float] | None = Field(
        None, description="Sparsities on the way, rising; left out: what distill.schedule says."
    )
    rung_count: int = Field(
        4, ge=1, le=50, description="How many sparsities the cubic schedule passes."
    )
    steps: Count = Field(
        60,
        ge=0,
        description="Distillation steps of a half-dense model; a rung takes them in proportion to "
        "1/density (75 %: twice as many, 90 %: five times). 0 for none.",
    )
    density_scaled: bool = Field(
        True, description="Whether steps grow with 1/density; false: every rung takes as many."
    )
    total_steps: Count | None = Field(
        None,
        ge=0,
        description="Distillation steps of all rungs together, in the same proportion, instead of "
        "distill.steps: schedules are then comparable.",
    )
    trained: Annotated[str, OneOf(ways.METHODS)] = Field(
        "full",
        description="Which parameters are trained, the zeros held; full: all but embedding "
        "tables. The others are for comparison (docs/methods.md).",
    )
    rank: Count = Field(16, ge=1, description="Rank of the change that low_rank trains.")
    batch_size: Count = Field(64, ge=2, description="Examples a distillation step.")
    labelled_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of a batch drawn from the shots, where there is a pool.",
    )
    lr: Amount | None = Field(
        None,
        gt=0,
        description="Peak learning rate of a rung; left out: 5e-4 image, 2e-4 text, times what "
        "distill.trained needs.",
    )
    weight_decay: Amount = Field(0.0, ge=0, description="AdamW's weight decay.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps until the peak.")
    temperature: Amount = Field(2.0, gt=0, description="Temperature of the KL term on the logits.")
    ce: Amount = Field(0.1, ge=0, description="Weight of cross-entropy on the shots' labels.")
    kl: Amount = Field(
        1.0, ge=0, description="Weight of the KL divergence to the teacher's logits."
    )
    square_head: Amount = Field(
        5.0, ge=0, description="Weight of SquareHead, the normalised error of each block's output."
    )
    ema_decay: float = Field(0.98, ge=0, lt=1, description="Decay of the averaged weights.")
    check_every: Count = Field(
        25, ge=1, description="Steps between two looks at held-out examples."
    )


# what recovery itself reads of the section: a rung's own steps are resolved before
_OF_THE_LADDER = ("schedule", "rungs", "rung_count", "density_scaled", "total_steps")
RECOVERY = tuple(f"distill.{name}" for name in Distill.model_fields if name not in _OF_THE_LADDER)
