"""A small disk of a test's own: a tmpfs in a mount namespace, where the host allows one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@cache
def _allowed() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [
        "unshare",
        *_user(),
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=1m",
        "none",
        "/mnt",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _user() -> list[str]:
    return [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


def require_namespaces() -> None:
    """Skip the test, saying so, where no file system can be mounted."""
    if not _allowed():
        pytest.skip("this host allows no mount namespace: no small disk can be made")


def in_small_disk(
    place: Path, megabytes: float, command: Sequence[str], options: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a small empty disk at `place`, which nobody else sees.

    Args:
        place: folder to mount it on; made here.
        options: further options of the mount, such as "ro".
        environment: over this process's own.
    """
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k{',' + options if options else ''}"
    script = f'mount -t tmpfs -o {size} none "$0" && exec "$@"'
    return subprocess.run(
        ["unshare", *_user(), "--mount", "sh", "-c", script, str(place), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
