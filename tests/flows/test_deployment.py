"""prefect.yaml and the form that Prefect builds from the flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from flows.specialize import specialize_flow
from flows.sweep import sweep_flow
from tasks.config import Recipe
from tasks.recipes import load_recipe

ROOT = Path(__file__).parents[2]


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


def test_every_field_of_the_form_is_described() -> None:
    schema = specialize_flow.parameters.model_dump()
    found = leaves(schema, schema, "")
    assert [path for path, description in found if len(description) < 8] == []
    assert "recipe.prune.sparsity" in dict(found)
    assert "out" in dict(found)
    assert len(found) > 60


def test_the_deployment_names_the_flow_and_a_valid_recipe() -> None:
    plain = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    deployment, again = plain["deployments"]
    for each, flow in ((deployment, specialize_flow), (again, sweep_flow)):
        path, _, name = each["entrypoint"].partition(":")
        assert (ROOT / path).is_file()
        assert name == flow.fn.__name__
        assert set(each["parameters"]) <= set(flow.parameters.properties)
    assert again["parameters"] == deployment["parameters"]
    given = Recipe.model_validate(deployment["parameters"]["recipe"])
    # beside the recipe's own file, only its paths are written differently
    ours = load_recipe(ROOT / "recipes" / "intents.yaml")
    assert given == ours.model_copy(update={"task": given.task})
