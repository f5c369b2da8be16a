from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from exports.card import card_markdown
from exports.plots import card_pictures
from tasks import pages
from tasks.config import Recipe
from tests.exports.reports import full_report, full_sweep

RECIPE = Recipe.model_validate(
    {
        "name": "Support.Intents",
        "generalist": {"source": "hf:x"},
        "task": {"train": "a.csv", "test": "b.csv"},
    }
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What would be put on Prefect's page, by key."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("markdown", "table", "link"):

        def keep(key: str, kind: str = kind, **facts: Any) -> None:
            assert key not in found, f"{key} would hide the one before it"
            assert re.fullmatch(r"[a-z0-9-]+", key)
            found[key] = {"kind": kind, **facts}

        monkeypatch.setattr(pages, f"create_{kind}_artifact", keep)
    return found


def test_the_flow_runs_page_gets_card_tables_pictures_and_link(
    tmp_path: Path, shown: dict[str, dict[str, Any]]
) -> None:
    report = full_report()
    pictures = card_pictures(report, full_sweep())
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "card.md").write_text(card_markdown(report, full_sweep()), encoding="utf-8")
    pages.show_pages(RECIPE, {**report, "page": "http://127.0.0.1:5000/#/r"}, tmp_path)

    names = {key.removeprefix("support-intents-"): facts for key, facts in shown.items()}
    assert set(names) == {
        *("card", "models", "classes", "ledger", "structure", "mlflow"),
        *("tradeoff", "front", "per-class", "calibration"),
    }
    # nothing on the page points at a file that Prefect's server does not have
    inside = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", names["card"]["markdown"])
    assert len(inside) == 4
    for address in inside:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) in pictures.values()
    assert "Verdict: pass. accuracy drop is between" in names["card"]["description"]
    assert names["mlflow"]["link"] == "http://127.0.0.1:5000/#/r"
    for name in ("models", "classes", "ledger", "structure"):
        for row in names[name]["table"]:
            assert all(isinstance(x, str | int | float | None) for x in row.values())
    classes = names["classes"]["table"]
    assert [row["drop"] for row in classes] == sorted((r["drop"] for r in classes), reverse=True)
    assert classes[0]["class"] == "card_lost_or_stolen"
    assert names["models"]["table"][2]["accuracy_ci"] == "0.8441 to 0.8918"


def test_what_a_run_has_not_made_is_left_out(
    tmp_path: Path, shown: dict[str, dict[str, Any]]
) -> None:
    report = full_report()
    del report["structure"], report["accuracy"]["per_class"]
    (tmp_path / "card.md").write_text(card_markdown(report), encoding="utf-8")
    pages.show_pages(RECIPE, {**report, "page": "http://p"}, tmp_path)
    assert {key.removeprefix("support-intents-") for key in shown} == {
        *("card", "models", "ledger", "mlflow"),
    }
    assert ".png" not in shown["support-intents-card"]["markdown"]
