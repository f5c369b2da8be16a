"""Times of graphs on this host, kept in a JSON file: what was measured once is not timed again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from exports.runtime import host_profile

__all__ = ["LatencyError", "TimesStore"]

_SCHEMA = 3  # raised whenever times are taken another way: older ones are measured anew
# what a time depends on; a change of any of them is another host
_TIMED_BY = ("cpu", "machine", "flags", "cores", "usable_cores", "onnxruntime")


# what writes the graphs that are timed: another release may give a part other operators
_WRITERS = ("torch", "onnxscript", "onnx-ir", "onnx")


class LatencyError(ValueError):
    """A table or a cache that lacks what is asked of it; the message is one line."""


def _writers() -> dict[str, str]:
    """Versions of what writes the graphs; empty texts where it is not installed."""
    found = {}
    for name in _WRITERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


class TimesStore:
    """Times of this host, and which parts stand between convolutions, kept in a JSON file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        host = host_profile()
        self.host = {**{name: host[name] for name in _TIMED_BY}, "written_by": _writers()}
        text = json.dumps(self.host, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        entry = self._read().get(self.digest, {})
        self.times: dict[str, float] = dict(entry.get("ms", {}))
        # what taking each of them cost, for who wants to know what finding them here spared
        self.seconds: dict[str, float] = dict(entry.get("seconds", {}))
        self.chained: dict[str, bool] = dict(entry.get("chained", {}))

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            return dict(data["hosts"]) if data["schema"] == _SCHEMA else {}
        except (ValueError, KeyError, TypeError) as problem:
            raise LatencyError(f"{self.path}: not a latency cache ({problem}); delete it") from None

    def save(self) -> None:
        """Merge this host's times into the file in one step."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            hosts = self._read()  # another process may have added to it
            entry = hosts.get(self.digest, {})
            hosts[self.digest] = {
                "host": self.host,
                "ms": {**entry.get("ms", {}), **self.times},
                "seconds": {**entry.get("seconds", {}), **self.seconds},
                "chained": {**entry.get("chained", {}), **self.chained},
            }
            self._replace({"schema": _SCHEMA, "hosts": hosts})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold off others that merge into the file, also of other users; a crash lets go."""
        assert self.path is not None
        beside = self.path.with_name(f".{self.path.name}.lock")
        handle = os.open(beside, os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # a file system without locks: as good as can be had there
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _replace(self, data: dict[str, Any]) -> None:
        """Write the file in one step, readable by every user of the cache's folder."""
        assert self.path is not None
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(data, stream, indent=1, sort_keys=True)
            os.chmod(name, 0o644)
            os.replace(name, self.path)
        finally:
            Path(name).unlink(missing_ok=True)
