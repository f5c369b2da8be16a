from __future__ import annotations

import pytest
import torch

from models.augment import Augmentation, augment
from models.errors import GeneralistError
from models.samples import ImageSamples, TextSamples

CPU = torch.device("cpu")
OFF = Augmentation(
    crop_scale=(1, 1), ratio=(1, 1), flip=False, brightness=0, contrast=0, saturation=0
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=seeded())


def samples(augmentation: Augmentation = OFF, count: int = 4) -> ImageSamples:
    labels = torch.arange(count)
    return ImageSamples(images(count), labels, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0), augmentation)


def test_image_batch_is_normalised():
    (x,) = samples().batch(torch.tensor([2, 0]), device=CPU)
    expected = images()[[2, 0]].float() / 255
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 1.0))):
        torch.testing.assert_close(x[:, channel], (expected[:, channel] - mean) / std)


def test_augmentation_of_nothing_is_the_identity():
    x = images().float() / 255
    torch.testing.assert_close(augment(x, OFF, seeded()), x, rtol=0, atol=1e-5)


def test_flip_mirrors_about_half():
    settings = Augmentation(
        crop_scale=(1, 1), ratio=(1, 1), flip=True, brightness=0, contrast=0, saturation=0
    )
    x = torch.rand(64, 3, 6, 6, generator=seeded())
    y = augment(x, settings, seeded())
    same = ((y - x).abs().amax((1, 2, 3)) < 1e-4).sum()
    mirrored = ((y - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4).sum()
    assert same + mirrored == 64 and 16 < mirrored < 48


@pytest.mark.parametrize("turned", [{}, {"rotate_degrees": 20.0}])
def test_crop_stays_inside_the_image(turned):
    # an image whose values are its coordinates shows what was sampled
    ramp = torch.linspace(0, 1, 32).expand(16, 3, 32, 32).contiguous()
    settings = Augmentation(
        crop_scale=(0.25, 0.25),
        ratio=(1, 1),
        flip=False,
        brightness=0,
        contrast=0,
        saturation=0,
        **turned,
    )
    y = augment(ramp, settings, seeded())
    span = y.amax((1, 2, 3)) - y.amin((1, 2, 3))
    assert y.min() >= 0 and y.max() <= 1
    if not turned:
        assert (span - 0.5).abs().max() < 0.05  # half the width is a quarter of the area
        assert (y[:, 0].mean((1, 2)).max() - y[:, 0].mean((1, 2)).min()) > 0.2  # places differ


def test_colour_and_erasing():
    x = torch.full((32, 3, 16, 16), 0.25)
    bright = Augmentation(crop_scale=(1, 1), ratio=(1, 1), brightness=0.4, contrast=0, saturation=0)
    y = augment(x, bright, seeded())
    assert y.min() >= 0.15 - 1e-5 and y.max() <= 0.35 + 1e-5 and y.std() > 0.01
    erase = Augmentation(
        crop_scale=(1, 1), ratio=(1, 1), brightness=0, contrast=0, saturation=0, erase_probability=1
    )
    share = (augment(x, erase, seeded()) == 0.5).float().mean((1, 2, 3))
    assert share.max() < 0.3 and share.min() > 0 and share.mean() > 0.05


def test_augmented_iff_a_generator_is_given_and_reproducibly():
    held = samples(Augmentation())
    at = torch.arange(4)
    plain = held.batch(at, device=CPU)[0]
    first = held.batch(at, device=CPU, generator=seeded(1))[0]
    assert torch.equal(plain, held.batch(at, device=CPU)[0])
    assert torch.equal(first, held.batch(at, device=CPU, generator=seeded(1))[0])
    assert not torch.allclose(first, plain)
    assert not torch.equal(first, held.batch(at, device=CPU, generator=seeded(2))[0])


def test_calibration_gives_every_image_once():
    batches = list(samples(count=5).calibration(2, device=CPU))
    assert [len(x) for (x,) in batches] == [2, 2, 1]
    expected = samples(count=5).batch(torch.arange(5), device=CPU)[0]
    assert torch.equal(torch.cat([x for (x,) in batches]), expected)


@pytest.mark.parametrize(
    "settings", [{"crop_scale": (0, 1)}, {"ratio": (2, 1)}, {"erase_probability": 2}]
)
def test_impossible_augmentation(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)


def test_bad_samples_are_named():
    with pytest.raises(GeneralistError, match="uint8"):
        ImageSamples(torch.zeros(2, 3, 4, 4), None, (0, 0, 0), (1, 1, 1))
    with pytest.raises(GeneralistError, match="labels"):
        ImageSamples(images(2), torch.zeros(3, dtype=torch.int64), (0, 0, 0), (1, 1, 1))
    with pytest.raises(GeneralistError, match="text 1 is empty"):
        TextSamples([[1], []], None, 0)


IDS = [[2, 7, 8, 9, 3], [2, 7, 3], [2, 4, 5, 6, 3], [2, 3]]


def test_text_batch_pads_to_its_longest():
    held = TextSamples(IDS, torch.arange(4), pad_id=0, mask_id=1)
    ids, mask = held.batch(torch.tensor([1, 0]), device=CPU)
    assert ids.tolist() == [[2, 7, 3, 0, 0], [2, 7, 8, 9, 3]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64
    ids, _ = held.batch(torch.tensor([3]), device=CPU)
    assert ids.shape == (1, 2)


def test_word_dropout_keeps_special_tokens_and_padding():
    held = TextSamples([[2, *[7] * 200, 3], [2, 8, 3]], None, pad_id=0, mask_id=1, dropout=0.25)
    ids, mask = held.batch(torch.arange(2), device=CPU, generator=seeded())
    plain, plain_mask = held.batch(torch.arange(2), device=CPU)
    assert torch.equal(mask, plain_mask)
    changed = ids != plain
    assert 20 < changed[0].sum() < 80 and bool((ids[changed] == 1).all())
    assert ids[0, 0] == 2 and ids[0, -1] == 3 and bool((ids[1, 3:] == 0).all())
    without = TextSamples(IDS, None, pad_id=0)
    assert torch.equal(
        without.batch(torch.arange(4), device=CPU, generator=seeded())[0],
        without.batch(torch.arange(4), device=CPU)[0],
    )


def test_text_calibration_never_pads():
    batches = list(TextSamples(IDS, None, pad_id=0).calibration(8, device=CPU))
    assert [tuple(ids.shape) for ids, _ in batches] == [(1, 2), (1, 3), (2, 5)]
    assert all(bool(mask.all()) for _, mask in batches)
    rows = sorted(row for ids, _ in batches for row in ids.tolist())
    assert rows == sorted(IDS)
