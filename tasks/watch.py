"""Whether the data behind a champion have changed since its run, told once as a Prefect event."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.champions import champion_named, digests_now, sources_of, specialized_with
from tasks.errors import RecipeError
from tasks.events import tell
from tasks.registry import Version, champions, find_version, tag, versions_of

CHANGED = "winnow.data.changed"
# a version's tag: the digests that were last told of, and when, as JSON
_TOLD = "winnow.told"
# what nobody has acted upon by then is told again
_AGAIN = timedelta(days=1)


def watched(models: Sequence[str] | None) -> list[Version]:
    """The champions that are watched: of the models named, or all."""
    return champions() if models is None else [champion_named(name) for name in models]


def look(champion: Version, now: datetime | None = None) -> dict[str, Any]:
    """Compare what a champion's sources hold with what its run read; tell of a change.

    A change is told once, as an event; it is told again after a day where no version was made of
    it by then. It counts as handled as soon as any version was, whatever its verdict.

    Returns:
        {"model", "version", "status", "changed", "reason"}: status is "unchanged", "changed" (an
        event was emitted), "told" (it was before), "handled", "gone" (a source is not there) or
        "unknown" (the version does not name its sources); `changed` lists fields such as "train".
    """
    now = now or datetime.now(UTC)
    sources = sources_of(champion)
    if not sources:
        reason = "it does not name the sources that it was made of; run its recipe again"
        return _seen(champion, "unknown", [], reason)
    digests = digests_now(sources)
    changed = [field for field in sources if digests[field] != sources[field]["digest"]]
    # a digest that is a name stands for something that is not a file here
    gone = [
        field
        for field in changed
        if digests[field].startswith("name:")
        and not sources[field]["digest"].startswith("name:")
        and sources[field]["digest"]
    ]
    if gone:
        names = ", ".join(f"task.{field} {sources[field]['name']}" for field in gone)
        return _seen(champion, "gone", gone, f"not there: {names}")
    if not changed:
        return _seen(champion, "unchanged", [], "its sources are those that it was made of")
    made = specialized_with(versions_of(champion.name), digests)
    if made is not None:
        reason = f"{made.told} was made of the sources as they are now"
        return _seen(champion, "handled", changed, reason)
    reason = ", ".join(f"task.{field} ({sources[field]['name']})" for field in changed)
    reason = f"changed since {champion.told} was made: {reason}"
    if _told_lately(champion, digests, now):
        return _seen(champion, "told", changed, f"{reason}; told before")
    payload = {"model": champion.name, "version": champion.number, "reason": reason}
    tell(CHANGED, champion.name, {**payload, "changed": changed, "digests": digests})
    # after the event: a crash in between tells it twice, which a second run finds handled
    tag(champion, {_TOLD: json.dumps({"digests": digests, "at": now.isoformat()})})
    return _seen(champion, "changed", changed, reason)


def _told_lately(champion: Version, digests: Mapping[str, str], now: datetime) -> bool:
    told = json.loads(champion.tags.get(_TOLD, "{}"))
    if told.get("digests") != dict(digests):
        return False
    return now - datetime.fromisoformat(told["at"]) < _AGAIN


def _seen(champion: Version, status: str, changed: Sequence[str], reason: str) -> dict[str, Any]:
    return {
        "model": champion.name,
        "version": champion.number,
        "status": status,
        "changed": list(changed),
        "reason": reason,
    }


def look_again(name: str) -> Version:
    """A champion with its tags as they are now."""
    champion = champion_named(name)
    return find_version(name, champion.number)


def already_made(champion: Version) -> Version | None:
    """The version that was made of the champion's sources as they are now.

    Raises:
        RecipeError: a source is not there.
    """
    sources = sources_of(champion)
    if not sources:
        return None
    digests = digests_now(sources)
    for field, digest in digests.items():
        if digest.startswith("name:") and len(sources[field]["digest"]) == 64:
            raise RecipeError(f"task.{field}: {sources[field]['name']} is not there any more")
    return specialized_with(versions_of(champion.name), digests)
