"""Prefect artifacts: what the flow run's page shows of a finished specialization."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from exports.card_evidence import by_drop
from tasks.config import Recipe
from tasks.fleet_report import fleet_markdown, told

# by file name, as the stages wrote them beside the card; those that a run has not made are left out
_PICTURES = {
    "tradeoff.png": "Accuracy against latency and bytes.",
    "front.png": "The sweep: every point's accuracy against latency, bytes and nonzeros.",
    "per-class.png": "What every class loses.",
    "calibration.png": "How often the models are right when they say how sure they are.",
}
_LEDGER = ("kind", "kept", "full", "nominal", "runtime", "measured_ratio", "pays")
_CLASSES = ("class", "n", "teacher", "specialist", "drop", "drop_ci", "p_adjusted", "worse")
_FLEET = (
    "member", "status", "accuracy", "drop", "drop_ci", "ratio", "latency_ms", "bytes", "champion",
    "host", "seconds", "error",
)  # fmt: skip
_MODELS = ("parameters", "nonzero", "bytes", "accuracy", "accuracy_ci", "latency_ms")


def show_pages(recipe: Recipe, report: Mapping[str, Any], out: Path) -> None:
    """Put the card, the tables, the pictures and the link to MLflow on the flow run's page.

    Args:
        report: with `page`, the address of the MLflow run.
        out: the run's folder, with card.md and the pictures.
    """
    slug = _slug(recipe.name)
    verdict, classes = report["verdict"], report["accuracy"].get("per_class") or []
    pictures = {
        name: _address(path.read_bytes())
        for name in _PICTURES
        if (path := Path(out) / name).is_file()
    }
    card = (Path(out) / "card.md").read_text(encoding="utf-8")
    create_markdown_artifact(
        markdown=_with_pictures(card, pictures),
        key=f"{slug}-card",
        description=f"Verdict: {verdict['status']}. {'; '.join(verdict['reasons'])}".rstrip(),
    )
    for name, columns, rows, description in (
        ("models", ("model", *_MODELS), _models(report), "Generalist, teacher and specialist."),
        ("classes", _CLASSES, by_drop(classes), "What every class loses, the largest loss first."),
        (
            "ledger",
            _LEDGER,
            report["sparsity"]["ledger"],
            "What each kind of compression takes, and what it pays in time.",
        ),
        (
            "structure",
            ("branch", "kind", "size", "full"),
            report.get("structure") or [],
            "What is left of every branch.",
        ),
    ):
        if rows:
            table = [{column: _cell(row.get(column)) for column in columns} for row in rows]
            create_table_artifact(table=table, key=f"{slug}-{name}", description=description)
    for name, address in pictures.items():
        # not an image artifact: its page prints the whole address below the picture
        create_markdown_artifact(
            markdown=f"![{_PICTURES[name]}]({address})",
            key=f"{slug}-{name.removesuffix('.png')}",
            description=_PICTURES[name],
        )
    create_link_artifact(
        link=report["page"], link_text="MLflow run", key=f"{slug}-mlflow", description="Its record."
    )


def show_sweep(recipe: Recipe, sweep: Mapping[str, Any], out: Path) -> None:
    """Put a sweep's table and its picture on the flow run's page.

    Args:
        sweep: with `page`, the address of the MLflow run.
        out: the sweep's folder, with sweep.md and front.png.
    """
    slug = f"{_slug(recipe.name)}-sweep"
    pictures = {"front.png": _address((Path(out) / "front.png").read_bytes())}
    told = (Path(out) / "sweep.md").read_text(encoding="utf-8")
    create_markdown_artifact(
        markdown=_with_pictures(told, pictures), key=slug, description=sweep["picked_why"]
    )
    columns = ("point", "status", "accuracy", "drop_ci", "latency_ms", "ratio", "bytes", "nonzero")
    table = [{column: _cell(row[column]) for column in columns} for row in sweep["points"]]
    create_table_artifact(table=table, key=f"{slug}-points", description="Every point.")
    create_link_artifact(
        link=sweep["page"], link_text="MLflow run", key=f"{slug}-mlflow", description="Its record."
    )


def show_fleet(fleet: Mapping[str, Any]) -> None:
    """Put a fleet's table and the link to MLflow on the flow run's page.

    Args:
        fleet: with `page`, the address of the MLflow run.
    """
    key = f"{_slug(fleet['name'])}-fleet"
    create_markdown_artifact(markdown=fleet_markdown(fleet), key=key, description=told(fleet))
    table = [{name: _cell(row.get(name)) for name in _FLEET} for row in fleet["members"]]
    create_table_artifact(table=table, key=f"{key}-members", description="Every member.")
    create_link_artifact(
        link=fleet["page"], link_text="MLflow run", key=f"{key}-mlflow", description="Its record."
    )


def _slug(name: str) -> str:
    """A name as keys of artifacts are written."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


def _models(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"model": name, **facts} for name, facts in report["models"].items()]


def _cell(value: Any) -> Any:
    """A value as the page's table shows it: it has cells for texts and numbers only."""
    if isinstance(value, list | tuple):
        return " to ".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in value)
    if isinstance(value, float):
        return round(value, 6)
    return value


def _address(content: bytes) -> str:
    """A picture as a data address: the page then needs no second server for it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _with_pictures(markdown: str, pictures: Mapping[str, str]) -> str:
    """The card with its pictures inside; those that are not there are left out."""

    def inside(found: re.Match[str]) -> str:
        address = pictures.get(found["name"])
        return f"![{found['alt']}]({address})" if address else ""

    return re.sub(r"!\[(?P<alt>[^\]]*)\]\((?P<name>[\w.-]+\.png)\)", inside, markdown)
