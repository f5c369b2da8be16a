"""Run a module as a script until whoever started this process is gone, however that ended.

    python -P tasks/watched.py MODULE ARGUMENT...    with a pipe as standard input

The pipe's other end is held by the starter alone. The kernel closes it when the starter ends, also
where SIGKILL ended it: a server that outlives its run would hold the database and a port for good.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_PATIENCE_SECONDS = 5.0


def _end_with_the_starter() -> None:
    os.read(0, 1)  # nothing is ever written: this returns when the pipe closes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
