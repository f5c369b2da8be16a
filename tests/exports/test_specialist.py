"""A folder as an object: transforms for `datasets`, other processes, providers, wrong files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from exports import runtime
from exports.columns import input_column
from exports.preprocess import InputError
from exports.runtime import SessionError, session
from exports.specialist import Specialist
from tests.conftest import text_rows
from tests.tiny_specialists import image_specialist, text_specialist


def test_a_text_set_is_labelled_through_datasets(tmp_path: Path) -> None:
    specialist = Specialist.load(text_specialist(tmp_path))
    rows = text_rows(20, 5)
    table = datasets.Dataset.from_list(rows)
    answered = table.map(specialist.as_transform(), batched=True, batch_size=7)
    expected = specialist.predict([row["text"] for row in rows])
    assert list(answered["label"]) == [row["label"] for row in expected]
    assert list(answered["probability"]) == [row["probability"] for row in expected]
    assert list(answered["intent"]) == [row["intent"] for row in rows]


def test_an_image_set_is_labelled_decoded_or_not(tmp_path: Path) -> None:
    specialist = Specialist.load(image_specialist(tmp_path))
    pictures = [
        Image.fromarray(np.full((9, 9, 3), colour, np.uint8))
        for colour in ((240, 9, 9), (9, 9, 240))
    ]
    table = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    for decode in (True, False):
        seen = table.cast_column("image", datasets.Image(decode=decode))
        answered = seen.map(specialist.as_transform(label="colour"), batched=True)
        assert list(answered["colour"]) == ["red", "blue"]


def test_a_transform_names_its_columns_and_overwrites_none(tmp_path: Path) -> None:
    specialist = Specialist.load(text_specialist(tmp_path))
    batch = {"a": ["my card"], "b": ["a parcel"], "label": [3]}
    with pytest.raises(InputError, match="'label' is already there"):
        specialist.as_transform("b")(batch)
    answer = specialist.as_transform("b", label="answer", probability="sure")(batch)
    assert answer["answer"] == ["parcel"] and list(answer) == ["answer", "sure"]
    with pytest.raises(InputError, match="cannot tell which column holds the texts"):
        specialist.as_transform(label="answer")(batch)


def test_a_specialist_travels_by_its_folder_and_digest(tmp_path: Path) -> None:
    folder = text_specialist(tmp_path / "a")
    transform = Specialist.load(folder, threads=2).as_transform()
    again = pickle.loads(pickle.dumps(transform))
    assert again({"text": ["my card"]}) == transform({"text": ["my card"]})
    assert again.specialist.origin.threads == 2
    packed = pickle.dumps(transform)
    shutil.copy(text_specialist(tmp_path / "b", {}) / "specialist.onnx", folder)
    with pytest.raises(InputError, match="another model than when it was opened"):
        pickle.loads(packed)
    # what goes by the pickle, as the cache of `datasets` does, tells the two models apart
    assert pickle.dumps(Specialist.load(folder, threads=2).as_transform()) != packed
    opened = Specialist.load(folder)
    bare = Specialist(opened.open_session, opened.preprocess, opened.labels)
    with pytest.raises(TypeError, match="loaded from a folder"):
        pickle.dumps(bare)


def test_files_of_two_models_are_refused(tmp_path: Path) -> None:
    folder = text_specialist(tmp_path)
    settings = json.loads((folder / "preprocess.json").read_text())
    settings["labels"].append("one more")
    (folder / "preprocess.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"3 outputs and .* 4 labels"):
        Specialist.load(folder)


def test_a_missing_provider_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = text_specialist(tmp_path)
    for provider in ("cuda", "abacus"):
        if f"{provider.upper()}ExecutionProvider" in ort.get_available_providers():
            continue
        with pytest.raises(InputError, match=f"provider '{provider}'") as caught:
            Specialist.load(folder, provider=provider)
        assert "\n" not in str(caught.value)


def test_a_provider_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu on a host without a driver lists the provider and falls back in silence."""
    model = text_specialist(tmp_path) / "specialist.onnx"
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: listed)
    started = runtime.ort.InferenceSession

    def fall_back(source: Any, options: Any, providers: list[str]) -> Any:
        assert providers == listed
        return started(source, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(runtime.ort, "InferenceSession", fall_back)
    monkeypatch.setattr(runtime.ort, "preload_dlls", lambda: None)
    with pytest.raises(SessionError, match="does not start here"):
        session(model, provider="cuda")


@pytest.mark.parametrize(
    ("row", "modality", "column"),
    [
        ({"id": "7", "text": "a", "note": "b"}, "text", "text"),
        ({"Utterance": "a", "who": "b"}, "text", "Utterance"),
        ({"n": 7, "said": "a"}, "text", "said"),
        ({"photo": b"..", "text": "a"}, "image", "photo"),
        ({"a": {"bytes": b"..", "path": None}, "b": "x"}, "image", "a"),
        ({"where": "x/y.JPG", "who": "me"}, "image", "where"),
    ],
)
def test_the_column_is_inferred(row: dict[str, Any], modality: str, column: str) -> None:
    assert input_column(row, modality, None, "t") == column


@pytest.mark.parametrize("row", [{"a": "x", "b": "y"}, {"n": 7}])
def test_an_open_choice_is_not_guessed(row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot tell which column"):
        input_column(row, "text", None, "t")
