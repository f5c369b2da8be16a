"""Small finished runs on disk, for benchmarks and tests that look at a run's files.

Networks with random weights (a residual one, a vision transformer, a two-layer BERT) are saved,
exported, rounded to INT8 in the layout asked for and shipped as a run does it, in a few seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exports.calibrate import calibrate
from exports.forms import Route, write_route
from exports.graph import export_onnx
from exports.grids import WeightGrid
from exports.onnxfile import array, initializers, layers, load_model
from exports.preprocess import load_preprocess
from models.checkpoint import Bundle, build_architecture, load_bundle, save_bundle
from models.delta import find_head
from models.folding import fold_batchnorm
from tasks.artifacts import Artifact
from tasks.batches import INPUTS, blank, samples
from tasks.config import Recipe
from tasks.layout import GRAPH, ship
from tasks.measure import logits_of
from tasks.parity import parity_chain
from tasks.splits import Split

CLASSES, ROWS, SIDE = ("ant", "bee", "cat", "dog"), 24, 32
WORDS = tuple(f"word{index}" for index in range(40))
RECIPE = {"name": "faults", "generalist": {"source": "x"}, "task": {"train": "x", "test": "x"}}
IMAGE: dict[str, Any] = {
    "modality": "image",
    "size": [SIDE, SIDE],
    "resize": SIDE,
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {"library": "timm", "architecture": "test_resnet", "classes": 4, "model_args": {}},
    "deit": {
        "library": "timm",
        "architecture": "deit_tiny_patch16_224",
        "classes": 4,
        "model_args": {
            "img_size": SIDE,
            "patch_size": 8,
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
        },
    },
    "bert": {
        "library": "transformers",
        "encoder": {
            "model_type": "bert",
            "vocab_size": 45,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
        },
        "pooling": "mean",
        "normalize": False,
        "neck": None,
        "classes": 4,
    },
}


@dataclass(frozen=True)
class Run:
    """A finished run on disk: two bundles, three exports, the shipped folder, the test set."""

    root: Path
    test: Split

    def folders(self) -> dict[str, Path]:
        """The exports by name."""
        return {name: self.root / name for name in ("teacher", "pruned", "specialist")}

    def copy(self, root: Path) -> Run:
        """The same in another folder, to be damaged."""
        return replace(self, root=Path(shutil.copytree(self.root, root)))

    def chain(self) -> list[dict[str, Any]]:
        """The rows of its parity chain."""
        recipe = Recipe.model_validate(RECIPE)
        teacher, floats = (
            # not of a store, and therefore not checked to lie inside it
            Artifact.model_construct(
                stage="teach", path=str(self.root / name), sha256=name, key="", metrics={}
            )
            for name in ("teacher-bundle", "pruned-bundle")
        )
        folders = self.folders()
        logits = logits_of(folders, self.test.inputs)
        return parity_chain(
            recipe, self.test, folders, teacher, floats, logits, self.root / "served"
        )


def awake(model: nn.Module, seed: int) -> nn.Module:
    """Random weights with the statistics of trained ones: no layer is constant or dead."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            start = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            value.data = start + 0.1 * noise
        elif "embed" not in name:
            value.data = noise / float(np.sqrt(value[0].numel()))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(32, 3, SIDE, SIDE, generator=generator))
    return model.eval()


def tokenizer_json() -> str:
    """A word-level tokenizer of forty words."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*specials, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def examples(modality: str) -> Split:
    """Photographs of noise or texts of random words, seeded."""
    random = np.random.default_rng(0)
    raws: list[bytes | str] = []
    for row in range(ROWS):
        if modality == "text":
            raws.append(" ".join(random.choice(WORDS, 9 + row % 3)))
            continue
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = BytesIO()
        Image.fromarray(coarse).resize((40, 48), Image.Resampling.BICUBIC).save(stream, "png")
        raws.append(stream.getvalue())
    labels = tuple(int(label) for label in random.integers(0, len(CLASSES), ROWS))
    return Split(tuple(raws), labels, tuple(f"{row:064d}" for row in range(ROWS)))


@torch.no_grad()
def spread(bundle: Bundle, test: Split) -> None:
    """Set the head so that every class is answered: random weights have one favourite."""
    found = find_head(bundle.model)
    assert found is not None
    head, recipe = found[1], Recipe.model_validate(RECIPE)
    batch = samples(test, bundle, recipe).batch(torch.arange(ROWS), device=torch.device("cpu"))
    logits = bundle.model(*batch)
    factor = 2 / logits.std(dim=0)
    head.weight *= factor[:, None]
    head.bias.copy_((head.bias - logits.mean(dim=0)) * factor)


def smaller(bundle: Bundle) -> Bundle:
    """The float specialist: a tenth of every weight, the smallest, set to zero."""
    pruned = bundle.copy()
    for value in pruned.model.parameters():
        if value.ndim > 1:
            value.data[value.abs() < value.abs().flatten().kthvalue(value.numel() // 10).values] = 0
    return pruned


def write_export(bundle: Bundle, folder: Path) -> None:
    """Write what the export stage does for a float bundle."""
    folder.mkdir()
    inputs = INPUTS[bundle.modality]
    if bundle.modality == "image":
        bundle = fold_batchnorm(bundle, blank(bundle))
    export_onnx(bundle.model, blank(bundle), folder / GRAPH, input_names=inputs)
    settings = {**bundle.preprocess, "labels": list(bundle.labels or ())}
    (folder / "preprocess.json").write_text(json.dumps(settings))
    if bundle.tokenizer is not None:
        (folder / "tokenizer.json").write_text(bundle.tokenizer)


def grids_of(path: Path) -> dict[str, WeightGrid]:
    """Round every layer to nearest, one symmetric grid a row."""
    model = load_model(path)
    stored, grids = initializers(model), {}
    for layer in layers(model):
        weight = array(stored[layer.weight])
        weight = weight.T if layer.rows_axis == 1 else weight
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        scale = np.where(largest > 0, largest / 127, np.float32(1e-3))
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        grids[layer.weight] = WeightGrid(np.rint(weight / steps).astype(np.int8), scale)
    return grids


def build(root: Path, family: str, route: Route) -> Run:
    """Make a healthy run in a new folder."""
    torch.manual_seed(0)
    config, text = CONFIGS[family], family == "bert"
    model = awake(build_architecture(config), 1)
    preprocess = {"modality": "text", "max_length": 16, "pad_id": 0} if text else IMAGE
    modality = "text" if text else "image"
    tokenizer = tokenizer_json() if text else None
    bundle = Bundle(model, modality, CLASSES, preprocess, tokenizer, config)  # type: ignore[arg-type]
    test = examples(modality)
    spread(bundle, test)
    if not text:
        bundle = fold_batchnorm(bundle, blank(bundle))
    save_bundle(bundle, root / "teacher-bundle")
    save_bundle(smaller(bundle), root / "pruned-bundle")
    for name in ("teacher", "pruned"):
        write_export(load_bundle(root / f"{name}-bundle"), root / name)
    shutil.copytree(root / "pruned", root / "specialist")
    run = Run(root, test)
    served, _ = load_preprocess(root / "pruned")
    feeds = [served(run.test.inputs[row : row + 1]) for row in range(ROWS)]
    fp32 = root / "pruned" / GRAPH
    write_route(
        fp32,
        root / "specialist" / GRAPH,
        route=route,
        weights=grids_of(fp32),
        ranges=calibrate(fp32, feeds),
        activation="uint8",
    )
    (root / "served").mkdir()
    ship(root / "specialist", root / "served")
    return run
