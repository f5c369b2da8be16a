"""The card's sections on what was measured: verdict, classes, calibration, seeds, conversions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from exports.markdown import (
    markdown_table,
    p_value,
    plain,
    plural,
    points,
    points_range,
    share,
    times,
)

_VERDICTS = {"pass": "**Pass.**", "fail": "**Fail.**", "inconclusive": "**Inconclusive.**"}


def verdict_section(report: Mapping[str, Any]) -> str:
    """Return the verdict with its interval, its reasons and what would settle it."""
    verdict, accuracy = report["verdict"], report["accuracy"]
    status = _VERDICTS.get(verdict["status"], str(verdict["status"]))
    drop = accuracy["drop"]
    told = f"loses {points(drop)}" if drop >= 0 else f"gains {points(-drop)}"
    lines = [
        f"{status} It {told} points of accuracy against the teacher: a drop of "
        f"{points_range(accuracy['drop_ci'])} with {accuracy['confidence']:.0%} confidence "
        f"({plain(accuracy['method'])}, n = {accuracy['n']:,})."
    ]
    paired = accuracy.get("mcnemar")
    if paired:
        lines.append(
            f"Of the same examples it gets {paired['lost']} wrong that the teacher gets right, and "
            f"{paired['gained']} right that the teacher gets wrong (McNemar's exact test: p "
            f"{'' if paired['p'] < 0.001 else '= '}{p_value(paired['p'])})."
        )
    if verdict.get("reasons"):
        lines.append("\n".join(f"- {plain(reason)}" for reason in verdict["reasons"]))
    needed = verdict.get("needed")
    if needed and needed.get("text"):
        lines.append(f"What would settle it: {plain(needed['text'])}")
    return "\n\n".join(lines)


def classes_section(report: Mapping[str, Any], rows: int | None) -> str:
    """Return what every class loses, the largest drop first, at most `rows` of them."""
    accuracy = report["accuracy"]
    every = accuracy.get("per_class") or []
    facts = by_drop(every)
    if not facts:
        return ""
    worse = [plain(row["class"]) for row in facts if row.get("worse")]
    if worse:
        told = f"Worse than the teacher by more than chance explains: {', '.join(worse)}."
    else:
        told = "In no class is it worse than the teacher by more than chance explains."
    method = accuracy.get("per_class_method")
    told += " Intervals and p-values are corrected for the number of classes" + (
        f" ({plain(method)})." if method else "."
    )
    picture = (
        "![Accuracy lost in every class, the largest loss on top, with intervals; the table below "
        "has the numbers.](per-class.png)"
    )
    header = ["class", "examples", "teacher", "specialist", "drop (points)", "interval", "p"]
    table = markdown_table(
        header,
        [
            [
                plain(row["class"]),
                f"{row['n']:,}",
                share(row["teacher"]),
                share(row["specialist"]),
                points(row["drop"]),
                points_range(row["drop_ci"]),
                p_value(row.get("p_adjusted")),
            ]
            for row in facts[:rows]
        ],
    )
    left = len(facts) - len(facts[:rows])
    rest = [f"{left} more, with smaller drops, are in report.json."] if left else []
    unseen = [plain(row["class"]) for row in every if row["drop"] is None]
    if unseen:
        rest.append(f"Without a test example, and so not measured: {', '.join(unseen)}.")
    return "\n\n".join([told, picture, table, *rest])


def by_drop(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the measured rows, the largest drop first; equal ones by name."""
    measured = [row for row in rows if row["drop"] is not None]
    return sorted(measured, key=lambda row: (-row["drop"], str(row["class"])))


def calibration_section(report: Mapping[str, Any]) -> str:
    """Return how far the stated confidence is from the share that is right."""
    facts = report["accuracy"].get("calibration") or {}
    names = [name for name in ("teacher", "specialist") if facts.get(name)]
    if not names:
        return ""
    models = report.get("models", {})
    lines = []
    sure = facts.get("specialist", {}).get("confidence")
    right = models.get("specialist", {}).get("accuracy")
    if sure is not None and right is not None:
        side = "surer than it is right" if sure > right else "right more often than it claims"
        lines.append(
            f"On the test set it is {sure:.1%} sure of its answers on average and right in "
            f"{right:.1%} of them: {side}."
        )
    lines.append(
        "![Share of right answers against stated confidence, for teacher and specialist; points "
        "below the diagonal are surer than right.](calibration.png)"
    )
    rows = [
        [
            name,
            share(facts[name].get("confidence")),
            share(models.get(name, {}).get("accuracy")),
            f"{points(facts[name]['ece'])} ({points_range(facts[name]['ece_ci'])})",
        ]
        for name in names
    ]
    header = ["model", "mean confidence", "accuracy", "expected calibration error (points)"]
    method = facts.get("method") or facts[names[-1]].get("method")
    lines += [markdown_table(header, rows), *([f"{_sentence(method)}"] if method else [])]
    return "\n\n".join(lines)


def seeds_section(report: Mapping[str, Any]) -> str:
    """Return how the result varies with the examples that happened to be drawn."""
    seeds = report.get("seeds")
    if not seeds:
        return ""
    rows = [
        [
            str(row["seed"]),
            share(row["teacher"]),
            share(row["specialist"]),
            points(row["drop"]),
            points_range(row["drop_ci"]),
            times(row.get("ratio")),
            str(row["status"]),
        ]
        for row in seeds["rows"]
    ]
    header = ["seed", "teacher", "specialist", "drop (points)", "interval", "faster", "verdict"]
    told = (
        f"The whole run, repeated with {plural(len(rows), 'draw')} of the labelled examples: the "
        f"drop is {points(seeds['drop_mean'])} points on average (standard deviation "
        f"{points(seeds['drop_sd'])}), {points_range(seeds['drop_ci'])} over draws and test "
        f"examples ({plain(seeds['method'])}). The first draw's specialist is the one that is "
        "served."
    )
    return f"{told}\n\n{markdown_table(header, rows)}"


def interplay_section(report: Mapping[str, Any]) -> str:
    """Return whether pruning and quantizing together cost more than both alone."""
    interplay = report.get("interplay")
    if not interplay:
        return ""
    told = "no more" if interplay["orthogonal"] else "more"
    keys = ("dense", "sparse", "quantized", "both", "threshold")
    table = markdown_table(list(keys), [[share(interplay[key]) for key in keys]])
    return (
        f"{table}\n\nAccuracy of the four. Together they cost {told} than the sum of what each "
        "costs alone (that sum is the threshold; Harma et al.)."
    )


def parity_section(report: Mapping[str, Any]) -> str:
    """Return the chain of conversions, and where it breaks if it does."""
    hops = report.get("parity") or []
    if not hops:
        return ""
    full = any("kind" in hop for hop in hops)
    header = ["hop", *(["what", "runtime", "holds"] if full else [])]
    rows = [
        [
            plain(hop["hop"]),
            *(
                [
                    plain(hop.get("kind", "")),
                    plain(hop.get("runtime", "")),
                    "**no**" if hop.get("broken") else "yes",
                ]
                if full
                else []
            ),
            _difference(hop.get("max_abs")),
            "" if hop.get("agreement") is None else f"{hop['agreement']:.4f}",
            "" if hop.get("accuracy") is None else f"{hop['accuracy']:.4f}",
        ]
        for hop in hops
    ]
    table = markdown_table([*header, "largest difference", "same label", "accuracy after"], rows)
    explained = (
        "From the trained model to what is served, a step at a time on the same examples. A "
        "conversion must not change answers; a compression changes them, and the verdict judges it."
    )
    broken = [_broken(hop) for hop in hops if hop.get("broken")]
    return "\n\n".join([*broken, *([explained] if full else []), table])


def _broken(hop: Mapping[str, Any]) -> str:
    """Return where a hop breaks, down to the node where it is known."""
    told = f"**Broken: {plain(hop['hop'])}** ({plain(hop.get('runtime', ''))})."
    # the reason without what is said here anyway: the hop's name before it, the node after it
    why = (hop.get("why") or "").removeprefix(f"parity {hop['hop']}: ").partition("; first at")[0]
    if why:
        told += f" {_sentence(why)}"
    node = hop.get("node")
    if not node:
        return told
    carried = node.get("error_before")
    before = "" if carried is None else f", where its inputs carry {carried:.2g}"
    kind = f"{plain(node['op'])}; " if node.get("op") else ""
    return (
        f"{told} The first node whose output departs is {plain(node['name'])} "
        f"({kind}tensor {plain(node['tensor'])}): relative error {node['error']:.2g}{before}."
    )


def _difference(value: float | None) -> str:
    """Return a difference of logits, which may be unknown or not finite."""
    if value is None:
        return ""
    return f"{value:.2g}" if math.isfinite(value) else "not finite"


def _sentence(text: object) -> str:
    """Return a text as a sentence: a capital first, a full stop last."""
    told = plain(text)
    return told[:1].upper() + told[1:] + ("" if told.endswith(".") else ".")
