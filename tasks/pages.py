"""Prefect artifacts: what the flow run's page shows of a finished specialization."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from tasks.config import Recipe


def show_pages(recipe: Recipe, report: Mapping[str, Any], out: Path) -> None:
    """Put the table, the card, the picture and the link to MLflow on the flow run's page."""
    slug = re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-") or "run"
    verdict = report["verdict"]
    create_table_artifact(
        table=[{"model": name, **facts} for name, facts in report["models"].items()],
        key=f"{slug}-models",
        description=f"Verdict: {verdict['status']}. " + " ".join(verdict["reasons"]),
    )
    ledger = report["sparsity"]["ledger"]
    columns = ("kind", "kept", "full", "nominal", "runtime", "measured_ratio", "pays")
    create_table_artifact(
        table=[{column: row.get(column) for column in columns} for row in ledger],
        key=f"{slug}-ledger",
        description="What each kind of compression takes, and what it pays in time.",
    )
    if report.get("structure"):
        create_table_artifact(
            table=[
                {key: str(branch[key]) for key in ("branch", "kind", "size", "full")}
                for branch in report["structure"]
            ],
            key=f"{slug}-structure",
            description="What is left of every branch.",
        )
    create_markdown_artifact(
        markdown=(out / "card.md").read_text(encoding="utf-8"), key=f"{slug}-card"
    )
    # as a data address: the page then needs no second server for it
    picture = base64.b64encode((out / "tradeoff.png").read_bytes()).decode()
    create_image_artifact(
        image_url=f"data:image/png;base64,{picture}",
        key=f"{slug}-tradeoff",
        description="Accuracy against latency and bytes.",
    )
    create_link_artifact(
        link=report["page"], link_text="MLflow run", key=f"{slug}-mlflow", description="Its record."
    )
