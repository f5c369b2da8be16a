"""The record of a recheck: its MLflow run, the page of its flow run, its event."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from exports.recheck import recheck_markdown, recheck_rows
from tasks import tracking
from tasks.config import Recipe
from tasks.events import tell
from tasks.outages import worth_another_try
from tasks.progress import watching
from tasks.registry import Version, experiment_of
from tasks.sections import Track
from tasks.track import tracked

DECIDED = "winnow.recheck.decided"
EXIT = {"hold": 0, "rollback": 3, "respecialize": 3, "inconclusive": 4}
_STYLE = {"hold": "green", "inconclusive": "yellow"}


@contextmanager
def recorded(champion: Version) -> Iterator[str]:
    """An MLflow run of a recheck, in the experiment of the champion's own run; yields its id."""
    # no more of a recipe than says where a run is recorded: the champion's may be broken
    name = champion.tags.get("winnow.recipe", champion.name)
    where = Track.model_validate({"experiment": experiment_of(champion)})
    with tracked(Recipe.model_construct(name=name, track=where), "recheck") as run:
        yield run


@task(
    name="record recheck",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=worth_another_try,
)
def record(run_id: str, report: Mapping[str, Any]) -> str:
    """Write a decision into its MLflow run and emit its event; returns the run's page."""
    tags = {
        "winnow.decision": report["decision"],
        "winnow.model_version": f"{report['model']}/{report['version']}",
    }
    url = tracking.log_recheck(run_id, tags, _metrics(report), _files(report))
    told = ("model", "version", "decision", "reasons", "to")
    tell(DECIDED, report["model"], {key: report[key] for key in told} | {"page": url})
    return url


def record_action(run_id: str, report: Mapping[str, Any]) -> None:
    """Add to the record what was done on a decision."""
    tags = {"winnow.acted": report["acted"]["action"]}
    tracking.log_recheck(run_id, tags, {}, _files(report))


def show(report: Mapping[str, Any], page: str) -> None:
    """Put a decision on the page of the current flow run, and say it in a line."""
    slug = re.sub(r"[^a-z0-9]+", "-", report["model"].lower()).strip("-") or "model"
    about = f"{report['decision']}: {report['reasons'][0]}"
    create_markdown_artifact(
        markdown=recheck_markdown(report), key=f"{slug}-recheck", description=about
    )
    rows = recheck_rows(report)
    if rows:
        create_table_artifact(
            table=rows, key=f"{slug}-recheck-figures", description="What the decision rests on."
        )
    create_link_artifact(
        link=page, link_text="MLflow run", key=f"{slug}-recheck-mlflow", description="Its record."
    )


def say(report: Mapping[str, Any]) -> None:
    """The decision in plain lines."""
    reporter, decision = watching(), report["decision"]
    target = f" to {report['model']}/{report['to']}" if report.get("to") else ""
    style = _STYLE.get(decision, "red")
    reporter.say(f"{report['model']}/{report['version']}: {decision}{target}", style)
    for reason in report["reasons"]:
        reporter.say(f"  - {reason}")


def _files(report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "recheck.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "recheck.md": recheck_markdown(report),
    }


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a person wants to see over time."""
    found: dict[str, float] = {"decision_code": EXIT[report["decision"]]}
    labelled, unlabelled = report.get("labelled") or {}, report.get("unlabelled") or {}
    if report.get("first"):
        found["first.accuracy"] = report["first"]["accuracy"]
    for key in ("fresh", "relabelled", "teacher"):
        row = labelled.get(key)
        if row:
            low, high = row["drop_ci"]
            figures = {"n": row["n"], "accuracy": row["accuracy"], "drop": row["drop"]}
            figures |= {"drop_low": low, "drop_high": high}
            found |= {f"{key}.{name}": float(value) for name, value in figures.items()}
    if unlabelled:
        drifted, estimate = unlabelled["drift"], unlabelled["estimate"]
        found |= {
            "drift.n": drifted["n"],
            "drift.ks": drifted["ks"],
            "drift.p": drifted["p"],
            "drift.shares_moved": drifted["shares_moved"],
            "drift.estimated_accuracy": estimate["accuracy"],
            "drift.estimated_drop": estimate["drop"],
        }
    if report.get("line"):
        found["line.gain_of_first"] = report["line"]["gain"]
    return found
