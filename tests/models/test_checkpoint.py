from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import load_bundle, save_bundle
from models.errors import GeneralistError
from models.folding import fold_batchnorm
from models.generalists import load_generalist
from models.heads import with_head
from tests.models.conftest import image_bundle, pixels, tokens, write_state


def test_round_trip_image(tmp_path):
    bundle = with_head(fold_batchnorm(image_bundle("test_resnet"), pixels()), ["x", "y"])
    torch.nn.init.normal_(bundle.model.get_classifier().weight)
    bundle.licence = "mit"
    save_bundle(bundle, tmp_path / "new" / "folder")
    loaded = load_bundle(tmp_path / "new" / "folder")
    assert torch.equal(loaded.model(*pixels()), bundle.model(*pixels()))
    for field in ("modality", "labels", "preprocess", "tokenizer", "config", "delta", "licence"):
        assert getattr(loaded, field) == getattr(bundle, field), field
    assert not loaded.model.training


def test_round_trip_text(text_folder, tmp_path):
    for family in ("bert", "distilbert", "roberta"):
        for labels in (None, ("a", "b", "c")):
            bundle = load_generalist(f"hf:{text_folder(family, labels)}")
            save_bundle(bundle, tmp_path / "out")
            loaded = load_bundle(tmp_path / "out")
            assert torch.equal(loaded.model(*tokens()), bundle.model(*tokens()))
            assert loaded.labels == labels and loaded.tokenizer == bundle.tokenizer


def test_same_bundle_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_bundle(image_bundle("test_vit"), tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_zeros_survive(tmp_path):
    bundle = image_bundle("test_vit")
    weight = bundle.model.get_parameter("blocks.0.mlp.fc1.weight")
    with torch.no_grad():
        weight[:, ::2] = 0
    save_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path).model.get_parameter("blocks.0.mlp.fc1.weight")
    assert torch.equal(again, weight)


def damaged(tmp_path, message, change):
    save_bundle(image_bundle("test_resnet"), tmp_path)
    change()
    with pytest.raises(GeneralistError, match=message) as caught:
        load_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def edit(tmp_path, **fields):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_damaged_folders_are_named(tmp_path):
    weights = tmp_path / "model.safetensors"

    def change(**tensors: torch.Tensor | None) -> None:
        state = load_file(weights)
        for name, value in tensors.items():
            name = name.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value
        write_state(tmp_path, state)

    name = "layer1.0.conv1.weight"
    bad = torch.full((1,), float("nan"))
    damaged(tmp_path, "config.json: no such", lambda: (tmp_path / "config.json").unlink())
    damaged(tmp_path, "not JSON", lambda: (tmp_path / "config.json").write_text("]"))
    damaged(tmp_path, "not a saved bundle", lambda: edit(tmp_path, format="other"))
    damaged(tmp_path, "version 99", lambda: edit(tmp_path, version=99))
    damaged(tmp_path, "delta op 'stretch'", lambda: edit(tmp_path, delta=[{"op": "stretch"}]))
    damaged(tmp_path, "library 'x'", lambda: edit(tmp_path, config={"library": "x"}))
    damaged(tmp_path, "KeyError", lambda: edit(tmp_path, config={"library": "timm"}))
    damaged(tmp_path, "model.safetensors: no such", weights.unlink)
    damaged(tmp_path, "model.bin", lambda: weights.rename(tmp_path / "model.bin"))
    (tmp_path / "model.bin").unlink()
    damaged(tmp_path, name, lambda: change(**{name: None}))
    damaged(tmp_path, "'surplus'", lambda: change(surplus=torch.zeros(1)))
    damaged(tmp_path, "shape", lambda: change(**{name: torch.zeros(1)}))
    damaged(tmp_path, f"{name}.*NaN", lambda: change(**{name: bad}))
