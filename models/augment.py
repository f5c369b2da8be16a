"""Image augmentation on whole batches: one affine resampling, colour, erasing.

Every random number comes from the generator that is passed and is drawn on the CPU, so that a
batch is the same on every device; the pixels never leave theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "augment", "constant"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """These numbers (n,), of a tensor's kind and place; sent once, since a GPU is waited for."""
    return _constant(tuple(values), like.dtype, like.device)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be done to an image; each strength of 0 (or range of (1, 1)) turns it off.

    Attributes:
        crop_scale: range of the crop's area, as a part of the image's.
        ratio: range of the crop's aspect ratio, drawn log-uniformly.
        flip: mirror left-right half the time.
        rotate_degrees: largest rotation either way.
        brightness, contrast, saturation: largest relative change either way.
        erase_probability: chance that a rectangle of 2 % to 20 % of the image is greyed out.
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rotate_degrees: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    erase_probability: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale {self.crop_scale}: expected 0 < low <= high <= 1")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: expected 0 < low <= high")
        if not 0.0 <= self.erase_probability <= 1.0:
            raise ValueError(f"erase_probability {self.erase_probability}: expected 0 to 1")


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _crop_matrices(draws: Tensor, settings: Augmentation) -> Tensor:
    """Return affine matrices (N, 2, 3) from output to input coordinates, both in [-1, 1].

    ``draws`` is (N, 6), uniform in [0, 1): area, ratio, x, y, mirror, rotation.
    """
    area, ratio, x, y, mirror, turn = draws.unbind(1)  # (N,) each
    area = _between(area, *settings.crop_scale)
    ratio = torch.exp(_between(ratio, math.log(settings.ratio[0]), math.log(settings.ratio[1])))
    width = (area * ratio).sqrt().clamp(max=1.0)  # of the image's width
    height = (area / ratio).sqrt().clamp(max=1.0)
    centre_x = (2 * x - 1) * (1 - width)  # the crop stays inside the image
    centre_y = (2 * y - 1) * (1 - height)
    sign = 1.0 - 2.0 * ((mirror < 0.5).to(draws) if settings.flip else torch.zeros_like(mirror))
    angle = (2 * turn - 1) * math.radians(settings.rotate_degrees)
    cos, sin = angle.cos(), angle.sin()
    rows = [sign * width * cos, -height * sin, centre_x, sign * width * sin, height * cos, centre_y]
    return torch.stack(rows, dim=1).view(-1, 2, 3)  # (N, 6) -> (N, 2, 3)


def _recolour(pixels: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Scale brightness, then the distances to the mean grey and to each pixel's own grey."""
    strengths = constant((settings.brightness, settings.contrast, settings.saturation), draws)
    factors = 1.0 + (2 * draws - 1) * strengths  # (N, 3)
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)  # (N, 1, 1, 1) each
    pixels = pixels * brightness
    luma = constant(_LUMA, pixels).view(1, 3, 1, 1)
    mean = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)  # (N, 1, 1, 1)
    pixels = mean + (pixels - mean) * contrast
    grey = (pixels * luma).sum(1, keepdim=True)  # (N, 1, H, W)
    return (grey + (pixels - grey) * saturation).clamp(0.0, 1.0)


def _erase(pixels: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Grey out a rectangle in some images; ``draws`` is (N, 5)."""
    chance, area, ratio, x, y = draws.unbind(1)
    area = _between(area, 0.02, 0.2)
    ratio = torch.exp(_between(ratio, math.log(0.3), math.log(1 / 0.3)))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    left, top = x * (1 - width).clamp(min=0), y * (1 - height).clamp(min=0)

    def inside(start: Tensor, extent: Tensor, size: int) -> Tensor:
        at = (torch.arange(size, device=pixels.device, dtype=pixels.dtype) + 0.5) / size
        return (at >= start[:, None]) & (at < (start + extent)[:, None])  # (N, size)

    box = (
        inside(top, height, pixels.shape[2])[:, :, None]
        & (inside(left, width, pixels.shape[3])[:, None, :])
    )  # (N, H, W)
    hit = (chance < settings.erase_probability)[:, None, None] & box
    return torch.where(hit[:, None], 0.5, pixels)


def augment(pixels: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Return randomly cropped, mirrored, turned, recoloured and erased copies of ``pixels``.

    Args:
        pixels: float (N, 3, H, W) in [0, 1].
        settings: what may be done.
        generator: on the CPU; the same state gives the same images on every device.

    Returns:
        float (N, 3, H, W) in [0, 1], on the device of ``pixels``.
    """
    draws = torch.rand(len(pixels), 14, generator=generator)
    draws = draws.to(pixels, non_blocking=True)  # (N, 14)
    matrices = _crop_matrices(draws[:, :6], settings)
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)  # (N, H, W, 2)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if settings.brightness or settings.contrast or settings.saturation:
        pixels = _recolour(pixels, draws[:, 6:9], settings)
    if settings.erase_probability:
        pixels = _erase(pixels, draws[:, 9:14], settings)
    return pixels
