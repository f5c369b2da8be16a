"""Which parameters recovery trains, and how the zeros stay zero meanwhile.

A method is a module with

    choose(student: nn.Module, kept: Mapping[str, Tensor], *, rank: int, seed: int) -> Trainable

`kept` holds the masks of the pruned layers by name. What is chosen requires gradients afterwards,
all else does not; `compression.trainable.Trainable` tells recovery what to do after every step,
and at the end, when the student must have its plain layers back, with the zeros of `kept`. `rank`
is for methods that factorise; `seed` for those that draw.
"""

from compression.registry import Registry

METHODS = Registry(
    "distill.trained",
    "choose",
    {
        "full": "compression.trained.full",
        "norms": "compression.trained.norms",
        "low_rank": "compression.trained.low_rank",
        "none": "compression.trained.none",
    },
)
