"""What a dense layer of low rank beside a pruned one makes good of its loss, without training.

A method is a module with

    compensate(problem: LayerProblem, error: Tensor, rank: int) -> Factors

`error` (G, R, C) is what the layer should have computed less what its pruned weight computes, as
weights; the answer's ``up @ down`` stands for it, and `compression.compensate.Factors` holds the
shapes. Only layers that carry such factors are asked for (`models.low_rank` puts them there), and
the bias is refitted by the caller.
"""

from compression.registry import Registry

METHODS = Registry(
    "prune.compensation",
    "compensate",
    {
        "none": "compression.compensations.none",
        "eora": "compression.compensations.eora",
    },
)
