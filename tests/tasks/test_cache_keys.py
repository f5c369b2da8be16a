"""Properties of keys: what alters a result alters the key, and nothing else does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from exports import latency_cache
from tasks import cache, hub, this_host
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.digests import source_digest
from tasks.load import load
from tasks.prepare import prepare
from tasks.section import Section
from tasks.splits import Split
from tasks.stage import Stage
from tests.conftest import merged
from tests.tasks.recorded import every_stage, leaves
from tests.tasks.test_cache_reads import OUTSIDE

STAGES = {stage.name: stage for stage in every_stage()}
FEW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def still_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of code, test_cache.py tells; here it stays as it is, whoever edits a file meanwhile."""
    monkeypatch.setattr(cache, "code_digest", lambda module, root=cache.ROOT: module)


def artifact(stage: str, sha256: str = "0", **metrics: Any) -> Artifact:
    facts = {
        "classes": ["a", "b"],
        "modality": "text",
        "content": {"support": "1", "test": "2", "unlabelled": "3"},
        **metrics,
    }
    return Artifact(stage=stage, path=f"{stage}/k", sha256=sha256, key="k", metrics=facts)


# what each stage is given, as `flows.chain` and `flows.family` call it
INPUTS = {
    "prepare": (),
    "load": (),
    "leaks": ("prepare", "load"),
    "teach": ("prepare", "load"),
    "profile": ("prepare", "teach", "export", "export", "export"),
    "shrink": ("prepare", "teach", "teach", "profile"),
    "prune": ("prepare", "teach", "shrink"),
    "trim": ("prepare", "prune"),
    "smooth": ("prepare", "prune"),
    "quantize": ("prepare", "prune"),
    "export": ("prepare", "quantize"),
    "held_out": ("prepare", "export", "export"),
    "compare": ("prepare", "leaks", "load", "export", "export"),
    "verify": ("prepare", "load", "teach", "export", "leaks"),
    "spread": ("verify", "verify"),
}


def key_of(name: str, recipe: Recipe, **changed: Artifact) -> str:
    """The key of a stage, with some of its inputs (by stage) exchanged."""
    given = [changed.get(each, artifact(each)) for each in INPUTS[name]]
    return STAGES[name].key(recipe, *given)


def keys(recipe: Recipe, **changed: Artifact) -> dict[str, str]:
    return {name: key_of(name, recipe, **changed) for name in STAGES}


@pytest.fixture
def recipe(text_task: dict[str, str], text_generalist: str) -> Recipe:
    plain = {"name": "n", "generalist": {"source": text_generalist}, "task": dict(text_task)}
    return Recipe.model_validate(plain)


def test_every_stage_is_looked_at() -> None:
    assert set(INPUTS) == set(STAGES)


# --- values of the recipe ---------------------------------------------------------------------


def annotation_of(path: str) -> Any:
    kind: Any = Recipe
    for name in path.split("."):
        fields = kind.model_fields
        field = fields.get(name) or next(x for x in fields.values() if x.alias == name)
        kind = field.annotation
    return kind


def value_of(recipe: Recipe, path: str) -> Any:
    (value,) = recipe.values([path]).values()
    return value


def other_values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; whether they make sense is not a key's concern."""
    origin = get_origin(kind)
    if origin is Literal:
        return st.sampled_from(get_args(kind))
    if origin in (Union, types.UnionType):
        return st.one_of(*map(other_values, get_args(kind)))
    if origin is list:
        return st.lists(other_values(get_args(kind)[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(other_values, get_args(kind)))
    if hasattr(kind, "__metadata__"):
        return other_values(get_args(kind)[0])
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 10**6),
        float: st.floats(1, 1e6),
        str: st.text("abc123", max_size=5),
        type(None): st.none(),
    }
    return plain[kind]


def changed(recipe: Recipe, path: str, value: Any) -> Recipe:
    """The recipe with one value exchanged, unchecked."""
    name, _, rest = path.partition(".")
    name = {"register": "register_model"}.get(name, name)
    inner: Any = getattr(recipe, name)
    new = changed(inner, rest, value) if rest else value
    return recipe.model_copy(update={name: new})


# fields whose content counts and not their text, and those that must name something that is there
BY_CONTENT = {each for fields in OUTSIDE.values() for each in fields}


@given(data=st.data())
@FEW
def test_a_value_counts_where_it_is_declared_and_nowhere_else(
    recipe: Recipe, data: st.DataObject
) -> None:
    every = [path.replace("register_model", "register") for path in leaves()]
    path = data.draw(st.sampled_from([each for each in every if each not in BY_CONTENT]))
    patterns = st.sampled_from(["unstructured", "2:4", "1:4"])  # others have no meaning to imply
    kinds = patterns if path == "prune.pattern" else other_values(annotation_of(path))
    value = data.draw(kinds)
    new = changed(recipe, path, value)
    assume(value_of(new, path) != value_of(recipe, path))
    before, after = keys(recipe), keys(new)
    for name, stage in STAGES.items():
        declared = any(path == each or path.startswith(f"{each}.") for each in stage.reads)
        meant = [each for each in ("sparsity", "shrinks", "shrink_step") if each in stage.reads]
        implied = recipe.values(meant) != new.values(meant)
        limits = path == "limits.samples" and name == "verify"  # 0: nothing outside is read
        assert (before[name] != after[name]) == (declared or implied or limits), (name, path)


@given(order=st.permutations(["card", "parcel", "refund"]))
@FEW
def test_the_order_of_classes_counts(recipe: Recipe, order: list[str]) -> None:
    first = changed(recipe, "task.classes", ["card", "parcel", "refund"])
    same = order == ["card", "parcel", "refund"]
    assert (prepare.key(first) == prepare.key(changed(recipe, "task.classes", order))) is same
    told = [artifact("prepare", classes=names) for names in (["card", "parcel", "refund"], order)]
    for name in ("teach", "export", "quantize"):
        one, two = (key_of(name, recipe, prepare=each) for each in told)
        assert (one == two) is same


# --- samples ----------------------------------------------------------------------------------

TEXTS = st.lists(st.tuples(st.text(max_size=4), st.integers(-1, 3)), max_size=4)


def split(rows: list[tuple[str, int]]) -> Split:
    inputs, labels = tuple(x for x, _ in rows), tuple(y for _, y in rows)
    return Split(inputs, labels, ("same digest",) * len(rows))


@given(one=TEXTS, two=TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_split_is_its_very_texts_and_labels(
    one: list[tuple[str, int]], two: list[tuple[str, int]]
) -> None:
    assert (split(one).content() == split(two).content()) is (one == two)


def test_capitals_and_spaces_reach_the_keys_of_what_learns(recipe: Recipe) -> None:
    """Two texts that show the same to a person are two texts to a tokenizer."""
    told = [
        artifact("prepare", content={"support": split([(text, 0)]).content(), "unlabelled": "3"})
        for text in ("my card", "My  card")
    ]
    for name in ("teach", "prune", "quantize", "shrink"):
        one, two = (key_of(name, recipe, prepare=each) for each in told)
        assert one != two


# --- what lies outside the store ---------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, in place."""
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(bytes(content))


@given(data=st.data())
@FEW
def test_every_byte_of_a_generalist_counts(
    recipe: Recipe, text_generalist: str, tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("generalist") / "copy"
    shutil.copytree(text_generalist.removeprefix("hf:"), folder)
    copied = changed(recipe, "generalist.source", f"hf:{folder}")
    before = load.key(copied)
    assert before == load.key(recipe)  # the same bytes elsewhere are the same
    names = sorted(path.name for path in folder.iterdir())
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= set(names)
    flip(folder / data.draw(st.sampled_from(names)), data.draw(st.integers(0, 10**6)))
    assert load.key(copied) != before


def test_two_generalists_of_one_architecture_share_nothing(
    recipe: Recipe, text_generalist: str, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(text_generalist.removeprefix("hf:"), folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name].copy()
    weights[name].flat[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    other = changed(recipe, "generalist.source", f"hf:{folder}")
    assert load.key(other) != load.key(recipe)
    one, two = (artifact("load", sha256=x) for x in ("1", "2"))
    for stage, takes in INPUTS.items():
        if "load" in takes:
            assert key_of(stage, recipe, load=one) != key_of(stage, recipe, load=two)


def test_where_a_licence_is_looked_for_counts(recipe: Recipe) -> None:
    """The weights alone do not tell it: what is told of them reaches the report."""
    one, two = (artifact("load", licence={"name": x, "where": None}) for x in ("mit", None))
    assert key_of("verify", recipe, load=one) != key_of("verify", recipe, load=two)


@given(field=st.sampled_from(["train", "test"]), at=st.integers(0, 10**6))
@FEW
def test_every_byte_of_the_data_counts(
    recipe: Recipe, text_task: dict[str, str], tmp_path_factory: Any, field: str, at: int
) -> None:
    file = tmp_path_factory.mktemp("data") / "moved.jsonl"
    shutil.copyfile(text_task[field], file)
    moved = changed(recipe, f"task.{field}", str(file))
    before = prepare.key(moved)
    assert before == prepare.key(recipe)
    flip(file, at)
    assert prepare.key(moved) != before


def _as_csv(table: Path) -> Path:
    with (path := table / "t.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerows([("image", "label"), ('a, "b".png', "x"), ("plain", "y")])
    return path


def _as_jsonl(table: Path) -> Path:
    rows = [{"image": 'a, "b".png', "label": "x"}, {"image": "plain", "label": "y"}]
    (path := table / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def _as_json(table: Path) -> Path:
    rows = [{"image": 'a, "b".png', "label": "x"}, {"image": "plain", "label": "y"}]
    (path := table / "t.json").write_text(json.dumps(rows))
    return path


def _as_parquet(table: Path) -> Path:
    pq.write_table(pa.table({"image": ['a, "b".png', "plain"]}), path := table / "t.parquet")
    return path


def _as_structure(table: Path) -> Path:
    images = [{"bytes": None, "path": x} for x in ('a, "b".png', "plain")]
    pq.write_table(pa.table({"image": images}), path := table / "t.parquet")
    return path


def _after_a_long_cell(table: Path) -> Path:
    with (path := table / "t.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("image", "note"))
        rows.writerows([("b.png", "n" * 200_000), ('a, "b".png', "x"), ("plain", "y")])
    return path


def _after_no_image(table: Path) -> Path:
    images = [None, *({"bytes": None, "path": x} for x in ('a, "b".png', "plain"))]
    pq.write_table(pa.table({"image": images}), path := table / "t.parquet")
    return path


def _after_no_image_in_json(table: Path) -> Path:
    rows = [{"label": "x"}, *({"image": {"path": x}} for x in ('a, "b".png', "plain"))]
    (path := table / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "write",
    [
        _as_csv,
        _as_jsonl,
        _as_json,
        _as_parquet,
        _as_structure,
        _after_a_long_cell,
        _after_no_image,
        _after_no_image_in_json,
    ],
)
@pytest.mark.parametrize("named", ['a, "b".png', "plain"])
def test_images_that_a_table_names_count(
    tmp_path: Path, write: Callable[[Path], Path], named: str
) -> None:
    for name in ('a, "b".png', "plain", "beside.png"):
        (tmp_path / name).write_bytes(b"image")
    table = write(tmp_path)
    before = source_digest(str(table))
    flip(tmp_path / "beside.png", 0)
    assert source_digest(str(table)) == before
    flip(tmp_path / named, 0)
    assert source_digest(str(table)) != before


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff\xfe", b'{"image": "x.png"', b"[1, 2", b'"' * 200_000, b"PAR1"]
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_junk_has_a_digest_too(tmp_path: Path, content: bytes, suffix: str) -> None:
    (path := tmp_path / f"junk{suffix}").write_bytes(content)
    assert len(source_digest(str(path))) == 64


def test_of_an_image_folder_the_images_and_their_classes_count(
    tmp_path: Path, image_task: dict[str, str]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(image_task["train"], folder)
    before = source_digest(str(folder))
    assert before == source_digest(image_task["train"])
    (folder / "red" / "Thumbs.db").write_bytes(b"x")
    assert source_digest(str(folder)) == before
    (folder / "red" / "0.png").rename(folder / "blue" / "00.png")
    moved = source_digest(str(folder))
    assert moved != before
    flip(folder / "blue" / "00.png", 100)
    assert source_digest(str(folder)) not in (before, moved)


def test_a_linked_folder_counts_and_a_loop_ends(tmp_path: Path) -> None:
    inside, folder = tmp_path / "inside", tmp_path / "folder"
    inside.mkdir()
    folder.mkdir()
    (inside / "a.png").write_bytes(b"a")
    (folder / "linked").symlink_to(inside)
    (inside / "loop").symlink_to(folder)
    before = source_digest(str(folder))
    flip(inside / "a.png", 0)
    assert source_digest(str(folder)) != before


# --- names of a hub ---------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A function that lets a name of the hub, in this machine's cache, stand for a commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def stand_for(folder: str, commit: str) -> None:
        (tmp_path / folder / "refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "refs" / "main").write_text(commit)

    return stand_for


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("hf:someone/encoder", "models--someone--encoder"),
        ("timm:hf-hub:someone/net", "models--someone--net"),
        ("timm:resnet18.a1_in1k", "models--timm--resnet18.a1_in1k"),
    ],
)
def test_a_hub_name_stands_for_its_commit(
    recipe: Recipe, hub_cache: Callable[[str, str], None], source: str, folder: str
) -> None:
    named, found = changed(recipe, "generalist.source", source), []
    found.append(load.key(named))
    for commit in ("a" * 40, "b" * 40, "a" * 40, "not a commit"):
        hub_cache(folder, commit)
        found.append(load.key(named))
    assert found[1] == found[3] and len(set(found)) == 3 and found[4] == found[0]


def test_a_hub_data_set_stands_for_its_commit(hub_cache: Callable[[str, str], None]) -> None:
    name = "someone/rows@config:train"
    hub_cache("datasets--someone--rows", "a" * 40)
    first = source_digest(name)
    hub_cache("datasets--someone--rows", "b" * 40)
    assert source_digest(name) != first
    assert source_digest("someone/rows@other:train") != source_digest(name)


@pytest.mark.parametrize("name", ["rest", "sklearn:digits", "gone/train.csv", "/a/b", "a/b/c", ""])
def test_what_is_no_name_of_a_hub_is_not_looked_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_told_by_hub", lambda *_: pytest.fail(f"{name} was looked up"))
    assert hub.commit_of_data(name) is None


# --- code, libraries, host --------------------------------------------------------------------


@given(library=st.sampled_from(("python", *cache._LIBRARIES)))
@FEW
def test_every_library_counts_everywhere(recipe: Recipe, library: str) -> None:
    before = keys(recipe)
    with pytest.MonkeyPatch.context() as patch:
        newer = {**cache.versions(), library: "999"}
        patch.setattr(cache, "versions", lambda: newer)
        after = keys(recipe)
    assert not set(before.values()) & set(after.values())


@given(name=st.sampled_from(("cpu", "machine", "flags", "cores", "usable_cores", "onnxruntime")))
@FEW
def test_another_host_shares_no_time_and_every_model(recipe: Recipe, name: str) -> None:
    before, store = keys(recipe), latency_cache.TimesStore(None)
    host = {**this_host.host_profile(), name: "another"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(this_host, "host_profile", lambda: host)
        patch.setattr(latency_cache, "host_profile", lambda: host)
        after = keys(recipe)
        assert latency_cache.TimesStore(None).digest != store.digest
    timed = {"export", "profile", "verify", "compare"}
    assert {each for each in before if before[each] != after[each]} == timed


def test_another_writer_of_graphs_shares_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = latency_cache.TimesStore(None).digest
    monkeypatch.setattr(latency_cache, "version", lambda name: "999" if name == "torch" else "1")
    assert latency_cache.TimesStore(None).digest != before


def test_a_float_graph_is_any_host_s(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    given = artifact("prepare"), artifact("teach")
    before = STAGES["export"].key(recipe, *given)
    monkeypatch.setattr(this_host, "host_profile", lambda: pytest.fail("the host was looked at"))
    assert STAGES["export"].key(changed(recipe, "quantize.route", "fused"), *given) == before


# --- nothing else -----------------------------------------------------------------------------


def test_places_threads_and_homes_do_not_count(
    recipe: Recipe,
    text_task: dict[str, str],
    text_generalist: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys(recipe)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for field in ("train", "test"):
        shutil.copyfile(text_task[field], elsewhere / f"{field}.jsonl")
    shutil.copytree(text_generalist.removeprefix("hf:"), elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "another home"))
    monkeypatch.setenv("HOME", str(elsewhere))
    for name in ("OMP_NUM_THREADS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "WINNOW_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9" if "UR" in name else "7")
    for source in ("hf:model", "hf:~/model", f"hf:{elsewhere}/../elsewhere/model"):
        plain = {"generalist": {"source": source}, "task": {"train": "train.jsonl"}}
        plain["task"]["test"] = os.path.relpath(elsewhere / "test.jsonl")
        moved = Recipe.model_validate(merged(recipe.model_dump(), plain))
        after = keys(moved)
        # the report tells the end of the name of what was shown as outside the task
        assert [name for name in before if before[name] != after[name]] in ([], ["verify"])
        assert Path(text_task["test"]).name == "test.jsonl"
        assert before["verify"] == after["verify"]


def test_a_stage_s_key_is_its_own(recipe: Recipe) -> None:
    assert len(set(keys(recipe).values())) == len(STAGES)
    assert all(isinstance(stage, Stage) for stage in STAGES.values())
    assert issubclass(Recipe, Section)
