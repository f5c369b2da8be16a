"""Where Prefect's and MLflow's servers are, and which of them run elsewhere.

Everything is SQLite and folders under <home> on 127.0.0.1, unless the environment says otherwise:
PREFECT_API_DATABASE_CONNECTION_URL and WINNOW_MLFLOW_DATABASE name other databases,
WINNOW_ARTIFACTS another place for files, WINNOW_HOST another address; PREFECT_API_URL and
MLFLOW_TRACKING_URI name servers that run elsewhere already.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tasks.errors import UserError
from tasks.secrets import redacted
from tasks.supervise import answers

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent  # of winnow's rooms
POOL = "winnow"
# what a database's or a store's address needs to be spoken to: its module, and winnow's extra
_NEEDS = {"postgresql": ("psycopg2", "postgres"), "s3": ("boto3", "s3")}


@dataclass(frozen=True)
class Servers:
    """Where the servers are, and which of them run elsewhere.

    Args:
        host: the address that they listen on.
        prefect_elsewhere: the API of a server that runs already; None: one is started.
        mlflow_elsewhere: likewise.
    """

    host: str
    prefect_port: int
    mlflow_port: int
    prefect_elsewhere: str | None = None
    mlflow_elsewhere: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches what is started."""
        return _is_loopback(self.host)

    @property
    def prefect(self) -> str:
        """Prefect's API, as this machine reaches it."""
        return self.prefect_elsewhere or f"{url_of(_reached(self.host), self.prefect_port)}/api"

    @property
    def mlflow(self) -> str:
        """MLflow's server, as this machine reaches it."""
        return self.mlflow_elsewhere or url_of(_reached(self.host), self.mlflow_port)

    @property
    def prefect_page(self) -> str:
        """Prefect's pages, as people reach them."""
        if self.prefect_elsewhere:
            shown = self.prefect_elsewhere.rstrip("/").removesuffix("/api")
        else:
            shown = url_of(_shown(self.host), self.prefect_port)
        return (os.environ.get("PREFECT_UI_URL") or shown).rstrip("/")

    @property
    def mlflow_page(self) -> str:
        """MLflow's pages, as people reach them."""
        shown = self.mlflow_elsewhere or url_of(_shown(self.host), self.mlflow_port)
        return (os.environ.get("WINNOW_MLFLOW_PAGE") or shown).rstrip("/")

    @property
    def for_clients(self) -> dict[str, str]:
        """The environment in which flows and commands of this machine use these servers."""
        found = {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow}
        auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
        if auth:
            found["PREFECT_API_AUTH_STRING"] = os.environ.get("PREFECT_API_AUTH_STRING", auth)
        return found


def planned(host: str | None, prefect_port: int, mlflow_port: int) -> Servers:
    """The servers as options and environment ask for them; raises `UserError` of one line."""
    host = host or os.environ.get("WINNOW_HOST") or LOOPBACK
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        raise UserError(
            f"--host: {host} is no address of this machine; give one, such as {LOOPBACK}"
        ) from None
    own = Servers(host, prefect_port, mlflow_port)
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    found = Servers(
        host,
        prefect_port,
        mlflow_port,
        _elsewhere(os.environ.get("PREFECT_API_URL", ""), own.prefect),
        _elsewhere(tracking if tracking.startswith("http") else "", own.mlflow),
    )
    for name, url, sign in (
        ("PREFECT_API_URL", found.prefect_elsewhere, "health"),
        ("MLFLOW_TRACKING_URI", found.mlflow_elsewhere, "health"),
    ):
        if url and not answers(f"{url.rstrip('/')}/{sign}"):
            raise UserError(
                f"{name}: no server answers at {redacted(url)}; start it, or unset the variable to "
                "have one started here"
            )
    here = (found.prefect_elsewhere, found.mlflow_elsewhere) == (None, None)
    if here and prefect_port == mlflow_port:
        raise UserError(
            f"--mlflow-port: {mlflow_port} is Prefect's port as well; give another one of the two"
        )
    if found.prefect_elsewhere is None:
        require_free("prefect", host, prefect_port, "--prefect-port")
        _require_driver("PREFECT_API_DATABASE_CONNECTION_URL", asynchronous=True)
    if found.mlflow_elsewhere is None:
        require_free("mlflow", host, mlflow_port, "--mlflow-port")
        _require_driver("WINNOW_MLFLOW_DATABASE")
        _require_driver("WINNOW_ARTIFACTS")
    return found


def with_our_code() -> str:
    """A PYTHONPATH on which winnow's rooms are found from any folder."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def warnings_of(servers: Servers, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What a user should know before others reach these servers; empty on loopback."""
    if servers.loopback or (servers.prefect_elsewhere and servers.mlflow_elsewhere):
        return []
    told = []
    if not servers.prefect_elsewhere and not environment.get("PREFECT_SERVER_API_AUTH_STRING"):
        told.append(
            f"Prefect on {servers.host} asks nobody for a password, so whoever reaches port "
            f"{servers.prefect_port} can start flows, and so run what they like on this machine; "
            "set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD"
        )
    if not servers.mlflow_elsewhere:
        told.append(
            f"MLflow on {servers.host} asks nobody for a password, so whoever reaches port "
            f"{servers.mlflow_port} can read, change and delete models; keep the port within a "
            "network that you trust, or behind a proxy that asks"
        )
    return told


def require_free(name: str, host: str, port: int, option: str) -> None:
    """Raise `UserError` where a port is taken or may not be listened on."""
    if not 0 < port < 65536:
        raise UserError(f"{option}: {port} is no port; give one from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{option}: {name} cannot listen on {host}:{port} ({error.strerror}); end what "
                "listens there, or give another"
            ) from None


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _elsewhere(named: str, own: str) -> str | None:
    """A server that the environment names, unless it is the one that would be started here."""
    if not named:
        return None
    here, there = urlsplit(own), urlsplit(named)
    same = here.port == there.port and _is_loopback(there.hostname or "")
    return None if same or named.rstrip("/") == own.rstrip("/") else named


def _require_driver(variable: str, *, asynchronous: bool = False) -> None:
    value = os.environ.get(variable, "")
    scheme = value.partition("://")[0]
    if asynchronous:
        if scheme.startswith("postgres") and scheme != "postgresql+asyncpg":
            raise UserError(
                f"{variable}: {redacted(value)}: Prefect reaches PostgreSQL by asyncpg; write "
                "postgresql+asyncpg://..."
            )
        return
    module, extra = _NEEDS.get(scheme.partition("+")[0], ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise UserError(
            f"{variable}: {redacted(value)} needs {module}; pip install 'winnow[{extra}]'"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _reached(host: str) -> str:
    """The name by which this machine reaches what listens on `host`."""
    return LOOPBACK if _is_wildcard(host) else host


def _shown(host: str) -> str:
    """The name by which people reach it."""
    return socket.getfqdn() if _is_wildcard(host) else host


def url_of(host: str, port: int) -> str:
    """The address of what listens there; IPv6 in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(servers: Servers) -> list[str]:
    """What this machine may be called by who reaches it."""
    host = _shown(servers.host)
    return list(dict.fromkeys([host, socket.gethostname(), socket.getfqdn()]))


def own_origins(servers: Servers) -> list[str]:
    """Web pages that may call Prefect's API: its own, and MLflow's none."""
    names = [LOOPBACK, "localhost", *([] if servers.loopback else names_of(servers))]
    own = [url_of(name, servers.prefect_port) for name in names]
    return list(dict.fromkeys([servers.prefect_page, *own]))


def allowed_hosts(servers: Servers) -> list[str]:
    """Host headers that MLflow answers to: a page that names another is an attack by DNS."""
    named = urlsplit(servers.mlflow_page).netloc
    names = [LOOPBACK, "localhost", *names_of(servers)]
    with_ports = [url_of(name, servers.mlflow_port).removeprefix("http://") for name in names]
    return list(dict.fromkeys([named, *names, *with_ports]))
