"""Digests and publishing: whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tasks.artifacts import Artifact, publish, published, workspace, write_atomically
from tasks.digests import folder_digest, source_digest
from tasks.home import store


def make(text: str = "a", key: str = "k") -> Artifact:
    with workspace("stage") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)
        return publish(folder, stage="stage", key=key, metrics={"x": 1}, seconds=0.5)


def test_an_artifact_is_found_again_and_knows_damage(home: Path) -> None:
    artifact = make()
    assert artifact.folder == home / "store" / "stage" / "k"
    assert published("stage", "k") == artifact
    (artifact.folder / "inner" / "file").write_text("b")
    assert not artifact.intact()
    assert published("stage", "k") is None


@pytest.mark.parametrize("damage", ["removed", "extra", "manifest", "renamed"])
def test_any_damage_is_seen(damage: str) -> None:
    artifact = make()
    file = artifact.folder / "inner" / "file"
    match damage:
        case "removed":
            file.unlink()
        case "extra":
            (artifact.folder / "new").touch()
        case "manifest":
            (artifact.folder / "artifact.json").write_text("{")
        case "renamed":
            file.rename(file.with_name("other"))
    assert published("stage", "k") is None


def test_publishing_again_replaces_the_old_content() -> None:
    make("a")
    second = make("b")
    assert published("stage", "k") == second
    assert (second.folder / "inner" / "file").read_text() == "b"
    assert list(store().glob("stage/.making-*")) == []


def test_nothing_is_left_where_making_fails() -> None:
    with pytest.raises(RuntimeError), workspace("stage") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list((store() / "stage").iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day() -> None:
    parent = store() / "stage"
    for name, age in ((".making-old", 2 * 86400), (".making-new", 60)):
        (parent / name).mkdir(parents=True)
        os.utime(parent / name, times=(time.time() - age,) * 2)
    make()
    assert sorted(path.name for path in parent.glob(".making-*")) == [".making-new"]


def test_the_home_can_be_moved(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = make()
    moved = tmp_path / "elsewhere"
    home.rename(moved)
    monkeypatch.setenv("WINNOW_HOME", str(moved))
    assert artifact.intact()


def test_a_folder_digest_goes_by_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("same")
    os.utime(tmp_path / "two" / "f", times=(0, 0))
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two" / "f").rename(tmp_path / "two" / "g")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")


def test_a_table_that_names_images_is_digested_with_them(tmp_path: Path) -> None:
    (tmp_path / "a picture.png").write_bytes(b"1")
    table = tmp_path / "t.csv"
    table.write_text('file,label\n"a picture.png",x\n')
    before = source_digest(str(table))
    (tmp_path / "a picture.png").write_bytes(b"2")
    assert source_digest(str(table)) != before


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def broken(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
