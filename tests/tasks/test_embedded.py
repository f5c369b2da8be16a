"""The embedded Prefect server: what it must do that Prefect's own defaults do not."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.settings import get_current_settings

from tasks.embedded import embedded_prefect


def test_a_connection_outlives_the_pause_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's client takes it for open for 25 s; a closed one costs a failure and two seconds."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    with embedded_prefect():
        address = urlsplit(str(get_current_settings().api.url))
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        connection.request("GET", "/api/health")
        connection.getresponse().read()
        socket = connection.sock
        time.sleep(6.5)  # uvicorn's own default is 5
        connection.request("GET", "/api/health")
        assert connection.getresponse().read() == b"true"
        assert connection.sock is socket
        connection.close()
