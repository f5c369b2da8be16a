"""Specialize anew what a champion was made for, on its data as they are now."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.specialize import specialize_flow
from tasks.progress import watching
from tasks.respecialize import held, one_at_a_time, recipe_of_champion


@flow(name="respecialize")
def respecialize_flow(model: str, reason: str = "") -> dict[str, Any]:
    """Run a champion's recipe again; the new version challenges it, and is promoted or not.

    Where a version was made of the same data already, nothing is run: two triggers for one change
    make one run.

    Args:
        model: Name of a registered model that has a champion.
        reason: Why, for the record.
    """
    with one_at_a_time(model):
        done = held(model)
        if done is not None:
            watching().say(f"{model}: held ({'; '.join(done['reasons'])})")
            return done
        watching().say(f"{model}: specializing anew" + (f" ({reason})" if reason else ""))
        report = specialize_flow(recipe_of_champion(model))
    champion = report["champion"] or {}
    return {
        "model": model,
        "action": champion.get("action", "not registered"),
        "version": champion.get("version"),
        "made": report["mlflow"]["model_uri"],
        "verdict": report["verdict"]["status"],
        "reasons": [*([reason] if reason else []), *champion.get("reasons", [])],
    }
