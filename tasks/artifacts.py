"""What travels between stages: a folder of files and its digest, never a live model."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.digests import MANIFEST, folder_digest
from tasks.home import store

_STALE_SECONDS = 24 * 3600


class Artifact(BaseModel):
    """A finished stage: its folder in the store, the digest of its content, its metrics."""

    model_config = ConfigDict(frozen=True)

    stage: str = Field(description="Name of the stage that made it.")
    path: str = Field(description="Folder, relative to the store, so that a home can be moved.")
    sha256: str = Field(description="Digest of the folder's names and contents.")
    key: str = Field(description="Cache key it was made under.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="Plain values to report.")
    seconds: float = Field(0.0, description="Time that making it took.")

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
    except (OSError, ValidationError):
        return None
    return artifact if artifact.key == key and artifact.intact() else None


@contextmanager
def workspace(stage: str) -> Iterator[Path]:
    """A temporary folder inside the store, gone on every way out unless it was published."""
    parent = store() / stage
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(
    folder: Path, *, stage: str, key: str, metrics: dict[str, Any], seconds: float
) -> Artifact:
    """Move a finished workspace to its place in the store, whole or not at all."""
    path = f"{stage}/{key}"
    artifact = Artifact(
        stage=stage,
        path=path,
        sha256=folder_digest(folder),
        key=key,
        metrics=metrics,
        seconds=seconds,
    )
    (folder / MANIFEST).write_text(artifact.model_dump_json(indent=1) + "\n", encoding="utf-8")
    folder.chmod(0o755)  # mkdtemp's 0700 would lock out other users of a shared home
    target = store() / path
    if target.exists():  # os.replace cannot replace a folder that has files in it
        aside = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
        os.replace(target, aside / "old")
        os.replace(folder, target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(folder, target)
    return artifact


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sweep(parent: Path) -> None:
    """Remove what a killed process left behind more than a day ago."""
    for left in parent.glob(".making-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
