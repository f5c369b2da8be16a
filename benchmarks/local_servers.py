"""Real servers on 127.0.0.1 for benchmarks and tests: PostgreSQL, and any that speaks HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server in a process group of its own, which can be killed and started again."""

    def __init__(
        self, command: Sequence[str], health: str, log: Path, environment: Mapping[str, str]
    ) -> None:
        """Start nothing yet.

        Args:
            command: with the port that `health` names.
            health: an address that answers once the server does.
            log: file that gets what it prints.
            environment: over this process's own.
        """
        self.command, self.health, self.log = list(command), health, log
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, held: bool = False) -> None:
        """Start it, without waiting.

        Args:
            held: its standard input is a pipe whose other end is here, for tasks/watched.py.
        """
        environment = {**os.environ, **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.PIPE if held else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        """Wait until it answers; raises `RuntimeError` where it does not, with its log's end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.health, timeout=5).close()
                return
            except urllib.error.HTTPError as answer:
                answer.close()
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"{self.health} does not answer:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to it and its children: the way that a machine goes away."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        for each in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, each)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.process = None


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, None where there are none."""
    # Debian keeps them, a folder a version, off the path
    folders = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = shutil.which("initdb")
    folders[:0] = [Path(found).resolve().parent] if found else []
    whole = [folder for folder in folders if (folder / "createdb").exists()]
    return whole[-1] if whole else None


@contextmanager
def database_server(
    folder: Path, names: Sequence[str], *, careful: bool = False
) -> Iterator[dict[str, str]]:
    """A PostgreSQL server of our own inside the block; yields the address of each database.

    Args:
        folder: made anew, for its files.
        names: of the databases to create.
        careful: waits for the disk at every commit, as a server does that is to keep its data.
    """
    programs = postgres_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL's initdb is not installed: apt-get install postgresql")
    folder.mkdir(parents=True)
    # the server refuses to run as root: Debian has made a user for it
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    prefix = user if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, "postgres", "postgres")
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o711)
    port, data = free_port(), folder / "data"

    def call(*command: str) -> None:
        done = subprocess.run(
            [*prefix, str(programs / command[0]), *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout[-500:]}{done.stderr[-1500:]}")

    call("initdb", "-D", str(data), "-U", "winnow", "--auth=trust", "-E", "UTF8")
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c max_connections=300"
    options += "" if careful else " -c fsync=off"
    log = str(folder / "postgres.log")
    call("pg_ctl", "-D", str(data), "-l", log, "-w", "-o", options, "start")
    try:
        for name in names:
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "winnow", name)
        yield {name: f"postgresql://winnow@127.0.0.1:{port}/{name}" for name in names}
    finally:
        with suppress(RuntimeError):
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
