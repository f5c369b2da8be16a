"""The chain with structure: profile, steps of shrinking, a trimmed vocabulary, a ledger of it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exports.onnxfile import initializers, load_model
from flows.cli import app
from flows.specialize import specialize
from tasks.config import Recipe
from tests.conftest import FILLERS, QUICK, SPECIALS, WORDS, merged
from tests.flows.test_bad_input import check

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# a budget on bytes: the times of models as small as these are all overhead
SMALLER = {
    "target": {"bytes": 60_000},
    "prune": {"sparsity": None},
    "shrink": {"rungs": 2, "steps": 2, "generations": 1, "offspring": 2, "vocabulary_extra": 0},
    "verify": {"repeats": 5},
}


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer BERT whose tokenizer falls back to characters, with words the task lacks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("wordpiece-generalist")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted({*FILLERS, *(word for group in WORDS.values() for word in group)})
    others = [f"unused{letter}" for letter in letters]
    every = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *words, *others]
    vocabulary = {word: row for row, word in enumerate(every)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{key}_token": value for key, value in names.items()}
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, text_task: dict[str, str], generalist: str
) -> Any:
    """A run under a bytes budget: its home, recipe and report."""
    home = tmp_path_factory.mktemp("shrinking-home")
    plain = {"name": "tiny", "generalist": {"source": generalist}, "task": dict(text_task)}
    plain = merged(merged(plain, QUICK), SMALLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        recipe = Recipe.model_validate(plain)
        return home, recipe, specialize(recipe, home / "out")


def test_the_report_tells_what_was_taken(made: Any) -> None:
    home, _, report = made
    print(json.dumps(report, indent=1))
