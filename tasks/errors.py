"""The errors that a user can mend: one line each, reported with exit code 2."""

from __future__ import annotations

import unicodedata

from tasks.secrets import redacted

_LONGEST = 1200  # characters of a message: a value of the input may be of any length
# what may move the cursor, hide text or turn its direction; a joiner in an emoji stays
_UNSAFE = {"Cc", "Cs", "Zl", "Zp", "Co", "Cn"}
_TURNS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"}


class UserError(ValueError):
    """Something that the user gave is wrong; the message is one line: where, what, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RecipeError(UserError):
    """A recipe, or an option on the command line, that cannot be used as it is."""


class DataError(UserError):
    """Task data that cannot be used as it is."""


def one_line(text: str) -> str:
    """A message as one line that any terminal and any log can take.

    Line breaks become spaces, control characters and halves of surrogate pairs their escapes,
    secrets `***`; the middle of a very long one is left out.
    """
    plain = " ".join(text.split())
    if not plain.isprintable():
        plain = "".join(_escaped(c) if _unsafe(c) else c for c in plain)
    plain = redacted(plain)
    half = _LONGEST // 2
    return plain if len(plain) <= _LONGEST else f"{plain[:half]} ... {plain[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE or character in _TURNS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def bad_input() -> tuple[type[Exception], ...]:
    """Every error of the rooms that a user can mend."""
    # here, because onnxruntime's and Pillow's imports would slow down `winnow --help`
    from compression.errors import CompressionError
    from exports.latency_cache import LatencyError
    from exports.onnxfile import GraphError
    from exports.preprocess import InputError
    from exports.runtime import SessionError
    from models.errors import GeneralistError

    # of a graph: of the user's own model, which the tracer, a grid or half numbers do not take
    graph = (GraphError, SessionError, LatencyError)
    return (UserError, GeneralistError, InputError, CompressionError, *graph)
