"""A text generalist for benchmarks and tests, made in a second: a BERT with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Save a tokenizer whose first tokens are `SPECIALS`; words end at spaces unless it says."""
    from tokenizers import pre_tokenizers, processors

    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import transformers

    if tokenizer.pre_tokenizer is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{key}_token": value for key, value in names.items()}
    ).save_pretrained(folder)


def save_tiny_encoder(folder: Path, tokenizer: Tokenizer, *, positions: int = 32) -> str:
    """Save the encoder with such a tokenizer; returns its source."""
    save_tokenizer(folder, tokenizer)
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return f"hf:{folder}"
