"""Sections of a recipe that say in which numbers a specialist is stored and computed with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from compression import bit_widths, compensations, rounders, smoothing
from tasks.section import Amount, Count, OneOf, Section


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
    smooth: Annotated[str, OneOf(smoothing.METHODS)] = Field(
        "none",
        description="How outliers of activations are moved from norms into the weights that read "
        "them, before rounding, free at run time: none, smoothquant or repq.",
    )
    compensation: Annotated[str, OneOf(compensations.METHODS)] = Field(
        "none",
        description="What is put beside a rounded layer to make good what rounding took; eora: a "
        "layer of low rank, rounded as well, which costs weights and time.",
    )
    compensation_rank: Count = Field(
        16,
        ge=1,
        description="Rank of that layer; where it would not save a weight there is none. With "
        "int4 a rank takes the bytes of the next multiple of 16.",
    )
    mean_bits: float | None = Field(
        None,
        ge=2,
        le=8,
        description="Most bits a weight in the mean over the layers, with format int4, where a "
        "layer takes 2, 4 or 8; what quantize.compensation adds is not counted; left out: 4.",
    )
    bits: Annotated[str, OneOf(bit_widths.METHODS)] = Field(
        "uniform",
        description="Which layers get more bits, with format int4; uniform: all the same; baq: in "
        "closed form from layer losses; integer: by what each layer's rounding costs the model.",
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

    @field_validator("mean_bits", "bits")
    @classmethod
    def _widths_are_for_weights_alone(cls, value: Any, given: ValidationInfo) -> Any:
        told = value not in (None, "uniform")
        if told and given.data.get("format", "int4") != "int4":
            raise ValueError("needs quantize.format int4: the other formats have one width")
        return value
