"""prefect.yaml: its deployments on a real server, and the forms that Prefect builds from them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import temporary_settings
from prefect.utilities.callables import parameter_schema

from flows.specialize import specialize_flow
from tasks import events
from tasks.config import Recipe
from tasks.deployments import Deployed, Schedule, deploy, read_deployments
from tasks.embedded import embedded_prefect
from tasks.errors import RecipeError, UserError
from tasks.fleet import Fleet
from tasks.recipes import load_recipe

ROOT = Path(__file__).parents[2]
FILE = ROOT / "prefect.yaml"
PLAIN = yaml.safe_load(FILE.read_text())
BY_NAME = {each["name"]: each for each in PLAIN["deployments"]}


def leaves(schema: dict[str, Any], node: dict[str, Any], path: str) -> list[tuple[str, str]]:
    """(path, description) of every field of the form that holds a value itself."""
    found = []
    for name, field in node.get("properties", {}).items():
        inner = field
        for part in [field] if "$ref" in field else field.get("allOf", []):
            if "$ref" in part:
                inner = schema["definitions"][part["$ref"].rpartition("/")[2]]
        if inner.get("properties"):
            found += leaves(schema, inner, f"{path}{name}.")
        # a section's description is its model's own
        found.append((f"{path}{name}", field.get("description") or inner.get("description", "")))
    return found


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_field_of_every_form_is_described(name: str) -> None:
    flow: Any = load_flow_from_entrypoint(BY_NAME[name]["entrypoint"])
    schema = parameter_schema(flow).model_dump()
    found = leaves(schema, schema, "")
    assert [path for path, description in found if len(description) < 8] == []


def test_the_form_of_a_recipe_has_its_fields() -> None:
    schema = specialize_flow.parameters.model_dump()
    found = dict(leaves(schema, schema, ""))
    assert {"recipe.prune.sparsity", "out"} <= set(found)
    assert len(found) > 60


def test_the_parameters_are_valid_and_those_of_the_recipes_file() -> None:
    for each in BY_NAME.values():
        flow: Any = load_flow_from_entrypoint(each["entrypoint"])
        assert set(each.get("parameters", {})) <= set(flow.parameters.properties)
    for name in ("specialize", "sweep"):
        given = Recipe.model_validate(BY_NAME[name]["parameters"]["recipe"])
        # beside the recipe's own file, only its paths are written differently
        ours = load_recipe(ROOT / "recipes" / "intents.yaml")
        assert given == ours.model_copy(update={"task": given.task})
    fleet = Fleet.model_validate(BY_NAME["fleet"]["parameters"]["fleet"])
    data = (ROOT / fleet.task.test).read_text()
    for member, recipe in fleet.recipes().items():
        assert len(recipe.task.classes or []) > 1, member
        assert all(f'"{label}"' in data for label in recipe.task.classes or [])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prefect server of this module's own, and a client of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(tmp_path_factory.mktemp("server")))
        with embedded_prefect(), get_client(sync_client=True) as client:
            yield client


@pytest.fixture(scope="module")
def deployed(server: Any) -> dict[str, Deployed]:
    """Everything that prefect.yaml says, on the server."""
    return {each.name: each for each in deploy(FILE, ROOT)}


def test_all_of_the_file_is_on_the_server(server: Any, deployed: dict[str, Deployed]) -> None:
    assert set(deployed) == {f"{name}/{name}" for name in BY_NAME}
    assert {each.action for each in deployed.values()} == {"deployed"}
    assert server.read_work_pool("winnow").type == "process"
    for name, plain in BY_NAME.items():
        found = server.read_deployment_by_name(f"{name}/{name}")
        assert found.entrypoint == plain["entrypoint"]
        assert found.parameters == plain.get("parameters", {})
        assert (found.work_pool_name, found.tags) == ("winnow", ["winnow"])
        assert found.global_concurrency_limit.limit == 1
        assert found.pull_steps == [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        ]
        assert not found.paused
    recheck = server.read_deployment_by_name("recheck/recheck")
    assert [(s.schedule.cron, s.active) for s in recheck.schedules] == [("0 3 * * *", True)]
    watch = server.read_deployment_by_name("watch/watch")
    assert [s.schedule.interval.total_seconds() for s in watch.schedules] == [900]
    assert watch.concurrency_options.collision_strategy == "CANCEL_NEW"


def test_a_schedule_becomes_runs(server: Any, deployed: dict[str, Deployed]) -> None:
    # Prefect 3.8.8 cannot insert them with SQLAlchemy 2.1: nothing would run at night, silently
    number = deployed["recheck/recheck"].id
    server.request("POST", f"/deployments/{number}/schedule", json={"min_runs": 2})
    asked = {"deployments": {"id": {"any_": [str(number)]}}, "limit": 50}
    runs = server.request("POST", "/flow_runs/filter", json=asked).json()
    assert len(runs) >= 2
    assert {run["expected_start_time"][11:16] for run in runs} == {"03:00"}
    assert all(run["work_pool_name"] == "winnow" for run in runs)


def test_a_changed_digest_starts_respecialize_with_its_model(
    server: Any, deployed: dict[str, Deployed]
) -> None:
    number = deployed["respecialize/respecialize"].id
    (automation,) = server.read_resource_related_automations(f"prefect.deployment.{number}")
    assert automation.enabled
    assert automation.trigger.expect == {"winnow.data.changed"}
    (action,) = automation.actions
    assert (action.type, action.deployment_id) == ("run-deployment", number)
    # the templates are filled from what tasks.events tells, and named as the flow's parameters
    assert set(action.parameters) == {"model", "reason"}
    assert "event.resource.name" in action.parameters["model"]
    told = events.resource_of("some-model")
    pattern = automation.trigger.match.model_dump()["prefect.resource.id"]
    assert fnmatch(told["prefect.resource.id"], pattern)
    assert told["prefect.resource.name"] == "some-model"


def test_what_was_altered_in_the_pages_stays_until_the_file_changes(
    server: Any, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    before = server.read_deployment_by_name("recheck/recheck")
    server.update_deployment_schedule(before.id, before.schedules[0].id, active=False)
    again = {each.name: each.action for each in deploy(FILE, ROOT)}
    assert set(again.values()) == {"unchanged"}
    assert not server.read_deployment_by_name("recheck/recheck").schedules[0].active
    plain = yaml.safe_load(FILE.read_text())
    for each in plain["deployments"]:
        if each["name"] == "recheck":
            each["schedules"][0]["cron"] = "0 4 * * *"
    changed = tmp_path / "prefect.yaml"
    changed.write_text(yaml.safe_dump(plain))
    again = {each.name: each.action for each in deploy(changed, ROOT)}
    assert [name for name, action in again.items() if action == "deployed"] == ["recheck/recheck"]
    after = server.read_deployment_by_name("recheck/recheck")
    assert after.id == before.id
    assert [(s.schedule.cron, s.active) for s in after.schedules] == [("0 4 * * *", True)]
    assert len(server.read_resource_related_automations(f"prefect.deployment.{after.id}")) == 0


def test_triggers_are_replaced_not_added(
    server: Any, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    number = deployed["respecialize/respecialize"].id
    deploy(FILE, tmp_path)  # another folder: everything is put there anew
    assert len(server.read_resource_related_automations(f"prefect.deployment.{number}")) == 1


def test_what_broke_off_halfway_is_put_there_by_the_next_one(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [BY_NAME["respecialize"] | {"name": "late"}]}))

    def broken(*_: object) -> None:
        raise TimeoutError("the server is busy")

    with monkeypatch.context() as patch:
        patch.setattr(SyncPrefectClient, "create_automation", broken)
        with pytest.raises(TimeoutError):
            deploy(file, ROOT)
    for action in ("deployed", "unchanged"):
        (found,) = deploy(file, ROOT)
        assert found.action == action
        owned = f"prefect.deployment.{found.id}"
        assert len(server.read_resource_related_automations(owned)) == 1


def test_an_interval_is_in_the_zone_that_it_names() -> None:
    schedule = Schedule(interval=86400, timezone="Europe/Berlin")
    assert schedule.created().schedule.timezone == "Europe/Berlin"
    assert schedule.told() == "every 86400 s Europe/Berlin"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"entrypoint": "flows.nowhere.flow"}, "entrypoint of x: flows.nowhere.flow is no flow"),
        ({"entrypoint": "flows.specialize.nothing"}, "entrypoint of x: .* is no flow"),
        ({"schedules": [{"cron": "0 3 * * *", "crom": 1}]}, "deployments.0.schedules.0.crom"),
        ({"work_pool": None}, "deployments.0.work_pool"),
        ({"schedules": [{"interval": -1}]}, "deployments.0.schedules.0.interval"),
        ({"schedules": [{"interval": 1e300}]}, "deployments.0.schedules.0.interval"),
        ({"schedules": [{"interval": 60, "timezone": "no/where"}]}, "schedules.0.*no/where"),
        ({"schedules": [{"slug": "never"}]}, "deployments.0.schedules.0: .*cron or interval"),
        ({"schedules": [{"cron": "every night"}]}, "deployments.0.schedules.0.cron: .*every night"),
        ({"triggers": [{"type": "nonsense"}]}, "deployments.0.triggers"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_field(
    server: Any, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    plain = {
        "name": "x",
        "entrypoint": "flows.specialize.specialize_flow",
        "work_pool": {"name": "winnow"},
    }
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [plain | change]}))
    with pytest.raises(RecipeError, match=told) as caught:
        deploy(file, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_file_and_no_server_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_deployments(tmp_path / "prefect.yaml")
    (tmp_path / "prefect.yaml").write_text("deployments: [")
    with pytest.raises(RecipeError, match="is no YAML"):
        read_deployments(tmp_path / "prefect.yaml")
    with (
        temporary_settings({"api.url": None}),
        pytest.raises(UserError, match="PREFECT_API_URL: not set"),
    ):
        deploy(FILE, ROOT)


@pytest.mark.slow
def test_it_is_what_prefects_own_command_makes(tmp_path: Path) -> None:
    # an oracle: `prefect deploy` saves one deployment, then ends with Prefect's error 422
    with embedded_prefect(), get_client(sync_client=True) as client:
        url = str(client.api_url)
        deploy(FILE, ROOT)
        name = "respecialize"
        ours = client.read_deployment_by_name(f"{name}/{name}")
        environment = {**os.environ, "PREFECT_API_URL": url}
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "-n", name]
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
        theirs = client.read_deployment_by_name(f"{name}/{name}")
        differ = {"version", "updated", "version_id", "version_info", "path", "created_by"}
        differ |= {"updated_by", "last_polled", "status"}
        assert ours.id == theirs.id
        assert ours.version != theirs.version  # it was really put there anew
        mine, other = (x.model_dump(mode="json", exclude=differ) for x in (ours, theirs))
        for plain in (mine, other):
            schema = plain["parameter_openapi_schema"]
            plain["parameter_openapi_schema"] = {k: v for k, v in schema.items() if v != {}}
            for schedule in plain["schedules"]:
                for field in ("id", "created", "updated"):
                    schedule.pop(field)
        assert mine == other
        (automation,) = client.read_resource_related_automations(f"prefect.deployment.{ours.id}")
        assert automation.name == "winnow re-specializes when labels change"
