"""A generalist of a few kilobytes for `bad_cases.py` to damage."""

from __future__ import annotations

from pathlib import Path


def text_generalist(folder: Path) -> Path:
    """A one-layer BERT with random weights and a word-level tokenizer."""
    # after the environment is set: transformers reads HF_HOME when it is imported
    import torch
    from bad_tables import FILLERS, WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers

    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import transformers

    folder.mkdir(parents=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *FILLERS,
        *(w for ws in WORDS.values() for w in ws),
    ]
    known = {word: row for row, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
