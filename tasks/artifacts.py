"""What travels between stages: a folder of files and its digest, never a live model."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.digests import MANIFEST, folder_digest
from tasks.home import store
from tasks.locks import if_free, locked

# names inside a stage's folder of the store; an artifact is named by its key alone
_MAKING, _OLD, _LOCK = ".making-", ".old", ".lock-"
_UNLOCKED_SECONDS = 60.0  # a file's writer may not have locked it yet


class Artifact(BaseModel):
    """A finished stage: its folder in the store, the digest of its content, its metrics."""

    model_config = ConfigDict(frozen=True)

    stage: str = Field(description="Name of the stage that made it.")
    path: str = Field(description="Folder, relative to the store, so that a home can be moved.")
    sha256: str = Field(description="Digest of the folder's names and contents.")
    key: str = Field(description="Cache key it was made under.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="Plain values to report.")
    seconds: float = Field(0.0, description="Time that making it took.")

    @field_validator("path")
    @classmethod
    def _path_stays_in_the_store(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{value!r} leads out of the store")
        return value

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return store() / self.path

    def intact(self) -> bool:
        """Whether the folder is there and still holds what was published."""
        return self.folder.is_dir() and folder_digest(self.folder) == self.sha256

    def json_file(self, name: str) -> Any:
        """A JSON file of the folder, read."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def published(stage: str, key: str) -> Artifact | None:
    """The intact artifact of a stage under a key, None where it is missing or damaged."""
    try:
        text = (store() / stage / key / MANIFEST).read_text(encoding="utf-8")
        artifact = Artifact.model_validate_json(text)
        whole = artifact.key == key and artifact.intact()
    except (OSError, ValidationError):  # `winnow gc` may take it away while it is read
        return None
    return artifact if whole else None


@contextmanager
def workspace(stage: str, key: str | None = None) -> Iterator[Path]:
    """A temporary folder inside the store, gone on every way out unless it was published.

    Args:
        key: of the artifact that it becomes; the caller then holds `lock_of(stage, key)`.
    """
    parent = store() / stage
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if key is None:
            key = uuid.uuid4().hex
            stack.enter_context(locked(lock_of(stage, key)))
        _sweep(parent, key)
        folder = parent / f"{_MAKING}{key}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def lock_of(stage: str, key: str) -> Path:
    """The lock of whoever makes the artifact of a stage under a key; makes its folder."""
    parent = store() / stage
    parent.mkdir(parents=True, exist_ok=True)
    return parent / f"{_LOCK}{key}"


def publish(
    folder: Path, *, stage: str, key: str, metrics: dict[str, Any], seconds: float
) -> Artifact:
    """Move a finished workspace to its place in the store, whole or not at all.

    All of it is on the disk before it gets its name, so that a power cut cannot leave a half.
    """
    path = f"{stage}/{key}"
    artifact = Artifact(
        stage=stage,
        path=path,
        sha256=folder_digest(folder),
        key=key,
        metrics=metrics,
        seconds=seconds,
    )
    manifest = (artifact.model_dump_json(indent=1) + "\n").encode()
    target = store() / path
    before = published(stage, key)
    if before is not None and before.sha256 == artifact.sha256:
        # made again, the same came out: whoever reads the files now is not disturbed
        write_atomically(target / MANIFEST, manifest)
        return artifact
    (folder / MANIFEST).write_bytes(manifest)
    folder.chmod(0o755)
    _to_disk(folder)
    if target.exists():  # os.replace cannot replace a folder that has files in it
        aside = folder.with_name(f"{folder.name}{_OLD}")
        os.replace(target, aside)
        os.replace(folder, target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(folder, target)
    _sync(target.parent)
    return artifact


def touch(artifact: Artifact) -> None:
    """Note that an artifact is used now: `winnow gc` goes by its manifest's time."""
    touch_key(artifact.stage, artifact.key)


def touch_key(stage: str, key: str) -> None:
    """As `touch`, of what may be there: before a look at it, so that gc leaves it meanwhile."""
    with suppress(OSError):  # not there, or a store that is only read
        os.utime(store() / stage / key / MANIFEST)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    What a killed process left of an earlier attempt goes.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove_if_left(left)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            with suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_if_left(path: Path) -> None:
    """Remove a temporary file that nobody writes: its writer held its lock, and died."""
    with suppress(OSError), path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - path.stat().st_mtime > _UNLOCKED_SECONDS:
            path.unlink()


def _to_disk(folder: Path) -> None:
    """Have every file and folder below written to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some file systems cannot say this of a folder; what it says of a file counts
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _sweep(parent: Path, own: str) -> None:
    """Remove what killed processes left: whoever makes something holds the lock of its key."""
    for left in parent.glob(f"{_MAKING}*"):
        key = left.name.removeprefix(_MAKING).removesuffix(_OLD)
        if key == own:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with suppress(OSError), if_free(parent / f"{_LOCK}{key}") as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
