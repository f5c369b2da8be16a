"""The errors that a user can mend: one line each, reported with exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user gave is wrong; the message is one line: where, what, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RecipeError(UserError):
    """A recipe, or an option on the command line, that cannot be used as it is."""


class DataError(UserError):
    """Task data that cannot be used as it is."""


def bad_input() -> tuple[type[Exception], ...]:
    """Every error of the rooms that a user can mend."""
    # here, because onnxruntime's and Pillow's imports would slow down `winnow --help`
    from compression.errors import CompressionError
    from exports.preprocess import InputError
    from models.errors import GeneralistError

    return (UserError, GeneralistError, InputError, CompressionError)
