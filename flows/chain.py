"""The links that the flows have in common: from the data to one specialist's graphs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import bad_input
from tasks.export import export
from tasks.leaks import leaks, say_what_was_found
from tasks.load import load, require_same_modality
from tasks.prepare import prepare, require_outside, warn_if_too_small
from tasks.profile import profile, say_where_it_is_from
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.shrink import shrink
from tasks.smooth import smoothed
from tasks.teach import teach
from tasks.trim import trim
from tasks.verify import verify


@dataclass(frozen=True)
class Begun:
    """What every run starts from."""

    data: Artifact
    generalist: Artifact
    leaked: Artifact


@dataclass(frozen=True)
class Made:
    """What one specialization ends with."""

    specialist: Artifact
    verified: Artifact


def begin(recipe: Recipe) -> Begun:
    """Draw the shots, load the generalist, look for leaks."""
    data = prepare(recipe)
    warn_if_too_small(recipe, data)
    generalist = load(recipe)
    require_same_modality(recipe, data, generalist)
    require_outside(recipe, data)
    leaked = leaks(recipe, data, generalist)
    say_what_was_found(leaked)
    return Begun(data, generalist, leaked)


def share(recipes: Iterable[Recipe]) -> None:
    """Make once, before any of them begins, what several recipes have in common: the generalist.

    A graph of the generalist is asked for with data, though it depends on none: those of the
    first recipe whose data can be drawn. What a recipe cannot do, it says itself when it begins.
    """
    seen: set[tuple[str, str]] = set()
    for recipe in recipes:
        which = (recipe.generalist.model_dump_json(), str(recipe.prune.keep_dense))
        if which in seen:
            continue
        with suppress(*bad_input()):
            generalist, data = load(recipe), prepare(recipe)
            export(recipe, data, generalist, title="export generalist")
            seen.add(which)


def make(recipe: Recipe, begun: Begun) -> Made:
    """Teach, shrink, prune, quantize, export and verify one specialist."""
    data, generalist = begun.data, begun.generalist
    teacher = teach(recipe, data, generalist)
    dense = export_dense(recipe, data, generalist, teacher)
    smaller: Artifact = teacher
    told: list[Artifact] = []
    if recipe.shrinks:
        smaller, told = shrink_in_steps(recipe, data, generalist, teacher, dense)
    pruned = take_rest(recipe, data, teacher, smaller)
    served = smoothed(recipe, data, pruned, title="smooth specialist")
    specialist = quantize(recipe, data, served, title="quantize specialist")
    graphs = [*dense]
    if recipe.shrinks and recipe.rungs:
        graphs.append(export(recipe, data, smaller, title="export shrunk"))
    graphs.append(export(recipe, data, served, title="export pruned"))
    graphs.append(export(recipe, data, specialist, title="export specialist"))
    told = [begun.leaked, pruned, *told]
    return Made(graphs[-1], verify(recipe, data, generalist, teacher, *graphs, *told))


def take_rest(recipe: Recipe, data: Artifact, teacher: Artifact, smaller: Artifact) -> Artifact:
    """What else goes once the structure is chosen: single weights, then rows of the vocabulary."""
    pruned = smaller
    for rung in recipe.rungs:
        pruned = prune_to(recipe, rung, data, teacher, pruned)
    if recipe.trims and data.metrics["modality"] == "text":
        pruned = trim(recipe, data, pruned)
    return pruned


def export_dense(
    recipe: Recipe, data: Artifact, generalist: Artifact, teacher: Artifact
) -> list[Artifact]:
    """The generalist, the teacher and the quantized teacher as graphs: those of `layout.DENSE`."""
    served = smoothed(recipe, data, teacher, title="smooth teacher")
    quantized = quantize(recipe, data, served, title="quantize teacher")
    return [
        export(recipe, data, generalist, title="export generalist"),
        export(recipe, data, teacher, title="export teacher"),
        export(recipe.unreported(), data, quantized, title="export teacher-int8"),
    ]


def shrink_in_steps(
    recipe: Recipe, data: Artifact, generalist: Artifact, teacher: Artifact, dense: list[Artifact]
) -> tuple[Artifact, list[Artifact]]:
    """Shrink the teacher to the budgets step by step; returns it, and what the report tells of."""
    plan = recipe.planned()
    if plan.quantize.format != recipe.quantize.format:  # sizes are chosen for another format
        dense = export_dense(plan, data, generalist, teacher)
    profiled = profile(plan, data, teacher, *dense)
    say_where_it_is_from(profiled)
    student = teacher
    for step in range(1, recipe.steps + 1):
        student = shrink_to(plan, step, data, teacher, student, profiled)
    return student, [profiled, student]


def shrink_to(
    plan: Recipe,
    step: int,
    data: Artifact,
    teacher: Artifact,
    student: Artifact,
    profiled: Artifact,
) -> Artifact:
    """One step of shrinking."""
    path = plan.shrink.path
    title = f"shrink {step} of {plan.steps}" if path is None else f"shrink to {path[step - 1]:g}x"
    return shrink(plan.at_step(step), data, teacher, student, profiled, title=title)


def prune_to(
    recipe: Recipe, rung: float, data: Artifact, teacher: Artifact, student: Artifact
) -> Artifact:
    """One rung of pruning."""
    return prune(recipe.at_rung(rung), data, teacher, student, title=f"prune to {rung:.4g}")
