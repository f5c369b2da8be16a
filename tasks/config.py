"""The recipe: every knob with its default and its description, in one place.

Prefect's form and every error message are built from these descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from compression.schedule import halving_rungs


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), serialize_by_alias=True
    )


class Generalist(Section):
    """The big pretrained model to start from."""

    source: str = Field(
        description="Where the model comes from: timm:NAME, timm:local-dir:DIR, hf:NAME, hf:DIR, "
        "or hf:package:MODULE/FOLDER for a folder inside an installed Python package."
    )
    max_length: int = Field(
        128, ge=4, le=8192, description="Longest text in tokens; longer ones are cut. Text only."
    )


class Task(Section):
    """The task's classes and its data."""

    train: str = Field(
        description="Labelled examples that the shots are drawn from: an image folder "
        "(CLASS/*.jpg), a .parquet, .csv or .jsonl file, a hub data set NAME[@CONFIG][:SPLIT], "
        "or sklearn:digits (scikit-learn's 8x8 digits; of each class every second image is "
        "train, the others are test)."
    )
    test: str = Field(description="Labelled examples for the verdict; the same forms as train.")
    classes: list[str] = Field(
        default_factory=list, description="The task's class names; empty means all in train."
    )
    shots: int = Field(16, ge=1, description="Labelled examples a class that may be learnt from.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the draw of the shots and of training."
    )
    unlabelled: str | None = Field(
        None,
        description="Examples without labels for calibration and distillation: 'rest' for train's "
        "remaining rows of the task's classes (their labels are not read), or a source like train.",
    )
    generic: str | None = Field(
        None,
        description="Inputs that are not of the task, for prune.calibration: generic. Left out: "
        "train's rows of other classes.",
    )
    image_column: str | None = Field(None, description="Name of the image column; else inferred.")
    text_column: str | None = Field(None, description="Name of the text column; else inferred.")
    label_column: str | None = Field(None, description="Name of the label column; else inferred.")
    allow_leaks: bool = Field(
        False, description="Go on although examples of the support set are also in the test set."
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_may_be_numbers(cls, value: Any) -> Any:
        plain = isinstance(value, list)
        return [str(x) if isinstance(x, int) else x for x in value] if plain else value


class Target(Section):
    """Budgets that must hold for a pass; any number of them."""

    speedup: float | None = Field(
        None, gt=0, description="Least ratio of the generalist's latency to the specialist's."
    )
    latency_ms: float | None = Field(
        None, gt=0, description="Largest median latency of the specialist, in milliseconds."
    )
    bytes: int | None = Field(None, gt=0, description="Largest size of specialist.onnx in bytes.")
    nonzero_ratio: float | None = Field(
        None,
        ge=1,
        description="Least ratio of the generalist's nonzero prunable weights to the specialist's; "
        "sets prune.sparsity where that is left out.",
    )


class Teacher(Section):
    """How the generalist is adapted to the task, dense."""

    steps: int = Field(60, ge=0, description="Fine-tuning steps; 0 trains the head alone.")
    batch_size: int = Field(32, ge=2, description="Examples a fine-tuning step.")
    lr: float | None = Field(
        None, gt=0, description="Peak learning rate of the body; left out: 1e-5 image, 1e-4 text."
    )
    head_lr: float = Field(1e-3, gt=0, description="Peak learning rate of the head.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    folds: int = Field(4, ge=2, description="Folds of the cross-validation in the support set.")

    def settings(self, modality: str) -> dict[str, Any]:
        """Values for `models.teacher.TeacherSettings`, by modality where left out."""
        usual = {"image": 1e-5, "text": 1e-4}[modality]
        return {**self.model_dump(), "lr": self.lr or usual}


class Prune(Section):
    """Task-aware layer-wise pruning."""

    method: Literal["sweep"] = Field(
        "sweep", description="sweep: the column sweep with error feedback (SparseGPT's form)."
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
    samples: int = Field(512, ge=1, description="Most examples used for calibration.")
    rows_per_column: float | None = Field(
        8.0, gt=0, description="Inputs a layer's Hessian sees for each of its columns; null: all."
    )
    keep_dense: list[str] = Field(
        default_factory=lambda: ["stem"],
        description="Layers to leave dense: 'stem' for the first, or parts of module names.",
    )
    rel_damp: float = Field(
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


class Distill(Section):
    """Gradual pruning with recovery: rungs of {prune, distil from the teacher, masks held}."""

    rungs: list[float] | None = Field(
        None, description="Sparsities on the way, rising; left out: half of what remains each time."
    )
    steps: int = Field(
        60,
        ge=0,
        description="Distillation steps of a half-dense model; a rung takes them in proportion to "
        "1/density (75 %: twice as many, 90 %: five times). 0 for none.",
    )
    batch_size: int = Field(64, ge=2, description="Examples a distillation step.")
    labelled_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of a batch drawn from the shots, where there is a pool.",
    )
    lr: float | None = Field(
        None, gt=0, description="Peak learning rate of a rung; left out: 5e-4 image, 2e-4 text."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps until the peak.")
    temperature: float = Field(2.0, gt=0, description="Temperature of the KL term on the logits.")
    ce: float = Field(0.1, ge=0, description="Weight of cross-entropy on the shots' labels.")
    kl: float = Field(1.0, ge=0, description="Weight of the KL divergence to the teacher's logits.")
    square_head: float = Field(
        5.0, ge=0, description="Weight of SquareHead, the normalised error of each block's output."
    )
    ema_decay: float = Field(0.98, ge=0, lt=1, description="Decay of the averaged weights.")
    check_every: int = Field(25, ge=1, description="Steps between two looks at held-out examples.")

    def learning_rate(self, modality: str) -> float:
        """The peak learning rate, by modality where left out."""
        return self.lr or {"image": 5e-4, "text": 2e-4}[modality]


class Quantize(Section):
    """Low-precision weights and activations."""

    format: Literal["int8", "none"] = Field(
        "int8", description="int8: 8-bit weights and activations (QDQ); none: keep float32."
    )
    embeddings: Literal["none", "int8", "int4"] = Field(
        "none", description="Precision of embedding tables, which only cost bytes. Text only."
    )
    activation_rule: Literal["minmax", "mse", "percentile"] = Field(
        "mse", description="How an activation's range is chosen from its calibration histogram."
    )
    residual: Literal["float", "int8"] = Field(
        "float", description="Arithmetic of residual additions; int8 is faster on ResNets."
    )


class Verify(Section):
    """What counts as a pass, and how it is measured."""

    max_drop: float = Field(
        0.01, gt=0, lt=1, description="Largest accepted drop in accuracy, teacher to specialist."
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence of every interval in the report."
    )
    repeats: int = Field(100, ge=5, description="Timed runs of each model, interleaved.")
    threads: int = Field(1, ge=1, description="Threads of the runtime while timing.")
    batch: int = Field(1, ge=1, description="Examples a timed run.")
    parity_max_abs: float = Field(
        1e-2, gt=0, description="Largest accepted difference of logits from torch to ONNX FP32."
    )
    parity_agreement: float = Field(
        0.8, ge=0, le=1, description="Least accepted label agreement across each hop to INT8."
    )

    def too_small(self, n: int, needed: int) -> str:
        """What a person is told when no specialist could pass on a test set of this size."""
        return (
            f"the test set's {n} examples are too few to pass at max_drop {self.max_drop:g} even "
            f"with a drop of zero: {needed} are needed, or a larger verify.max_drop"
        )


class Augment(Section):
    """Random changes to training images."""

    flip: bool = Field(True, description="Mirror half of the images; false for digits and text.")
    crop_scale: tuple[float, float] = Field(
        (0.35, 1.0), description="Smallest and largest share of the area that a crop keeps."
    )
    rotate_degrees: float = Field(10.0, ge=0, le=180, description="Largest rotation either way.")
    colour: float = Field(
        0.3, ge=0, le=1, description="Strength of brightness, contrast and saturation changes."
    )
    erase_probability: float = Field(
        0.1, ge=0, le=1, description="Share of the images that lose a random rectangle."
    )

    @field_validator("crop_scale")
    @classmethod
    def _crop_is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two shares in rising order, above 0 and at most 1")
        return value


class Track(Section):
    """Where the run is recorded."""

    experiment: str = Field("winnow", min_length=1, description="MLflow experiment.")
    model_name: str | None = Field(
        None, description="Name in MLflow's registry; left out: the recipe's name."
    )
    # 'register' itself is a method of every pydantic model, so the field has another name here
    register_model: bool = Field(
        True, alias="register", description="Register the specialist as a model version."
    )


class Recipe(Section):
    """Everything that one specialization needs to know."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the run's folder and of the registered model: letters, digits, . _ -",
    )
    generalist: Generalist = Field(description="The big pretrained model to start from.")
    task: Task = Field(description="The task's classes and its data.")
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
    track: Track = Field(default=Track.model_validate({}), description="Where the run is recorded.")
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
        if ratio is not None and ratio * (1 - self.sparsity) > 1 + 1e-9:
            raise ValueError(
                f"target.nonzero_ratio: {ratio:g} cannot be reached with prune.sparsity "
                f"{self.sparsity:g}; leave prune.sparsity out or set {1 - 1 / ratio:.4g} or more"
            )
        rungs = self.distill.rungs
        if rungs is not None and (
            not rungs or sorted(set(rungs)) != rungs or rungs[0] < 0 or rungs[-1] != self.sparsity
        ):
            raise ValueError(
                f"distill.rungs: {rungs} must rise and end at prune.sparsity ({self.sparsity:g})"
            )
        return self

    @property
    def sparsity(self) -> float:
        """The share of zeros: given, else from the pattern, else from the target, else 0.5."""
        if self.prune.sparsity is not None:
            return self.prune.sparsity
        if self.prune.pattern != "unstructured":
            kept, group = map(int, self.prune.pattern.split(":"))
            return 1 - kept / group
        ratio = self.target.nonzero_ratio
        return 1 - 1 / ratio if ratio is not None else 0.5

    @property
    def rungs(self) -> tuple[float, ...]:
        """Sparsities that the ladder passes; empty where nothing is pruned."""
        if self.distill.rungs is not None:
            return tuple(self.distill.rungs)
        if self.prune.pattern != "unstructured" or self.sparsity == 0:
            return (self.sparsity,) if self.sparsity else ()
        return halving_rungs(self.sparsity)

    def at_rung(self, sparsity: float) -> Recipe:
        """The recipe of one rung: what its stage reads does not depend on the rungs above."""
        prune = self.prune.model_copy(update={"sparsity": sparsity})
        distill = self.distill.model_copy(update={"rungs": None})
        return self.model_copy(update={"prune": prune, "distill": distill})

    @property
    def model_name(self) -> str:
        """The name in MLflow's registry."""
        return self.track.model_name or self.name

    def values(self, paths: Iterable[str]) -> dict[str, Any]:
        """The JSON values at dotted `paths`, such as 'prune' or 'task.seed': what a stage reads."""
        plain = self.model_dump(mode="json")
        picked: dict[str, Any] = {}
        for path in paths:
            if path == "sparsity":  # not written, but what the written values amount to
                picked[path] = self.sparsity
                continue
            value: Any = plain
            for key in path.split("."):
                value = value[key]
            picked[path] = value
        return picked
