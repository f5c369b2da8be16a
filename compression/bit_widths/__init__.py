"""How many bits each layer's weights are stored with, of an asked mean.

A method is a module with

    assign(request: WidthRequest) -> dict[str, int]

from layer to one of the widths that the runtime serves (see `compression.widths`). The request
knows sizes, widths and the mean, and offers, computed when first asked for, each layer's loss at
every width and the divergence that each causes by itself.
"""

from compression.registry import Registry

METHODS = Registry(
    "quantize.bits",
    "assign",
    {
        "uniform": "compression.bit_widths.uniform",
        "baq": "compression.bit_widths.baq",
        "integer": "compression.bit_widths.integer",
    },
)
