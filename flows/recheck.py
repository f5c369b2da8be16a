"""A recheck: is each champion still what it was when it was verified? And what is to be done?"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from flows.respecialize import respecialize_flow
from tasks.crashed import without_mark
from tasks.decision import record, record_action, recorded, say, show
from tasks.embedded import embedded_prefect
from tasks.errors import UserError
from tasks.home import home, require_writable
from tasks.progress import watch, watching
from tasks.promotion import roll_back
from tasks.recheck import examine
from tasks.registry import Version
from tasks.watch import watched

Act = Literal["none", "rollback", "respecialize", "all"]


@flow(name="recheck")
def recheck_flow(
    model: str | None = None,
    labelled: str | None = None,
    unlabelled: str | None = None,
    act: Act = "none",
) -> list[dict[str, Any]]:
    """Examine champions on what is there now; decide: hold, re-specialize or roll back.

    Args:
        model: Name of a registered model; left out, every model that has a champion.
        labelled: Labelled examples, in the forms of task.train; left out, the recipe's task.test
            as it is now, of which what the champion was not verified on is new.
        unlabelled: Inputs without labels, in the same forms; left out, drift is not looked for.
        act: What may be done on a decision without asking.
    """
    reports: list[dict[str, Any]] = []
    faults: dict[str, Exception] = {}
    for champion in watched(None if model is None else [model]):
        try:
            reports.append(_recheck(champion, labelled, unlabelled, act))
        except Exception as error:  # one champion's trouble must not hide the others
            faults[champion.told] = error
            watching().say(f"! {champion.told}: {error or type(error).__name__}", "red")
    if not reports and not faults:
        watching().say("no model has a champion: nothing to recheck")
    for fault in faults.values():
        if not isinstance(fault, UserError):
            raise fault
    if faults:
        raise UserError("; ".join(f"{told}: {fault}" for told, fault in faults.items()))
    return reports


def _recheck(
    champion: Version, labelled: str | None, unlabelled: str | None, act: Act
) -> dict[str, Any]:
    with recorded(champion) as run:
        report = examine(champion, labelled, unlabelled)
        with without_mark():
            page = record(run, report)
        say(report)
        acted = _act(report, act)
        if acted is not None:
            report["acted"] = acted
            record_action(run, report)
        show(report, page)
    return report


def _act(report: dict[str, Any], act: Act) -> dict[str, Any] | None:
    """Do what was decided, where that is allowed; returns what was done."""
    if report["decision"] not in ("rollback", "respecialize"):
        return None
    if act not in (report["decision"], "all"):
        return None
    if report["decision"] == "rollback":
        return roll_back(report["model"], report["to"], report["version"])
    return respecialize_flow(report["model"], "; ".join(report["reasons"]))


def recheck(
    model: str | None = None,
    labelled: str | None = None,
    unlabelled: str | None = None,
    act: Act = "none",
) -> list[dict[str, Any]]:
    """Recheck from Python, with Prefect's and MLflow's stores under <home>.

    Returns a report for each champion; raises what a user can mend as a `ValueError` of one line.
    """
    require_writable(home(), "WINNOW_HOME")
    with embedded_prefect(), watch(watching()):
        return recheck_flow(model, labelled, unlabelled, act)
