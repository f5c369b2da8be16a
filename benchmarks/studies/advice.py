"""Sentences that the rows of the studies support, each with the rows that it is from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from benchmarks.studies.grid import MINILM, Row
from benchmarks.studies.tables import Interval, clustered, interval


def advice(rows: dict[str, list[Row]]) -> list[str]:
    """Sentences that the rows support, each with the rows that it is from.

    A difference is called one where both its intervals, over pairs and over models and tasks with
    seeds averaged, leave out zero; where they do not, that is what is said. Nothing is said
    without rows.
    """
    return [
        *_taco(rows.get("taco", [])),
        *_interplay(rows.get("interplay", [])),
        *_combining(rows.get("combining", [])),
        *_methods(rows.get("methods", [])),
        *_peers(rows.get("peers", [])),
    ]


def _over(pairs: dict[tuple[Any, ...], float], size: int = 2) -> tuple[Interval, Interval]:
    """Over all pairs, and over what their keys begin with."""
    return interval(list(pairs.values())), clustered(pairs, size)


def _sided(every: Interval, grouped: Interval) -> int:
    """1 above zero, -1 below, 0 undecided."""
    if min(every.low, grouped.low) > 0:
        return 1
    return -1 if max(every.high, grouped.high) < 0 else 0


def _said(
    every: Interval,
    grouped: Interval,
    texts: tuple[str, str, str],
    rows: str,
    *,
    over: str = "models and tasks",
    at: str = "",
) -> list[str]:
    """The text that fits, (neither, better, worse), with its figures; none of too few pairs."""
    if every.n < 3 or grouped.n < 2:
        return []
    figures = f"{every.mean:+.2f} points [{every.low:+.2f}, {every.high:+.2f}], {every.n} pairs"
    figures += f"; over {over} [{grouped.low:+.2f}, {grouped.high:+.2f}], {grouped.n}"
    return [f"{texts[_sided(every, grouped)]}: {figures}{at} ({rows})."]


def _sizes(pairs: Iterable[tuple[Row, Row]]) -> str:
    """Mean sizes of both sides where they differ: accuracy alone ranks nothing at unequal cost."""
    sides = list(zip(*pairs, strict=True))
    if not sides:
        return ""
    one, other = (sum(row["bytes"] for row in side) / len(side) / 1e6 for side in sides)
    if abs(one - other) <= 0.05 * min(one, other):
        return ""
    return f", at {one:.1f} against {other:.1f} MB"


# of a comparison's name: what is advised where its first side wins, loses, or neither
_COMPARED = (
    (
        r"task-aware minus generic calibration, (\S+), no recovery",
        "Calibrate on the task's own inputs where nothing follows the pruning ({0})",
        "Generic inputs calibrate better than the task's own where nothing follows ({0})",
        "Without recovery, task-aware and generic calibration were not told apart ({0})",
    ),
    (
        r"task-aware minus generic calibration, (\S+), ladder, (.+)",
        "Calibrate on the task's own inputs, also when recovery follows ({0}, {1})",
        "With recovery, generic inputs calibrated better ({0}, {1}): a negative result",
        "Once recovery follows, what the layers were calibrated on was not told apart ({0}, {1})",
    ),
    (
        r"(\w+) minus uniform allocation, (\S+), (.+)",
        "Share zeros unevenly: `prune.allocation: {0}` beats uniform ({1}, {2})",
        "Do not share zeros by `{0}`: uniform was better ({1}, {2})",
        "`{0}` and uniform allocation were not told apart ({1}, {2})",
    ),
    (
        r"ladder minus one shot at equal training, (\S+), pool",
        "Climb to {0} in rungs: at equal training the ladder beats one leap",
        "Prune to {0} at once: at equal training one leap beats the ladder",
        "At equal training, ladder and one leap to {0} were not told apart: take what is simpler",
    ),
    (
        r"four times the training minus once, (\S+), ladder, pool",
        "Train four times as long where the drop matters ({0}, ladder, pool)",
        "Four times the training made it worse ({0}, ladder, pool): a negative result",
        "Four times the training was not shown to help ({0}, ladder, pool)",
    ),
    (
        r"pool minus shots alone, (\S+), ladder",
        "Collect unlabelled examples before labelling more: the pool is worth it ({0})",
        "The pool made it worse ({0}): a negative result",
        "At {0} the pool was not shown to help",
    ),
)


def _taco(found: list[Row]) -> list[str]:
    from benchmarks.studies.taco_tables import contrasts, holds, lost, where

    said = []
    for what, pairs, source in contrasts(found):
        for pattern, better, worse, neither in _COMPARED:
            if match := re.fullmatch(pattern, what):
                told = [text.format(*match.groups()) for text in (neither, better, worse)]
                said += _said(*_over(pairs), (told[0], told[1], told[2]), f"`{source}`")
    every = [row for row in found if "failed" not in row]
    blocks = (("frontier-pool", "With a pool"), ("frontier-long", "With a pool and long training"))
    for (block, begun), model in itertools.product(blocks, sorted({r["model"] for r in every})):
        fine = where(every, block=block, model=model)
        held = [
            (at, runs, tasks)
            for at in (0.95, 0.9, 0.75, 0.5)
            for runs, tasks in [lost(where(fine, sparsity=at))]
            if holds(runs, tasks)
        ]
        if held:
            at, runs, tasks = held[0]
            kept = ", its embeddings left as they are," if model == MINILM else ""
            said.append(
                f"{begun}, {model} may lose {at:.0%} of its prunable weights{kept} and stay within "
                f"two points of its teacher: {runs.mean:.2f} points [{runs.low:.2f}, "
                f"{runs.high:.2f}], {runs.n} runs; over tasks [{tasks.low:.2f}, "
                f"{tasks.high:.2f}], {tasks.n} (`taco/{block}/{model}/*/{at:g}`)."
            )
    return said


def _interplay(found: list[Row]) -> list[str]:
    from benchmarks.study_interplay import CORNERS, excess

    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in found:
        if "failed" not in row:
            key = (row["block"], row["kind"], row["form"], row["model"], row["task"], row["seed"])
            cells.setdefault(key, {})[row["corner"]] = row
    whole = {key: c for key, c in cells.items() if set(c) == set(CORNERS)}
    said = []
    for block, kind, form in sorted({key[:3] for key in whole}):
        ours = {key[3:]: c for key, c in whole.items() if key[:3] == (block, kind, form)}
        what = "half the structure" if kind == "half" else f"{kind} zeros"
        rows = f"`interplay/{block}/*/{kind}-{form}/*`"
        pairs = {
            at: 100 * (c["pruned-first"]["accuracy"] - c["quantized-first"]["accuracy"])
            for at, c in ours.items()
        }
        said += _said(*_over(pairs), _ordered(block, kind, f"{what}, {form}"), rows)
        above, grouped = _over({at: excess(c) for at, c in ours.items()})
        if above.n > 2 and min(above.low, grouped.low) > 0:
            said.append(
                f"{what.capitalize()} and {form} harm each other, {block}: the joint divergence is "
                f"{above.mean:.4f} nats [{above.low:.4f}, {above.high:.4f}] above the sum of the "
                f"two, {above.n} runs; over models and tasks [{grouped.low:.4f}, "
                f"{grouped.high:.4f}], {grouped.n} ({rows})."
            )
    return said


def _ordered(block: str, kind: str, what: str) -> tuple[str, str, str]:
    """What is said of pruning first minus quantizing first: neither, better, worse."""
    if block == "untuned" and kind != "half":
        # quantized first is only masked there (`masked_on_grid`): more than the order differs
        late = "zeros that come after rounding, with nothing solved again,"
        return (
            f"Without fine-tuning, {late} were not shown to cost accuracy ({what})",
            f"Without fine-tuning, {late} cost accuracy: prune before rounding ({what})",
            f"Without fine-tuning, {late} cost less than zeros before it ({what})",
        )
    training = "Without fine-tuning" if block == "untuned" else "At equal fine-tuning"
    return (
        f"{training}, the order of pruning and quantizing was not told apart ({what})",
        f"{training}, prune first, then quantize ({what})",
        f"{training}, quantize first, then prune ({what})",
    )


def _combining(found: list[Row]) -> list[str]:
    from benchmarks.study_combining import designs, marginal

    whole, said = designs(found), []
    for block in sorted({key[0] for key in whole}):
        for factor, setting, words in (
            ("distil", (True, False), "distil what was pruned"),
            ("distil", (False, False), "distil what was not pruned"),
            ("quantize", (True, True), "quantize what was pruned and distilled"),
        ):
            texts = (
                f"Whether to {words} was not told apart in accuracy (MiniLM, {block})",
                f"{words.capitalize()}: it gains (MiniLM, {block})",
                f"To {words} costs accuracy (MiniLM, {block})",
            )
            figures = marginal(whole, block, factor, setting)
            said += _said(*figures, texts, f"`combining/{block}/*`", over="tasks")
    return said


def _peers(found: list[Row]) -> list[str]:
    fine = [row for row in found if "failed" not in row and row["block"] == "peers"]
    said = []
    for ours, theirs in (
        ("ours-half-recovered", "torch-pruning-recovered"),
        ("ours-int8", "onnxruntime-static"),
        ("ours-int8", "onnxruntime-dynamic"),
        ("ours-half-recovered-int8", "small-dense-int8"),
        ("ours-int8", "setfit"),
        ("ours-half-recovered", "depth-recovered"),
        *(("ours-half", f"score-{name}-obs") for name in ("magnitude", "activation", "trajectory")),
        *(
            ("ours-half-recovered", f"score-{name}-obs-recovered")
            for name in ("magnitude", "activation", "trajectory")
        ),
    ):
        by: dict[str, dict[tuple[Any, ...], Row]] = {ours: {}, theirs: {}}
        for row in fine:
            if row["method"] in by:
                by[row["method"]][row["model"], row["task"], row["seed"]] = row
        both = {at: (row, by[theirs][at]) for at, row in by[ours].items() if at in by[theirs]}
        pairs = {
            at: 100 * (one["accuracy"] - other["accuracy"]) for at, (one, other) in both.items()
        }
        texts = (
            f"{ours} and {theirs} were not told apart in accuracy",
            f"{ours} beats {theirs}",
            f"{theirs} beats {ours}: a negative result",
        )
        rows = f"`peers/*/{ours}`, `peers/*/{theirs}`"
        said += _said(*_over(pairs), texts, rows, at=_sizes(both.values()))
    return said


def _methods(found: list[Row]) -> list[str]:
    from benchmarks.study_methods import BASE, against

    fine, said = [row for row in found if "failed" not in row], []
    for block, base in BASE.items():
        ours = [row for row in fine if row["block"] == block]
        for setting, name in dict.fromkeys((r["setting"], r["alternative"]) for r in ours):
            here = [row for row in ours if row["setting"] == setting]
            default = {(r["model"], r["seed"]): r for r in here if r["alternative"] == base}
            if name == base:
                continue
            its = {(r["model"], r["seed"]): r for r in here if r["alternative"] == name}
            pairs = against(list(its.values()), default)
            sizes = _sizes((its[at], default[at]) for at in its if at in default)
            texts = (
                f"{block}: {name} and {base} were not told apart ({setting})",
                f"{block}: {name} beats {base} ({setting})",
                f"{block}: {base} beats {name} ({setting})",
            )
            rows = f"`methods/{block}/*`"
            said += _said(*_over(pairs, 1), texts, rows, over="models", at=sizes)
    return said
