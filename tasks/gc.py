"""What of <home> no run needs any more: found first, removed after, the registry never touched.

An artifact stays when it was used lately, when one of the last runs lists it, when a run that made
a registered version does, or when somebody makes it right now. Every removal is a rename to a name
that no run reads, then a removal: a crash in between leaves a store that works, and what is left
under that name goes with the next run of the stage, or the next gc.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tasks.artifacts import Artifact, lock_of
from tasks.digests import MANIFEST
from tasks.errors import RecipeError
from tasks.home import home, store
from tasks.locks import if_free
from tasks.needs import needed_by_registry
from tasks.runs import damaged_entries, noted_runs, oldest_under_way, runs_folder

_MAKING, _PARTIAL = ".making-", ".partial-"  # as tasks.artifacts and tasks.partial name them
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Item:
    """Something in <home> that may go.

    Attributes:
        kind: "artifact", "partial", "leftover", "result" or "entry".
        name: what it is called when it is told: its path below <home>.
        path: the file or folder.
        size: bytes on the disk.
        used: when it was last used, seconds since the epoch.
        why: why it stays; empty: it goes.
    """

    kind: str
    name: str
    path: Path
    size: int
    used: float
    why: str = ""


@dataclass
class Plan:
    """Everything that may go, and the time that what was used after it is kept by."""

    items: list[Item]
    cutoff: float
    notes: list[str] = field(default_factory=list)

    @property
    def going(self) -> list[Item]:
        """What goes, the largest first."""
        return sorted((x for x in self.items if not x.why), key=lambda x: -x.size)

    @property
    def staying(self) -> list[tuple[str, int, int]]:
        """Of what stays: why, how many, bytes; the largest first."""
        count, size = Counter[str](), Counter[str]()
        for item in self.items:
            if item.why:
                count[item.why] += 1
                size[item.why] += item.size
        return sorted(((why, count[why], size[why]) for why in count), key=lambda row: -row[2])


def seconds_of(text: str, option: str) -> float:
    """A duration such as 90s, 30m, 12h, 1d or 2w, in seconds; raises `RecipeError`."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip())
    if found is None:
        raise RecipeError(f"{option}: {text} is no duration; write 90s, 30m, 12h, 1d or 2w")
    return float(found[1]) * _UNITS[found[2]]


def plan(keep_runs: int = 20, older_than: float = 86400.0) -> Plan:
    """Find what nobody needs; removes nothing.

    Args:
        keep_runs: the last so many runs keep what they made or reused.
        older_than: seconds; what was used more lately stays.

    Raises:
        RecipeError: the tracking server does not answer: what its registry needs is not known.
    """
    if damaged := damaged_entries():
        raise RecipeError(
            f"{damaged[0]}: is damaged, so that nobody knows what its run needs; remove it if "
            "that run is of no use"
        )
    notes: list[str] = []
    cutoff, reason = time.time() - older_than, "used lately"
    begun = oldest_under_way()
    if begun is not None and begun < cutoff:
        cutoff, reason = begun, "used lately, or by a run that is under way"
    runs = noted_runs()
    last = runs[:keep_runs]
    whose: dict[tuple[str, str], str] = {}
    registered, unknown = needed_by_registry(runs)
    for stage, known in registered:
        whose[stage, known] = "registered versions"
    notes += unknown
    for run in last:
        for stage, key, sha256 in run.artifacts:
            whose[stage, key] = whose[stage, sha256] = f"the last {keep_runs} runs"
    items: list[Item] = []
    kept_keys: set[str] = set()
    for artifact, path in _artifacts():
        used = _used(path)
        why = whose.get((path.parent.name, path.name), "")
        if artifact is not None:
            why = why or whose.get((artifact.stage, artifact.sha256), "")
        why = why or (reason if used > cutoff else "")
        why = why or ("being made" if _is_made(path.parent.name, path.name) else "")
        items.append(Item("artifact", _name(path), path, _size(path), used, why))
        if why:
            kept_keys.add(path.name)
    items += _unfinished(cutoff, reason)
    items += _results(cutoff, reason, kept_keys)
    needed = {run.id for run in last} | {run.id for run in runs if run.model is not None}
    for run in runs:
        path = runs_folder() / f"{run.id}.json"
        why = "" if run.id not in needed else f"the last {keep_runs} runs, and registered ones"
        why = why or (reason if run.ended.timestamp() > cutoff else "")
        items.append(Item("entry", _name(path), path, _size(path), run.ended.timestamp(), why))
    return Plan(items, cutoff, notes)


def collect(found: Plan) -> tuple[int, int]:
    """Remove what a plan says; returns how many went, and their bytes.

    What was used or is being made since the plan stays. Artifacts go first, entries of the index
    last: a crash in between forgets nothing that an artifact is needed for.
    """
    count = freed = 0
    for kind in ("artifact", "partial", "leftover", "result", "entry"):
        for item in found.items:
            if item.kind == kind and not item.why and _removed(item, found.cutoff):
                count, freed = count + 1, freed + item.size
    for lock in store().glob("*/.lock-*"):
        with if_free(lock):  # of a process that was killed: a lock that is free goes
            pass
    return count, freed


def _removed(item: Item, cutoff: float) -> bool:
    if item.kind in ("result", "entry"):
        with suppress(FileNotFoundError):
            item.path.unlink()
            return True
        return False
    key = item.path.name.removeprefix(_PARTIAL).removeprefix(_MAKING).removesuffix(".old")
    with if_free(lock_of(item.path.parent.name, key)) as free:
        if not free or (item.kind == "artifact" and _used(item.path) > cutoff):
            return False
        # one step takes it away from every reader; what follows may be broken off anywhere
        gone = item.path
        if item.kind == "artifact":
            gone = item.path.with_name(f"{_MAKING}{key}.old")
            shutil.rmtree(gone, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.replace(item.path, gone)
        shutil.rmtree(gone, ignore_errors=True)
        return not gone.exists()


def _artifacts() -> Iterator[tuple[Artifact | None, Path]]:
    """Every folder of the store that bears a key, with its manifest, None where it is damaged."""
    for path in sorted(store().glob("*/*")):
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
            yield Artifact.model_validate_json(text), path
        except (OSError, ValidationError):
            yield None, path


def _unfinished(cutoff: float, reason: str) -> Iterator[Item]:
    """What stages keep while they run, of runs that have ended since."""
    for path in sorted(store().glob("*/.*")):
        kind = next((k for p, k in ((_PARTIAL, "partial"), (_MAKING, "leftover")) if
                     path.name.startswith(p)), None)  # fmt: skip
        if kind is None or not path.is_dir():
            continue
        key = path.name.removeprefix(_PARTIAL).removeprefix(_MAKING).removesuffix(".old")
        why = "being made" if _is_made(path.parent.name, key) else ""
        used = max((x.st_mtime for x in _below(path)), default=_time(path))
        if kind == "partial" and not (path.parent / key).is_dir():
            why = why or (reason if used > cutoff else "")  # the run may be resumed
        yield Item(kind, _name(path), path, _size(path), used, why)


def _results(cutoff: float, reason: str, kept_keys: set[str]) -> Iterator[Item]:
    """Prefect's records of finished tasks: named by the key of their artifact, or by chance."""
    for path in sorted((home() / "results").glob("*")):
        if path.is_file():
            used = _time(path)
            why = "their artifacts stay" if path.name in kept_keys else ""
            why = why or (reason if used > cutoff else "")
            yield Item("result", _name(path), path, _size(path), used, why)


def _is_made(stage: str, key: str) -> bool:
    lock = lock_of(stage, key)
    if not lock.exists():
        return False
    with if_free(lock) as free:
        return not free


def _used(path: Path) -> float:
    """When an artifact was last used: its manifest is touched each time."""
    return max(_time(path / MANIFEST), 0.0) or _time(path)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    with suppress(OSError):
        here = path.stat()
        found = _below(path) if stat.S_ISDIR(here.st_mode) else [here]
        return sum(x.st_size for x in found if stat.S_ISREG(x.st_mode))
    return 0


def _below(folder: Path) -> Iterator[os.stat_result]:
    """Of each file and folder below one; what another process removes meanwhile is not there."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                yield os.stat(os.path.join(place, name))


def _name(path: Path) -> str:
    return path.relative_to(home()).as_posix()
