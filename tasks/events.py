"""Events on Prefect's bus that a model is the subject of; triggers start flows on them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.runtime import flow_run
from prefect.types._datetime import DateTime


def resource_of(model: str) -> dict[str, str]:
    """The resource that stands for a registered model."""
    return {"prefect.resource.id": f"winnow.model.{model}", "prefect.resource.name": model}


def tell(name: str, model: str, payload: Mapping[str, Any]) -> uuid.UUID:
    """Emit an event about a model and wait until the server has it; returns its id.

    `prefect.events.emit_event` hands it to a thread and never says whether it arrived: a change
    of data that was marked as told but not heard would be lost.

    Raises:
        httpx.HTTPError: the server did not take it, however often Prefect's client tried.
    """
    event = Event(
        occurred=DateTime.now("UTC"),
        event=name,
        resource=Resource(resource_of(model)),
        related=_related(),
        payload=dict(payload),
        id=uuid.uuid4(),
    )
    body = [event.model_dump(mode="json")]
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=body).raise_for_status()
    return event.id


def _related() -> list[RelatedResource]:
    """The flow run that tells it, so that its page lists the event."""
    if flow_run.id is None:
        return []
    role = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
    return [RelatedResource(role | {"prefect.resource.role": "flow-run"})]
