"""One clock a host: measurements of time take turns, whoever makes them.

Two runs that time their graphs at once slow each other and make both look slower than they are.
So whoever times holds a lock on a file in the host's folder for temporary files: not in <home>,
which several hosts may share and which two runs of one host need not. The kernel frees it when its
holder dies. Containers with a folder of their own do not see each other, and whatever else runs on
the host (another run that trains) still shares its memory and its caches; `Timings.spread` tells.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.progress import watching

_FILE = "winnow-clock.lock"
_held = threading.local()
_waited = 0.0


def clock_file() -> Path:
    """The file that is locked; $WINNOW_CLOCK names another, for containers that share a host."""
    return Path(os.environ.get("WINNOW_CLOCK") or Path(tempfile.gettempdir(), _FILE))


def seconds_waited() -> float:
    """How long this process has waited for the clock so far."""
    return _waited


@contextmanager
def host_clock() -> Iterator[None]:
    """Hold the host's clock inside the block; a thread that holds it already goes on."""
    if getattr(_held, "now", False):
        yield
        return
    handle = _open()
    try:
        _take(handle)
        _held.now = True
        yield
    finally:
        _held.now = False
        os.close(handle)


def _take(handle: int) -> None:
    global _waited
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        watching().say("  waiting for another run's measurements on this host")
        started = time.monotonic()
        fcntl.flock(handle, fcntl.LOCK_EX)
        _waited += time.monotonic() - started
    except OSError as error:
        # a folder that knows no locks: then nobody is kept waiting, and the spread tells
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise


def _open() -> int:
    """Open the file; made by whoever comes first, for every user of the host."""
    path, flags = clock_file(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(2):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            try:
                # without the mode's group and others, their locks would fail
                handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(handle, 0o644)
                return handle
            except FileExistsError:
                continue
        except OSError as error:  # such as a link that somebody laid there
            raise UserError(
                f"WINNOW_CLOCK: {path} cannot be opened ({error.strerror}); remove it, or name "
                "another file"
            ) from None
    raise UserError(f"WINNOW_CLOCK: {path} comes and goes; name another file")
