"""What a row was made on and by: device, machine, versions, the commit of the code that ran."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"


def device() -> str:
    """The GPU where there is one, otherwise the processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return UNKNOWN


def machine() -> dict[str, Any]:
    """Cores that this process may use, processor and the libraries that compute."""
    from importlib.metadata import version

    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }


def commit() -> str:
    """The commit of the working tree, with a + where files differ from it."""

    def git(*words: str) -> str:
        try:
            found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:  # a machine that got the files alone may have no git either
            return ""
        return found.stdout.strip() if found.returncode == 0 else ""

    short = git("rev-parse", "--short=9", "HEAD")
    return (short + ("+" if git("status", "--porcelain") else "")) if short else UNKNOWN


def commit_of(row: Mapping[str, Any]) -> str:
    """A row's commit as tables tell it; of a copy without its history, the plan's as well."""
    if row["commit"] == UNKNOWN and "planned" in row:
        return f"{UNKNOWN} (planned at {row['planned']})"
    return str(row["commit"])
