"""A fleet's file: what all share, what members say differently, and every fault in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.fleet import Fleet
from tasks.fleet_files import load_fleet, parse_fleet
from tasks.fleet_report import exit_code, fleet_markdown, told, work_of
from tasks.members import Followed, lost, member_of
from tasks.recipes import parse_recipe
from tasks.stage import Finished

PLAIN: dict[str, Any] = {
    "name": "desk",
    "generalist": {"source": "hf:x"},
    "task": {"test": "test.csv", "shots": 8},
    "target": {"speedup": 3},
    "members": [
        {"name": "billing", "task": {"train": "a.csv", "classes": [1, 2]}},
        {"name": "cards", "task": {"train": "b.csv", "shots": 4}, "target": {"bytes": 5_000_000}},
    ],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(**changes: Any) -> Path:
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump({**PLAIN, **changes}), encoding="utf-8")
        return path

    return written


def test_a_member_is_the_shared_recipe_with_its_own_values() -> None:
    found = Fleet.model_validate(PLAIN).recipes()
    assert list(found) == ["billing", "cards"]
    wanted = {
        "name": "desk-cards",
        "generalist": {"source": "hf:x"},
        "task": {"train": "b.csv", "test": "test.csv", "shots": 4},
        "target": {"speedup": 3, "bytes": 5_000_000},
    }
    assert found["cards"] == Recipe.model_validate(wanted)
    assert found["billing"].task.classes == ["1", "2"] and found["billing"].task.shots == 8


def test_a_fleet_survives_being_written_down() -> None:
    """As Prefect does with parameters: what was left out must not come back as a value."""
    fleet = Fleet.model_validate(PLAIN)
    again = Fleet.model_validate(json.loads(fleet.model_dump_json()))
    assert again.recipes() == fleet.recipes()
    assert fleet.model_dump(mode="json")["members"][1]["target"] == {"bytes": 5_000_000}
    assert pickle.loads(pickle.dumps(fleet)).recipes() == fleet.recipes()


def test_the_form_describes_every_field() -> None:
    schema = Fleet.model_json_schema()
    assert schema["required"] == ["name", "members"]
    for part in (schema, *schema["$defs"].values()):
        assert "required" not in part or set(part["required"]) <= {"name", "members"}
        for name, field in part["properties"].items():
            assert "$ref" in field or field.get("description"), name


def test_a_member_may_take_a_value_back() -> None:
    members = [{"name": "a", "task": {"train": "a"}, "target": {"speedup": None}}]
    (recipe,) = Fleet.model_validate({**PLAIN, "members": members}).recipes().values()
    assert recipe.target.speedup is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": None}, "members: missing; give a list of members"),
        ({"members": []}, "members: []; give a list"),
        ({"name": "a b"}, "name: 'a b'"),
        ({"members": [{"task": {}}]}, "members.0: has no name"),
        ({"members": [{"name": "a", "tsk": {}}]}, "members.a.tsk: no such field"),
        (
            {"members": [{"name": "a", "task": {"train": "x", "shots": 0}}]},
            "members.a.task.shots: 0 should be greater than or equal to 1; Labelled examples",
        ),
        ({"members": [{"name": "a"}]}, "task.train: missing; Labelled examples"),
        ({"targt": {"speedup": 3}}, "targt: no such field; did you mean target?"),
        ({"target": {"speedup": -3}}, ": target.speedup: -3 should be greater than 0"),
        (
            {"members": [{"name": x, "task": {"train": "x"}} for x in ("a", "A")]},
            "members: two are called A",
        ),
        (
            {
                "track": {"model_name": "one"},
                "members": [{"name": x, "task": {"train": "x"}} for x in "ab"],
            },
            "members: a and b would both register one",
        ),
        ({"gpu": "some"}, "gpu: 'some' should be a valid boolean"),
        ({"members": [{"name": "../up", "task": {"train": "x"}}]}, "should match pattern"),
    ],
)
def test_faults_are_one_line(write: Callable[..., Path], changes: Any, words: str) -> None:
    with pytest.raises(RecipeError) as told:
        load_fleet(write(**changes))
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_shared_fault_names_no_member(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as told:
        load_fleet(write(target={"speedup": -3}))
    assert "members" not in str(told.value)


def test_changes_are_for_all_or_for_one(write: Callable[..., Path]) -> None:
    changes = ["task.seed=7", "members.cards.task.shots=2", "gpu=true"]
    fleet = load_fleet(write(), changes)
    found = fleet.recipes()
    assert {recipe.task.seed for recipe in found.values()} == {7}
    assert found["cards"].task.shots == 2 and found["billing"].task.shots == 8
    assert fleet.takes_gpu() == {"billing": True, "cards": True}
    with pytest.raises(
        RecipeError, match=r"members\.nobody: no such member; known: billing, cards"
    ):
        load_fleet(write(), ["members.nobody.task.shots=2"])


def test_a_member_s_name_may_hold_dots(write: Callable[..., Path]) -> None:
    members = [{"name": name, "task": {"train": "a.csv"}} for name in ("v1", "v1.2", "v1.2.task")]
    changes = ["members.v1.2.task.shots=3", "members.v1.task.shots=2", "members.v1.2.gpu=true"]
    fleet = load_fleet(write(members=members[:2]), changes)
    assert {name: each.task.shots for name, each in fleet.recipes().items()} == {"v1": 2, "v1.2": 3}
    assert fleet.takes_gpu() == {"v1": False, "v1.2": True}
    # the longest name that fits is meant
    fleet = load_fleet(write(members=members), ["members.v1.2.task.task.shots=3"])
    assert [each.task.shots for each in fleet.recipes().values()] == [8, 8, 3]


def test_paths_are_found_beside_the_file(write: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a.csv", "test.csv"):
        (tmp_path / name).touch()
    (tmp_path / "x").mkdir()
    found = load_fleet(write())
    recipe = found.recipes()["billing"]
    assert recipe.task.train == str(tmp_path / "a.csv")
    assert recipe.task.test == str(tmp_path / "test.csv")
    assert recipe.generalist.source == f"hf:{tmp_path / 'x'}"
    assert found.recipes()["cards"].task.train == "b.csv"  # is nowhere: said when it is read


def finished(key: str, seconds: float, *, reused: bool, spared: float = 0.0) -> Finished:
    metrics = {"spared_seconds": spared} if spared else {}
    artifact = Artifact(
        stage="s", path=f"s/{key}", sha256=key, key=key, metrics=metrics, seconds=seconds
    )
    return Finished(key, artifact, reused, {})


def use(key: str, seconds: float, *, reused: bool, spared: float = 0.0) -> dict[str, Any]:
    return {"title": key, "key": key, "reused": reused, "seconds": seconds, "spared": spared}


def test_the_share_of_work_is_what_members_did_not_have_to_do() -> None:
    """By hand: 10 s for all, then 4 s and 6 s; alone 10 + 4 and 10 + 6 + 3 (times found)."""
    together = [finished("load", 10, reused=False)]
    outcomes = [
        {"stages": [use("load", 10, reused=True), use("a", 4, reused=False)]},
        {"stages": [use("load", 10, reused=True), use("b", 6, reused=False, spared=3)]},
    ]
    work = work_of(together, outcomes)
    assert work == {
        "spent": 20,
        "alone": 33,
        "found": 0,
        "shared": pytest.approx(13 / 33, abs=1e-4),
    }


def test_what_an_earlier_run_made_counts_on_neither_side() -> None:
    outcomes = [{"stages": [use("old", 100, reused=True), use("new", 5, reused=False)]}]
    assert work_of([finished("old", 100, reused=True)], outcomes) == {
        "spent": 5, "alone": 5, "found": 100, "shared": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["pass", "pass"], 0),
        (["pass", "inconclusive"], 4),
        (["inconclusive", "fail"], 3),
        (["fail", "refused"], 2),
        (["refused", "error", "pass"], 1),
    ],
)
def test_the_exit_code_is_the_worst_members(statuses: list[str], code: int) -> None:
    assert exit_code({"members": [{"status": status} for status in statuses]}) == code


def test_a_member_that_fails_is_an_outcome() -> None:
    def refused() -> dict[str, Any]:
        raise RecipeError("task.train: nowhere")

    def broken() -> dict[str, Any]:
        raise ZeroDivisionError("by zero\nand more")

    first = member_of("a", refused)
    assert (first["status"], first["error"]) == ("refused", "task.train: nowhere")
    found = member_of("b", broken)
    assert (found["status"], found["error"]) == ("error", "ZeroDivisionError: by zero")
    gone = lost("c", RuntimeError("killed"))
    assert (
        gone["status"] == "error" and "its worker was lost (RuntimeError: killed)" in gone["error"]
    )
    assert set(gone) == set(found)


def test_lines_carry_the_members_name(capsys: pytest.CaptureFixture[str]) -> None:
    follow = Followed("billing")
    with follow.stage("teach"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("billing | ") for line in lines)
    assert set(follow.spent) == {"teach"}


def test_the_page_names_what_failed_and_who_has_a_home_of_its_own() -> None:
    report = {
        "name": "desk",
        "members": [
            {"member": "a", "status": "refused", "error": "task.train: x | y", "champion": None}
        ],
        "work": {"spent": 60.0, "alone": 100.0, "found": 0.0, "shared": 0.4},
        "workers": 2,
        "hosts": {"one": {"shares_home": True}, "two": {"shares_home": False}},
        "seconds": {"total": 30.0},
    }
    page = fleet_markdown(report)
    assert r"| a | refused |  |  |  |  |  | task.train: x \| y |" in page
    assert "40 % was shared" in told(report)
    assert "2 workers on 2 hosts (one, two)" in told(report)
    assert "two: a store of its own" in told(report)


def test_plain_values_are_checked_like_a_file() -> None:
    assert parse_fleet(PLAIN).recipes().keys() == {"billing", "cards"}
    with pytest.raises(RecipeError, match="members"):
        parse_fleet({"name": "x"})
    with pytest.raises(RecipeError):
        parse_recipe(PLAIN)
