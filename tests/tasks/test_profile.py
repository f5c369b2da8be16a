"""A profile file is checked before anything is computed; what it says decides, and is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exports.runtime import host_profile
from tasks.errors import RecipeError
from tasks.profile import require_profile
from tasks.recipes import load_recipe, parse_recipe
from tests.tasks.test_config import SMALLEST

PLAIN: dict[str, Any] = {
    "schema": 1,
    "host": host_profile(),
    "threads": 1,
    "batch": 1,
    "base_ms": {"float32": 1.0, "int8": 0.5},
    "branch_ms": {},
    "generalist_ms": 2.0,
}


def recipe(profile: Path, **changes: Any) -> Any:
    plain = {"target": {"speedup": 2}, "shrink": {"profile": str(profile)}}
    return parse_recipe(SMALLEST | plain | changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a file"),
        ("{", "is not JSON"),
        ("[]", "is not a profile"),
        (json.dumps({"schema": 1}), "is not a profile"),
        (json.dumps(PLAIN | {"schema": 2}), "has schema 2, expected 1"),
        (json.dumps(PLAIN | {"threads": 4}), "verify.threads 4, the recipe has 1"),
        (json.dumps(PLAIN | {"batch": 8}), "verify.batch 8, the recipe has 1"),
        (json.dumps(PLAIN | {"base_ms": {"float32": 1.0}}), "no int8 times"),
        ("[" * 200_000, "is not JSON"),
        (json.dumps(PLAIN | {"base_ms": None}), "is not a profile (base_ms: "),
        (json.dumps(PLAIN | {"base_ms": 5}), "is not a profile (base_ms: "),
        (json.dumps(PLAIN | {"base_ms": {"int8": "1"}}), "(base_ms.int8: "),
        (json.dumps(PLAIN | {"host": [1]}), "(host: "),
        (json.dumps(PLAIN | {"branch_ms": [1]}), "(branch_ms: "),
        (json.dumps(PLAIN | {"branch_ms": {"a": {"int8": -1.0}}}), "(branch_ms.a.int8: "),
        (json.dumps(PLAIN | {"generalist_ms": "x"}), "(generalist_ms: "),
        (json.dumps(PLAIN | {"generalist_ms": -3.0}), "(generalist_ms: "),
        (json.dumps(PLAIN | {"generalist_ms": float("nan")}), "(generalist_ms: "),
        (json.dumps(PLAIN | {"threads": "1"}), "(threads: "),
    ],
)
def test_a_file_that_cannot_be_planned_with(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "server.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=r"^shrink\.profile: ") as caught:
        require_profile(recipe(path))
    assert words in str(caught.value)
    assert "winnow profile RECIPE --out FILE" in str(caught.value)


def test_another_host_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps(PLAIN | {"host": {"cpu": "another"}}))
    require_profile(recipe(path))
    # parts that are timed one by one can add up to more than the whole
    path.write_text(json.dumps(PLAIN | {"base_ms": {"float32": -1.0, "int8": -0.5}}))
    require_profile(recipe(path))
    float_only = PLAIN | {"base_ms": {"float32": 1.0}}
    path.write_text(json.dumps(float_only))
    require_profile(recipe(path, quantize={"format": "none"}))


def test_its_path_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps(PLAIN))
    (tmp_path / "r.yaml").write_text(
        "{name: n, generalist: {source: 'timm:x'}, task: {train: a, test: b}, "
        "shrink: {profile: server.json}}"
    )
    loaded = load_recipe(tmp_path / "r.yaml")
    assert loaded.shrink.profile == str(tmp_path / "server.json")
