"""Which process made something, and whether it is gone: what a killed run cannot say itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def host_name() -> str:
    """What this host is called in tags."""
    return socket.gethostname()


def this_process() -> str:
    """This process in one word: boot, namespace of process numbers, number, start.

    A number alone names another process later, and the same one in two containers.
    """
    return process_word(os.getpid())


def process_word(number: int) -> str:
    """A process of this host in one word, as `this_process` writes it."""
    return f"{_boot()}:{_namespace()}:{number}:{_start(number)}"


def is_gone(host: str, process: str) -> bool:
    """Whether a process is known to be over; False where this host cannot tell.

    Args:
        host: its `host_name()`.
        process: its `this_process()`.
    """
    boot, _, rest = process.partition(":")
    namespace, _, rest = rest.partition(":")
    number, _, start = rest.partition(":")
    if host != host_name() or not boot or not number.isdigit():
        return False
    if boot != _boot():
        return True  # the host was started anew since
    if namespace != _namespace():
        return False  # a container of this host: its processes cannot be seen from here
    return _start(int(number)) != start


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid").partition("[")[2].rstrip("]")
    except OSError:
        return ""


def _start(number: int) -> str:
    """Ticks from the boot to the start of a process; empty where there is none, or a zombie."""
    try:
        fields = (_PROC / str(number) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # the name in brackets may hold anything, spaces and brackets included
    state, *rest = fields.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]
