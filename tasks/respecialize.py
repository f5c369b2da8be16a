"""What it takes to run a champion's recipe again, once for each change of its data."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.champions import champion_named, recipe_of
from tasks.config import Recipe
from tasks.home import home
from tasks.locks import locked
from tasks.progress import watching
from tasks.registry import fetch_model
from tasks.watch import already_made


@contextmanager
def one_at_a_time(model: str) -> Iterator[None]:
    """Hold a model's turn: who comes second waits, and then finds what the first one made."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model)

    def waiting(holder: str) -> None:
        watching().say(f"{model}: waiting for {holder}, which specializes it")

    with locked(folder / f"respecialize-{name}", waiting):
        yield


def held(model: str) -> dict[str, Any] | None:
    """The outcome where a version was made of the data as they are now; None where none was.

    Raises:
        RecipeError: the model has no champion, or a source of its data is not there.
    """
    champion = champion_named(model)
    made = already_made(champion)
    if made is None:
        return None
    reason = f"{made.told} was made of its data as they are now; new ones belong in its recipe's"
    return {
        "model": model,
        "action": "held",
        "version": champion.number,
        "made": made.uri,
        "verdict": made.tags.get("winnow.verdict", "unknown"),
        "reasons": [f"{reason} task.train and task.test"],
    }


def recipe_of_champion(model: str) -> Recipe:
    """The recipe that travels with a model's champion; raises `RecipeError`."""
    champion = champion_named(model)
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        return recipe_of(champion, fetch_model(champion.uri, Path(scratch)))
