"""What a person is told on a host other than the one that was verified."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from exports.hosts import HostWarning, host_notes, verified_host
from exports.runtime import host_profile
from exports.specialist import Specialist
from tests.tiny_specialists import text_specialist

HERE: dict[str, Any] = {"cpu": "EPYC", "vnni": True, "onnxruntime": "1.31.1", "usable_cores": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"usable_cores": 64}, []),  # what is verified runs on one thread
        ({"cpu": "Xeon"}, ["the accuracy that was verified, but not the times"]),
        ({"cpu": "old", "vnni": False}, ["no VNNI instructions here"]),
        ({"onnxruntime": "1.32.0"}, ["onnxruntime 1.31.1, this is 1.32.0"]),
        ({"cpu": "Xeon", "onnxruntime": "1.32.0"}, ["not the times", "this is 1.32.0"]),
    ],
)
def test_each_difference_is_one_note(change: dict[str, Any], words: list[str]) -> None:
    notes = host_notes(HERE, {**HERE, **change})
    assert len(notes) == len(words)
    for note, expected in zip(notes, words, strict=True):
        assert expected in note
    # more than was verified is nothing to warn of
    assert not host_notes({**HERE, "vnni": False}, HERE)


def test_without_vnni_nothing_is_promised() -> None:
    (note,) = host_notes(HERE, {**HERE, "cpu": "old", "vnni": False})
    assert "expect the accuracy" not in note


def test_another_provider_is_told() -> None:
    (note,) = host_notes(HERE, HERE, "cuda")
    assert "verified on cpu (EPYC), runs on cuda" in note


def test_the_profile_is_read_from_either_file(tmp_path: Path) -> None:
    assert verified_host(tmp_path) is None
    (tmp_path / "report.json").write_text(json.dumps({"host": HERE}))
    assert verified_host(tmp_path) == HERE
    (tmp_path / "host.json").write_text(json.dumps({**HERE, "cpu": "other"}))
    assert verified_host(tmp_path) == {**HERE, "cpu": "other"}
    (tmp_path / "host.json").write_text("not json")
    assert verified_host(tmp_path) == HERE


def test_loading_warns_once_and_only_elsewhere(tmp_path: Path) -> None:
    folder = text_specialist(tmp_path)
    (folder / "host.json").write_text(json.dumps(host_profile()))
    Specialist.load(folder)  # warnings are errors here
    (folder / "host.json").write_text(json.dumps({**host_profile(), "cpu": "Abacus 3"}))
    with pytest.warns(HostWarning, match="verified on Abacus 3"):
        Specialist.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Specialist.load(folder)
