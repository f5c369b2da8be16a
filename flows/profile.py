"""Latencies for a recipe on the machine that serves, to plan with on another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import export_dense
from tasks.config import Recipe
from tasks.embedded import embedded_prefect
from tasks.home import home, require_writable, require_writable_file
from tasks.load import load, require_same_modality
from tasks.prepare import prepare
from tasks.profile import profile, write_profile
from tasks.progress import watch, watching
from tasks.teach import teach


@flow(name="profile")
def profile_flow(recipe: Recipe, out: str) -> dict[str, Any]:
    """Measure what a recipe's shrinking chooses among, without specializing.

    Args:
        recipe: Everything that one specialization needs to know.
        out: File to write; `shrink.profile` of a recipe on another machine names it.
    """
    require_writable_file(Path(out), "out")
    quick = recipe.planned().untrained()
    data = prepare(quick)
    generalist = load(quick)
    require_same_modality(quick, data, generalist)
    teacher = teach(quick, data, generalist)
    profiled = profile(quick, data, teacher, *export_dense(quick, data, generalist, teacher))
    write_profile(profiled, Path(out))
    return profiled.metrics


def profile_recipe(recipe: Recipe, out: str | Path) -> dict[str, Any]:
    """Run it from Python, with Prefect's stores under <home>; returns the profile's facts."""
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return profile_flow(recipe, str(out))
