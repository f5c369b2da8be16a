from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from models.checkpoint import Bundle
from models.errors import GeneralistError
from models.folding import find_pairs, fold_batchnorm
from tests.models.conftest import image_bundle, pixels


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "mobilenetv2_100"])
def test_folded_logits_are_the_same(architecture):
    bundle = image_bundle(architecture)
    expected = bundle.model(*pixels())
    folded = fold_batchnorm(bundle, pixels())
    assert norms(folded.model) == 0 and norms(bundle.model) > 0
    scale = expected.abs().max().item()
    torch.testing.assert_close(folded.model(*pixels()), expected, rtol=0, atol=1e-4 * max(scale, 1))
    assert len(folded.delta[0]["pairs"]) == norms(bundle.model)
    assert find_pairs(folded.model, pixels()) == []


def test_same_padding_convolutions_fold():
    bundle = image_bundle("mobilenetv2_100", pad_type="same")
    folded = fold_batchnorm(bundle, pixels())
    assert norms(folded.model) == 0


def test_dropout_and_activation_of_the_norm_stay():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, groups=1, bias=True)
            self.norm = timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout, act_layer=nn.SiLU)
            self.fc = nn.Linear(4, 2)

        def get_classifier(self) -> nn.Linear:
            return self.fc

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    bundle = Bundle(Net().eval(), "image", None, {}, None, {})
    folded = fold_batchnorm(bundle, pixels(size=8))
    assert isinstance(folded.model.norm, nn.Sequential)
    assert [type(part) for part in folded.model.norm] == [nn.Dropout, nn.SiLU]
    torch.testing.assert_close(folded.model(*pixels(size=8)), bundle.model(*pixels(size=8)))


class Odd(nn.Module):
    """One BatchNorm of each kind that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)  # no convolution before it
        self.shared = nn.Conv2d(3, 3, 1)  # its output is read twice
        self.after_shared = nn.BatchNorm2d(3)
        self.reader = nn.Conv2d(3, 3, 1)
        self.repeated = nn.Conv2d(3, 3, 1)  # called twice
        self.after_repeated = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.between = nn.Identity()
        self.foldable = nn.BatchNorm2d(3, affine=False)
        self.own = nn.Conv2d(3, 3, 1)
        self.batch_statistics = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shared(self.first(x))
        x = self.after_shared(y) + self.reader(y)
        x = self.after_repeated(self.repeated(self.repeated(x)))
        x = self.foldable(self.between(self.conv(x)))
        return self.batch_statistics(self.own(x)).mean((2, 3))


def test_norms_that_cannot_be_folded_stay():
    torch.manual_seed(0)
    bundle = Bundle(Odd().eval(), "image", None, {}, None, {})
    assert find_pairs(bundle.model, pixels(size=8)) == [("conv", "foldable")]
    folded = fold_batchnorm(bundle, pixels(size=8))
    assert norms(folded.model) == 4
    assert not any(module.training for module in folded.model.modules())
    torch.testing.assert_close(folded.model(*pixels(size=8)), bundle.model(*pixels(size=8)))


def test_a_second_reader_that_hooks_do_not_see_is_an_error():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(2.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (self.norm(y) + y).mean((2, 3))

    bundle = Bundle(Hidden().eval(), "image", None, {}, None, {})
    with pytest.raises(GeneralistError, match="changed the logits"):
        fold_batchnorm(bundle, pixels(size=8))
