"""Where the tasks of a flow run: one by one in this process, or on the workers of Dask.

Prefect's task runners do the work (prefect-dask); without workers nothing of Dask is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tasks.crashed import without_mark
from tasks.errors import RecipeError, UserError
from tasks.progress import watching
from tasks.worker_hosts import Sender, look, require_fit, sender

GPU = "GPU"  # the workers' resource that a task with `gpu` takes one of
_JOIN_SECONDS = 30
_START_SECONDS = 600  # of workers on this host: a process each, on cores that others use as well
_NO_GPU = "this host shows none in /dev or CUDA_VISIBLE_DEVICES"
_INSTALL = "install it with `pip install 'winnow[scale]'`"


class Handle(Protocol):
    """A task under way."""

    def result(self) -> Any:
        """What it returned, once it has; raises what it raised."""


class Engine(Protocol):
    """What runs tasks."""

    beside: bool  # whether tasks run in other processes than this one

    @property
    def workers(self) -> int:
        """How many processes tasks run in."""

    def submit(
        self, work: Callable[..., Any], title: str, *, gpu: bool = False, **arguments: Any
    ) -> Handle:
        """Begin a piece of work.

        Args:
            work: a function at the top of a module, which workers import.
            title: what the page of the flow run calls it.
            gpu: whether only a worker that has a GPU to spare takes it.
        """

    def as_done(self, handles: Iterable[Handle]) -> Iterator[Handle]:
        """The handles in the order in which their tasks end."""

    def sent_from(
        self, out: Path, *, shared: bool = False, gpu: bool = False
    ) -> AbstractContextManager[Sender | None]:
        """What tasks are told of this host, None where they run on it.

        Args:
            out: folder for results.
            shared: whether all workers must see this host's home.
            gpu: whether there are tasks that take a GPU.

        Raises:
            UserError: a worker cannot do its part.
        """


class _Asked:
    """Work that is done when its result is asked for, once."""

    def __init__(self, work: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self._work, self._arguments = work, arguments

    def result(self) -> Any:
        return self._value

    @cached_property
    def _value(self) -> Any:
        return self._work(**self._arguments)


class Here:
    """One piece of work after another, in this process and its main thread."""

    beside, workers = False, 1

    def submit(
        self, work: Callable[..., Any], title: str, *, gpu: bool = False, **arguments: Any
    ) -> Handle:
        """Keep it in mind; `gpu` says nothing here, where no two pieces of work share one."""
        return _Asked(work, arguments)

    def as_done(self, handles: Iterable[Handle]) -> Iterator[Handle]:
        """The handles as they come."""
        yield from handles

    def sent_from(
        self, out: Path, *, shared: bool = False, gpu: bool = False
    ) -> AbstractContextManager[Sender | None]:
        """Nothing need be told."""
        return nullcontext()


class OnWorkers:
    """Tasks on the workers that a started `DaskTaskRunner` knows."""

    beside = True

    def __init__(self, runner: Any, *, own: bool) -> None:
        self._runner, self._own = runner, own

    @property
    def client(self) -> Any:
        """The client of Dask's scheduler."""
        return self._runner.client

    @property
    def workers(self) -> int:
        """How many workers the scheduler knows now."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def submit(
        self, work: Callable[..., Any], title: str, *, gpu: bool = False, **arguments: Any
    ) -> Handle:
        """Send it, as a Prefect task, to a worker that is free and has a GPU where it takes one."""
        import dask
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        # made here and not by a decorator: workers then import the function by its name
        name = work.__name__.replace("_", " ")
        task = Task(work, name=name, task_run_name=title, cache_policy=NO_CACHE)
        with dask.annotate(resources={GPU: 1} if gpu else {}), without_mark():
            return self._runner.submit(task, arguments)

    def as_done(self, handles: Iterable[Handle]) -> Iterator[Handle]:
        """The handles in the order in which their tasks end."""
        import distributed

        known = {handle.wrapped_future: handle for handle in handles}  # type: ignore[attr-defined]
        for done in distributed.as_completed(list(known), loop=self.client.loop):
            yield known[done]

    @contextmanager
    def sent_from(
        self, out: Path, *, shared: bool = False, gpu: bool = False
    ) -> Iterator[Sender | None]:
        """Ask every worker what it shares with this host; workers of our own share all."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        if gpu and not any(worker["resources"].get(GPU) for worker in known.values()):
            raise UserError(
                "gpu: true, but no worker offers a GPU; "
                + (_NO_GPU if self._own else "start one with `dask worker ... --resources GPU=1`")
            )
        if self._own:
            yield None
            return
        from prefect.settings import get_current_settings

        with sender(out, get_current_settings().api.url or "") as told:
            try:
                found = self.client.run(look, told)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"--scheduler: a worker cannot import {error.name}; install winnow there too"
                ) from None
            require_fit(told, found, shared)
            for address, facts in found.items():
                if not facts["shares_home"]:
                    watching().say(
                        f"! worker {address} ({facts['host']}) does not see {told.home}: it uses "
                        "a home of its own and makes shared stages itself",
                        "yellow",
                    )
            yield told


def require_engine(workers: int, scheduler: str | None) -> None:
    """Raise `UserError` where no engine could be what is asked for; nothing is started."""
    if workers < 1:
        raise RecipeError(f"--workers: {workers} is none; give 1 or more")
    if scheduler is not None and workers > 1:
        raise RecipeError("--workers and --scheduler: name one; a scheduler has its own workers")
    if scheduler is not None:
        if scheduler.partition("://")[0] not in ("tcp", "tls"):
            raise RecipeError(
                f"--scheduler: {scheduler} is not an address such as tcp://10.0.0.5:8786 or "
                "tls://10.0.0.5:8786"
            )
        _require_allowed(scheduler)
    if (scheduler is not None or workers > 1) and find_spec("prefect_dask") is None:
        name = "--workers" if scheduler is None else "--scheduler"
        raise UserError(f"{name}: prefect-dask is not installed; {_INSTALL}")


@contextmanager
def engine(workers: int = 1, scheduler: str | None = None, gpus: int = 0) -> Iterator[Engine]:
    """What runs a flow's tasks inside the block.

    Args:
        workers: processes on this host, one thread each; 1 (and no scheduler): none but this one.
        scheduler: address of a running Dask scheduler, such as tcp://10.0.0.5:8786; its workers
            are used then.
        gpus: how many of this host's workers get a GPU of their own.

    Raises:
        UserError: Dask is missing, or no scheduler answers.
    """
    require_engine(workers, scheduler)
    if scheduler is None and workers == 1:
        yield Here()
        return
    from prefect_dask import DaskTaskRunner

    if scheduler is None:
        from distributed import SpecCluster

        how: dict[str, Any] = {
            "cluster_class": SpecCluster,
            "cluster_kwargs": _local(workers, gpus),
        }
    else:
        how = {"address": _reachable(scheduler)}
    with DaskTaskRunner(**how) as runner:
        found = OnWorkers(runner, own=scheduler is None)
        if scheduler is None:
            found.client.wait_for_workers(workers, timeout=_START_SECONDS)
        yield found


def _local(workers: int, gpus: int) -> dict[str, Any]:
    """Worker processes of this host; the first `gpus` of them see one GPU each, the others none."""
    from distributed import Nanny, Scheduler, Security

    # anyone who reaches a worker can run code in it: only holders of these credentials can
    own = {"security": Security.temporary(), "host": "127.0.0.1", "protocol": "tls://"}
    # left out, it wants port 8787, which another fleet of this host may have
    pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    devices = visible_gpus(gpus)
    spec = {}
    for at in range(workers):
        device = devices[at] if at < len(devices) else ""
        spec[at] = {
            "cls": Nanny,
            "options": {
                **own,
                "nthreads": 1,
                "memory_limit": 0,  # models are big and short-lived: the host's limit is the limit
                **pages,
                "resources": {GPU: 1} if device else None,
                "env": {"CUDA_VISIBLE_DEVICES": device},
                "silence_logs": 40,
            },
        }
    scheduler = {"cls": Scheduler, "options": {**own, **pages, "port": 0}}
    return {
        "workers": spec,
        "scheduler": scheduler,
        "security": own["security"],
        "silence_logs": 40,
    }


def visible_gpus(count: int) -> list[str]:
    """Names of at most `count` of the devices that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        found = Path("/dev").glob("nvidia[0-9]*")
        known = sorted(path.name.removeprefix("nvidia") for path in found)
    else:
        known = [name.strip() for name in named.split(",") if name.strip()]
    return known[:count]


def _require_allowed(scheduler: str) -> None:
    """Refuse a form's scheduler that nobody named where the flow runs.

    Whoever runs a scheduler gets the code and the settings of what is sent there, and answers with
    what is unpickled here.
    """
    if "prefect" not in sys.modules:  # a command, before any flow: importing it takes seconds
        return
    from prefect.runtime import deployment

    if deployment.id is not None and scheduler != os.environ.get("WINNOW_SCHEDULER"):
        raise RecipeError(
            f"scheduler: {scheduler} is not the one that WINNOW_SCHEDULER names where the worker "
            "runs; leave it out, or set the variable there"
        )


def _reachable(scheduler: str) -> str:
    """The address, where a Dask scheduler with workers answers."""
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_JOIN_SECONDS, set_as_default=False)
    except Exception as error:  # sockets, TLS, versions: Dask raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--scheduler: no Dask scheduler answers at {scheduler} ({reason}); start it with "
            "`dask scheduler`"
        ) from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise UserError(
                f"--scheduler: {scheduler} has no workers; start some with "
                f"`dask worker {scheduler} --nthreads 1`"
            )
    return scheduler
