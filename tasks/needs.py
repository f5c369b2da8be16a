"""What registered versions need of the artifact store: what the runs that made them used."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.home import tracking_uri
from tasks.mlflow_store import MlflowClient, empty, pointed, require_reachable, steady_client
from tasks.runs import Run

Needed = set[tuple[str, str]]

_RUN_ID = "winnow.run_id"


def needed_by_registry(runs: Sequence[Run]) -> tuple[Needed, list[str]]:
    """What every registered version's run used, and lines on versions of which it is not known.

    The index of runs knows it; what it does not know, such as runs of another home, the nested
    runs of MLflow do.

    Args:
        runs: of the index.

    Returns:
        (stage, key) and (stage, sha256) of artifacts, and what to tell.

    Raises:
        RecipeError: the tracking server does not answer.
    """
    require_reachable(tracking_uri())
    if empty():
        return set(), []
    listed: dict[str, Needed] = {}
    for run in runs:
        needed = listed.setdefault(run.mlflow_run, set())
        for stage, key, sha256 in run.artifacts:
            needed |= {(stage, key), (stage, sha256)}
    found, unknown = Needed(), []
    with pointed():
        client = steady_client()
        for told, run_id in sorted(_versions(client)):
            known = listed.get(run_id) or _nested(client, run_id)
            found |= known
            if not known:
                unknown.append(f"{told}: what its run used is not known, so nothing is kept for it")
    return found, unknown


def _versions(client: MlflowClient) -> set[tuple[str, str]]:
    """Every registered version that a run of winnow made, and the id of that run."""
    found, token = set(), None
    while True:
        page = client.search_model_versions(page_token=token)
        for version in page:
            run_id = version.tags.get(_RUN_ID) or version.run_id
            if run_id:
                found.add((f"{version.name}/{version.version}", str(run_id)))
        token = page.token
        if not token:
            return found


def _nested(client: MlflowClient, run_id: str) -> Needed:
    """Stage and digest of what a run used, from the tags of its nested runs."""
    try:
        experiment = client.get_run(run_id).info.experiment_id
    except Exception as error:  # deleted since
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return set()
    found, token = Needed(), None
    while True:
        query = f"tags.`mlflow.parentRunId` = '{run_id}'"
        page = client.search_runs([experiment], query, page_token=token)
        for run in page:
            tags = run.data.tags
            if "winnow.stage" in tags:
                found.add((tags["winnow.stage"], tags.get("winnow.sha256", "")))
        token = page.token
        if not token:
            return found
