"""Taking passwords and tokens out of what is told, logged or tracked.

Addresses of servers and stores may carry a password, and errors of their clients repeat them. What
is hidden: passwords within addresses, values that are named as secrets, tokens of well-known forms,
and whatever this process's environment holds under a name such as MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

__all__ = ["HIDDEN", "holds_secret", "redacted", "redacted_values", "without_secrets"]

HIDDEN = "***"

# scheme://user:password@; a port and a path are not a password, SQLAlchemy's passwords may hold /
_LOGIN = re.compile(
    r"""\b([a-z][a-z0-9+.-]{0,30}://)([^\s:/?\#@'"<>]*):(?!\d{1,5}(?:[/?\#]|$))([^\s'"<>]+)@""",
    re.IGNORECASE,
)
# scheme://token@: a short name before the @ is a user, a long one is a token
_LONE_LOGIN = re.compile(r"""\b([a-z][a-z0-9+.-]{0,30}://)[^\s:/?\#@'"<>]{20,}@""", re.IGNORECASE)
# name=value and name: value; the words that texts also use with a colon count with = only
_VALUE = r"""([^\s&"',;}]+)"""
_NAMED = re.compile(
    r"""((?:passw(?:or)?d|secret|api[_-]?key|access[_-]?key(?:[_-]id)?|private[_-]?key|"""
    rf"""auth[_-]?string)["']?\s*[=:]\s*["']?){_VALUE}""",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    rf"""((?:token|pwd|credentials?|signature|[?&]sig|[?&]key)=["']?){_VALUE}""", re.IGNORECASE
)
_HEADER = re.compile(
    r"""\b(authorization["']?\s*[:=]\s*["']?(?:[a-z]+ )?|(?:bearer|basic) )"""
    r"""(?!\*\*\*)[\w.~+/=-]{8,}""",
    re.IGNORECASE,
)
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|pn[ub]_[A-Za-z0-9]{20,}"  # Prefect Cloud
    r"|dapi[a-f0-9]{32}"  # Databricks
    r"|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|pypi-[\w-]{20,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"  # JSON web tokens
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_SECRET_NAME = re.compile(
    r"(PASSWORD|PASSWD|SECRET|SECRET_KEY|TOKEN|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|PRIVATE_KEY"
    r"|AUTH_STRING|CREDENTIALS?)$"
)
_SHORTEST = 6  # a shorter value is likely a word that texts use


def redacted(text: str) -> str:
    """The text with `***` in the place of every password, token and key that can be told."""
    for secret in _own_secrets():
        text = text.replace(secret, HIDDEN)
    text = _LOGIN.sub(rf"\1\2:{HIDDEN}@", text)
    text = _LONE_LOGIN.sub(rf"\1{HIDDEN}@", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    for named in (_NAMED, _ASSIGNED):
        text = named.sub(rf"\1{HIDDEN}", text)
    return _TOKENS.sub(HIDDEN, text)


def holds_secret(text: str) -> bool:
    """Whether a text holds something that must not be told."""
    return redacted(text) != text


def redacted_values(plain: Any) -> Any:
    """Nested dictionaries and lists with every text in them redacted."""
    if isinstance(plain, str):
        return redacted(plain)
    if isinstance(plain, Mapping):
        return {key: redacted_values(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return type(plain)(redacted_values(value) for value in plain)
    return plain


@contextmanager
def without_secrets() -> Iterator[None]:
    """Redact what an error that leaves the block says, and the errors that led to it.

    Prefect stores the message of an error in its database, MLflow keeps it as a tag.
    """
    try:
        yield
    except BaseException as error:
        seen: BaseException | None = error
        known: set[int] = set()
        while seen is not None and id(seen) not in known:
            known.add(id(seen))
            _cleanse(seen)
            seen = seen.__cause__ or seen.__context__
        raise


def _cleanse(error: BaseException) -> None:
    with suppress(Exception):  # an error that lets nothing be changed stays as it is
        error.args = tuple(redacted(x) if isinstance(x, str) else x for x in error.args)
        for name, value in list(vars(error).items()):  # such as MlflowException.message
            if isinstance(value, str):
                setattr(error, name, redacted(value))


def _own_secrets() -> list[str]:
    """What this process's environment holds under a secret's name or as an address's password."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()):
            found.add(value)
        if "://" in value:
            found |= {match[3] for match in _LOGIN.finditer(value)}
    found |= {unquote(value) for value in found}
    # a name such as GOOGLE_APPLICATION_CREDENTIALS holds the path of a file, not its content
    kept = [value for value in found if len(value) >= _SHORTEST and not _is_file(value)]
    return sorted(kept, key=len, reverse=True)


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):
        return False
