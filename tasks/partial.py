"""What a long stage has so far, kept so that a killed run goes on from there.

A state is a nest of plain values and tensors. It is one safetensors file: tensors as tensors, the
rest as JSON in its header; no pickle. It lies beside the stage's artifacts, under the same key, so
that whatever would change the result changes the key and leaves it unread. It is gone when the
stage is published.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.home import store

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = ".partial-"
_SHARE = 1 / 60  # most of a run's time that goes into keeping
_LEAST_SECONDS = 1.0  # between two saves
_BYTES_A_SECOND = 400e6  # until a save has shown how fast the disk is


@dataclass
class _Clock:
    """When the keepers of one stage may write again; shared by all its parts."""

    every: float | None  # seconds between two saves; None: as few as the share allows
    begun: float = field(default_factory=lambda: time.monotonic())
    last: float = field(default_factory=lambda: time.monotonic())
    cost: float = 0.0  # seconds that the last save took
    size: int = 0  # bytes that it wrote
    broken: bool = False  # the disk is full or gone: the run itself goes on


class Partial:
    """Keeps the states of a stage's loops, a file a part. See `compression.keeping.Keeper`."""

    def __init__(self, folder: Path, *, every: float | None = None) -> None:
        self.folder = folder
        self._name = "state"
        self._clock = _Clock(every)
        self.spent = self._spent()

    @classmethod
    def of(cls, stage: str, key: str) -> Partial:
        """The keeper of the artifact that a stage makes under a key."""
        return cls(store() / stage / f"{FOLDER}{key}")

    def part(self, name: str) -> Partial:
        """The keeper of one of the loops inside."""
        inner = Partial.__new__(Partial)
        inner.folder, inner._clock, inner.spent = self.folder, self._clock, self.spent
        inner._name = f"{self._name}.{name}"
        return inner

    def files(self, name: str) -> Path:
        """A folder for files of the stage's own, made where it is missing."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def _path(self) -> Path:
        return self.folder / f"{self._name}.safetensors"

    def load(self) -> dict[str, Any] | None:
        """What was saved last, on the CPU; None where there is nothing, or it is damaged."""
        return _read(self._path)

    def due(self, size: int = 0) -> bool:
        """Whether it is worth saving now.

        Args:
            size: of the state, in bytes, about; what saving costs is judged by it.
        """
        clock = self._clock
        if clock.broken:
            return False
        if clock.every is not None:
            return time.monotonic() - clock.last >= clock.every
        speed = clock.size / clock.cost if clock.size > 1e6 and clock.cost else _BYTES_A_SECOND
        return time.monotonic() - clock.last >= max(_LEAST_SECONDS, size / speed / _SHARE)

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what was saved last, whole or not at all.

        A disk that is full or gone is not told here: what the stage makes may still fit.
        """
        from safetensors import SafetensorError

        clock = self._clock
        if clock.broken:
            return
        began = time.monotonic()
        spent = self.spent + began - clock.begun
        temporary = self._path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            size = _write(temporary, spent, state)
            os.replace(temporary, self._path)
        except (OSError, SafetensorError):
            clock.broken = True
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        clock.last = time.monotonic()
        clock.cost, clock.size = clock.last - began, size

    def clear(self) -> None:
        """Drop the part, and those inside it."""
        for path in self.folder.glob(f"{self._name}.*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Drop everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spent(self) -> float:
        """Seconds that went into what was saved, in all earlier attempts."""
        return max((_seconds(path) for path in self.folder.glob("*.safetensors")), default=0.0)


@contextmanager
def files_of(keeper: Partial | None, name: str) -> Iterator[Path]:
    """A folder for large files of a stage's own: kept where the block is left early, else removed.

    Where nothing is kept it is a temporary one.
    """
    if keeper is None:
        with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
            yield Path(scratch)
        return
    folder = keeper.files(name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, spent: float, state: Mapping[str, Any]) -> int:
    """Write a state; returns its bytes."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_encoded(state, tensors))
    facts = {"state": plain, "crc32": str(_checksum(plain, tensors)), "seconds": repr(spent)}
    if tensors:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata=facts)
    else:  # plain values need no torch, which takes seconds to import
        from safetensors.numpy import save_file as save_none

        save_none({}, path, metadata=facts)
    return path.stat().st_size


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stream:
            facts, names = stream.metadata(), list(stream.keys())
        tensors = {}
        if names:
            with safe_open(path, framework="pt") as stream:
                tensors = {name: stream.get_tensor(name) for name in names}
        # not forced to the disk when written, which would cost: a power cut may leave anything
        if int(facts["crc32"]) != _checksum(facts["state"], tensors):
            return None
        found = _decoded(json.loads(facts["state"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _seconds(path: Path) -> float:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stream:
            return float(stream.metadata()["seconds"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0.0


def _checksum(plain: str, tensors: Mapping[str, Tensor]) -> int:
    total = zlib.crc32(plain.encode())
    if tensors:
        from torch import uint8

        for name in sorted(tensors):
            total = zlib.crc32(tensors[name].reshape(-1).view(uint8).numpy().data, total)
    return total


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON knows it; tensors go into `tensors`, tuples and dictionaries get a mark."""
    if hasattr(value, "untyped_storage"):  # a tensor
        name = str(len(tensors))
        # a copy of its own: two names for one memory is not a file's business
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[_encoded(k, tensors), _encoded(v, tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encoded(item, tensors) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} is neither a plain value nor a tensor")


def _decoded(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_decoded(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = plain.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in inner)
    return {_decoded(key, tensors): _decoded(value, tensors) for key, value in inner}
