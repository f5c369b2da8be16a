"""Small models of every family, in the layout that their libraries save."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from models._torchvision import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from benchmarks.tiny_encoder import SPECIALS, save_tokenizer  # noqa: E402
from models.checkpoint import Bundle  # noqa: E402


def _assets() -> Path | None:
    """Real models and data: the folder that WINNOW_ASSETS names, or the one beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "assets"
    named = os.environ.get("WINNOW_ASSETS")
    folder = Path(named) if named else beside
    return folder if folder.is_dir() else None


WORDS = ("my", "card", "was", "swallowed", "where", "is", "parcel", "refund", "late", "lost")

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
FAMILIES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(
        vocab_size=64, intermediate_size=32, max_position_embeddings=40, **SMALL
    ),
    "minilm": lambda: transformers.BertConfig(
        vocab_size=64,
        intermediate_size=32,
        max_position_embeddings=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_size=16,
    ),
    "roberta": lambda: transformers.RobertaConfig(
        vocab_size=64,
        intermediate_size=32,
        max_position_embeddings=42,
        pad_token_id=0,
        type_vocab_size=1,
        **SMALL,
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ),
}


@pytest.fixture
def assets() -> Path:
    """The folder of real models and data; tests that need it are skipped without it."""
    folder = _assets()
    if folder is None:
        pytest.skip("needs real models and data in a folder that WINNOW_ASSETS names")
    return folder


def save_words(folder: Path) -> None:
    """Save a word-level fast tokenizer with the usual special tokens."""
    vocabulary = {word: row for row, word in enumerate([*SPECIALS, *sorted(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.enable_truncation(8)
    save_tokenizer(folder, tokenizer)


@pytest.fixture
def text_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a small encoder of a family, with a head if labels are given."""

    def build(family: str, labels: tuple[str, ...] | None = None) -> Path:
        torch.manual_seed(0)
        folder = tmp_path / f"{family}-{'plain' if labels is None else 'classifier'}"
        config = FAMILIES[family]()
        if labels is None:
            model = transformers.AutoModel.from_config(config)
        else:
            config.id2label = dict(enumerate(labels))
            config.label2id = {name: row for row, name in enumerate(labels)}
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        model.eval().save_pretrained(folder)
        save_words(folder)
        return folder

    return build


@pytest.fixture
def timm_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a timm model as a folder that timm loads."""

    def build(architecture: str = "test_resnet", labels: tuple[str, ...] = ("a", "b", "c")) -> Path:
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=len(labels))
        folder = tmp_path / architecture
        folder.mkdir()
        timm.models.save_for_hf(
            model, str(folder), model_config={"label_names": list(labels)}, safe_serialization=True
        )
        return folder

    return build


def image_bundle(architecture: str, classes: int = 5, **model_args: object) -> Bundle:
    """A timm model with random weights and random BatchNorm statistics."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=classes, **model_args)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            size = module.running_mean.shape
            module.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(size, generator=generator))
                module.bias.copy_(0.2 * torch.randn(size, generator=generator))
    return Bundle(
        model=model.eval(),
        modality="image",
        labels=tuple(f"class {row}" for row in range(classes)),
        preprocess={"modality": "image", "size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3},
        tokenizer=None,
        config={
            "library": "timm",
            "architecture": architecture,
            "classes": classes,
            "model_args": model_args,
        },
    )


def pixels(count: int = 2, size: int = 64, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """A random image batch."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 3, size, size, generator=generator),)


def tokens() -> tuple[torch.Tensor, ...]:
    """A text batch of two lengths, padded with 0."""
    input_ids = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])
    return input_ids, (input_ids != 0).long()


def write_state(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Overwrite a folder's weights."""
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
