"""The data set of the demo is what its README says: balanced, without duplicates or near-copies."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "recipes" / "data" / "support-intents"
INTENTS = {
    "account_closure",
    "app_login",
    "card_delivery",
    "card_lost_or_stolen",
    "card_swallowed",
    "change_pin",
    "declined_payment",
    "exchange_rate",
    "refund_status",
    "transfer_pending",
    "unrecognised_charge",
    "update_address",
}
PER_INTENT = {"train": 36, "test": 64}
NEAR_COPY = 0.7  # Jaccard index of two sentences' sets of words


def rows(split: str) -> list[dict[str, str]]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation: what two sentences are compared by."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def near_copies(sentences: list[str]) -> list[tuple[float, str, str]]:
    """Pairs that are equal once normalised or share at least `NEAR_COPY` of their words."""
    bags = [frozenset(words(sentence)) for sentence in sentences]
    found = []
    for i, j in itertools.combinations(range(len(bags)), 2):
        overlap = len(bags[i] & bags[j]) / len(bags[i] | bags[j])
        if overlap >= NEAR_COPY:
            found.append((overlap, sentences[i], sentences[j]))
    return found


@pytest.mark.parametrize("split", PER_INTENT)
def test_rows_are_well_formed_and_balanced(split: str) -> None:
    data = rows(split)
    assert all(set(row) == {"text", "intent"} for row in data)
    assert all(row["text"] == row["text"].strip() for row in data)
    assert [row["text"] for row in data if not 3 <= len(words(row["text"])) <= 30] == []
    counts = Counter(row["intent"] for row in data)
    assert counts == dict.fromkeys(INTENTS, PER_INTENT[split])


def test_no_sentence_occurs_twice() -> None:
    texts = [" ".join(words(row["text"])) for split in PER_INTENT for row in rows(split)]
    assert [text for text, n in Counter(texts).items() if n > 1] == []


def test_no_near_copies_within_or_across_the_split() -> None:
    assert near_copies([row["text"] for split in PER_INTENT for row in rows(split)]) == []


def test_the_check_itself_finds_near_copies() -> None:
    pairs = near_copies(["Where is my new card?", "where is my card", "close my account"])
    assert [(a, b) for _, a, b in pairs] == [("Where is my new card?", "where is my card")]
