"""The one error this room raises for input that a user can mend."""

from __future__ import annotations

__all__ = ["GeneralistError"]


class GeneralistError(ValueError):
    """A model, folder or label space that cannot be used; the message is one clear line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
