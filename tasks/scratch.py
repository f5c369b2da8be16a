"""Temporary files that a killed process leaves go when the next one runs.

Inside the block, all that this process and its libraries put into the system's temporary folder
goes into one folder of its own there, beside which it holds a lock. SIGKILL frees the lock and
leaves the folder: that is how the next process knows it for a dead one's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tasks.errors import UserError
from tasks.locks import if_free, locked

_PREFIX, _LOCK = "winnow-scratch-", ".lock"
_inside = threading.Lock()  # the temporary folder is the process's, not a thread's


@contextmanager
def scratch() -> Iterator[None]:
    """Temporary files that are made inside the block are gone after it, or after the next one.

    A block inside another changes nothing, nor does one where the temporary folder has no locks.
    """
    if not _inside.acquire(blocking=False):
        yield
        return
    before, parent = tempfile.tempdir, Path(tempfile.gettempdir())
    folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"
    with ExitStack() as closing:
        closing.callback(_inside.release)
        with suppress(OSError, UserError):
            closing.enter_context(locked(_lock_of(folder)))
            sweep(parent)
            folder.mkdir(mode=0o700)
            tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what dead processes of this user left."""
    left = {path.name.removesuffix(_LOCK) for path in parent.glob(f"{_PREFIX}*")}
    for folder in (parent / name for name in left):
        with suppress(OSError, UserError):
            lock = _lock_of(folder)
            owner = (folder if folder.exists() else lock).lstat().st_uid
            if owner != os.getuid() or folder.is_symlink():
                continue
            with if_free(lock) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_LOCK}")
