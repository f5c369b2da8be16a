"""Small models of every family that can be shrunk, with nothing left at an initial value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from models.checkpoint import Bundle
from models.folding import fold_batchnorm
from models.generalists import load_generalist
from tests.models.conftest import image_bundle, pixels, tokens

IMAGES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "init_values": 0.5}),
    "vit-qk-norm": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 2, "qk_norm": True, "embed_dim": 64, "num_heads": 4},
    ),
    "resnet-basic": ("resnet18", {}),
    "resnet-bottleneck": ("resnet26", {}),
    "mobilenet": ("mobilenetv2_050", {}),
    "mobilenet-same": ("tf_efficientnet_lite0", {}),
    "convnext": ("convnext_atto", {"ls_init_value": 0.5, "conv_mlp": False}),
    "convnext-conv": ("convnext_atto", {"ls_init_value": 0.5, "conv_mlp": True}),
}
TEXTS = ("bert", "roberta", "distilbert")
# the BatchNorms of these are folded; of the others there is nothing to fold
FOLDABLE = ("resnet-basic", "resnet-bottleneck", "mobilenet", "mobilenet-same")


def example(name: str) -> tuple[torch.Tensor, ...]:
    return tokens() if name in TEXTS else pixels()


@torch.no_grad()
def stirred(bundle: Bundle) -> Bundle:
    """Move every bias, norm and scale off its initial zero or one, and let text matter."""
    generator = torch.Generator().manual_seed(3)
    for parameter in bundle.model.parameters():
        if parameter.dim() == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        elif bundle.modality == "text":  # transformers starts from a deviation of 0.02
            parameter *= 15
    return bundle


def family(name: str, text_folder: Callable[..., Path], *, folded: bool = False) -> Bundle:
    if name in TEXTS:
        bundle = load_generalist(f"hf:{text_folder(name, ('a', 'b', 'c'))}")
    else:
        architecture, model_args = IMAGES[name]
        bundle = image_bundle(architecture, **model_args)
    bundle = stirred(bundle)
    return fold_batchnorm(bundle, example(name)) if folded else bundle


CASES = [(name, False) for name in (*IMAGES, *TEXTS)] + [(name, True) for name in FOLDABLE]
