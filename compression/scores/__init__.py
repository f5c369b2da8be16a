"""Which heads, neurons and channels leave a unit.

A method is a module with

    scorer(model, segments, calibration, units) -> Score

called once, with the model as it is before anything leaves, and with the units that will lose
groups. What it returns is called as ``score(standing) -> (groups,)`` before every round of
removals; the groups of the lowest scores leave first. How the rest of the layer takes up their
work is another choice (`shrink.update`), so that the two can be compared apart.
"""

from compression.registry import Registry

METHODS = Registry(
    "shrink.score",
    "scorer",
    {
        "obs": "compression.scores.obs",
        "magnitude": "compression.scores.magnitude",
        "activation": "compression.scores.activation",
        "trajectory": "compression.scores.trajectory",
    },
)
