"""What a person reads at the end: the table, the verdict with its reasons, where to look next."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.errors import RecipeError
from tasks.home import tracking_uri
from tasks.secrets import redacted

_STYLE = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run's folder."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["schema"] == 1:
            print_summary(report, Console(file=io.StringIO()))  # a part that is missing is told now
            return report
    except OSError:
        raise RecipeError(f"DIR: {path} is not there; give the folder of a finished run") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise RecipeError(f"DIR: {path} is not a report of this version; run the recipe again")


def print_summary(report: Mapping[str, Any], console: Console | None = None) -> None:
    """The three models side by side, and the verdict."""
    console = console or _console()
    task = report["task"]
    console.print(
        f"\n{task['name']}: {len(task['classes'])} classes, {task['shots']} shots each, "
        f"{task['test']['n']} test examples",
        highlight=False,
        markup=False,
    )
    # at most 80 characters wide: a table that is folded or cut tells nothing
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", "params", "nonzero", "bytes", "ms", "faster", "smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    models = report["models"]
    for name, facts in models.items():
        table.add_row(name, *_cells(facts, models["generalist"]))
    console.print()
    console.print(table)
    console.print()
    for line in _findings(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    verdict = report["verdict"]
    console.print(f"\nverdict: {verdict['status'].upper()}", style=_STYLE[verdict["status"]])
    needed = verdict.get("needed")
    champion = report.get("champion")
    told = [*verdict["reasons"], *([needed["text"]] if needed else [])]
    if champion:
        told.append(f"champion: {champion['action']} ({'; '.join(champion['reasons'])})")
    for reason in told:
        console.print(f"  - {reason}", highlight=False, markup=False, soft_wrap=True)


def print_sweep(sweep: Mapping[str, Any], out: Path) -> None:
    """The points side by side, which of them is picked, and how to go on."""
    console = _console()
    console.print(
        f"\n{sweep['name']}: {len(sweep['points'])} points, {sweep['n']} test examples",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("point", no_wrap=True)
    for heading in ("faster", "smaller", "nonzero", "ms", "drop", "interval", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sweep["points"]:
        low, high = (100 * end for end in row["drop_ci"])
        table.add_row(
            row["point"],
            f"{row['ratio']:.2f}x",
            f"{row['bytes_ratio']:.1f}x",
            f"{row['nonzero_ratio']:.1f}x",
            f"{row['latency_ms']:.2f}",
            f"{100 * row['drop']:.1f}",
            f"{low:.1f} to {high:.1f}",
            Text(row["status"], style=_STYLE[row["status"]]),
        )
    console.print()
    console.print(table)
    console.print(f"\n{sweep['picked_why']}", highlight=False, markup=False, soft_wrap=True)
    lines = [("result", f"{out}  (sweep.html, front.png, sweep.json)")]
    if sweep["picked"]:
        lines.append(("go on", f"winnow specialize --from-sweep {shlex.quote(str(out))}"))
    for title, text in lines:
        console.print(f"{title:<7} {text}", highlight=False, markup=False, soft_wrap=True)


def next_steps(report: Mapping[str, Any], out: Path) -> None:
    """Where the result lies and how to use it."""
    console, where = _console(), shlex.quote(str(out))
    tracked, sample = report["mlflow"], report["example"] or "photo.jpg"
    lines = [
        ("result", f"{out}  (specialist.onnx, card.html, report.json)"),
        ("try it", f"winnow predict {where} {shlex.quote(sample)}"),
        ("pages", "winnow ui  (MLflow and Prefect in the browser)"),
    ]
    if tracked["model_uri"]:
        alias = f"  ({tracked['alias']})" if tracked["alias"] else ""
        lines.append(("model", redacted(f"{tracked['model_uri']}{alias} in {tracking_uri()}")))
    console.print()
    for title, text in lines:
        console.print(f"{title:<7} {text}", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False)
    # in a log, a table must not be folded to the 80 columns that rich assumes there
    return console if console.is_terminal else Console(highlight=False, width=120)


def _cells(facts: Mapping[str, Any], generalist: Mapping[str, Any]) -> list[str]:
    accuracy = "-"
    if facts["accuracy"] is not None:
        accuracy = f"{facts['accuracy']:.3f}"
        if facts.get("accuracy_ci"):
            low, high = facts["accuracy_ci"]
            accuracy += f" ({low:.3f}-{high:.3f})"
    return [
        accuracy,
        _short(facts["parameters"]),
        _short(facts["nonzero"]),
        _short(facts["bytes"]),
        _milliseconds(facts["latency_ms"]),
        f"{generalist['latency_ms'] / facts['latency_ms']:.1f}x",
        f"{generalist['bytes'] / facts['bytes']:.1f}x",
    ]


def _all_cores(speed: Mapping[str, Any]) -> str:
    beside = speed.get("all_cores")
    return f"; {beside['ratio']:.2f}x with {beside['threads']}" if beside else ""


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _findings(report: Mapping[str, Any]) -> list[str]:
    a, speed, sparsity = report["accuracy"], report["speed"], report["sparsity"]
    low, high = a["drop_ci"]
    fast, faster = speed["ratio_ci"]
    percent = f"{100 * a['confidence']:g} %"
    length = f", {speed['tokens']} tokens" if "tokens" in speed else ""
    if speed.get("specialist_tokens", speed.get("tokens")) != speed.get("tokens"):
        length += f" ({speed['specialist_tokens']} to the specialist)"
    return [
        f"drop     {100 * a['drop']:.1f} points [{100 * low:.1f}, {100 * high:.1f}] at {percent} "
        f"({a['method']}, {a['n']} examples)",
        f"speed    {speed['ratio']:.2f}x [{fast:.2f}, {faster:.2f}] on {speed['runtime']}, batch "
        f"{speed['batch']}{length}, {speed['threads']} thread{'s' * (speed['threads'] > 1)}"
        f"{_all_cores(speed)}",
        f"size     {sparsity['bytes_ratio']:.1f}x fewer bytes, {sparsity['nonzero_ratio']:.1f}x "
        f"fewer nonzero prunable weights ({sparsity['nonzero_ratio_all']:.1f}x of all)",
        *_shape(report),
        *_integers(report),
        *_pays(sparsity.get("ledger", [])),
        *_classes(report),
        *_draws(report),
        *_foreign(report),
    ]


def _classes(report: Mapping[str, Any]) -> list[str]:
    """Which classes lost more than chance explains."""
    rows = report["accuracy"].get("per_class") or []
    worse = [row["class"] for row in rows if row["worse"]]
    if not rows:
        return []
    return [f"classes  {', '.join(worse) if worse else 'none'} worse than chance explains"]


def _draws(report: Mapping[str, Any]) -> list[str]:
    """The drop over other draws of the shots, where there were any."""
    found = report.get("seeds")
    if not found:
        return []
    low, high = (100 * end for end in found["drop_ci"])
    return [
        f"draws    drop {100 * found['drop_mean']:.1f} points [{low:.1f}, {high:.1f}] over "
        f"{len(found['rows'])} draws of the shots"
    ]


def _foreign(report: Mapping[str, Any]) -> list[str]:
    """How well inputs outside the task can be told by the specialist's confidence."""
    found = (report.get("limits") or {}).get("outside")
    if not found:
        return []
    ours, theirs = (found["auroc"][name] for name in ("specialist", "teacher"))
    return [
        f"outside  told from the task's own at AUROC {ours:.2f} (teacher {theirs:.2f}), "
        f"{found['source']}"
    ]


def _shape(report: Mapping[str, Any]) -> list[str]:
    """How much of each kind of structure is left, and whether the latency table was right."""
    left = [
        f"{row['kind']} {row['kept']:,} of {row['full']:,}"
        for row in report["sparsity"].get("ledger", [])
        if "full" in row
    ]
    if not left:
        return []
    lines = [f"left     {', '.join(left)}"]
    predicted = report["speed"].get("predicted_ms", {})
    if predicted:
        form = "int8" if "int8" in predicted else "float32"
        measured = report["models"]["specialist"]["latency_ms"]
        lines.append(
            f"planned  {_milliseconds(predicted[form])} ms, measured {_milliseconds(measured)} ms"
        )
    return lines


def _integers(report: Mapping[str, Any]) -> list[str]:
    facts = report.get("quantize", {})
    if "route" not in facts:
        return []
    floats = len(facts["float_layers"])
    kept = f", {floats} layer{'s' * (floats != 1)} float" if floats else ""
    return [f"{facts['format']:<8} {facts['route']} form, {facts['activation']} activations{kept}"]


def _pays(ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [
        f"{row['kind']} {row['measured_ratio']:.2f}x"
        for row in ledger
        if row["kind"] != "together" and row["runtime"].endswith("cpu")
    ]
    return [f"alone    {', '.join(told)}"] if told else []
