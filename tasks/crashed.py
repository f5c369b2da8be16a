"""Flow runs whose process was killed say so: the next run under the same home marks them.

A killed process cannot report its end, so that its flow run would be Running for ever. While a
process runs flows it holds the lock of a file under <home>, and the flow runs carry the file's
name as a tag. A file that nobody holds is what a killed process left.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.context import TagsContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed

from tasks.home import prefect_home
from tasks.locks import if_free, locked

_TAG = "winnow-process-"
_OPEN = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]
_PAGE, _MOST_PAGES = 200, 50  # what the server gives at once; what one process may have left
_MESSAGE = "its process was killed"


@contextmanager
def owned_flow_runs() -> Iterator[None]:
    """Flow runs that begin inside the block are marked as crashed if this process is killed.

    Marks those of earlier processes first.
    """
    folder = prefect_home() / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    mark_crashed(folder)
    name = uuid.uuid4().hex[:8]
    with locked(folder / name), tags(f"{_TAG}{name}"):
        yield


@contextmanager
def without_mark() -> Iterator[None]:
    """Tasks that are called inside the block do not inherit the mark of `owned_flow_runs`.

    They are found by their flow run. For every tag of a task Prefect asks its server for limits
    before the task begins; over SQLite that request often meets the server's own writing of the
    task before, and is tried again two seconds later.
    """
    kept = {tag for tag in TagsContext.get().current_tags if not tag.startswith(_TAG)}
    with TagsContext(current_tags=kept):
        yield


def mark_crashed(folder: Path) -> int:
    """Set the open flow and task runs of dead processes to Crashed; returns how many flow runs.

    Those that the server does not let be marked are left to the next run.
    """
    count = 0
    for path in sorted(folder.iterdir()):
        free = marked = False
        try:
            with if_free(path) as free:
                if free:
                    with get_client(sync_client=True) as client:
                        count += _mark(client, f"{_TAG}{path.name}")
            marked = True
        except PrefectHTTPStatusError:
            pass
        finally:
            if free and not marked:
                path.touch()  # the lock took its file with it
    return count


def _mark(client: SyncPrefectClient, tag: str) -> int:
    count = 0
    mine = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": _state()})
    order = FlowRunSort.START_TIME_ASC
    for _ in range(_MOST_PAGES):
        found = client.read_flow_runs(flow_run_filter=mine, sort=order, limit=_PAGE)
        for run in found:
            _mark_tasks(client, run)
            client.set_flow_run_state(run.id, Crashed(message=_MESSAGE), force=True)
        count += len(found)
        if len(found) < _PAGE:
            break
    return count


def _mark_tasks(client: SyncPrefectClient, run: FlowRun) -> None:
    inside = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    still = TaskRunFilter.model_validate({"state": _state()})
    for _ in range(_MOST_PAGES):
        found = _tasks(client, inside, still)
        for task in found:
            client.set_task_run_state(task.id, Crashed(message=_MESSAGE), force=True)
        if len(found) < _PAGE:
            break


def _tasks(client: SyncPrefectClient, inside: FlowRunFilter, still: TaskRunFilter) -> list[TaskRun]:
    order = TaskRunSort.ID_DESC
    return client.read_task_runs(
        flow_run_filter=inside, task_run_filter=still, sort=order, limit=_PAGE
    )


def _state() -> dict[str, object]:
    return {"type": {"any_": [kind.value for kind in _OPEN]}}
