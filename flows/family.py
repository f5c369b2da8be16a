"""A family of specialists: one ladder of structures, every format of each, all of them compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from flows.chain import Begun, export_dense, prune_to, shrink_to, take_rest
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.export import export
from tasks.held_out import held_out
from tasks.points import between, laddered, points, stored_as, unshrunk
from tasks.profile import profile, say_where_it_is_from, speeds_of
from tasks.progress import watching
from tasks.quantize import quantize
from tasks.sweep import compare, wanted_between
from tasks.teach import teach

_APART = 1.05  # speeds nearer than this ratio are one


@dataclass
class Family:
    """What is known so far, and what the next member starts from.

    Attributes:
        teacher_graph: the teacher's FP32 export.
        students: by speed.
        ways: by speed, the speeds that were passed on the way to it, itself the last.
        graphs: by point, its export.
    """

    recipe: Recipe
    data: Artifact
    teacher: Artifact
    teacher_graph: Artifact
    profiled: Artifact | None = None
    students: dict[float, Artifact] = field(default_factory=dict)
    ways: dict[float, list[float]] = field(default_factory=dict)
    graphs: dict[str, Artifact] = field(default_factory=dict)

    def climb(self, speed: float) -> None:
        """Shrink to a speed from the nearest slower student, and export it."""
        below = max((known for known in self.students if known < speed), default=None)
        start = self.teacher if below is None else self.students[below]
        way = [*([] if below is None else self.ways[below]), speed]
        plan = laddered(self.recipe, way).planned()
        assert self.profiled is not None
        student = shrink_to(plan, len(way), self.data, self.teacher, start, self.profiled)
        self.students[speed], self.ways[speed] = student, way
        self.export(take_rest(plan, self.data, self.teacher, student), f"{speed:g}x")

    def export(self, student: Artifact, name: str) -> None:
        """One structure as a graph in every format of the sweep."""
        for form in self.recipe.sweep.formats:
            stored, model, title = stored_as(self.recipe, form), student, f"{name}-{form}"
            if form != "float32" or self.recipe.quantize.embeddings != "none":
                model = quantize(stored, self.data, student, title=f"quantize {title}")
            self.graphs[title] = export(stored, self.data, model, title=f"export {title}")

    def held_out(self, name: str) -> Artifact:
        """How far a point is from the teacher on held-out examples."""
        title = f"hold out {name}"
        return held_out(self.recipe, self.data, self.teacher_graph, self.graphs[name], title=title)

    def refine(self) -> None:
        """Add structures where held-out agreement falls through what the verdict allows."""
        form, agreement = self.recipe.sweep.formats[-1], dict[float, float]()
        while True:
            for speed in self.students:
                if speed not in agreement:
                    found = self.held_out(f"{speed:g}x-{form}")
                    agreement[speed] = found.metrics["agreement"]
            if not 2 <= len(agreement) < self.recipe.sweep.structures:
                return
            low, high = wanted_between(sorted(agreement.items()), self.recipe.verify.max_drop)
            speed = between(low, high)
            if not low * _APART < speed < high / _APART:
                return
            self.climb(speed)


def make_family(recipe: Recipe, begun: Begun) -> tuple[Family, Artifact]:
    """Make every point of the recipe's sweep; returns the family, and how its members compare."""
    data, generalist = begun.data, begun.generalist
    teacher = teach(recipe, data, generalist)
    asked = recipe.sweep.speedups
    plan = laddered(recipe, asked or []).planned()
    dense = export_dense(plan, data, generalist, teacher)
    family = Family(recipe, data, teacher, dense[1])
    if asked != []:
        family.profiled = profile(plan, data, teacher, *dense)
        say_where_it_is_from(family.profiled)
        speeds = speeds_of(plan, family.profiled)
        say_what_is_out_of_reach(asked or [], speeds)
        for speed in speeds:
            family.climb(speed)
    if recipe.sweep.search == "adaptive":
        family.refine()
    student, zeros = teacher, unshrunk(recipe)
    for share in recipe.sweep.sparsities:
        student = prune_to(zeros, share, data, teacher, student)
        family.export(student, f"{100 * share:g}%")
    told: list[Artifact] = []
    for point in points(recipe, sorted(family.students)):
        told += [family.graphs[point.name], family.held_out(point.name)]
    whole = laddered(recipe, sorted(family.students))
    return family, compare(whole, data, begun.leaked, generalist, *dense[:2], *told)


def say_what_is_out_of_reach(asked: list[float], found: list[float]) -> None:
    """Tell which speeds the smallest sizes do not reach."""
    gone = ", ".join(f"{speed:g}x" for speed in asked if speed not in found)
    if gone:
        watching().say(f"! no size reaches {gone}: left out of the sweep", "yellow")
