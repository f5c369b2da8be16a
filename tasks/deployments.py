"""prefect.yaml's deployments, put on a server through Prefect's client.

`prefect deploy --all` of Prefect 3.8.8 reads the same file, but ends with an error 422: it asks for
the pool's workers with limits that its own server refuses, between the first deployment and the
second. Besides, this deploys only what has changed: what people altered in the pages (a schedule
that they switched off, a parameter's default) stays until the file or the code changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import MissingFlowError, ObjectNotFound, ScriptError
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import get_current_settings
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tasks.errors import RecipeError, UserError
from tasks.secrets import redacted

_TRIGGER: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Schedule(_Strict):
    """When a deployment runs by itself: `cron` or `interval`."""

    cron: str | None = None
    interval: float | None = Field(default=None, gt=0, le=1e9, description="seconds")
    timezone: str | None = None
    slug: str | None = None
    active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Schedule:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("give cron or interval")
        self.created()  # raises where the cron line or the zone is none
        return self

    def told(self) -> str:
        """The schedule in a few words."""
        zone = f" {self.timezone}" if self.timezone else ""
        when = f"cron {self.cron}" if self.cron else f"every {self.interval:g} s"
        when = f"{when}{zone}"
        return when if self.active else f"{when}, off"

    def created(self) -> DeploymentScheduleCreate:
        """As Prefect's client takes it."""
        zone: dict[str, Any] = {"timezone": self.timezone} if self.timezone else {}
        if self.cron is not None:
            schedule: Any = CronSchedule(cron=self.cron, **zone)
        else:
            assert self.interval is not None
            schedule = IntervalSchedule(interval=timedelta(seconds=self.interval), **zone)
        return DeploymentScheduleCreate(
            schedule=schedule, active=self.active, parameters=self.parameters, slug=self.slug
        )


class Pool(_Strict):
    """The work pool, and what its workers are told."""

    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)


class Deployment(_Strict):
    """One deployment as prefect.yaml has it; of Prefect's fields, those that winnow needs."""

    name: str
    entrypoint: str
    work_pool: Pool
    description: str | None = None
    tags: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: list[Schedule] = Field(default_factory=list)
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    concurrency_limit: int | ConcurrencyLimitConfig | None = None
    enforce_parameter_schema: bool = True

    @field_validator("triggers")
    @classmethod
    def _are_triggers(cls, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for spec in specs:
            _TRIGGER.validate_python(spec)
        return specs


class _File(BaseModel):
    deployments: list[Deployment]


@dataclass(frozen=True)
class Deployed:
    """A deployment on the server."""

    id: UUID
    name: str  # flow/deployment
    action: str  # "deployed" or "unchanged"
    told: str  # when it runs by itself


def read_deployments(file: Path) -> list[Deployment]:
    """The deployments of a prefect.yaml; raises `RecipeError` that names the field."""
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{file}: cannot be read ({error.strerror}); run this in winnow's folder, or name the "
            "file with --deployments"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: is no YAML ({error})") from None
    try:
        return _File.model_validate(plain).deployments
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise RecipeError(f"{file}: {where}: {first['msg']}") from None


def deploy(file: Path, folder: Path) -> list[Deployed]:
    """Put every deployment of a file on the server that PREFECT_API_URL names.

    Args:
        file: a prefect.yaml.
        folder: where the flow runs work: relative paths of recipes, and `runs/`, are there.
    """
    wanted = read_deployments(file)
    url = get_current_settings().api.url
    if url is None:
        raise UserError(
            "PREFECT_API_URL: not set; `winnow up` starts a server and deploys to it by itself"
        )
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise UserError(
                f"PREFECT_API_URL: no server answers at {redacted(url)} ({problem}); start it with "
                "`winnow up`"
            )
        for pool in dict.fromkeys(each.work_pool.name for each in wanted):
            _require_pool(client, pool)
        return [_put(client, each, file, folder) for each in wanted]


def _require_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=template)
        )


def _put(client: SyncPrefectClient, wanted: Deployment, file: Path, folder: Path) -> Deployed:
    flow = _flow(wanted, file)
    schema = parameter_schema(flow)
    name = f"{flow.name}/{wanted.name}"
    told = ", ".join(each.told() for each in wanted.schedules)
    events = [event for trigger in wanted.triggers for event in trigger.get("expect", [])]
    told = "; ".join(filter(None, [told, f"on {', '.join(events)}" if events else ""]))
    version = _version(wanted, schema.model_dump(mode="json"), folder)
    try:
        known = client.read_deployment_by_name(name)
        if known.version == version:
            return Deployed(known.id, name, "unchanged", told)
    except ObjectNotFound:
        pass
    limit, options = _concurrency(wanted)
    number = client.create_deployment(
        flow_id=client.create_flow(flow),
        name=wanted.name,
        version=f"{version}, unfinished",
        schedules=[each.created() for each in wanted.schedules],
        concurrency_limit=limit,
        concurrency_options=options,
        parameters=wanted.parameters,
        description=wanted.description or flow.description,
        work_pool_name=wanted.work_pool.name,
        work_queue_name=wanted.work_pool.work_queue_name,
        job_variables=wanted.work_pool.job_variables,
        tags=wanted.tags,
        path=str(folder),
        entrypoint=wanted.entrypoint,
        parameter_openapi_schema=schema.model_dump(mode="json"),
        pull_steps=[
            {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}
        ],
        enforce_parameter_schema=wanted.enforce_parameter_schema,
    )
    _set_triggers(client, number, wanted)
    # last: what breaks off before is deployed again, triggers included
    client.update_deployment(number, DeploymentUpdate(version=version))
    return Deployed(number, name, "deployed", told)


def _flow(wanted: Deployment, file: Path) -> Flow[..., Any]:
    try:
        return load_flow_from_entrypoint(wanted.entrypoint)
    except (ImportError, OSError, ValueError, MissingFlowError, ScriptError) as error:
        raise RecipeError(
            f"{file}: entrypoint of {wanted.name}: {wanted.entrypoint} is no flow ({error}); give "
            "one such as flows.specialize.specialize_flow"
        ) from error


def _version(wanted: Deployment, schema: Mapping[str, Any], folder: Path) -> str:
    """A digest of all that a deployment is made from."""
    plain = {
        "deployment": wanted.model_dump(mode="json"),
        "schema": schema,
        "folder": str(folder),
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _concurrency(wanted: Deployment) -> tuple[int | None, ConcurrencyOptions | None]:
    limit = wanted.concurrency_limit
    if not isinstance(limit, ConcurrencyLimitConfig):
        return limit, None
    return limit.limit, ConcurrencyOptions(collision_strategy=limit.collision_strategy)


def _set_triggers(client: SyncPrefectClient, number: UUID, wanted: Deployment) -> None:
    """The automations that start the deployment on events, in the place of earlier ones."""
    client.delete_resource_owned_automations(f"prefect.deployment.{number}")
    for place, spec in enumerate(wanted.triggers, start=1):
        trigger = _TRIGGER.validate_python({"name": f"{wanted.name}__automation_{place}", **spec})
        trigger.set_deployment_id(number)
        client.create_automation(trigger.as_automation())
