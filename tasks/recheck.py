"""A champion under examination: new examples with labels, inputs without, and its line.

What is found is decided on by `exports.recheck`; nothing is changed here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exports.recheck import decide
from exports.reference import Reference
from exports.unpaired import METHOD, MOST, examples_to_tell, miettinen_nurminen
from exports.verdict import paired_interval
from tasks import promotion
from tasks.champions import Served, opened_version
from tasks.drift import examine_unlabelled
from tasks.errors import RecipeError, UserError
from tasks.examples import Examples, is_unchanged, sort_examples
from tasks.layout import GRAPH
from tasks.registry import Version, find_version, tag

# former champions that a champion is held against on new examples, beside the very first
_EARLIER = 3
# a version's tag: how it fares against the first champion of its line; a version never changes
_LINE = "winnow.line"


@dataclass
class Former:
    """Former champions, fetched when they are first asked for; what is gone is passed over."""

    champion: Version
    scratch: Path
    opened: dict[str, Served] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def get(self, number: str) -> Served | None:
        """A version; None where it is gone or broken, and `gone` says why."""
        if number not in self.opened and number not in self.gone:
            folder = self.scratch / number
            folder.mkdir()
            try:
                version = find_version(self.champion.name, number)
                # a rollback makes sure of it again, and of more
                self.opened[number] = opened_version(version, folder, loads=False)
            except RecipeError as error:
                self.gone[number] = str(error)
        return self.opened.get(number)

    def sound(self) -> str | None:
        """The latest former champion that answers."""
        return next((x for x in self.numbers if self.get(x) is not None), None)

    @property
    def numbers(self) -> list[str]:
        """Former champions, the latest first, each once, the champion itself left out."""
        return [x for x in dict.fromkeys(self.champion.before) if x != self.champion.number]


def examine(
    champion: Version, labelled: str | None = None, unlabelled: str | None = None
) -> dict[str, Any]:
    """Measure a champion on what is there now, and decide.

    Args:
        labelled: a source of labelled examples; left out, the recipe's task.test as it is now.
        unlabelled: a source of inputs without labels; left out, drift is not looked for.

    Returns:
        The report: {"schema", "model", "version", "decision", "reasons", "to", "first",
        "labelled", "unlabelled", "line", "terms"}.

    Raises:
        DataError: a source or a row of it that cannot be read.
        RecipeError: the champion is broken, and no earlier one is sound.
    """
    facts: dict[str, Any]
    head = {"schema": 1, "model": champion.name, "version": champion.number}
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        own = Path(scratch, "champion")
        own.mkdir()
        former = Former(champion, Path(scratch))
        try:
            served = opened_version(champion, own)
        except RecipeError as error:
            sound = former.sound()
            if sound is None:
                raise
            facts = {"broken": str(error), "sound": sound}
            return head | facts | decide(facts, max_drop=1.0, equal_within=1.0)
        verify = served.recipe.verify
        terms = {
            "max_drop": verify.max_drop,
            "equal_within": promotion.equal_within(served.recipe),
            "confidence": verify.confidence,
        }
        notes: list[str] = []
        reference = _reference(served)
        facts = {
            "first": served.first,
            "labelled": _labelled(served, reference, labelled, former, notes),
            "unlabelled": examine_unlabelled(served, reference, unlabelled, notes),
            "line": _line(served, former, notes),
            "notes": notes,
        }
        limits = {key: terms[key] for key in ("max_drop", "equal_within")}
        return head | facts | {"terms": terms} | decide(facts, **limits)


def _reference(served: Served) -> Reference:
    if served.reference is None:
        raise RecipeError(
            f"MODEL: {served.version.told} was registered before rechecks and does not remember "
            "its examples; run its recipe again"
        )
    return served.reference


def answers_right(
    served: Served, raws: Sequence[bytes | str], names: Sequence[str], graph: Path | None = None
) -> np.ndarray:
    """Whether each input is answered with its class's name, bool (N,).

    Args:
        graph: a folder of the teacher's export, to ask that instead.
    """
    opened = served.specialist if graph is None else promotion.answering(graph, GRAPH)
    labels = served.report["task"]["classes"] if graph is not None else opened.labels
    answers = opened.logits(raws).argmax(axis=1)
    return np.array([labels[at] for at in answers], dtype=object) == np.array(names, dtype=object)


def _labelled(
    served: Served,
    reference: Reference,
    source: str | None,
    former: Former,
    notes: list[str],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": source or served.recipe.task.test,
        "n_fresh": 0,
        "n_changed": 0,
        "unknown": {},
        "fresh": None,
        "relabelled": None,
        "teacher": None,
        "earlier": [],
    }
    if source is None and is_unchanged(served):
        return found
    examples = sort_examples(served, reference, source)
    found |= {
        "n_fresh": len(examples.fresh),
        "n_changed": len(examples.changed),
        "unknown": dict(examples.unknown),
    }
    if examples.changed:
        found["relabelled"] = _relabelled(served, reference, examples)
    if not examples.fresh:
        return found
    raws = examples.raws(examples.fresh)
    names = [examples.name(row) for row in examples.fresh]
    right = answers_right(served, raws, names)
    found["fresh"] = _against_first(served, right)
    confidence = served.recipe.verify.confidence
    if served.teacher is None:
        notes.append("not held against its teacher, whose export is not in this store")
    else:
        teacher = answers_right(served, raws, names, served.teacher)
        drop, low, high, method = paired_interval(teacher, right, confidence)
        found["teacher"] = {
            "n": len(right), "accuracy": float(teacher.mean()), "drop": drop,
            "drop_ci": [low, high], "method": method,
        }  # fmt: skip
    digests = [examples.digests[row] for row in examples.fresh]
    found["earlier"] = _earlier(former, raws, names, digests, right, confidence)
    notes += [f"passed over {number}: {why}" for number, why in former.gone.items()]
    return found


def _against_first(served: Served, right: np.ndarray) -> dict[str, Any]:
    """Accuracy on new examples against the first one: other examples, so unpaired."""
    first, verify = served.first, served.recipe.verify
    n, k = len(right), int(right.sum())
    low, high = miettinen_nurminen(first["right"], first["n"], k, n, verify.confidence)
    needed = None
    if low <= verify.max_drop < high:
        rate = k / n
        count = examples_to_tell(
            first["right"], first["n"], rate, verify.max_drop, verify.confidence
        )
        needed = (
            f"about {count:,} new examples at this rate would tell"
            if count < MOST
            else "no number of new examples would tell: its own test set is too small"
        )
    return {
        "n": n, "right": k, "accuracy": k / n, "drop": first["accuracy"] - k / n,
        "drop_ci": [low, high], "method": METHOD, "needed_text": needed,
    }  # fmt: skip


def _relabelled(served: Served, reference: Reference, examples: Examples) -> dict[str, Any]:
    """Accuracy on its own test examples under the labels of now against those of then."""
    rows = [*examples.same, *examples.changed]
    now = [examples.name(row) for row in rows]
    then = [
        reference.classes[reference.labels[reference.known[examples.digests[row]]]] for row in rows
    ]
    raws = examples.raws(rows)
    before = answers_right(served, raws, then)
    after = answers_right(served, raws, now)
    drop, low, high, method = paired_interval(before, after, served.recipe.verify.confidence)
    return {
        "n": len(rows), "changed": len(examples.changed), "accuracy": float(after.mean()),
        "drop": drop, "drop_ci": [low, high], "method": method,
    }  # fmt: skip


def _earlier(
    former: Former,
    raws: Sequence[bytes | str],
    names: Sequence[str],
    digests: Sequence[bytes],
    right: np.ndarray,
    confidence: float,
) -> list[dict[str, Any]]:
    """Former champions on the new examples, what each was learnt from left out.

    The latest few and the first; the confidence is shared among them (Bonferroni).
    """
    numbers = list(dict.fromkeys([*former.numbers[:_EARLIER], *former.numbers[-1:]]))
    opened = [(number, former.get(number)) for number in numbers]
    found = []
    for number, served in opened:
        if served is None or served.specialist.modality != _modality(raws):
            continue
        learnt = served.reference.learnt if served.reference else frozenset()
        rows = [at for at, digest in enumerate(digests) if digest not in learnt]
        if not rows:
            continue
        theirs = answers_right(served, [raws[at] for at in rows], [names[at] for at in rows])
        shared = 1 - (1 - confidence) / len(numbers)
        gain, low, high, method = paired_interval(theirs, right[rows], shared)
        found.append(_gain(number, len(rows), gain, low, high, method))
    return found


def _modality(raws: Sequence[bytes | str]) -> str:
    return "text" if isinstance(raws[0], str) else "image"


def _gain(number: str, n: int, gain: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"version": number, "n": n, "gain": gain, "gain_ci": [low, high], "method": method}


def _line(served: Served, former: Former, notes: list[str]) -> dict[str, Any] | None:
    """The first champion of the line against this one, on this one's own test set.

    Promotions that each lose no more than counts as equal may together lose a lot; two are the
    least that can.
    """
    known = served.version.tags.get(_LINE)
    first = former.numbers[-1] if len(former.numbers) > 1 else None
    if known is not None and json.loads(known)["version"] == first:
        return dict(json.loads(known))
    older = former.get(first) if first is not None else None
    if first is None or older is None or older.specialist.modality != served.specialist.modality:
        return None
    try:
        trial = promotion.stored_trial(served.version, served.folder)
    except RecipeError:
        notes.append(f"not held against {first}, the first of its line: no test set in this store")
        return None
    names = [trial.classes[label] for label in trial.test.labels]
    raws = trial.test.inputs
    theirs, ours = answers_right(older, raws, names), answers_right(served, raws, names)
    confidence = served.recipe.verify.confidence
    found = _gain(first, len(raws), *paired_interval(theirs, ours, confidence))
    with suppress(UserError):  # to be found again is all that the tag is for
        tag(served.version, {_LINE: json.dumps(found)})
    return found
