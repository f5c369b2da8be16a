"""Write the model card, as Markdown and as one HTML page, from a report and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.card_evidence import (
    calibration_section,
    classes_section,
    interplay_section,
    parity_section,
    seeds_section,
    verdict_section,
)
from exports.card_facts import (
    champion_section,
    data_section,
    host_section,
    leaks_section,
    licence_section,
    limits_section,
)
from exports.card_head import head_html
from exports.card_methods import ledger_section, quantize_section, structure_section
from exports.card_use import use_section
from exports.markdown import (
    accuracy_text,
    count,
    markdown_table,
    megabytes,
    milliseconds,
    plain,
    plural,
    ratio_of,
    times,
)
from exports.page import page_html
from exports.sweep_card import sweep_section

ORDER = ("generalist", "teacher", "pruned", "specialist")
_SHOWN = 20  # rows of a long table in the Markdown; the page folds them away instead


def card_markdown(
    report: Mapping[str, Any], sweep: Mapping[str, Any] | None = None, *, rows: int | None = _SHOWN
) -> str:
    """Return the card of a report (schema 1) as Markdown.

    Sections whose numbers the report does not have are left out. It refers to the pictures of
    `exports.plots.card_pictures` by their names.

    Args:
        sweep: content of sweep.json, where the run is a point of one.
        rows: of long tables at most; None for all.
    """
    parts = [f"# {plain(report['task']['name'])}", introduction(report)]
    for title, text in _sections(report, sweep, rows):
        parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def card_html(
    report: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    sweep: Mapping[str, Any] | None = None,
) -> str:
    """Return the same card as one HTML page that needs nothing else: no network, no other file.

    Args:
        pictures: PNG by name, as `exports.plots.card_pictures` draws them; one that is missing is
            left out of the page, and NAME-dark.png stands in for NAME.png on a dark ground.
        sweep: content of sweep.json, where the run is a point of one.
    """
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in _sections(report, sweep, None))
    name = report["task"]["name"]
    head = head_html(report, introduction(report))
    return page_html(f"{name}: model card", head, body, pictures)


def introduction(report: Mapping[str, Any]) -> str:
    """Return what the specialist answers and what it was made from, as Markdown."""
    task = report["task"]
    classes = [plain(name) for name in task["classes"]]
    more = len(classes) - 12
    shown = ", ".join(classes[:12]) + (f" and {more} more" if more > 0 else "")
    kind = "texts" if task["modality"] == "text" else "images"
    return (
        f"Sorts {kind} into {plural(len(classes), 'class', 'classes')}: {shown}. Made from "
        f"{plural(task['shots'], 'labelled example')} a class and judged on "
        f"{plural(task['test']['n'], 'other')}. Whatever it is shown, it answers with one of these "
        "classes."
    )


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


def _table_section(report: Mapping[str, Any]) -> str:
    """Return the table of models and its picture."""
    picture = (
        "![Accuracy of generalist, teacher and specialist with intervals, against latency on the "
        "left and file size on the right; the table above has the numbers.](tradeoff.png)"
    )
    explained = (
        "The generalist is the pretrained model as it came, the teacher is that model adapted to "
        "the task, dense; accuracy, size and time are all read from the exported ONNX files."
    )
    return "\n\n".join([model_table(report), explained, picture])


def _sections(
    report: Mapping[str, Any], sweep: Mapping[str, Any] | None, rows: int | None
) -> list[tuple[str, str]]:
    """Return the sections that have something to tell, in order: the answer first, then the use,
    then the evidence."""
    found = (
        ("Verdict", verdict_section(report)),
        ("What it costs and what it buys", _table_section(report)),
        ("The trade-off it was picked from", sweep_section(sweep)),
        ("Class by class", classes_section(report, rows)),
        ("How sure it is", calibration_section(report)),
        ("Limits", limits_section(report)),
        ("Other draws of the examples", seeds_section(report)),
        ("Use it", use_section(report)),
        ("The task and its data", data_section(report)),
        ("Leaks", leaks_section(report, rows)),
        ("What pays on this runtime", ledger_section(report)),
        ("What is left of the structure", structure_section(report)),
        ("How it is quantized", quantize_section(report)),
        ("Pruning and quantization together", interplay_section(report)),
        ("Parity", parity_section(report)),
        ("In the registry", champion_section(report)),
        ("Licence of the generalist", licence_section(report)),
        ("Measured on", host_section(report)),
    )
    return [(title, text) for title, text in found if text]
