"""MLflow runs that their process could not end: closed by the next one on the same host.

A run names its host and its process in tags. Where that process is gone, nobody will end the run.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.home import tracking_uri
from tasks.mlflow_store import (
    MlflowClient,
    empty,
    pointed,
    require_reachable,
    steady_client,
)
from tasks.processes import host_name, is_gone

HOST, PROCESS = "winnow.host", "winnow.process"
# one random word a call that makes a run: two runs with the same are one that was made twice
ONCE = "winnow.once"
_REASON = "the process ended without a word: it was killed, or its machine stopped"

# runs of this process that could not be closed when they failed, with status and reason
_left: dict[str, tuple[str, str]] = {}


def remember(run_id: str, status: str, reason: str) -> None:
    """Note a run that is over and could not be closed."""
    _left[run_id] = status, reason


def close_left_runs(client: MlflowClient) -> list[str]:
    """End the runs, nested ones included, that nobody else will; returns their ids.

    Those of processes that are gone end KILLED, those of this process as they were to end.
    """
    closed = []
    for run_id, (status, reason) in list(_left.items()):
        _close(client, run_id, status, reason)
        del _left[run_id]
        closed.append(run_id)
    query = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{host_name()}'"
    experiments = [found.experiment_id for found in client.search_experiments()]
    token = None
    while experiments:
        page = client.search_runs(experiments, query, page_token=token)
        for run in page:
            tags = run.data.tags
            if is_gone(tags.get(HOST, ""), tags.get(PROCESS, "")):
                _close(client, run.info.run_id, "KILLED", _REASON)
                closed.append(run.info.run_id)
        token = page.token
        if not token:
            break
    return closed


def close_left_in_store() -> int:
    """As `close_left_runs`, in the store that the environment names; returns how many."""
    if empty():
        return 0
    require_reachable(tracking_uri())
    with pointed():
        return len(close_left_runs(steady_client()))


def _close(client: MlflowClient, run_id: str, status: str, reason: str) -> None:
    client.set_tag(run_id, "winnow.error", reason)
    client.set_terminated(run_id, status)


def remove_twins(
    client: MlflowClient, experiment: str, query: str, made: Mapping[str, str]
) -> None:
    """Delete what MLflow's client made a second time because the first answer was lost.

    Its REST client repeats a call whose answer did not come; a store in this process has no such
    calls.

    Args:
        query: finds the runs that were made, and their twins.
        made: by the word of `ONCE`, the run that is to stay.
    """
    if not tracking_uri().startswith("http") or not made:
        return
    for run in client.search_runs([experiment], query):
        stays = made.get(run.data.tags.get(ONCE, ""), run.info.run_id)
        if run.info.run_id != stays:
            client.set_terminated(run.info.run_id, "KILLED")
            client.delete_run(run.info.run_id)
