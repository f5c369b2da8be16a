"""What to expect of a specialist on a host other than the one it was verified on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exports.runtime import host_profile

# of a folder: the profile itself, or a report that holds it under 'host'
HOST_FILE, REPORT_FILE = "host.json", "report.json"
_told: set[tuple[str, str]] = set()


class HostWarning(UserWarning):
    """This host differs from the one whose figures the report holds."""


def verified_host(directory: Path) -> dict[str, Any] | None:
    """Return the profile of the host that a folder's figures were measured on, None if untold."""
    for name, key in ((HOST_FILE, None), (REPORT_FILE, "host")):
        try:
            held = json.loads((Path(directory) / name).read_text(encoding="utf-8"))
            profile = held if key is None else held[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(profile, dict) and profile.get("cpu"):
            return profile
    return None


def host_notes(
    verified: Mapping[str, Any], here: Mapping[str, Any], provider: str = "cpu"
) -> list[str]:
    """Say, a sentence a difference, what changes from the host that was verified to this one.

    Args:
        verified, here: profiles as `exports.runtime.host_profile` gives them.
        provider: what the session runs on.
    """
    if provider != "cpu":
        return [
            f"verified on cpu ({verified['cpu']}), runs on {provider}: labels can differ in rare "
            "close calls, and the report's times do not hold"
        ]
    notes = []
    lacks_vnni = bool(verified.get("vnni") and not here.get("vnni"))
    if verified["cpu"] != here["cpu"] or lacks_vnni:
        # without VNNI, ONNX Runtime adds pairs of 8-bit products in 16 bits, which can saturate
        expect = (
            "no VNNI instructions here, so INT8 may be slower than float and its sums can "
            "saturate: measure accuracy and time before relying on them"
            if lacks_vnni
            else "expect the accuracy that was verified, but not the times"
        )
        notes.append(f"verified on {verified['cpu']}, this is {here['cpu']}: {expect}")
    versions = verified.get("onnxruntime"), here.get("onnxruntime")
    if versions[0] and versions[0] != versions[1]:
        notes.append(
            f"verified with onnxruntime {versions[0]}, this is {versions[1]}: logits can differ in "
            "their last digits, times more"
        )
    return notes


def warn_of_host(directory: Path, provider: str = "cpu") -> None:
    """Warn (`HostWarning`), once a folder and reason, where this host is not the verified one."""
    verified = verified_host(directory)
    if verified is None:
        return
    for note in host_notes(verified, host_profile(), provider):
        key = (str(Path(directory).absolute()), note)
        if key not in _told:
            _told.add(key)
            warnings.warn(note, HostWarning, stacklevel=3)
