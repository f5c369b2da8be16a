"""What a walk shows each layer is what the whole model shows it, architecture by architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compression.hessian import HessianAccumulator
from compression.layers import Layer, as_layer
from compression.sequential import walk
from models.folding import fold_batchnorm
from models.structure import prunable_layers, segments
from tests.models.conftest import image_bundle, pixels
from tests.models.families import CASES, example, family, stirred

# activations in place between segments, stems of several layers, branches that are joined
OTHERS = (
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnetx_002",
    "resnet26d",
    "ghostnet_050",
    "densenet121",
)


def same_inputs(model: nn.Module, batch: tuple[Tensor, ...]) -> None:
    """Hold every layer's Hessian of a walk that changes nothing against that of whole passes."""
    model = model.double().eval()
    batch = tuple(part.double() if part.is_floating_point() else part for part in batch)
    layers = {name: as_layer(name, x) for name, x in prunable_layers(model, batch).items()}
    whole = {name: HessianAccumulator(layer) for name, layer in layers.items()}

    def noting(name: str) -> Callable[..., None]:
        return lambda _, args: whole[name].add(args[0])

    handles = [x.register_forward_pre_hook(noting(name)) for name, x in layers.items()]
    with torch.no_grad():
        model(*batch)
    for handle in handles:
        handle.remove()
    shown: dict[str, Tensor] = {}

    def visit(name: str, layer: Layer, seen: HessianAccumulator) -> None:
        assert seen.hessian is not None
        shown[name] = seen.hessian

    walk(model, segments(model, batch), lambda: [batch], list(layers), visit)
    assert set(shown) == set(layers)
    for name, hessian in shown.items():
        expected = whole[name].hessian
        assert expected is not None
        torch.testing.assert_close(hessian, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "folded"), CASES)
def test_families(name: str, folded: bool, text_folder: Callable[..., Path]) -> None:
    same_inputs(family(name, text_folder, folded=folded).model, example(name))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(architecture: str, folded: bool) -> None:
    bundle = stirred(image_bundle(architecture))
    if folded:
        bundle = fold_batchnorm(bundle, pixels())
    same_inputs(bundle.model, pixels())
