"""Digests and publishing: whole or not at all."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from tasks import digests
from tasks.artifacts import (
    Artifact,
    lock_of,
    publish,
    published,
    touch,
    workspace,
    write_atomically,
)
from tasks.digests import file_digest, folder_digest, source_digest
from tasks.home import store
from tasks.locks import locked


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


def test_what_a_killed_process_left_is_swept_at_once() -> None:
    parent = store() / "stage"
    for name in (".making-dead", ".making-dead.old", ".making-k", ".making-alive"):
        (parent / name / "inner").mkdir(parents=True)
    with locked(lock_of("stage", "alive")):
        make()
        assert sorted(path.name for path in parent.glob(".*")) == [".lock-alive", ".making-alive"]
    make()
    assert [path.name for path in parent.iterdir()] == ["k"]


def test_the_same_content_again_leaves_the_files_alone() -> None:
    first = make("a")
    file = first.folder / "inner" / "file"
    before = file.stat().st_ino
    with workspace("stage") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("a")
        again = publish(folder, stage="stage", key="k", metrics={"x": 2}, seconds=9.0)
    assert again.sha256 == first.sha256 and published("stage", "k") == again
    assert file.stat().st_ino == before and list(store().glob("stage/.*")) == []


def test_all_is_on_the_disk_before_it_gets_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the calls: a power cut after any of them leaves whole or nothing."""
    told: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def noted(handle: int) -> None:
        told.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        told.append(("name", Path(new).name))
        replace(old, new)

    monkeypatch.setattr("os.fsync", noted)
    monkeypatch.setattr("os.replace", renamed)
    make()
    named = told.index(("name", "k"))
    synced = {name for kind, name in told[:named] if kind == "sync"}
    assert {"file", "inner", "artifact.json"} < synced
    assert any(name.startswith(".making-") for name in synced)
    assert told[named + 1 :] == [("sync", "stage")]


def test_use_is_noted() -> None:
    artifact = make()
    manifest = artifact.folder / "artifact.json"
    os.utime(manifest, times=(0, 0))
    touch(artifact)
    assert time.time() - manifest.stat().st_mtime < 60
    assert published("stage", "k") == artifact


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


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of writing set back, as `cp -p` and archives do, hides no change."""
    path, read = tmp_path / "f", list[Path]()
    plain = digests._digest_of

    def noted(path: Path) -> str:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(digests, "_digest_of", noted)
    path.write_bytes(b"one")
    first = file_digest(path)
    assert file_digest(path) == first and len(read) == 2  # it has only just been written
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    assert file_digest(path) == file_digest(path) == first and len(read) == 3
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path) != first


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


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    left, writing = tmp_path / ".f.dead.part", tmp_path / ".f.alive.part"
    for path in (left, writing):
        path.write_bytes(b"half")
        os.utime(path, times=(0, 0))
    with writing.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_atomically(tmp_path / "f", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [writing.name, "f"]
    assert (tmp_path / "f").read_bytes() == b"whole"
