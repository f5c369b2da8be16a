"""What of this host a stage's result depends on, for its key."""

from __future__ import annotations

import json
from pathlib import Path

from exports.runtime import host_profile

# what a time depends on, as in the cache of latencies: not Python, nor the kernel's release
_TIMED_BY = ("cpu", "machine", "flags", "cores", "usable_cores", "onnxruntime")
_GPUS = Path("/proc/driver/nvidia/gpus")


def timed_by() -> str:
    """What decides which form or size is the fastest one here."""
    host = host_profile()
    return json.dumps({name: host[name] for name in _TIMED_BY}, sort_keys=True)


def told_of() -> str:
    """All that a report tells of its host, and the GPUs that it times."""
    return json.dumps({**host_profile(), "gpus": _gpus()}, sort_keys=True)


def _gpus() -> list[str]:
    """The models of NVIDIA's driver, none where it is not loaded."""
    found = []
    for each in sorted(_GPUS.glob("*/information")):
        for line in each.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                found.append(value.strip())
    return found
