"""Write the model card: one Markdown page made from a report and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.card_methods import ledger_section, quantize_section, structure_section
from exports.markdown import (
    accuracy_text,
    count,
    markdown_table,
    megabytes,
    milliseconds,
    ratio_of,
    times,
)

ORDER = ("generalist", "teacher", "pruned", "specialist")
_VERDICTS = {
    "pass": "**Pass.**",
    "fail": "**Fail.**",
    "inconclusive": "**Inconclusive.**",
}


def card_markdown(report: Mapping[str, Any]) -> str:
    """Return the card of a report (schema 1) as Markdown.

    Sections whose numbers the report does not have are left out.
    """
    task = report["task"]
    parts = [
        f"# {task['name']}",
        _introduction(task),
        "## Verdict",
        _verdict(report),
        "## What it costs and what it buys",
        model_table(report),
        "![accuracy against latency and size](tradeoff.png)",
    ]
    for title, text in (
        ("## What pays on this runtime", ledger_section(report)),
        ("## What is left of the structure", structure_section(report)),
        ("## How it is quantized", quantize_section(report)),
        ("## Pruning and quantization together", _interplay(report)),
        ("## Parity", _parity(report)),
        ("## Use it", _usage(task)),
        ("## Measured on", _host(report)),
    ):
        if text:
            parts += [title, text]
    return "\n\n".join(parts) + "\n"


def model_table(report: Mapping[str, Any]) -> str:
    """Return the models side by side: accuracy with interval, size, time and ratios."""
    models, n = report["models"], report["task"]["test"]["n"]
    confidence = report.get("accuracy", {}).get("confidence", 0.95)
    base = models.get("generalist", {})
    rows = []
    for name in ORDER:
        model = models.get(name)
        if model is None:
            continue
        rows.append(
            [
                name,
                accuracy_text(model.get("accuracy"), n, confidence),
                count(model.get("parameters")),
                count(model.get("nonzero")),
                megabytes(model.get("bytes")),
                milliseconds(model.get("latency_ms")),
                times(ratio_of(base.get("latency_ms"), model.get("latency_ms"))),
                times(ratio_of(base.get("bytes"), model.get("bytes"))),
            ]
        )
    header = ["model", f"accuracy ({confidence:.0%} interval)", "parameters", "nonzero", "size"]
    return markdown_table([*header, "latency", "faster", "smaller"], rows)


def _introduction(task: Mapping[str, Any]) -> str:
    """Return what the specialist answers and what it was made from."""
    classes = [str(name) for name in task["classes"]]
    shown = ", ".join(classes[:12]) + (
        f" and {len(classes) - 12} more" if len(classes) > 12 else ""
    )
    kind = "texts" if task["modality"] == "text" else "images"
    return (
        f"Sorts {kind} into {len(classes)} classes: {shown}. Made from {task['shots']} examples a "
        f"class ({task['support']['n']} in all, seed {task['seed']}) and judged on "
        f"{task['test']['n']} others; {task.get('leaks', 0)} examples are in both."
    )


def _verdict(report: Mapping[str, Any]) -> str:
    """Return the verdict with its reasons and the interval behind it."""
    verdict, accuracy = report["verdict"], report["accuracy"]
    low, high = accuracy["drop_ci"]
    lines = [
        f"{_VERDICTS.get(verdict['status'], verdict['status'])} Against the teacher the accuracy "
        f"drops by {100 * accuracy['drop']:.2f} points, between {100 * low:.2f} and "
        f"{100 * high:.2f} with {accuracy['confidence']:.0%} confidence "
        f"({accuracy['method']}, n = {accuracy['n']}).",
    ]
    if verdict.get("reasons"):
        lines.append("\n".join(f"- {reason}" for reason in verdict["reasons"]))
    return "\n\n".join(lines)


def _interplay(report: Mapping[str, Any]) -> str:
    """Return whether pruning and quantizing together cost more than both alone."""
    interplay = report.get("interplay")
    if not interplay:
        return ""
    told = "no more" if interplay["orthogonal"] else "more"
    rows = [
        [f"{interplay[key]:.3f}" for key in ("dense", "sparse", "quantized", "both", "threshold")]
    ]
    table = markdown_table(["dense", "sparse", "quantized", "both", "threshold"], rows)
    return (
        f"{table}\n\nTogether they cost {told} than the sum of what each costs alone (that sum is "
        "the threshold; Harma et al.)."
    )


def _parity(report: Mapping[str, Any]) -> str:
    """Return the chain of conversions."""
    hops = report.get("parity") or []
    rows = [
        [
            hop["hop"],
            f"{hop['max_abs']:.2g}",
            f"{hop['agreement']:.4f}",
            "" if hop["accuracy"] is None else f"{hop['accuracy']:.4f}",
        ]
        for hop in hops
    ]
    header = ["hop", "largest logit difference", "same label", "accuracy after"]
    return markdown_table(header, rows) if rows else ""


def _usage(task: Mapping[str, Any]) -> str:
    """Return how to call it from Python, and through MLflow."""
    example = '"my card was swallowed"' if task["modality"] == "text" else '"photo.jpg"'
    return (
        "```python\n"
        "from pathlib import Path\n\n"
        "from exports.specialist import Specialist\n\n"
        'specialist = Specialist.load(Path("."))  # the folder of this card\n'
        f"print(specialist.predict([{example}]))  # label and probability\n"
        "```"
    ) + (
        "\n\nNeeds onnxruntime, tokenizers, numpy and Pillow, and no torch. The same model is in "
        "the MLflow registry; `mlflow.pyfunc.load_model(uri).predict([...])` takes the same inputs."
    )


def _host(report: Mapping[str, Any]) -> str:
    """Return the host that the times were taken on."""
    host = report.get("host") or {}
    if not host:
        return ""
    flags = ", ".join(host.get("flags", [])) or "none listed"
    return (
        f"{host.get('cpu', 'unknown processor')}, {host.get('usable_cores', '?')} usable cores, "
        f"onnxruntime {host.get('onnxruntime', '?')}, {host.get('os', '')}. Vector extensions: "
        f"{flags}. Times on other hosts differ; the accuracy does not depend on the host but for "
        "rounding."
    )
