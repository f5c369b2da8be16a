"""Sections of a recipe that say how it is done: teaching, shrinking, pruning, quantizing."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from compression import pruners, rounders
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
    calibration: Literal["task", "generic"] = Field(
        "task", description="Inputs that the layers are solved for: the task's own, or other ones."
    )
    samples: Count = Field(512, ge=1, description="Most examples used for calibration.")
    rows_per_column: Amount | None = Field(
        8.0, gt=0, description="Inputs a layer's Hessian sees for each of its columns; null: all."
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

    rungs: list[float] | None = Field(
        None, description="Sparsities on the way, rising; left out: half of what remains each time."
    )
    steps: Count = Field(
        60,
        ge=0,
        description="Distillation steps of a half-dense model; a rung takes them in proportion to "
        "1/density (75 %: twice as many, 90 %: five times). 0 for none.",
    )
    batch_size: Count = Field(64, ge=2, description="Examples a distillation step.")
    labelled_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of a batch drawn from the shots, where there is a pool.",
    )
    lr: Amount | None = Field(
        None, gt=0, description="Peak learning rate of a rung; left out: 5e-4 image, 2e-4 text."
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


class KeepFloat(Section):
    """Which layers stay float in an INT8 graph: found on the shots, none where the graph holds."""

    max_kl: Amount = Field(
        0.1,
        gt=0,
        description="Largest accepted mean KL divergence, in nats, from the float graph's answers "
        "to the INT8 graph's on the calibration examples.",
    )
    min_agreement: float = Field(0.95, ge=0, le=1, description="Least share of equal labels there.")
    max_share: float = Field(
        0.2, ge=0, lt=1, description="Largest share of the layers that may stay float."
    )
    samples: Count = Field(
        64, ge=0, description="Most examples the search looks at; 0: every layer becomes INT8."
    )


class Quantize(Section):
    """Low-precision weights and activations."""

    format: Literal["int8", "int4", "none"] = Field(
        "int8",
        description="int8: 8-bit weights and activations; int4: 4-bit weights of Linear layers "
        "alone, for bytes; none: keep float32.",
    )
    route: Literal["auto", "static", "fused", "dynamic"] = Field(
        "auto",
        description="Form of the INT8 graph: static (QDQ), fused (products with bias and scales "
        "in one operator), dynamic (activation ranges at run time); auto: the fastest here.",
    )
    activation: Literal["auto", "uint8", "int8"] = Field(
        "auto", description="Type of INT8 activations; auto: the faster one here."
    )
    method: Annotated[str, OneOf(rounders.METHODS)] = Field(
        "gptq",
        description="How weights are brought onto their grid; gptq: the column sweep with "
        "rounding. The others are baselines (docs/methods.md).",
    )
    keep_float: KeepFloat = Field(
        default=KeepFloat.model_validate({}),
        description="When layers are left float because INT8 would hurt.",
    )
    calibration_report: Count = Field(
        64,
        ge=0,
        description="Most calibration examples up to which the report tells how the INT8 graph "
        "moves with their number (8, 16, 32, ...); 0: no such report.",
    )
    embeddings: Literal["none", "int8", "int4"] = Field(
        "none", description="Precision of embedding tables, which only cost bytes. Text only."
    )
    activation_rule: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="How an activation's range is chosen from its calibration histogram."
    )
    residual: Literal["float", "int8"] = Field(
        "int8", description="Arithmetic of residual additions; int8 is faster on ResNets."
    )
