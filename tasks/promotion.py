"""Champion and challenger: which version of a registered model is served, and how that changes.

A challenger takes over where it is better than the champion on the same test set, or as accurate
and smaller or faster; `exports.challenge` decides, on answers and times taken here side by side.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exports.challenge import challenge
from exports.preprocess import InputError, load_preprocess
from exports.runtime import host_profile, session
from exports.specialist import MODEL_FILE, Specialist
from tasks.config import Recipe
from tasks.errors import RecipeError, UserError
from tasks.fences import inside
from tasks.home import store
from tasks.measure import time_graphs, timing_feeds, typical_tokens
from tasks.outages import raise_if_away
from tasks.plain_yaml import plain_yaml
from tasks.recipes import parse_recipe
from tasks.registry import (
    DIGEST,
    VERDICT,
    Version,
    champion_of,
    crown,
    fetch_sound,
    find_version,
)
from tasks.splits import Split, load_split

# files that travel inside a version, beside the specialist's own
REPORT, RECIPE, TEST, CARD = "report.json", "recipe.yaml", "test.json", "card.md"
_TRIES = 3  # against other processes that promote at the same moment


@dataclass(frozen=True)
class Trial:
    """What a comparison needs: the examples and the terms.

    Attributes:
        recipe: of the challenger: confidence, threads, batch, and what counts as equal.
        classes: names that the labels of `test` index.
        test: the challenger's own test set, as it was judged on.
    """

    recipe: Recipe
    classes: Sequence[str]
    test: Split


def compare(trial: Trial, champion: Path, challenger: Path) -> dict[str, Any]:
    """Both folders on the same raw inputs; returns {"promote", "reasons", "comparison"}.

    Labels are matched by name: a champion that lacks a class gets its examples wrong.

    Raises:
        InputError: a folder cannot answer these inputs.
    """
    recipe, folders = trial.recipe, {"champion": champion, "challenger": challenger}
    threads = recipe.verify.threads
    truth = [trial.classes[label] for label in trial.test.labels]
    right = {}
    for name, folder in folders.items():
        opened = answering(folder)
        answers = opened.logits(trial.test.inputs).argmax(axis=1)
        right[name] = np.array([opened.labels[at] for at in answers]) == np.array(truth)
    tokens = typical_tokens(challenger, trial.test.inputs, recipe)
    feeds = timing_feeds(folders, trial.test.inputs, recipe, tokens)
    files = {name: folder / MODEL_FILE for name, folder in folders.items()}
    timings = time_graphs(files, feeds, recipe, threads)
    ratio, *interval = timings.ratio("champion", "challenger", recipe.verify.confidence)
    sides = {
        name: {"bytes": files[name].stat().st_size, "latency_ms": timings.median_ms[name]}
        for name in folders
    }
    return challenge(
        sides["champion"],
        sides["challenger"],
        champion_right=right["champion"],
        challenger_right=right["challenger"],
        latency_ratio=ratio,
        latency_ci=interval,
        equal_within=equal_within(recipe),
        confidence=recipe.verify.confidence,
    )


def answering(folder: Path, graph: str = MODEL_FILE) -> Specialist:
    """A specialist on all cores, for answers whose time does not count."""
    preprocess, labels = load_preprocess(folder)
    cores = int(host_profile()["usable_cores"])
    return Specialist(session(folder / graph, cores), preprocess, tuple(labels))


def equal_within(recipe: Recipe) -> float:
    """The loss of accuracy that counts as equal when two versions are compared."""
    return recipe.track.equal_within or recipe.verify.max_drop / 2


def promote_if_better(chosen: Version, trial: Trial, about: str) -> dict[str, Any]:
    """What a run does with the version that it registered; returns report.json's "champion"."""
    verdict = chosen.tags.get(VERDICT)
    if verdict != "pass":
        return _outcome(chosen.name, "not passed", [f"the verdict of {chosen.told} is {verdict}"])
    if trial.recipe.track.promote == "never":
        reason = f"track.promote is never; `winnow promote {chosen.told}` does it"
        return _outcome(chosen.name, "never", [reason])
    return _settle(chosen, lambda old, new: compare(trial, old, new), about)


def promote(target: str, *, force: bool = False) -> dict[str, Any]:
    """`winnow promote NAME[/VERSION]`: the newest version where none is named.

    Args:
        force: leave out the verdict and the comparison, never the load check.

    Raises:
        RecipeError: no such version, it does not load, or its test set is not here.
    """
    chosen = find_version(*_parts(target))
    if force:
        return _settle(chosen, None, "")
    verdict = chosen.tags.get(VERDICT, "unknown")
    if verdict != "pass":
        reason = f"the verdict of {chosen.told} is {verdict}; --force promotes it all the same"
        return _outcome(chosen.name, "not passed", [reason])
    return _settle(chosen, lambda old, new: compare(stored_trial(chosen, new), old, new), "")


def roll_back(name: str, to: str | None = None, examined: str | None = None) -> dict[str, Any]:
    """`winnow rollback NAME`: the alias goes to the champion before; returns like `promote`.

    A former champion that is gone or no longer loads is passed over, with a reason.

    Args:
        to: the former champion to go back to; those in between are passed over without a look.
        examined: the champion that this was decided on; another one is kept, for nobody has
            looked at it. None: whichever there is.

    Raises:
        RecipeError: no such model, no champion before, or another one took over just now.
    """
    name, number = _parts(name)
    if number is not None:
        raise RecipeError(
            f"NAME: {name}/{number} names a version; rollback takes NAME alone (and "
            f"`winnow promote {name}/{number} --force` goes to that version)"
        )
    newest, champion = find_version(name), champion_of(name)
    if champion is None:
        raise RecipeError(f"NAME: {newest.name} has no champion that could be rolled back")
    if examined is not None and champion.number != examined:
        return _not_examined(champion, examined)
    if to is not None and to not in champion.before:
        raise RecipeError(
            f"NAME: {name}/{to} is no former champion of {champion.told}; those are: "
            f"{', '.join(champion.before) or 'none'}"
        )
    reasons: list[str] = []
    start = 0 if to is None else champion.before.index(to)
    for at, older in enumerate(champion.before[start:], start):
        try:
            with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
                chosen = find_version(name, older)
                about = _about(fetch_sound(chosen, Path(scratch)))
        except UserError as error:
            raise_if_away(error)  # what cannot be reached now is not broken
            reasons.append(f"passed over {name}/{older}: {error}")
            continue
        now = champion_of(name)
        if now is None or now.number != champion.number:
            if now is not None and examined is not None:
                return _not_examined(now, examined)
            raise RecipeError(f"NAME: the champion of {name} has changed meanwhile; try again")
        crown(chosen, champion.before[at + 1 :], tags={}, about=about)
        reasons.append(f"{champion.told} was champion before")
        return _outcome(name, "rolled back", reasons, champion.number)
    told = "; ".join(reasons) or f"{champion.told} is the first champion"
    raise RecipeError(f"NAME: no champion of {name} to go back to ({told})")


def _not_examined(champion: Version, examined: str) -> dict[str, Any]:
    reason = f"{champion.told} became champion after {champion.name}/{examined} was examined"
    return _outcome(champion.name, "kept", [reason])


def stored_trial(chosen: Version, folder: Path) -> Trial:
    """The trial that a version was judged in, from the files inside it and the artifact store.

    Raises:
        RecipeError: the version does not name its test set, or the set is not in this store.
    """
    remedy = "run its recipe again here, or promote with --force, which compares nothing"
    try:
        facts = json.loads((folder / TEST).read_text(encoding="utf-8"))
        recipe = parse_recipe(plain_yaml((folder / RECIPE).read_text(encoding="utf-8")))
    except OSError as error:
        name = Path(str(error.filename)).name
        raise RecipeError(f"MODEL: {chosen.told} holds no {name}; {remedy}") from None
    # the same data may have been prepared again under another key
    places = [store() / facts["path"], *sorted(store().glob("prepare/*/test.parquet"))]
    for place in places:
        # the registry's files may be another's: no path in them leads out of the store
        own = inside(store(), place) and place.is_file()
        split = load_split(place) if own else None
        if split is not None and split.sha256() == facts["sha256"]:
            kept = facts.get("kept")
            return Trial(recipe, facts["classes"], split if kept is None else split.rows(kept))
    raise RecipeError(
        f"MODEL: the test set of {chosen.told} (sha256 {facts['sha256'][:12]}) is not in "
        f"{store()}; {remedy}"
    )


Comparison = Callable[[Path, Path], dict[str, Any]]


def _settle(chosen: Version, compared: Comparison | None, about: str) -> dict[str, Any]:
    """Compare with the champion where there is one, make sure of the version, move the alias."""
    name = chosen.name
    for _ in range(_TRIES):
        champion = champion_of(name)
        if champion is not None and champion.number == chosen.number:
            return _outcome(name, "same", [f"{chosen.told} is the champion already"])
        with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            for folder in (new, old):
                folder.mkdir()
            sound = fetch_sound(chosen, new)
            action, reasons, comparison = "first", ["there was no champion"], None
            if champion is not None:
                action, reasons, comparison = _rule(chosen, champion, sound, old, compared)
            about = about or _about(sound)
        if action not in ("first", "promoted"):
            return _outcome(name, action, reasons, None, comparison)
        if _number(champion_of(name)) != _number(champion):
            continue  # another process was faster: its champion is the one to beat
        before = [] if champion is None else [champion.number, *champion.before]
        crown(chosen, before, tags={"winnow.promoted": "; ".join(reasons)}, about=about)
        return _outcome(name, action, reasons, _number(champion), comparison)
    raise RecipeError(f"MODEL: the champion of {name} keeps changing; try again")


def _rule(
    chosen: Version, champion: Version, sound: Path, into: Path, compared: Comparison | None
) -> tuple[str, list[str], dict[str, Any] | None]:
    """'promoted', 'kept' or 'same', why, and the figures of the comparison where there was one."""
    if compared is None:
        return "promoted", [f"forced, without a comparison to {champion.told}"], None
    try:
        old = fetch_sound(champion, into)
    except RecipeError as error:  # what cannot be served has lost
        return "promoted", [f"the champion is broken: {error}"], None
    if champion.tags.get(DIGEST) == chosen.tags.get(DIGEST, ""):
        return "same", [f"{champion.told}, the champion, holds the same files"], None
    ours, theirs = (load_preprocess(folder)[0] for folder in (sound, old))
    if type(ours) is not type(theirs):
        reason = "answers another kind of input: give this one its own track.model_name"
        return "kept", [f"{champion.told}, the champion, {reason}"], None
    try:
        result = compared(old, sound)
    except InputError as error:
        return "kept", [f"{champion.told}, the champion, cannot be compared ({error})"], None
    action = "promoted" if result["promote"] else "kept"
    return action, list(result["reasons"]), result["comparison"]


def _outcome(
    name: str,
    action: str,
    reasons: Sequence[str],
    previous: str | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "action": action,
        "version": _number(champion_of(name)),
        "previous": previous,
        "reasons": list(reasons),
        "comparison": None if comparison is None else dict(comparison),
    }


def _number(found: Version | None) -> str | None:
    return None if found is None else found.number


def _parts(target: str) -> tuple[str, str | None]:
    """NAME and VERSION of NAME, NAME/VERSION or models:/NAME/VERSION."""
    name, _, number = target.removeprefix("models:/").partition("/")
    if not name or (number and not number.isdigit()) or "@" in name:
        raise RecipeError(f"MODEL: {target} is not NAME or NAME/VERSION, such as vehicles/3")
    return name, number or None


def _about(folder: Path) -> str:
    """The head of the card that travels with a version; empty where it has none."""
    card = folder / CARD
    return card_head(card.read_text(encoding="utf-8")) if card.is_file() else ""


def card_head(card: str) -> str:
    """A card from its title to the end of its section 'Verdict': what a list of models shows."""
    lines = card.splitlines()
    headings = [at for at, line in enumerate(lines) if line.startswith("## ")]
    verdict = next((at for at in headings if "verdict" in lines[at].lower()), -1)
    end = next((at for at in headings if at > verdict), None)
    return "\n".join(lines[:end]).strip()
