"""What is kept comes back as it was, or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tasks.partial import Partial, files_of
from tests.interrupted import same

STATE = {
    "step": 3,
    "loss": math.nan,
    "bound": -math.inf,
    "third": 1 / 3,
    "names": ["a", ("b", None, True)],
    "by number": {0: {"exp": torch.randn(2, 3)}, 7: {}},
    (1, 2): "a pair",
    "kinds": [
        torch.tensor(1.5),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.arange(5, dtype=torch.uint8),
        torch.randn(3).bfloat16(),
        torch.randn(4, 6).T,
    ],
}


def test_a_state_comes_back(tmp_path: Path) -> None:
    keeper = Partial(tmp_path / "kept")
    assert keeper.load() is None
    keeper.save(STATE)
    assert same(Partial(tmp_path / "kept").load(), STATE)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".safetensors"]


def test_one_memory_under_two_names(tmp_path: Path) -> None:
    shared = torch.randn(4)
    Partial(tmp_path).save({"whole": shared, "half": shared[:2]})
    assert same(Partial(tmp_path).load(), {"whole": shared, "half": shared[:2]})


def test_parts_are_apart(tmp_path: Path) -> None:
    keeper = Partial(tmp_path)
    keeper.save({"x": 0})
    keeper.part("a").save({"x": 1})
    keeper.part("a").part("b").save({"x": 2})
    assert keeper.part("a").part("b").load() == {"x": 2}
    keeper.part("a").clear()
    assert keeper.part("a").load() is None and keeper.part("a").part("b").load() is None
    assert keeper.load() == {"x": 0}


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty", "zeros"])
def test_damage_is_seen(damage: str, tmp_path: Path) -> None:
    keeper = Partial(tmp_path)
    keeper.save(STATE)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    match damage:
        case "a byte":
            for at in range(len(whole) - 1, 8, -37):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
                loaded = keeper.load()
                assert loaded is None or same(loaded, STATE)
        case "cut":
            path.write_bytes(whole[:-5])
            assert keeper.load() is None
        case "empty":
            path.write_bytes(b"")
            assert keeper.load() is None
        case "zeros":
            path.write_bytes(b"\0" * len(whole))
            assert keeper.load() is None
    assert Partial(tmp_path).spent >= 0


def test_a_disk_that_takes_nothing_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder would be")
    keeper = Partial(tmp_path / "kept", every=0)
    keeper.part("a").save({"x": torch.zeros(3)})
    assert keeper.load() is None and not keeper.due()


def test_large_states_are_saved_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tasks.partial.time.monotonic", lambda: now[0])
    keeper = Partial(tmp_path)
    now[0] += 2.0
    assert keeper.due(1000) and not keeper.due(10**9)
    now[0] += 600
    assert keeper.due(10**9)


def test_time_spent_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tasks.partial.time.monotonic", lambda: now[0])
    for attempt in (1, 2):
        keeper = Partial(tmp_path)
        now[0] += 10.0
        keeper.part(str(attempt)).save({})
        assert Partial(tmp_path).spent == 10.0 * attempt


def test_files_stay_where_the_block_is_left_early(tmp_path: Path) -> None:
    keeper = Partial(tmp_path / "kept")
    with pytest.raises(RuntimeError), files_of(keeper, "levels") as folder:
        (folder / "f").touch()
        raise RuntimeError
    with files_of(keeper, "levels") as folder:
        assert (folder / "f").exists()
    assert not folder.exists()
    with files_of(None, "levels") as folder:
        assert folder.is_dir()
    assert not folder.exists()
