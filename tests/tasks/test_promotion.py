"""Champion and challenger in a real registry, with specialists made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from tasks import promotion, registry
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.home import store
from tasks.predict import predict
from tasks.promotion import Trial, promote, promote_if_better, roll_back
from tasks.splits import Split
from tests.conftest import QUICK, WORDS, merged, text_rows
from tests.quiet import QUIET
from tests.tiny_specialists import image_specialist, text_specialist

pytestmark = QUIET
NAME = "tiny"
# three words a class are known to one, and five to the other
SOME = {label: words[:3] for label, words in WORDS.items()}
FEW = {label: words[:1] for label, words in WORDS.items()}
CARD = "# tiny\n\nFor tests.\n\n## Verdict\n\n**Pass.**\n\n## What it costs\n\nNothing.\n"


def trial(**changes: Any) -> Trial:
    """A test set in the store, and the terms."""
    rows = text_rows(40, 7)
    classes = sorted(WORDS)
    split = Split(
        tuple(row["text"] for row in rows),
        tuple(classes.index(row["intent"]) for row in rows),
        tuple(str(at) for at in range(len(rows))),
    )
    folder = store() / "prepare" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    split.save(folder / "test.parquet", "text")
    plain = {"name": NAME, "generalist": {"source": "hf:x"}, "task": {"train": "a", "test": "b"}}
    quick = merged(QUICK, {"verify": {"max_drop": 0.1, "repeats": 40}, "task": {"shots": 8}})
    return Trial(Recipe.model_validate(merged(merged(plain, quick), changes)), classes, split)


Register = Callable[..., registry.Version]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database as its migrations leave it: they take seconds, a copy none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def register(tmp_path: Path, home: Path, empty_store: Path) -> Register:
    """A function that registers a specialist made by hand under the name `tiny`."""
    made: list[str] = []
    shutil.copy(empty_store, home / "mlflow.db")

    def call(
        known: Mapping[str, Iterable[str]] | None = None,
        *,
        verdict: str = "pass",
        kind: str = "text",
        **shape: Any,
    ) -> registry.Version:
        folder = tmp_path / f"made-{len(made)}"
        made.append(folder.name)
        if kind == "image":
            image_specialist(folder)
        else:
            text_specialist(folder, SOME if known is None else known, **shape)
        terms = trial()
        (folder / "card.md").write_text(CARD)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(terms.recipe.model_dump(mode="json")))
        facts = {
            "path": "prepare/key/test.parquet", "sha256": terms.test.sha256(),
            "classes": list(terms.classes), "kept": None,
        }  # fmt: skip
        (folder / "test.json").write_text(json.dumps(facts))
        with registry.pointed():
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name("e")
            where = (home / "mlartifacts").as_uri()
            experiment = found.experiment_id if found else client.create_experiment("e", where)
            run = client.create_run(experiment).info.run_id
        identity = {
            registry.DIGEST: registry.served_digest(folder), registry.VERDICT: verdict,
        }  # fmt: skip
        return registry.register(
            run,
            NAME,
            folder,
            identity=identity,
            tags={"winnow.run_id": run},
            example=["my card"],
            description=f"version {len(made)}",
            about="# tiny",
        ).version

    return call


def champion() -> str | None:
    found = registry.champion_of(NAME)
    return found and found.number


def decide(version: registry.Version, **changes: Any) -> dict[str, Any]:
    return promote_if_better(version, trial(**changes), "")


def test_the_first_that_passes_is_champion(register: Register) -> None:
    failed = decide(register(verdict="fail"))
    assert failed["action"] == "not passed" and failed["version"] is None
    never = decide(register(), track={"promote": "never"})
    assert never["action"] == "never" and champion() is None
    outcome = decide(register(extra_bytes=8))
    assert (outcome["action"], outcome["version"], outcome["previous"]) == ("first", "3", None)
    assert champion() == "3"
    assert predict(f"models:/{NAME}@champion", ["my card"])[0]["label"] == "card"
    with registry.pointed():
        client = mlflow.MlflowClient()
        assert client.get_registered_model(NAME).description.startswith("# tiny\n\nFor tests.")
        assert "What it costs" not in client.get_registered_model(NAME).description
        assert client.get_model_version(NAME, "3").description == "version 3"


def test_only_a_better_or_a_smaller_equal_challenger_takes_over(register: Register) -> None:
    decide(register(FEW))
    better = decide(register(SOME))
    assert (better["action"], better["previous"], champion()) == ("promoted", "1", "2")
    assert better["comparison"]["n"] == 120 and better["comparison"]["gain"] > 0.1
    worse = decide(register(FEW, extra_bytes=8))
    assert (worse["action"], worse["version"], champion()) == ("kept", "2", "2")
    assert worse["comparison"]["gain"] < -0.1 and worse["reasons"]
    bigger = decide(register(SOME, extra_bytes=1_000_000))
    assert (bigger["action"], champion()) == ("kept", "2")
    heavy = register(SOME, extra_bytes=2_000_000, layers=20)
    promote(f"{NAME}/{heavy.number}", force=True)
    assert champion() == heavy.number
    smaller = decide(registry.find_version(NAME, "2"))
    assert (smaller["action"], champion()) == ("promoted", "2")
    assert smaller["comparison"]["bytes_ratio"] > 1 and smaller["comparison"]["latency_ratio"] > 1


def test_labels_are_matched_by_name(register: Register) -> None:
    backwards = tuple(reversed(list(WORDS)))
    decide(register(WORDS))
    same = decide(register(WORDS, labels=backwards, extra_bytes=1_000_000))
    assert same["comparison"]["gain"] == 0  # the same answers under another order of classes
    lacking = {"card": SOME["card"]}
    promote(f"{NAME}/{register(lacking, labels=('card', 'else')).number}", force=True)
    assert decide(register(SOME, extra_bytes=16))["comparison"]["gain"] > 0.5


def test_the_same_files_are_not_promoted_again(register: Register) -> None:
    decide(register())
    again = decide(registry.find_version(NAME, "1"))
    assert (again["action"], again["version"]) == ("same", "1")
    other = register(verdict="inconclusive")  # the same files under another verdict
    assert other.number == "2"
    with registry.pointed():
        mlflow.MlflowClient().set_model_version_tag(NAME, "2", registry.VERDICT, "pass")
    assert decide(registry.find_version(NAME, "2"))["action"] == "same"
    assert champion() == "1"


def test_a_champion_of_another_kind_stays(register: Register) -> None:
    promote(f"{NAME}/{register(kind='image').number}", force=True)
    outcome = decide(register())
    assert outcome["action"] == "kept" and "track.model_name" in outcome["reasons"][0]


def test_a_broken_champion_has_lost(register: Register, home: Path) -> None:
    decide(register(SOME))
    (path,) = home.glob("mlartifacts/**/specialist.onnx")
    second = register(FEW)
    path.write_bytes(b"")
    outcome = decide(second)
    assert outcome["action"] == "promoted" and "broken" in outcome["reasons"][0]
    assert champion() == "2"


def test_what_does_not_load_is_never_champion(register: Register, home: Path) -> None:
    decide(register(SOME))
    first = set(home.glob("mlartifacts/**/specialist.onnx"))
    number = register(FEW).number
    (path,) = set(home.glob("mlartifacts/**/specialist.onnx")) - first
    path.write_bytes(path.read_bytes()[:-40])
    for force in (False, True):
        with pytest.raises(RecipeError, match="not those that were registered"):
            promote(f"{NAME}/{number}", force=force)
    path.with_name("preprocess.json").unlink()
    with pytest.raises(RecipeError):
        promote(f"{NAME}/{number}", force=True)
    assert champion() == "1"


def test_rollback_undoes_promotions_one_by_one(register: Register, home: Path) -> None:
    numbers = [register(SOME, extra_bytes=16 * at).number for at in range(3)]
    with pytest.raises(RecipeError, match="no champion"):
        roll_back(NAME)
    for number in (*numbers, numbers[0]):
        promote(f"{NAME}/{number}", force=True)
    seen = [champion()]
    for _ in range(3):
        outcome = roll_back(NAME)
        assert outcome["action"] == "rolled back" and outcome["previous"] == seen[-1]
        seen.append(champion())
    assert seen == ["1", "3", "2", "1"]
    with pytest.raises(RecipeError, match="tiny/1 is the first champion"):
        roll_back(NAME)


def test_rollback_passes_over_what_is_gone(register: Register) -> None:
    for at in range(3):
        promote(f"{NAME}/{register(SOME, extra_bytes=16 * at).number}", force=True)
    with registry.pointed():
        mlflow.MlflowClient().delete_model_version(NAME, "2")
    outcome = roll_back(NAME)
    assert champion() == "1" and "passed over tiny/2" in outcome["reasons"][0]


def test_rollback_leaves_a_champion_that_nobody_examined(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided on one version does not take down another that came meanwhile."""
    for at in range(2):
        promote(f"{NAME}/{register(SOME, extra_bytes=16 * at).number}", force=True)
    better = register(WORDS)

    def take_over() -> None:
        registry.crown(better, ["2", "1"], tags={}, about="")

    fetch = promotion.fetch_sound

    def meanwhile(chosen: registry.Version, into: Path) -> Path:
        take_over()
        return fetch(chosen, into)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "fetch_sound", meanwhile)
        outcome = roll_back(NAME, "1", "2")  # it is taken over just before the alias moves
    for seen in (outcome, roll_back(NAME, "1", "2")):  # and once it was
        assert (seen["action"], seen["version"], champion()) == ("kept", "3", "3")
        assert seen["reasons"] == ["tiny/3 became champion after tiny/2 was examined"]
    assert roll_back(NAME, "2", "3")["action"] == "rolled back" and champion() == "2"
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "fetch_sound", meanwhile)
        with pytest.raises(RecipeError, match="the champion of tiny has changed meanwhile"):
            roll_back(NAME)
    assert champion() == "3"


def test_rollback_goes_to_no_version_that_was_not_champion(register: Register) -> None:
    for at in range(3):
        register(SOME, extra_bytes=16 * at)
    for number in ("1", "2"):
        promote(f"{NAME}/{number}", force=True)
    with pytest.raises(RecipeError, match=r"tiny/3 is no former champion of tiny/2; those are: 1"):
        roll_back(NAME, "3")
    assert champion() == "2"


def test_promote_finds_the_stored_test_set(register: Register) -> None:
    promote(f"{NAME}/{register(FEW).number}")
    assert promote(f"{NAME}/{register(SOME).number}")["comparison"]["n"] == 120
    moved = store() / "prepare" / "other"
    shutil.move(store() / "prepare" / "key", moved)  # prepared again under another key
    number = register(WORDS).number
    shutil.rmtree(store() / "prepare" / "key")
    assert promote(f"{NAME}/{number}")["comparison"]["n"] == 120
    shutil.rmtree(moved)
    number = register(WORDS, extra_bytes=8).number
    shutil.rmtree(store() / "prepare")
    with pytest.raises(RecipeError, match=r"the test set of tiny/4 .* is not in"):
        promote(f"{NAME}/{number}")
    assert promote(f"{NAME}/{number}", force=True)["action"] == "promoted"


def test_another_process_that_was_faster_is_the_one_to_beat(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(f"{NAME}/{register(FEW).number}", force=True)
    best, mine = register(WORDS), register(SOME)
    compare, met = promotion.compare, []

    def meanwhile(terms: Trial, old: Path, new: Path) -> dict[str, Any]:
        met.append(champion())
        result = compare(terms, old, new)
        if len(met) == 1:
            registry.crown(best, ["1"], tags={}, about="")
        return result

    monkeypatch.setattr(promotion, "compare", meanwhile)
    outcome = decide(mine)
    assert met == ["1", best.number] and outcome["action"] == "kept"
    assert champion() == best.number


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_the_command_line_says_it_in_one_line(register: Register) -> None:
    register(FEW), register(SOME)
    assert run("promote", "tiny/1") == (
        0,
        "first: tiny/1 is the champion (there was no champion)\n",
    )
    code, output = run("promote", "tiny")
    assert code == 0 and output.startswith("promoted: tiny/2 is the champion (")
    code, output = run("promote", "tiny/1")
    assert code == 3 and output.startswith("kept: tiny/2 is the champion (")
    code, output = run("promote", "models:/tiny/1", "--force")
    assert code == 0 and output.startswith("promoted: tiny/1 is the champion (forced")
    code, output = run("rollback", "tiny")
    assert code == 0
    assert output == "rolled back: tiny/2 is the champion (tiny/1 was champion before)\n"
    for arguments, words in (
        (("promote", "nobody"), "models there: tiny"),
        (("promote", "tiny/9"), "versions of tiny: 1, 2"),
        (("promote", "tiny/x"), "is not NAME or NAME/VERSION"),
        (("rollback", "tiny/1"), "rollback takes NAME alone"),
    ):
        code, output = run(*arguments)
        assert code == 2 and output.startswith("winnow: ") and output.count("\n") == 1
        assert words in output


def test_an_empty_store_is_told(home: Path) -> None:
    code, output = run("promote", "tiny")
    assert code == 2 and "no run has filled yet" in output


def test_a_store_that_does_not_answer_is_not_taken_for_one_without_a_champion(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decide(register())["action"] == "first"

    def broken(*_: object) -> None:
        raise mlflow.MlflowException("no answer")  # not one that is waited for

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", broken)
    with pytest.raises(mlflow.MlflowException, match="no answer"):
        decide(register(extra_bytes=8))
