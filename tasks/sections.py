"""Sections of a recipe that say what is wanted: the model, the task, the budgets, the verdict."""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from tasks.section import Amount, Count, Section, rising_speeds

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a folder, an address and a query alike


class Generalist(Section):
    """The big pretrained model to start from."""

    source: str = Field(
        description="Where the model comes from: timm:NAME, timm:local-dir:DIR, hf:NAME, hf:DIR, "
        "or hf:package:MODULE/FOLDER for a folder inside an installed Python package."
    )
    max_length: int = Field(
        128, ge=4, le=8192, description="Longest text in tokens; longer ones are cut. Text only."
    )
    allow_pickle: bool = Field(
        False,
        description="Also read weights that lie in a pickle (.bin, .pth), with PyTorch's reader "
        "for weights alone. A pickle can carry code: only from whom you trust.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that a hf: checkpoint brings along. It can do whatever you "
        "can: only from whom you trust.",
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
    shots: Count = Field(16, ge=1, description="Labelled examples a class that may be learnt from.")
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
    allow_outside_files: bool = Field(
        False,
        description="Let table cells and links name image files outside the folder that they are "
        "in. Such files end in the run's record: only with data from whom you trust.",
    )
    image_column: str | None = Field(None, description="Name of the image column; else inferred.")
    text_column: str | None = Field(None, description="Name of the text column; else inferred.")
    label_column: str | None = Field(None, description="Name of the label column; else inferred.")
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="Draws of the shots: the run is repeated with seed, seed + 1, ..., their "
        "spread is reported, and the first one's specialist is the one that is served.",
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_may_be_numbers(cls, value: Any) -> Any:
        plain = isinstance(value, list)
        return [str(x) if isinstance(x, int) else x for x in value] if plain else value


class Target(Section):
    """Budgets that must hold for a pass; any number of them.

    With any of speedup, latency_ms and bytes, structure is shrunk (`shrink`) to meet all of them.
    """

    speedup: Amount | None = Field(
        None, gt=0, description="Least ratio of the generalist's latency to the specialist's."
    )
    latency_ms: Amount | None = Field(
        None, gt=0, description="Largest median latency of the specialist, in milliseconds."
    )
    bytes: int | None = Field(
        None, gt=0, le=2**53, description="Largest size of specialist.onnx in bytes."
    )
    nonzero_ratio: Amount | None = Field(
        None,
        ge=1,
        description="Least ratio of the generalist's nonzero prunable weights to the specialist's; "
        "sets prune.sparsity where that is left out and nothing is shrunk.",
    )

    @property
    def shapes(self) -> bool:
        """Whether a budget is asked that only a smaller structure or format can meet."""
        return any(x is not None for x in (self.speedup, self.latency_ms, self.bytes))


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


class Verify(Section):
    """What counts as a pass, and how it is measured."""

    max_drop: float = Field(
        0.01,
        ge=1e-6,  # three million test examples could tell; below, no set could
        lt=1,
        description="Largest accepted drop in accuracy, teacher to specialist.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence of every interval in the report."
    )
    repeats: Count = Field(100, ge=5, description="Timed runs of each model, interleaved.")
    threads: int = Field(1, ge=1, le=1024, description="Threads of the runtime while timing.")
    batch: int = Field(1, ge=1, le=65_536, description="Examples a timed run.")
    tokens: Count | None = Field(
        None,
        ge=4,
        description="Length of the timed texts in tokens; left out: the shots' median. Text only.",
    )
    parity_max_abs: Amount = Field(
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


class Leaks(Section):
    """What happens when examples that were learnt from are also in the test set, or nearly."""

    exact: Literal["stop", "drop", "warn"] = Field(
        "stop",
        description="Support examples that are in the test set: stop the run, drop them from the "
        "test set, or warn and go on.",
    )
    near: Literal["stop", "drop", "warn", "ignore"] = Field(
        "warn",
        description="Nearly the same: images re-encoded, resized or slightly cropped, texts that "
        "differ in punctuation, case or a word's form; ignore: do not look for them.",
    )
    conflicts: Literal["stop", "warn"] = Field(
        "warn", description="The same example under two labels, in the support set or across."
    )


class Limits(Section):
    """What the card tells of inputs that the specialist was not made for."""

    samples: Count = Field(
        256, ge=0, description="Most examples of each kind that are looked at; 0: no such section."
    )
    outside: str | None = Field(
        None,
        description="Inputs outside the task, in the same forms as task.train (labels are not "
        "read). Left out: rows of other classes in task.test, else inputs of another domain that "
        "installed packages carry.",
    )
    threshold: float = Field(
        0.9, gt=0, lt=1, description="Confidence above which an answer counts as sure."
    )
    corruptions: bool = Field(
        True, description="Also measure blur, noise and JPEG (images) or typos (texts)."
    )


class Track(Section):
    """Where the run is recorded."""

    experiment: str = Field(
        "winnow", min_length=1, max_length=250, description="MLflow experiment."
    )
    model_name: str | None = Field(
        None,
        pattern=NAME,
        description="Name in MLflow's registry: letters, digits, . _ -; left out: the recipe's.",
    )
    # 'register' itself is a method of every pydantic model, so the field has another name here
    register_model: bool = Field(
        True, alias="register", description="Register the specialist as a model version."
    )
    promote: Literal["auto", "never"] = Field(
        "auto",
        description="auto: a version that passes and beats the champion on the same test set (or "
        "is as accurate and smaller or faster) becomes the champion; never: `winnow promote` does.",
    )
    equal_within: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Accuracy that a smaller challenger may lose against the champion and still "
        "count as equal, tested with verify.confidence; left out: half of verify.max_drop.",
    )


Form = Literal["float32", "int8", "int4"]


class Sweep(Section):
    """The points of `winnow sweep`: structures of rising speed, each in every format."""

    speedups: list[float] | None = Field(
        None,
        max_length=50,
        description="Speeds over the generalist that structure is shrunk for, rising; each "
        "continues from the one before. Those that no size reaches are left out. Left out "
        "themselves: `structures` speeds in equal ratios, from what the format alone gives to "
        "three times that, as far as sizes reach.",
    )
    sparsities: list[float] = Field(
        default_factory=list,
        max_length=50,
        description="Shares of zeros, rising, to prune single weights to with the structure "
        "whole; each continues from the one before.",
    )
    search: Literal["grid", "adaptive"] = Field(
        "grid",
        description="grid: the speeds as they stand; adaptive: further ones between them, where "
        "held-out agreement with the teacher falls through what verify.max_drop allows; where "
        "`speedups` is left out, half of `structures` are speeds to begin with.",
    )
    structures: int = Field(
        6,
        ge=1,
        le=50,
        description="How many structures there are where `speedups` is left out, and how many an "
        "adaptive search ends with.",
    )
    formats: list[Form] = Field(
        default_factory=lambda: list[Form](("float32", "int8")),
        min_length=1,
        description="Formats that every structure is exported in.",
    )
    steps: Count | None = Field(
        None,
        ge=0,
        description="Distillation steps between two structures; left out: a third of those of a "
        "rung of `shrink`, as its search takes a third of the generations.",
    )

    @field_validator("speedups")
    @classmethod
    def _speeds_rise(cls, value: list[float] | None) -> list[float] | None:
        return None if value is None else rising_speeds(value)

    @field_validator("sparsities")
    @classmethod
    def _shares_rise(cls, value: list[float]) -> list[float]:
        if any(b <= a for a, b in itertools.pairwise([0.0, *value, 1.0])):
            raise ValueError("must be shares in rising order, above 0 and below 1")
        return value

    @field_validator("formats")
    @classmethod
    def _each_format_once(cls, value: list[Form]) -> list[Form]:
        return [name for name in get_args(Form) if name in value]
