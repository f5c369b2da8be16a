"""Prefect's server with a line a request in the file that COUNTED names, for `scale_measure.py`.

    uvicorn --app-dir benchmarks --factory scale_counted:create_app

Prefect sets up its own logging, in which uvicorn's access log is silent.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prefect.server.api.server import create_app as prefect_app

Message = MutableMapping[str, Any]


def create_app() -> Callable[..., Awaitable[None]]:
    """The ASGI application around Prefect's."""
    app = prefect_app()
    stream = open(os.environ["COUNTED"], "a", buffering=1)  # noqa: SIM115 (open for its life)

    async def counted(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            stream.write(f'"{scope["method"]} {scope["path"]} HTTP"\n')
        await app(scope, receive, send)

    return counted
