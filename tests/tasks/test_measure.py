"""Every graph is fed as it was exported: its own tokenizer, one length where that is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.measure import timing_feeds, typical_tokens
from tasks.recipes import parse_recipe
from tests.tasks.test_config import SMALLEST

TEXTS = ["a b c d", "a b", "a b c d e f", "a"]


def folder(path: Path, words: str) -> Path:
    """Preprocessing with a vocabulary of `words`; anything else is one unknown token."""
    path.mkdir()
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(["?", *words])}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"modality": "text", "max_length": 16, "pad_id": 0, "labels": []}
    (path / "preprocess.json").write_text(json.dumps(settings))
    return path


def test_all_graphs_get_the_same_text_in_their_own_numbers(tmp_path: Path) -> None:
    folders = {"whole": folder(tmp_path / "a", "abcdef"), "cut": folder(tmp_path / "b", "fdb")}
    recipe = parse_recipe(SMALLEST)
    assert typical_tokens(folders["whole"], TEXTS, recipe) == 3
    feeds = timing_feeds(folders, TEXTS, recipe, 4)
    assert feeds["whole"]["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert feeds["cut"]["input_ids"].tolist() == [[0, 3, 0, 2]]
    exact = timing_feeds(folders, TEXTS, recipe, 5, exact=True)
    assert [feed["input_ids"].shape for feed in exact.values()] == [(1, 5), (1, 5)]


def test_a_length_that_is_asked_for_holds_for_every_row(tmp_path: Path) -> None:
    folders = {"whole": folder(tmp_path / "a", "abcdef")}
    recipe = parse_recipe(SMALLEST | {"verify": {"tokens": 9, "batch": 3}})
    assert typical_tokens(folders["whole"], TEXTS, recipe) == 9
    (feed,) = timing_feeds(folders, TEXTS, recipe, 9).values()
    assert feed["input_ids"].shape == (3, 9)
    assert np.all(feed["attention_mask"] == 1)
