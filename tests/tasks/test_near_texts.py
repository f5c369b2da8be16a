"""Texts that say nearly the same: what one key covers, and what is decided beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tasks.near_texts import near_texts, same_words, text_key


def silent(*_: object) -> None:
    """No progress."""


def embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of letters, of length one: what is spelt alike is near."""
    counts = np.array([[text.lower().count(letter) for letter in ALPHABET] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def none(_: Sequence[str]) -> np.ndarray:
    raise AssertionError("nothing is alike, so nothing needs an embedding")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What's my card limit?", "what is my card-limit"),
        ("whats my card limit", "what\u2019s my \uff43ard limit !!"),
        ("I can't log in", "i cannot log in"),
        ("I cant log in", "I can not log in."),
        ("we'll won't don't", "we will will not do not"),
        ("pay 1,200.50 euros", "pay 1200.50 euros."),
        ("send an e-mail", "send an email"),
        ("caf\u00e9", "cafe\u0301"),
        ("it\u00b4s", "its"),
        ('"hello,  world"', "hello world"),
        ("soft\u00adware", "software"),
    ],
)
def test_spelling_variants_have_one_key(one: str, other: str) -> None:
    assert text_key(one) == text_key(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pay 1.5 euros", "pay 15 euros"),
        ("room 1 5", "room 15"),
        ("at 10:30", "at 1030"),
        ("I like c++", "I like c#"),
        ("fine \U0001f600", "fine \U0001f622"),
        ("I do like it", "I don't like it"),
        ("sch\u00f6n", "schon"),
        ("!!!", "???"),
        ("\u0915\u093f", "\u0915\u0941"),  # the same letter with two vowel signs
    ],
)
def test_what_differs_in_meaning_has_another_key(one: str, other: str) -> None:
    assert text_key(one) != text_key(other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("where is my card", "where is my crad", True),
        ("where is my card please", "where is my card", True),
        ("flip the coin heads", "heads flip the coin", True),
        ("fly to seattle now", "fly to japan now", False),
        ("send 50 euros", "send 60 euros", False),
        ("unlock my card", "lock my card", False),
        ("deactivate my card", "activate my card", False),
        ("send 50 euros", "send 500 euros", False),
        ("i do like this", "i do not like this", False),
        ("i do like this", "i dont like this", False),
        (f"{'very ' * 60}long on monday", f"{'very ' * 60}long on friday", True),
    ],
)
def test_no_word_may_stand_for_another(one: str, other: str, same: bool) -> None:
    assert same_words(one, other) is same
    assert same_words(other, one) is same


def test_pairs_are_found_across_and_within() -> None:
    support = [
        "Where can I find the nearest cash machine?",
        "my contactless card was declined in the shop",
        "where can I find the nearest cash-machine",
    ]
    test = [
        "a refund for the broken kettle",
        "my contactles card was declined in the shop",
        "WHERE can I find the nearest cash machine!",
        "in the shop my contactless card was declined",
    ]
    across, within = near_texts(support, test, embed, silent)
    assert [(pair.first, pair.second, pair.how) for pair in across] == [
        (0, 2, "text"),
        (1, 1, "embedding"),
        (1, 3, "embedding"),
        (2, 2, "text"),
    ]
    assert [(pair.first, pair.second, pair.how) for pair in within] == [(0, 2, "text")]
    assert across[1].similarity == pytest.approx(2 * 43 / (43 + 44))  # 1 - indel over both lengths
    assert across[2].similarity == across[0].similarity == 1.0


def test_a_text_that_is_nobody_s_neighbour_is_not_near() -> None:
    support = [f"my contactless card was declined in the shop{letter}" for letter in "abcdefg"]
    other = "my contactless card was declined in the shopz"

    def far(texts: Sequence[str]) -> np.ndarray:
        """The first support text is the one that is farthest from the test text."""
        angles = [0.0, *np.linspace(1.2, 1.4, 6), 1.57]
        rows = dict(zip([*support, other], angles, strict=True))
        return np.array([[np.cos(rows[text]), np.sin(rows[text])] for text in texts])

    across, _ = near_texts(support, [other], far, silent)
    assert [pair.first for pair in across] == [2, 3, 4, 5, 6]  # five are neighbours


def test_templates_are_not_near_and_need_no_embedding() -> None:
    cities = ("Seattle", "Lisbon", "Nairobi", "Quito", "Hanoi")
    support = [f"what is the weather like in {city} over the coming weekend" for city in cities]
    test = [f"what is the weather like in {city} over the coming weekend" for city in ("Oslo",)]
    assert near_texts(support, test, none, silent) == ([], [])


def test_spelling_further_apart_counts_where_embeddings_are_one() -> None:
    one, other = "i need to know the status of my request", "i need to know status of my request"
    close = near_texts([one], [other], lambda texts: np.ones((len(texts), 1)), silent)[0]
    assert [(pair.first, pair.second, pair.how) for pair in close] == [(0, 0, "embedding")]
    apart = near_texts([one], [other], lambda texts: np.eye(2)[: len(texts)], silent)[0]
    assert apart == []


@pytest.mark.parametrize(
    ("other", "near"),
    [
        ("block my card plaese", True),
        ("block my card plase", True),
        ("clock my card please", False),
        ("block my cart please", False),
        ("unblock my card please", False),
    ],
)
def test_an_error_in_a_longer_word_is_near(other: str, near: bool) -> None:
    found, _ = near_texts(["block my card please"], [other], embed, silent)
    assert [(pair.first, pair.second) for pair in found] == [(0, 0)] * near
