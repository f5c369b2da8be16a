"""Which scales move an activation's outliers into the weights that read it.

A method is a module with

    rescale(low: Tensor, high: Tensor, weights: Sequence[Tensor]) -> Rescaling | None

`low` and `high` (C,) are the extremes of every channel of a norm's output over the calibration
inputs, `weights` (R, C) those of all layers that read it. The norm's output then becomes
(x - shift) / scale and the weights W * scale, which changes nothing but where the numbers are
large (see compression.smooth); None leaves the norm as it is.
"""

from compression.registry import Registry

METHODS = Registry(
    "quantize.smooth",
    "rescale",
    {
        "none": "compression.smoothing.none",
        "smoothquant": "compression.smoothing.smoothquant",
        "repq": "compression.smoothing.repq",
    },
)
