"""Stage: what support and test set share, wholly or nearly, and what has two labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.found import (
    ROWS,
    Pair,
    counts,
    listed,
    pair_of,
    refuse,
    repeats,
    require_every_class,
    warnings,
)
from tasks.progress import Callback, watching
from tasks.splits import Split, load_split
from tasks.stage import stage

if TYPE_CHECKING:
    import numpy as np

    from tasks.near import Near


@stage(reads=("leaks",))
def leaks(
    recipe: Recipe, data: Artifact, generalist: Artifact, *, into: Path, progress: Callback
) -> dict[str, Any]:
    """Find examples that are learnt from and tested on, or that have two labels.

    Exact copies between support and test set, and inside the test set, were found when the data
    was prepared. leaks.json is the report's section, dropped.json lists the test rows that near
    copies cost.
    """
    policy, classes = recipe.leaks, data.metrics["classes"]
    support, test = (load_split(data.folder / f"{name}.parquet") for name in ("support", "test"))
    rows = data.json_file(ROWS)
    pairs = [Pair.model_validate(entry) for entry in (*rows["exact"], *rows["repeats"])]
    # the shots of one class are distinct already
    pairs += repeats(support, rows["support"], "support")
    if policy.near != "ignore":
        across, within = _look(recipe, support, test, generalist, progress)
        pairs += _near(across, support, test, (rows["support"], rows["test"]))
        pairs += _near(within, support, support, (rows["support"], rows["support"]))
    refuse(recipe, pairs, len(support), classes)
    gone = {pair.other for pair in pairs if pair.kind == "near"} if policy.near == "drop" else set()
    dropped: list[int] = []
    kept: list[int] = []
    for row in range(len(test)):
        (dropped if row in gone else kept).append(row)
    require_every_class("near", test.labels, kept, classes)
    facts = {**counts(pairs), "dropped": len(dropped) + int(data.metrics["dropped"])}
    told = warnings(recipe, pairs, facts["dropped"], len(support), classes)
    report = {**facts, "policy": policy.model_dump(), "found": listed(pairs, classes)}
    (into / "leaks.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (into / "dropped.json").write_text(json.dumps(dropped), encoding="utf-8")
    return {**facts, "warnings": told}


def kept_rows(leaked: Artifact, n: int) -> list[int]:
    """Rows of the prepared test set, which has `n`, that the verdict rests on."""
    dropped = set(leaked.json_file("dropped.json"))
    return [row for row in range(n) if row not in dropped]


def say_what_was_found(leaked: Artifact) -> None:
    """Say at once what a person should know before any figure comes."""
    for line in leaked.metrics["warnings"]:
        watching().say(f"! {line}", "yellow")


def _near(
    found: Iterable[Near], support: Split, other: Split, rows: tuple[Sequence[int], Sequence[int]]
) -> Iterator[Pair]:
    """Near copies; exact ones are known already. `rows`: of the two splits in their sources."""
    for one, two, how, similarity in found:
        if support.digests[one] != other.digests[two]:
            numbers = rows[0][one], rows[1][two]
            yield pair_of(support, other, (one, two), numbers, how=how, similarity=similarity)


def _look(
    recipe: Recipe, support: Split, test: Split, generalist: Artifact, progress: Callback
) -> tuple[list[Near], list[Near]]:
    """Near copies between support and test set, and inside the support set."""
    if isinstance(support.inputs[0], bytes):
        from tasks.near_images import near_images

        pictures, others = (cast(tuple[bytes, ...], split.inputs) for split in (support, test))
        return near_images(pictures, others, progress)
    # see load.py: only a stage that computes pays for torch
    from models.checkpoint import load_bundle
    from models.embed import embeddings
    from models.samples import TextSamples
    from tasks import batches
    from tasks.near_texts import near_texts

    def embed(texts: Sequence[str]) -> np.ndarray:
        bundle = load_bundle(generalist.folder)
        split = Split(tuple(texts), (-1,) * len(texts), tuple(texts))
        samples = cast(TextSamples, batches.samples(split, bundle, recipe))
        return embeddings(bundle.model, samples, device=batches.device()).numpy()

    ours, theirs = (cast(tuple[str, ...], split.inputs) for split in (support, test))
    return near_texts(ours, theirs, embed, progress)
