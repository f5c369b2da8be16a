"""From encoded examples to batches: the serving side's decoding, the models' samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compression.losses import UNLABELLED
from exports.preprocess import ImagePreprocess, TextPreprocess
from exports.runtime import host_profile
from models.augment import Augmentation
from models.checkpoint import Bundle
from models.samples import ImageSamples, Samples, TextSamples
from models.text import special_token_id
from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.splits import Split, aside, load_split

Batch = tuple[Tensor, ...]

# what a graph calls the parts of a batch
INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}

_CALIBRATION_BATCH = 32
Draw = Callable[[torch.Generator], tuple[Batch, Tensor]]


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def splits(data: Artifact, *names: str) -> Split:
    """The named splits of a prepared task, one after the other; a missing one is empty."""
    found = [load_split(path) for name in names if (path := _file(data, name)).is_file()]
    return Split(
        tuple(x for split in found for x in split.inputs),
        tuple(x for split in found for x in split.labels),
        tuple(x for split in found for x in split.digests),
    )


def _file(data: Artifact, name: str) -> Path:
    return data.folder / f"{name}.parquet"


def samples(split: Split, bundle: Bundle, recipe: Recipe, *, augmented: bool = False) -> Samples:
    """Decode a split as the specialist will when it serves; -1 labels become UNLABELLED.

    Args:
        augmented: whether images may be drawn with random changes, those of `recipe.augment`:
            only what trains reads that, and depends on it.
    """
    labels = torch.tensor(split.labels, dtype=torch.int64)
    labels = torch.where(labels < 0, UNLABELLED, labels)
    if bundle.modality == "text":
        assert bundle.tokenizer is not None
        encode = TextPreprocess.from_dict(bundle.preprocess, bundle.tokenizer).encode
        mask_id = special_token_id(bundle.tokenizer, "mask")
        texts = [str(text) for text in split.inputs]
        return TextSamples(encode(texts), labels, bundle.preprocess["pad_id"], mask_id)
    preprocess = ImagePreprocess.from_dict(bundle.preprocess)
    images = [preprocess.decode(raw) for raw in split.inputs]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
    mean, std = bundle.preprocess["mean"], bundle.preprocess["std"]
    augmentation = _augmentation(recipe) if augmented else None
    return ImageSamples(pixels, labels, mean, std, augmentation)


def _augmentation(recipe: Recipe) -> Augmentation:
    asked = recipe.augment
    return Augmentation(
        crop_scale=asked.crop_scale,
        flip=asked.flip,
        rotate_degrees=asked.rotate_degrees,
        brightness=asked.colour,
        contrast=asked.colour,
        saturation=asked.colour,
        erase_probability=asked.erase_probability,
    )


def blank(bundle: Bundle) -> Batch:
    """A batch of two that the model can run on: for hooks and traces, its numbers do not matter."""
    if bundle.modality == "image":
        height, width = bundle.preprocess["size"]
        return (torch.zeros(2, 3, height, width),)
    ones = torch.ones(2, 8, dtype=torch.int64)
    return ones, ones


def weight_of(layer: nn.Module) -> Tensor:
    """A Linear or Conv2d layer's weight, apart from any graph."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight.detach()


def dense_layers(layers: Sequence[str], parts: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """Names of `layers` that `prune.keep_dense` asks for; raises where it asks for none.

    The stem is the first layer where that stands alone before the blocks (`parts`: names of the
    segments); an encoder that begins with embeddings has none.
    """
    dense: set[str] = set()
    for part in wanted:
        if part == "stem":
            dense |= {layers[0]} & {parts[0]}
            continue
        found = {name for name in layers if part in name}
        if not found:
            raise RecipeError(
                f"prune.keep_dense: no layer of the generalist has {part!r} in its name; "
                f"they are named like {layers[-1]}"
            )
        dense |= found
    return dense


def bfloat16(recipe: Recipe, at: torch.device) -> bool:
    """Whether training runs under bfloat16 autocast: three times faster where a CPU has it."""
    if recipe.precision == "auto":
        return at.type == "cuda" or bool({"avx512_bf16", "amx_bf16"} & set(host_profile()["flags"]))
    return recipe.precision == "bfloat16"


@dataclass(frozen=True)
class Mixture:
    """What recovery draws from: the shots with labels, the pool without, some held out."""

    examples: Samples
    labelled: Tensor
    pool: Tensor
    held: Tensor

    def draw(
        self, size: int, share: float, at: torch.device
    ) -> Callable[..., tuple[Batch, Tensor]]:
        """A function of a generator that draws `size` augmented examples, `share` with labels."""
        labels = self.examples.labels
        assert labels is not None
        shots = size if not len(self.pool) else max(1, round(size * share))
        examples = self.examples.resident(at)

        def one(generator: torch.Generator) -> tuple[Batch, Tensor]:
            parts = [(self.labelled, shots), (self.pool, size - shots)]
            picked = [
                rows[torch.randint(len(rows), (n,), generator=generator)] for rows, n in parts if n
            ]
            rows = torch.cat(picked)
            batch = examples.batch(rows, device=at, generator=generator)
            return batch, labels[rows].to(at, non_blocking=True)

        return one

    def holdout(self, size: int, at: torch.device) -> list[Batch]:
        """The held-out examples, unaugmented, in batches."""
        return [self.examples.batch(rows, device=at) for rows in self.held.split(size) if len(rows)]


def mixture(examples: Samples, *, seed: int, most: int = 256) -> Mixture:
    """What recovery draws from, less what `held_apart` sets aside."""
    assert examples.labels is not None
    return Mixture(examples, *held_apart(examples.labels, seed=seed, most=most))


def held_apart(labels: Tensor, *, seed: int, most: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the labelled examples, of the pool, and of what is set aside from both.

    A fifth of the pool is set aside for early stopping (at most `most`), else an eighth of the
    shots a class; with fewer than eight shots nothing is.
    """
    generator = torch.Generator().manual_seed(seed)
    labelled = torch.nonzero(labels != UNLABELLED).flatten()
    pool = torch.nonzero(labels == UNLABELLED).flatten()
    cut = aside(len(pool), most)
    if cut:
        pool = pool[torch.randperm(len(pool), generator=generator)]
        return labelled, pool[cut:], pool[:cut]
    held: list[Tensor] = []
    for label in labels[labelled].unique():
        rows = labelled[labels[labelled] == label]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held.append(rows[: len(rows) // 8])
    apart = torch.cat(held)
    return labelled[~torch.isin(labelled, apart)], pool, apart


def calibration(
    recipe: Recipe, data: Artifact, bundle: Bundle, *, generic: bool, at: torch.device
) -> Callable[[], Iterator[Batch]]:
    """Gives the same unpadded batches of at most `prune.samples` examples each time it is called.

    The task's own examples are the shots (class-balanced), then the pool in seeded order, without
    what `held_apart` takes of it: what is solved on those examples must not be judged by them.
    Without a pool, or with one of fewer than ten, the held-out examples are shots, and they are
    calibrated on all the same: shots are too few to give any up.
    """
    names = ("generic",) if generic else ("support", "unlabelled")
    split = splits(data, *names)
    shots = 0 if generic else int(data.metrics["support"]["n"])
    generator = torch.Generator().manual_seed(recipe.task.seed)
    order = shots + torch.randperm(len(split) - shots, generator=generator).flip(0)
    if not generic:
        labels = torch.tensor(split.labels)
        labels = torch.where(labels < 0, UNLABELLED, labels)
        *_, held = held_apart(labels, seed=recipe.task.seed)
        order = order[~torch.isin(order, held)]  # held shots are not in it
    rows = torch.cat([torch.arange(shots), order])[: recipe.prune.samples].tolist()
    chosen = samples(split.rows(rows), bundle, recipe)
    return lambda: chosen.calibration(_CALIBRATION_BATCH, device=at)


def feeds(batches: Iterator[Batch], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Batches as the runtime takes them: arrays by input name."""
    for batch in batches:
        yield {name: part.cpu().numpy() for name, part in zip(names, batch, strict=True)}
