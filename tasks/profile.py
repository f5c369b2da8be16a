"""What every size of every branch costs in time on the machine that serves: the latency table."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exports.runtime import host_profile
from tasks.artifacts import Artifact, write_atomically
from tasks.config import Recipe
from tasks.digests import file_digest
from tasks.errors import RecipeError
from tasks.host_clock import host_clock
from tasks.layout import DENSE, LEVELS, TABLE
from tasks.progress import Callback, watching
from tasks.splits import load_split
from tasks.stage import stage
from tasks.this_host import timed_by

_SCHEMA = 1
_WIDEST = 3.0  # the fastest of a sweep over what the format alone gives
_AGAIN = "make it anew with `winnow profile RECIPE --out FILE` on the machine that serves"


class _File(BaseModel):
    """What a profile file holds beside its schema.

    What lies outside the branches, the base, may come out below zero: branches that are timed one
    by one can add up to more than the whole.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    host: dict[str, Any]
    threads: int
    batch: int
    base_ms: dict[str, float]
    branch_ms: dict[str, dict[str, Annotated[float, Field(ge=0)]]]
    generalist_ms: float = Field(gt=0)


def require_profile(recipe: Recipe) -> None:
    """Raise where `shrink.profile` is no profile that this recipe could plan with; read only.

    Args:
        recipe: the plan of the run, of `Recipe.planned`.
    """
    if recipe.shrink.profile is not None:
        _read(recipe, recipe.shrink.profile)


def _outside(recipe: Recipe) -> dict[str, str]:
    """Timings are this host's, or the file's."""
    given = recipe.shrink.profile
    if given is None:
        return {"host": timed_by()}
    # whether the file's host is this one is told, too
    return {"profile": file_digest(Path(given)), "host": timed_by()}


@stage(
    reads=(
        "task.seed",
        "quantize.activation",
        "quantize.format",
        "quantize.residual",
        "shrink.kinds",
        "shrink.multiple",
        "verify.batch",
        "verify.repeats",
        "verify.threads",
        "verify.tokens",
    ),
    splits=("support",),
    outside=_outside,
)
def profile(
    recipe: Recipe,
    data: Artifact,
    teacher: Artifact,
    *graphs: Artifact,
    into: Path,
    progress: Callback,
) -> dict[str, Any]:
    """Time every size of every branch of the teacher, or read a file where that was done.

    `graphs` are the exports of `DENSE`; their times tell what lies outside the branches. The
    sizes are chosen for texts as long as the shots, and the test set is not looked at.
    """
    # see load.py: only a stage that computes pays for torch
    from exports.latency_table import LatencyTable
    from models.checkpoint import load_bundle
    from tasks.measure import timing_feeds, typical_tokens
    from tasks.variants import measured, offered

    named = dict(zip(DENSE, graphs, strict=True))
    timed = {"generalist": named["generalist"], "float32": named["teacher"]}
    if recipe.quantize.format == "int8":
        timed["int8"] = named["teacher-int8"]
    shots = load_split(data.folder / "support.parquet").inputs
    tokens = typical_tokens(named["teacher"].folder, shots, recipe)
    bundle = load_bundle(teacher.folder)
    found = offered(recipe, bundle, tokens)
    given, spared = recipe.shrink.profile, list[float]()
    if given is None:
        served = {"dense": named["teacher"].folder}
        (feed,) = timing_feeds(served, shots, recipe, tokens, exact=True).values()
        # members of a fleet come at once: the first one times, the others find its times
        with host_clock():
            table = measured(recipe, bundle, found, timed, feed, progress, spared.append)
    else:
        table = LatencyTable.from_dict(_read(recipe, given))
        _require_all(found.all_keys, table.branch_ms, table.base_ms, given, tokens)
    here = _digest_of(host_profile())
    facts = {
        "source": "measured" if given is None else "file",
        "cpu": table.host.get("cpu", "unknown"),
        "same_host": _digest_of(table.host) == here,
        "tokens": tokens,
        "variants": len(table.branch_ms),
        "generalist_ms": table.generalist_ms,
        "bytes": {name: graph.metrics["bytes"] for name, graph in timed.items()},
        "dense_ms": {fmt: table.predict(found.dense_keys, fmt) for fmt in table.base_ms},
    }
    (into / TABLE).write_text(json.dumps(table.to_dict(), indent=1, sort_keys=True))
    described = found.described(table.branch_ms)
    facts["least_ms"] = {
        fmt: base + sum(min(level["ms"][fmt] for level in b["levels"]) for b in described)
        for fmt, base in table.base_ms.items()
    }
    levels = {**facts, "branches": described}
    (into / LEVELS).write_text(json.dumps(levels, indent=1))
    return {**facts, "spared_seconds": round(sum(spared), 3)}


def speeds_of(recipe: Recipe, profiled: Artifact) -> list[float]:
    """The speeds of a sweep: those of the recipe in reach, or equal ratios over what is in reach.

    The slowest is what the format gives without any shrinking, where the recipe names none.
    """
    asked, facts = recipe.sweep.speedups, profiled.metrics
    served = _served(recipe)
    allowed = facts["generalist_ms"] * (1 - recipe.shrink.margin)
    least = allowed / facts["dense_ms"][served]
    # parts of a model that is all overhead may add up to more than the whole: then all is in reach
    fastest = facts["least_ms"][served]
    most = allowed / fastest if fastest > 0 else math.inf
    if asked is None:
        end, count = min(most, _WIDEST * least), recipe.sweep.structures
        if recipe.sweep.search == "adaptive":  # which finds the others between them
            count = min(count, max(2, math.ceil(count / 2)))
        ratio = (end / least) ** (1 / max(1, count - 1))
        # rounded down: the first is to need no shrinking, the last is to be in reach
        found = [math.floor(100 * least * ratio**k + 1e-6) / 100 for k in range(count)]
        return [speed for speed, after in itertools.pairwise([*found, math.inf]) if speed < after]
    found = [speed for speed in asked if speed <= most]
    if asked and not found:
        raise RecipeError(
            f"sweep.speedups: {asked[0]:g} cannot be reached: the smallest sizes that "
            f"shrink.kinds allows are {math.floor(100 * most) / 100:g} times as fast as the "
            "generalist; ask for less"
        )
    return found


def write_profile(profiled: Artifact, out: Path) -> None:
    """Write the table as the file that `shrink.profile` takes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (profiled.folder / TABLE).read_bytes())


def say_where_it_is_from(profiled: Artifact) -> None:
    """Tell where times that were taken on another machine decide: allowed, and to be known."""
    facts = profiled.metrics
    if not facts["same_host"]:
        watching().say(
            f"! shrink.profile was made on another machine ({facts['cpu']}): sizes are chosen for "
            "that one, speed is verified on this one",
            "yellow",
        )


def _digest_of(host: Mapping[str, Any]) -> str:
    """What of a host decides its times."""
    keys = ("cpu", "machine", "flags", "usable_cores", "onnxruntime")
    return json.dumps([host.get(key) for key in keys], sort_keys=True)


def _read(recipe: Recipe, name: str) -> dict[str, Any]:
    """The plain values of a profile file, checked for what can be told without a model."""
    try:
        plain = json.loads(Path(name).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"shrink.profile: {name} is not a file; {_AGAIN}") from None
    except (OSError, ValueError, RecursionError):
        raise RecipeError(f"shrink.profile: {name} is not JSON; {_AGAIN}") from None
    if not isinstance(plain, dict) or not {"schema", *_File.model_fields} <= plain.keys():
        raise RecipeError(f"shrink.profile: {name} is not a profile; {_AGAIN}")
    if plain["schema"] != _SCHEMA:
        raise RecipeError(
            f"shrink.profile: {name} has schema {plain['schema']!r}, expected {_SCHEMA}; {_AGAIN}"
        )
    try:
        _File.model_validate(plain)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise RecipeError(
            f"shrink.profile: {name} is not a profile ({where}: {fault['msg']}); {_AGAIN}"
        ) from None
    for key in ("threads", "batch"):
        if plain[key] != getattr(recipe.verify, key):
            raise RecipeError(
                f"shrink.profile: {name} was made with verify.{key} {plain[key]}, the recipe has "
                f"{getattr(recipe.verify, key)}; {_AGAIN}"
            )
    served = _served(recipe)
    if served not in plain["base_ms"]:
        # a sweep plans with int8 where that is one of its formats, whatever quantize.format says
        how = " and with --set shrink.plan_format=int8" if served == "int8" else ""
        raise RecipeError(f"shrink.profile: {name} has no {served} times; {_AGAIN}{how}")
    return plain


def _served(recipe: Recipe) -> str:
    """The column of a table that holds: 4 bits are computed with in float."""
    return "int8" if recipe.quantize.format == "int8" else "float32"


def _require_all(
    keys: list[str],
    known: Mapping[str, Mapping[str, float]],
    formats: Iterable[str],
    name: str,
    tokens: int | None,
) -> None:
    missing = [key for key in keys if not known.get(key, {}).keys() >= set(formats)]
    if missing:
        length = "" if tokens is None else f" (texts of {tokens} tokens)"
        raise RecipeError(
            f"shrink.profile: {name} lacks {len(missing)} of the {len(keys)} sizes that this "
            f"recipe considers{length}, such as {missing[0]!r}; {_AGAIN}"
        )
