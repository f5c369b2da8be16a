"""One holder at a time, over threads, processes and hosts that share a folder.

A lock is a file that its holder has locked with flock(2): the kernel frees it when the process
ends, however it ends, so that nothing has to be cleaned up by age. Linux carries it to every host
of an NFSv4 share. The file is there only while somebody holds it or waits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.errors import UserError

_LOOK_SECONDS = 0.1  # waiting by looking again, so that Ctrl-C reaches any thread that waits
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock `path` inside the block, whoever has to be waited for.

    Args:
        path: the lock's file; its folder must be there.
        waiting: called once with who holds it ("process 7 on host x"), where there is somebody.

    Raises:
        UserError: the file system has no locks.
    """
    told = False
    while (handle := _taken(path)) is None:
        if not told and waiting is not None:
            waiting(_holder(path))
        told = True
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        _leave(path, handle)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock inside the block where nobody else does; yields whether it is held."""
    handle = _taken(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            _leave(path, handle)


def is_held(path: Path) -> bool:
    """Whether somebody, this process included, holds the lock now."""
    if not path.exists():
        return False
    with if_free(path) as free:
        return not free


def _taken(path: Path) -> int | None:
    """The locked file's descriptor; None where another has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, handle):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_LOCKS:
                raise UserError(
                    f"WINNOW_HOME: {path.parent} is on a file system without file locks; "
                    "name a folder on a local disk or on NFSv4"
                ) from None
            raise
        except BaseException:
            os.close(handle)
            raise
        # the holder before removed the file that was just locked: the next one is a new file
        os.close(handle)


def _names(path: Path, handle: int) -> bool:
    """Whether the path still names the open file; by opening it, which NFS asks its server for."""
    try:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        ours, theirs = os.fstat(handle), os.fstat(other)
    finally:
        os.close(other)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _leave(path: Path, handle: int) -> None:
    # removed before it is freed: whoever has the old file open sees that it is no longer named
    with suppress(OSError):
        path.unlink()
    os.close(handle)


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
