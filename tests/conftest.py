"""What every test shares: a home of its own, no network, small generalists and tasks on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

# Read by the libraries when they are imported: nothing in a test may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

import tasks  # noqa: F401  (its environment defaults must precede Prefect's import)
from benchmarks.tiny_encoder import SPECIALS, save_tiny_encoder

WORDS = {
    "card": ("card", "chip", "pin", "plastic", "contactless"),
    "parcel": ("parcel", "box", "courier", "delivery", "van"),
    "refund": ("refund", "money", "return", "credit", "receipt"),
}
FILLERS = (
    "my",
    "the",
    "please",
    "where",
    "is",
    "was",
    "help",
    "with",
    "today",
    "now",
    "lost",
    "late",
)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stores of this test's own."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WINNOW_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def sentences(label: str, count: int, seed: int) -> Iterator[str]:
    """Distinct sentences of which one word in four tells the class."""
    random, seen = np.random.default_rng([seed, *label.encode()]), set()
    while len(seen) < count:
        words = [*random.choice(FILLERS, 4), *random.choice(WORDS[label], 2)]
        random.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            yield text


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_rows(count: int, seed: int) -> list[dict[str, str]]:
    """`count` labelled sentences a class."""
    return [
        {"text": text, "intent": label} for label in WORDS for text in sentences(label, count, seed)
    ]


@pytest.fixture(scope="session")
def text_task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sources of a small text task with three classes."""
    folder = tmp_path_factory.mktemp("text-task")
    taken = text_rows(30, 1)
    seen = {row["text"] for row in taken}
    test = [row for row in text_rows(40, 2) if row["text"] not in seen]
    return {
        "train": str(write_rows(folder / "train.jsonl", taken)),
        "test": str(write_rows(folder / "test.jsonl", test)),
    }


@pytest.fixture(scope="session")
def image_task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sources of a small image task: folders of red, green and blue noise."""
    folder = tmp_path_factory.mktemp("image-task")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 12)):
        for channel, name in enumerate(("red", "green", "blue")):
            place = folder / split / name
            place.mkdir(parents=True)
            for row in range(count):
                pixels = random.integers(0, 90, (40, 36, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(place / f"{row}.png")
    return {"train": str(folder / "train"), "test": str(folder / "test")}


@pytest.fixture(scope="session")
def text_generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer BERT with random weights and a word-level tokenizer."""
    from tokenizers import Tokenizer, models

    words = sorted({*FILLERS, *(word for group in WORDS.values() for word in group)})
    vocabulary = {word: row for row, word in enumerate([*SPECIALS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return save_tiny_encoder(tmp_path_factory.mktemp("text-generalist"), tokenizer)


@pytest.fixture(scope="session")
def image_generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """timm's smallest ResNet with random weights; its label space knows the image task."""
    import torch

    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    folder = tmp_path_factory.mktemp("image-generalist")
    labels = {"label_names": ["red", "green", "blue", "grey"], "input_size": [3, 32, 32]}
    timm.models.save_for_hf(model, str(folder), model_config=labels, safe_serialization=True)
    return f"timm:local-dir:{folder}"


# Small enough for a test: few steps, few repeats, a lenient verdict.
QUICK: dict[str, Any] = {
    "task": {"shots": 8},
    "teacher": {"steps": 4, "batch_size": 8, "folds": 2},
    "distill": {"steps": 4, "batch_size": 8, "check_every": 2},
    "prune": {"samples": 24, "sparsity": 0.5},
    "verify": {"max_drop": 0.5, "repeats": 10},
    "precision": "float32",
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second over the first."""
    both = dict(base)
    for key, value in changes.items():
        inner = both.get(key)
        nested = isinstance(inner, dict) and isinstance(value, dict)
        both[key] = merged(inner, value) if nested else value
    return both


@pytest.fixture
def write_recipe(tmp_path: Path, text_task: dict[str, str]) -> Callable[..., Path]:
    """A function that writes a recipe of the text task, with changes, and returns its path."""

    def write(generalist: str = "hf:/nowhere", **changes: Any) -> Path:
        plain = {"name": "tiny", "generalist": {"source": generalist}, "task": dict(text_task)}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(merged(merged(plain, QUICK), changes)), encoding="utf-8")
        return path

    return write
