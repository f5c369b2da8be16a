"""A family of specialists: one ladder of structures, every format of each, all of them compared.

The ladder is climbed one structure after another. What a structure is exported as, and how far that
is from the teacher, is nobody's concern further up: with workers it is made beside the next climb.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flows.chain import Begun, export_dense, prune_to, shrink_to, take_rest
from flows.runners import Engine, Handle, Here
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.export import export
from tasks.held_out import held_out
from tasks.members import plain_lines
from tasks.points import between, laddered, points, stored_as, unshrunk
from tasks.profile import profile, say_where_it_is_from, speeds_of
from tasks.progress import Reporter, watch, watching
from tasks.quantize import quantize
from tasks.sections import Form
from tasks.smooth import smoothed
from tasks.stage import Finished, record, recording
from tasks.sweep import compare, wanted_between
from tasks.teach import teach
from tasks.worker_hosts import Sender, as_sent

_APART = 1.05  # speeds nearer than this ratio are one


@dataclass(frozen=True)
class Exported:
    """One point: its graph, how far that is from the teacher, and the stages that made both."""

    graph: Artifact
    held_out: Artifact
    stages: list[Finished]


def export_point(
    recipe: Recipe,
    data: Artifact,
    teacher_graph: Artifact,
    student: Artifact,
    form: Form,
    name: str,
    told: Sender | None,
    beside: bool,
) -> Exported:
    """One structure in one format as a graph, and its distance from the teacher.

    Args:
        told: what is to be known of the host that sends it, where that may be another.
        beside: whether other points are made at the same time.
    """
    follow = Reporter(plain_lines()) if beside else watching()
    with as_sent(told, name), watch(follow), recording() as stages:
        stored, model = stored_as(recipe, form), student
        if form != "float32" or recipe.quantize.embeddings != "none":
            served = smoothed(stored, data, student, title=f"smooth {name}")
            model = quantize(stored, data, served, title=f"quantize {name}")
        graph = export(stored, data, model, title=f"export {name}")
        held = held_out(recipe, data, teacher_graph, graph, title=f"hold out {name}")
    return Exported(graph, held, stages)


@dataclass
class Family:
    """What is known so far, and what the next member starts from.

    Attributes:
        teacher_graph: the teacher's FP32 export.
        where: what makes the points.
        told: what workers elsewhere are told of this host.
        students: by speed.
        ways: by speed, the speeds that were passed on the way to it, itself the last.
        begun: by point, its task.
        exported: by point, once it was asked for.
    """

    recipe: Recipe
    data: Artifact
    teacher: Artifact
    teacher_graph: Artifact
    where: Engine
    told: Sender | None = None
    profiled: Artifact | None = None
    students: dict[float, Artifact] = field(default_factory=dict)
    ways: dict[float, list[float]] = field(default_factory=dict)
    begun: dict[str, Handle] = field(default_factory=dict)
    exported: dict[str, Exported] = field(default_factory=dict)

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
        """One structure as a graph in every format of the sweep: begun, where there are workers."""
        for form in self.recipe.sweep.formats:
            title = f"{name}-{form}"
            self.begun[title] = self.where.submit(
                export_point,
                title,
                recipe=self.recipe,
                data=self.data,
                teacher_graph=self.teacher_graph,
                student=student,
                form=form,
                name=title,
                told=self.told,
                beside=self.where.beside,
            )
            if not self.where.beside:
                self.point(title)  # what is wrong with it is to be known now

    def point(self, name: str) -> Exported:
        """A point, once it is made."""
        if name not in self.exported:
            found: Exported = self.begun[name].result()
            if self.where.beside:
                record(found.stages)
            self.exported[name] = found
        return self.exported[name]

    def refine(self) -> None:
        """Add structures where held-out agreement falls through what the verdict allows."""
        form, agreement = self.recipe.sweep.formats[-1], dict[float, float]()
        while True:
            for speed in self.students:
                if speed not in agreement:
                    found = self.point(f"{speed:g}x-{form}")
                    agreement[speed] = found.held_out.metrics["agreement"]
            if not 2 <= len(agreement) < self.recipe.sweep.structures:
                return
            low, high = wanted_between(sorted(agreement.items()), self.recipe.verify.max_drop)
            speed = between(low, high)
            if not low * _APART < speed < high / _APART:
                return
            self.climb(speed)


def make_family(
    recipe: Recipe, begun: Begun, where: Engine | None = None, told: Sender | None = None
) -> tuple[Family, Artifact]:
    """Make every point of the recipe's sweep; returns the family, and how its members compare.

    Args:
        where: what makes the points; left out, this process.
        told: what workers elsewhere are told of this host.
    """
    data, generalist = begun.data, begun.generalist
    teacher = teach(recipe, data, generalist)
    asked = recipe.sweep.speedups
    plan = laddered(recipe, asked or []).planned()
    dense = export_dense(plan, data, generalist, teacher)
    family = Family(recipe, data, teacher, dense[1], where or Here(), told)
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
    made: list[Artifact] = []
    for each in points(recipe, sorted(family.students)):
        found = family.point(each.name)
        made += [found.graph, found.held_out]
    whole = laddered(recipe, sorted(family.students))
    return family, compare(whole, data, begun.leaked, generalist, *dense[:2], *made)


def say_what_is_out_of_reach(asked: list[float], found: list[float]) -> None:
    """Tell which speeds the smallest sizes do not reach."""
    gone = ", ".join(f"{speed:g}x" for speed in asked if speed not in found)
    if gone:
        watching().say(f"! no size reaches {gone}: left out of the sweep", "yellow")
