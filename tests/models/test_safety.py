"""A checkpoint runs no code, names no other file and claims no size beyond reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file

from models.errors import GeneralistError
from models.generalists import load_generalist
from models.licence import licence_of

ROOT = Path(__file__).parents[2]


class Touch:
    """A pickle that makes a file when it is loaded by pickle itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def text_folder(tmp_path: Path, text_generalist: str) -> Path:
    folder = tmp_path / "text-model"
    shutil.copytree(text_generalist.removeprefix("hf:"), folder)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path, image_generalist: str) -> Path:
    folder = tmp_path / "image-model"
    shutil.copytree(image_generalist.removeprefix("timm:local-dir:"), folder)
    return folder


def source_of(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return f"timm:local-dir:{folder}" if "architecture" in config else f"hf:{folder}"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", ["text_folder", "image_folder"])
def test_a_pickle_needs_leave_and_gives_the_same_weights(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = load_generalist(source_of(folder)).model.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GeneralistError, match=r"generalist.allow_pickle: true"):
        load_generalist(source_of(folder))
    after = load_generalist(source_of(folder), allow_pickle=True).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("kind", ["text_folder", "image_folder"])
def test_code_in_a_pickle_never_runs(
    kind: str, allow: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    state = dict(load_file(folder / "model.safetensors"))
    torch.save({**state, "evil": Touch(tmp_path / "pwned")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GeneralistError) as caught:
        load_generalist(source_of(folder), allow_pickle=allow)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_safetensors_are_taken_where_both_lie(text_folder: Path, tmp_path: Path) -> None:
    torch.save({"evil": Touch(tmp_path / "pwned")}, text_folder / "pytorch_model.bin")
    load_generalist(source_of(text_folder), allow_pickle=True)
    assert not (tmp_path / "pwned").exists()


REMOTE = """
import pathlib
from transformers import BertConfig, BertModel

pathlib.Path({marker!r}).touch()

class OwnConfig(BertConfig):
    pass

class OwnModel(BertModel):
    config_class = OwnConfig
    {change}
"""
ANOTHER = """
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.last_hidden_state = found.last_hidden_state * 2
        return found
"""


def with_code(folder: Path, marker: Path, change_of_it: str = "pass") -> str:
    code = REMOTE.format(marker=str(marker), change=change_of_it)
    (folder / "own.py").write_text(code)
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    )
    return source_of(folder)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of checkpoints is copied here, and not into the user's cache."""
    place = str(tmp_path / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", place)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("modules")
def test_a_checkpoints_own_code_runs_only_by_leave(text_folder: Path, tmp_path: Path) -> None:
    plain = load_generalist(source_of(text_folder)).model.state_dict()
    source = with_code(text_folder, tmp_path / "ran")
    with pytest.raises(GeneralistError, match=r"auto_map.*generalist.trust_remote_code: true"):
        load_generalist(source)
    assert not (tmp_path / "ran").exists()
    trusted = load_generalist(source, trust_remote_code=True)
    assert (tmp_path / "ran").exists() and (tmp_path / "modules").is_dir()
    assert all(torch.equal(plain[k], v) for k, v in trusted.model.state_dict().items())


@pytest.mark.usefixtures("modules")
def test_code_that_computes_something_else_cannot_be_rebuilt_later(
    text_folder: Path, tmp_path: Path
) -> None:
    source = with_code(text_folder, tmp_path / "ran", ANOTHER)
    with pytest.raises(GeneralistError, match="computes another model than its settings"):
        load_generalist(source, trust_remote_code=True)


def test_code_named_by_the_tokenizer_alone_is_found(text_folder: Path) -> None:
    change(text_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]})
    with pytest.raises(GeneralistError, match=r"tokenizer_config.json names Python code"):
        load_generalist(source_of(text_folder))


@pytest.mark.parametrize("kind", ["text_folder", "image_folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "extra.txt", "loop"])
def test_a_link_that_leads_out_is_refused(
    kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    source = source_of(folder)
    outside = tmp_path / "outside"
    if name == "loop":
        (folder / name).symlink_to("loop")
    else:
        outside.write_bytes((folder / "model.safetensors").read_bytes())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
    with pytest.raises(GeneralistError, match=f"{name} is a link to a file outside the folder"):
        load_generalist(source)


def test_the_hubs_cache_is_made_of_links(text_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for at, path in enumerate(sorted(text_folder.iterdir())):
        shutil.copyfile(path, repository / "blobs" / str(at))
        (snapshot / path.name).symlink_to(f"../../blobs/{at}")
    load_generalist(f"hf:{snapshot}")


def test_an_index_names_files_of_its_own_folder(text_folder: Path, tmp_path: Path) -> None:
    source = source_of(text_folder)
    state = load_file(text_folder / "model.safetensors")
    shutil.move(text_folder / "model.safetensors", tmp_path / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "../other.safetensors")}
    (text_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(GeneralistError, match=r"'../other.safetensors' is no safetensors file of"):
        load_generalist(source)


def test_modules_lie_inside_their_checkpoint(text_folder: Path) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../../etc"}]
    (text_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(GeneralistError, match=r"modules.json names '../../etc', outside it"):
        load_generalist(source_of(text_folder))


@pytest.mark.parametrize("folder", ["..", "../..", "../../../../etc"])
def test_a_packages_folder_lies_inside_it(folder: str) -> None:
    with pytest.raises(GeneralistError, match="leads out of the package"):
        load_generalist(f"hf:package:json/{folder}")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("text_folder", {"hidden_size": 10**12}, "hidden_size 1000000000000 is no size"),
        ("text_folder", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is no size"),
        ("image_folder", {"model_args": {"num_classes": 10**10}}, "model_args.num_classes"),
        ("image_folder", {"model_args": {"depths": [10**9]}}, "model_args.depths"),
        ("image_folder", {"model_args": {"checkpoint_path": "/x.pth"}}, "checkpoint_path is not"),
        ("image_folder", {"model_args": {"pretrained_cfg": {}}}, "pretrained_cfg is not taken"),
        ("image_folder", {"model_args": [1]}, "model_args is list"),
    ],
)
def test_settings_beyond_reason_are_refused_before_anything_is_built(
    kind: str, values: dict[str, object], words: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    source = source_of(folder)
    change(folder / "config.json", **values)
    with pytest.raises(GeneralistError, match=words):
        load_generalist(source)


def test_settings_nested_without_end_are_one_line(text_folder: Path) -> None:
    source = source_of(text_folder)
    (text_folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(GeneralistError, match=r"config.json: not JSON \(nested too deep\)"):
        load_generalist(source)


def test_a_card_that_unfolds_is_cut(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    card = "---\n" + "\n".join(lines) + "\nlicense: *a11\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path, {})["name"] is None


def cached(cache: Path, name: str, files: dict[str, bytes]) -> None:
    """A model in the hub's cache, as the hub's client leaves it there."""
    root = cache / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)


@pytest.mark.slow
def test_a_hubs_pickle_needs_leave_too(
    image_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """timm and transformers would take the pickle where there is nothing else."""
    state = load_file(image_folder / "model.safetensors")
    torch.save(state, tmp_path / "image.bin")
    torch.save(load_file(text_folder / "model.safetensors"), tmp_path / "text.bin")
    cache = tmp_path / "cache"
    config = (image_folder / "config.json").read_bytes()
    weights = (image_folder / "model.safetensors").read_bytes()
    pickled = (tmp_path / "image.bin").read_bytes()
    cached(cache, "a/pickled", {"config.json": config, "pytorch_model.bin": pickled})
    cached(cache, "a/safe", {"config.json": config, "model.safetensors": weights})
    files = {path.name: path.read_bytes() for path in text_folder.iterdir()}
    del files["model.safetensors"]
    cached(cache, "a/text", {**files, "pytorch_model.bin": (tmp_path / "text.bin").read_bytes()})
    script = """
        import hashlib
        from models.errors import GeneralistError
        from models.generalists import load_generalist
        for source in ("timm:hf-hub:a/pickled", "timm:hf-hub:a/safe", "hf:a/text"):
            for allow in (False, True):
                try:
                    found = load_generalist(source, allow_pickle=allow).model.state_dict()
                    print(source, allow, len(found), float(next(iter(found.values())).sum()))
                except GeneralistError as error:
                    print(source, allow, "refused", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line.split(" ", 3) for line in done.stdout.splitlines()]
    outcome = {(source, allow): count for source, allow, count, _ in told}
    assert outcome["timm:hf-hub:a/pickled", "False"] == "refused"
    assert (
        outcome["timm:hf-hub:a/pickled", "True"]
        == outcome["timm:hf-hub:a/safe", "False"]
        != "refused"
    )
    assert outcome["hf:a/text", "False"] == "refused" != outcome["hf:a/text", "True"]
    refusals = [line for line in done.stdout.splitlines() if "refused" in line]
    assert "generalist.allow_pickle: true" in refusals[0]
