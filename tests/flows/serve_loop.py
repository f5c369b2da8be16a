"""Serves `watch`, every few seconds, and `respecialize`, on the event: for test_loop.py."""

from __future__ import annotations

import sys

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType
from prefect.events import DeploymentEventTrigger

from flows.respecialize import respecialize_flow
from flows.watch import watch_flow
from tasks.watch import CHANGED


def from_payload(key: str) -> dict[str, str]:
    """A parameter that is read off the event."""
    return {"__prefect_kind": "jinja", "template": "{{ event.payload." + key + " }}"}


if __name__ == "__main__":
    trigger = DeploymentEventTrigger(
        name="data changed",
        expect={CHANGED},
        match={"prefect.resource.id": "winnow.model.*"},
        parameters={"model": from_payload("model"), "reason": from_payload("reason")},
    )
    # as in prefect.yaml: on a slow machine watches must not queue up before what they start
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    # by module: an entry point by file puts flows/ on the path, and its `profile` before Python's
    named = {"name": "loop", "entrypoint_type": EntrypointType.MODULE_PATH}
    every = float(sys.argv[1])
    serve(
        watch_flow.to_deployment(**named, interval=every, concurrency_limit=alone),
        respecialize_flow.to_deployment(**named, triggers=[trigger]),
        limit=3,
    )
