"""Examples held in memory and served as batches: images as bytes, texts as token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.augment import Augmentation, augment, constant
from models.errors import GeneralistError

__all__ = ["ImageSamples", "Samples", "TextSamples"]


def _check_labels(labels: Tensor | None, count: int) -> None:
    if labels is not None and (labels.dtype != torch.int64 or tuple(labels.shape) != (count,)):
        raise GeneralistError(
            f"labels: expected int64 ({count},), got {labels.dtype} {tuple(labels.shape)}"
        )


@dataclass(frozen=True)
class ImageSamples:
    """Images of one size.

    Attributes:
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,), None for an unlabelled pool.
        mean, std: per channel, of pixels in [0, 1].
        augmentation: applied where a generator is passed; None: nothing may be drawn.
    """

    pixels: Tensor
    labels: Tensor | None
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation | None = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4 or self.pixels.shape[1] != 3:
            raise GeneralistError(
                f"pixels: expected uint8 (N, 3, H, W), got {self.pixels.dtype} "
                f"{tuple(self.pixels.shape)}"
            )
        _check_labels(self.labels, len(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self, indices: Tensor, *, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Return ``(x,)``, x float32 (n, 3, H, W) normalised; augmented iff a generator is given.

        The generator lives on the CPU: CPU and CUDA draw the same augmentation.
        """
        rows = indices.to(self.pixels.device, non_blocking=True)
        pixels = self.pixels[rows].to(device, non_blocking=True).float() / 255.0
        if generator is not None:
            if self.augmentation is None:
                raise GeneralistError("samples: made without an augmentation, and yet drawn from")
            pixels = augment(pixels, self.augmentation, generator)
        mean = constant(self.mean, pixels).view(1, 3, 1, 1)
        std = constant(self.std, pixels).view(1, 3, 1, 1)
        return ((pixels - mean) / std,)

    def resident(self, device: torch.device) -> ImageSamples:
        """The same images on a GPU where they take little of what it has free; else as they are."""
        if device.type != "cuda" or self.pixels.is_cuda:
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if self.pixels.nbytes > free // 8:
            return self
        return replace(self, pixels=self.pixels.to(device))

    def calibration(
        self,
        batch_size: int,
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield every sample once, in order, in batches of at most ``batch_size``."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield self.batch(indices, device=device, generator=generator)


@dataclass(frozen=True)
class TextSamples:
    """Texts as token ids with their special tokens, not padded.

    Attributes:
        ids: one list of ids a text, its first and last being special tokens.
        labels: int64 (N,), None for an unlabelled pool.
        pad_id: fills shorter texts of a batch.
        mask_id: stands for a dropped word; None turns word dropout off.
        dropout: chance that a token is dropped where a generator is passed.
    """

    ids: Sequence[Sequence[int]]
    labels: Tensor | None
    pad_id: int
    mask_id: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for row, ids in enumerate(self.ids):
            if not ids:
                raise GeneralistError(f"ids: text {row} is empty, expected at least one token")
        _check_labels(self.labels, len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def resident(self, device: torch.device) -> TextSamples:
        """The same texts: ids are few, and batches are padded on the CPU."""
        return self

    def batch(
        self, indices: Tensor, *, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Return ``(input_ids, attention_mask)``, int64 (n, T), T being the longest text's length.

        With a generator (on the CPU), each token but a text's first and last is replaced by the
        mask token with the chance ``dropout``.
        """
        rows = [torch.tensor(self.ids[index], dtype=torch.int64) for index in indices.tolist()]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.pad_id
        )  # (n, T)
        at = torch.arange(input_ids.shape[1])  # (T,)
        mask = at < lengths[:, None]  # (n, T)
        if generator is not None and self.mask_id is not None:
            word = (at > 0) & (at < lengths[:, None] - 1)
            drop = torch.rand(input_ids.shape, generator=generator) < self.dropout
            input_ids = input_ids.masked_fill(word & drop, self.mask_id)
        return input_ids.to(device, non_blocking=True), mask.long().to(device, non_blocking=True)

    def calibration(
        self,
        batch_size: int,
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield every sample once, equal lengths together: no padding enters a statistic."""
        by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(self.ids):
            by_length.setdefault(len(ids), []).append(index)
        for length in sorted(by_length):
            for indices in torch.tensor(by_length[length]).split(batch_size):
                yield self.batch(indices, device=device, generator=generator)


Samples = ImageSamples | TextSamples
