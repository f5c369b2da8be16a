"""The card's sections on what it rests on: data, leaks, limits, registry, licence, host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.limits import limits_text
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

_FINDINGS = {
    "exact": "same example",
    "near": "near-duplicate",
    "within": "twice in the support set",
    "conflict": "two labels",
}
_ASKED = {"exact": "same examples", "near": "near-duplicates", "conflicts": "two labels"}
_POLICIES = {
    "stop": "the run stops",
    "drop": "they leave the test set",
    "warn": "a warning, and the run goes on",
    "ignore": "not looked for",
}


def data_section(report: Mapping[str, Any]) -> str:
    """Return the classes and the digests of what was learnt from and judged on."""
    task = report["task"]
    rows = [
        ["support set (learnt from)", f"{task['support']['n']:,}", _digest(task["support"])],
        ["test set (judged on)", f"{task['test']['n']:,}", _digest(task["test"])],
    ]
    classes = ", ".join(plain(name) for name in task["classes"])
    return "\n\n".join(
        [
            markdown_table(["data", "examples", "SHA-256"], rows),
            f"Drawn with seed {task['seed']}, {plural(task['shots'], 'example')} a class.",
            f"Classes: {classes}.",
        ]
    )


def _digest(facts: Mapping[str, Any]) -> str:
    return f"`{facts['sha256']}`" if facts.get("sha256") else ""


def leaks_section(report: Mapping[str, Any], rows: int | None) -> str:
    """Return what support and test set share, and what was done about it."""
    leaks = report.get("leaks")
    if not leaks:
        shared = report["task"].get("leaks")
        if not shared:
            return ""
        return f"{plural(shared, 'example')} of the support set {_are(shared)} in the test set too."
    kinds = ("exact", "near", "within", "conflicts")
    exact, near, within, conflicts = (leaks[kind] for kind in kinds)
    looked = (leaks.get("policy") or {}).get("near") != "ignore"
    unseen = "" if looked else " Nearly equal ones were not looked for: the recipe asks for that."
    if not exact + near + within + conflicts:
        nearly = " or nearly" if looked else ""
        return (
            f"None found: no example of the support set is in the test set, as it is{nearly}; "
            f"none is twice in the support set or under two labels.{unseen}"
        )
    lines = [
        f"Support and test set share {plural(exact, 'example')} as {_they(exact)} and {near:,} "
        f"nearly. Inside the support set {within:,} {_are(within)} there twice, or nearly. "
        f"{plural(conflicts, 'pair stands', 'pairs stand')} under two labels."
    ]
    lines[0] += unseen
    if leaks.get("dropped"):
        lines[0] += f" {plural(leaks['dropped'], 'row')} left the test set for it."
    policy = leaks.get("policy") or {}
    if policy:
        each = (
            f"{_ASKED.get(key, key)}: {_POLICIES.get(value, str(value))}"
            for key, value in policy.items()
        )
        lines.append(f"What the recipe asks for: {'; '.join(each)}.")
    found = leaks.get("found") or []
    if found:
        lines.append(
            markdown_table(
                ["what", "found by", "support row", "other row", "similarity", "labels", "shown"],
                [
                    [
                        _FINDINGS.get(row["kind"], plain(row["kind"])),
                        plain(row["how"]),
                        str(row["support"]),
                        f"{row['other']} ({row['split']})",
                        f"{row['similarity']:.3f}",
                        " / ".join(
                            dict.fromkeys(
                                plain(row[key])
                                for key in ("support_label", "other_label")
                                if row.get(key) is not None
                            )
                        ),
                        _both(row),
                    ]
                    for row in found[:rows]
                ],
            )
        )
        if sum(leaks[kind] for kind in kinds) > len(found[:rows]):
            lines.append("Not all of them are listed; report.json has up to 50.")
    return "\n\n".join(lines)


def _both(row: Mapping[str, Any]) -> str:
    """Return the two examples as they are shown, once where they look the same."""
    shown = (row["shown"], row.get("other_shown") or row["shown"])
    return " / ".join(dict.fromkeys(plain(text) for text in shown))


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _they(number: int) -> str:
    return "it is" if number == 1 else "they are"


def limits_section(report: Mapping[str, Any]) -> str:
    """Return what it does with inputs that it was not made for, and with worse ones."""
    limits = report.get("limits")
    if not limits:
        return ""
    lines = [plain(text) for text in limits_text(limits)]
    rows = limits.get("corruptions") or []
    if rows:
        clean = limits.get("clean") or {}
        table = [
            [
                plain(row["what"]),
                share(row["teacher"]),
                share(row["specialist"]),
                points(row["drop"]),
                points_range(row["drop_ci"]),
            ]
            for row in rows
        ]
        if clean:
            table.insert(0, ["as they are", share(clean["teacher"]), share(clean["specialist"])])
            table[0] += [points(clean["teacher"] - clean["specialist"]), ""]
        header = ["the test examples", "teacher", "specialist", "drop (points)", "interval"]
        lines.append(markdown_table(header, table))
    return "\n\n".join(lines)


def champion_section(report: Mapping[str, Any]) -> str:
    """Return what the registry serves now, and why."""
    champion, stored = report.get("champion"), report.get("mlflow") or {}
    uri = stored.get("model_uri")
    lines = [f"This version is `{uri}`."] if uri else []
    if champion:
        now, before = champion.get("version"), champion.get("previous")
        lines.append(
            {
                "first": "It is the first champion: nothing was served before it.",
                "promoted": f"It is the champion, in the place of version {before}.",
                "kept": f"Version {now} stays the champion.",
                "same": f"It is the champion already, as version {now}.",
                "not passed": "It did not pass, so it was not compared with the champion"
                + (f", version {now}." if now else "; there is none yet."),
                "never": "The recipe leaves promotion to `winnow promote`.",
            }.get(champion["action"], plain(champion["action"]))
        )
        if champion.get("reasons"):
            lines.append("\n".join(f"- {plain(reason)}" for reason in champion["reasons"]))
        lines += _comparison(champion.get("comparison"))
    return "\n\n".join(lines)


def _comparison(facts: Mapping[str, Any] | None) -> list[str]:
    """Return the challenger beside the champion; nothing where they were not compared."""
    if not facts:
        return []
    low, high = facts.get("latency_ci") or (None, None)
    row = [
        f"{facts['n']:,}",
        f"{points(facts['gain'])} ({points_range(facts['gain_ci'])})",
        p_value(facts.get("mcnemar_p")),
        times(facts.get("latency_ratio")) + (f" ({times(low)} to {times(high)})" if low else ""),
        times(facts.get("bytes_ratio")),
    ]
    header = ["same examples", "accuracy gained (points)", "McNemar's p", "faster", "smaller"]
    return ["Compared with the champion before it:", markdown_table(header, [row])]


def licence_section(report: Mapping[str, Any]) -> str:
    """Return the terms of the weights that it was made from."""
    generalist = report.get("models", {}).get("generalist") or {}
    if "licence" not in generalist:
        return ""
    licence = generalist["licence"] or {}
    if isinstance(licence, str):  # the name alone
        licence = {"name": licence}
    source = f" (`{generalist['source']}`)" if generalist.get("source") else ""
    if not licence.get("name"):
        return (
            f"Unknown: the generalist{source} came without a statement of its licence. Look it up "
            "before you hand the specialist on, for its weights are made from the generalist's."
        )
    where = f", as its {plain(licence['where'])} says" if licence.get("where") else ""
    return (
        f"**{plain(licence['name'])}**{where}. The specialist's weights are made from the "
        f"generalist's{source}, so its terms go with them; those of your data are yours to know."
    )


def host_section(report: Mapping[str, Any]) -> str:
    """Return the host that the times were taken on."""
    host = report.get("host") or {}
    if not host:
        return ""
    flags = ", ".join(host.get("flags", [])) or "none listed"
    cores = host.get("usable_cores", "?")
    return (
        f"{plain(host.get('cpu', 'unknown processor'))}, {cores} usable "
        f"core{'' if cores == 1 else 's'}, onnxruntime {host.get('onnxruntime', '?')}, "
        f"{plain(host.get('os', ''))}. Vector extensions: {plain(flags)}. Times on other hosts "
        "differ; the accuracy does not depend on the host but for rounding."
    )
