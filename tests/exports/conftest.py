"""Small models of every family, exported once a run, and their 8-bit forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exports.calibrate import calibrate
from exports.graph import export_onnx
from exports.onnxfile import array, initializers, layers, load_model
from exports.quantize import WeightGrid, quantize_qdq
from models._torchvision import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
import transformers  # noqa: E402

from models.text import TextClassifier  # noqa: E402

VOCABULARY, TOKENS, SIDE, CLASSES = 61, 40, 32, 5


def _text(config: transformers.PretrainedConfig) -> nn.Module:
    config._attn_implementation = "eager"
    encoder = transformers.AutoModel.from_config(config, attn_implementation="eager")
    return TextClassifier(encoder, head=nn.Linear(32, CLASSES))


_WIDTHS = {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "pad_token_id": 0}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=CLASSES),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=CLASSES),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=CLASSES),
    "deit": lambda: timm.create_model(
        "deit_tiny_patch16_224",
        num_classes=CLASSES,
        img_size=SIDE,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
    ),
    "bert": lambda: _text(
        transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            **_WIDTHS,
        )
    ),
    "distilbert": lambda: _text(
        transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **_WIDTHS)
    ),
    "roberta": lambda: _text(
        transformers.RobertaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            **{**_WIDTHS, "pad_token_id": 1},
        )
    ),
}
IMAGE_FAMILIES = ("resnet", "mobilenetv2", "convnext", "deit")
TEXT_FAMILIES = ("bert", "distilbert", "roberta")


def images(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(seed).standard_normal((rows, 3, SIDE, SIDE))
    return {"pixel_values": pixels.astype(np.float32)}


def texts(rows: int, tokens: int, seed: int = 0, padded: bool = False) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(4, VOCABULARY, (rows, tokens))
    mask = np.ones_like(ids)
    if padded:
        ids[0, tokens // 2 :], mask[0, tokens // 2 :] = 1, 0  # 1 is RoBERTa's padding token
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def torch_logits(model: nn.Module, feed: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return model(*(torch.from_numpy(values) for values in feed.values())).numpy()


@dataclass
class Exported:
    """A model, its FP32 file, and, once asked for, its INT8 file with the grids in it."""

    model: nn.Module
    fp32: Path
    is_image: bool
    grids: dict[str, WeightGrid] = field(default_factory=dict)
    int8: Path | None = None

    def feed(self, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        return images(rows, seed) if self.is_image else texts(rows, 11, seed)


def _awaken(model: nn.Module) -> nn.Module:
    """Give random weights the statistics of trained ones: no layer is constant or dead."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if value.ndim == 1:
            noise = torch.randn(value.shape, generator=generator)
            start = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            value.data = (start + 0.1 * noise).to(value.dtype)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(32, 3, SIDE, SIDE, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Exported] = {}

    def get(family: str) -> Exported:
        if family not in made:
            torch.manual_seed(0)
            model = _awaken(FAMILIES[family]())
            is_image = family in IMAGE_FAMILIES
            feed = images(1) if is_image else texts(1, 7)
            path = folder / f"{family}.onnx"
            example = tuple(torch.from_numpy(values) for values in feed.values())
            export_onnx(model, example, path, input_names=list(feed))
            made[family] = Exported(model, path, is_image)
        return made[family]

    return get


def grid_of(weight: np.ndarray, zeros: float = 0.0, seed: int = 0) -> WeightGrid:
    """Round to nearest on a symmetric grid a row, after zeroing a share of the weights."""
    weight = weight.copy()
    if zeros:
        weight[np.random.default_rng(seed).random(weight.shape) < zeros] = 0
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = np.where(largest > 0, largest / 127, 1e-3).astype(np.float32)
    rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return WeightGrid(np.clip(np.rint(weight / rows), -127, 127).astype(np.int8), scale)


def grids_of(path: Path, zeros: float = 0.0, head: bool = True) -> dict[str, WeightGrid]:
    """Grids for every Linear and Conv of a file, by initializer name, in torch's layout."""
    model = load_model(path)
    stored = initializers(model)
    grids = {}
    for layer in layers(model):
        weight = array(stored[layer.weight])
        if head or not layer.is_head:
            grids[layer.weight] = grid_of(weight.T if layer.rows_axis == 1 else weight, zeros)
    return grids


@pytest.fixture(scope="session")
def quantized(exported: Callable[[str], Exported]) -> Callable[[str], Exported]:
    def get(family: str) -> Exported:
        item = exported(family)
        if item.int8 is None:
            item.grids = grids_of(item.fp32)
            ranges = calibrate(item.fp32, [item.feed(8, 1), item.feed(8, 2)], rule="minmax")
            item.int8 = item.fp32.with_name(f"{family}-int8.onnx")
            quantize_qdq(
                item.fp32, item.int8, weights=item.grids, ranges=ranges, activation="uint8"
            )
        return item

    return get
