"""What a model is made of, in execution order: blocks, and the layers that can be pruned.

To add a family, add its class to `BLOCKS`: a pattern that the full names of its blocks match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.delta import find_head
from models.errors import GeneralistError
from models.low_rank import is_factor
from models.meeting import Meetings

__all__ = ["BLOCKS", "Segment", "prunable_layers", "run_hooked", "segments"]

_ENCODER_LAYERS = r"encoder\.layer\.\d+"
_BLOCKS = r"blocks\.\d+"
_STAGED_BLOCKS = r"blocks\.\d+\.\d+"

# class name (of the model, of a transformers encoder, or of one of their bases) -> block names
BLOCKS: dict[str, str] = {
    "VisionTransformer": _BLOCKS,
    "Eva": _BLOCKS,
    "ResNet": r"layer\d+\.\d+",
    "ConvNeXt": r"stages\.\d+\.blocks\.\d+",
    "EfficientNet": _STAGED_BLOCKS,
    "MobileNetV3": _STAGED_BLOCKS,
    "RegNet": r"s\d+\.b\d+",
    "BertModel": _ENCODER_LAYERS,
    "RobertaModel": _ENCODER_LAYERS,
    "XLMRobertaModel": _ENCODER_LAYERS,
    "CamembertModel": _ENCODER_LAYERS,
    "ElectraModel": _ENCODER_LAYERS,
    "MPNetModel": _ENCODER_LAYERS,
    "DistilBertModel": r"transformer\.layer\.\d+",
}

_PRUNABLE = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Segment:
    """A part of the model that is compressed as one; ``name`` is its full module name."""

    name: str
    module: nn.Module


def _bodies(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model and the encoder it may wrap, each with the prefix of its module names."""
    yield "", model
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, nn.Module):
        yield "encoder.", encoder


def _block_pattern(model: nn.Module) -> re.Pattern[str] | None:
    for prefix, body in _bodies(model):
        for base in type(body).__mro__:
            if base.__name__ in BLOCKS:
                return re.compile(re.escape(prefix) + BLOCKS[base.__name__])
    return None


@torch.no_grad()
def prunable_layers(
    model: nn.Module, example: tuple[Tensor, ...], *, factors: bool = False
) -> dict[str, nn.Module]:
    """Return the body's Linear and Conv2d layers by name, in the order in which they first run.

    The head is left out, and so is a layer whose weight does not meet the batch as it stands
    (`models.meeting`): one that ``example`` does not reach, that runs on constants alone, or that
    computes with its weight first. The first one is the stem (text: the first layer after the
    embeddings).

    Args:
        factors: also the low-rank factors beside layers (`models.low_rank`), which are not pruned,
            but quantized, served and counted.

    Raises:
        GeneralistError: a layer's weight is read past the layer, which would stay dense unseen.
    """
    head = find_head(model)
    found: dict[str, nn.Module] = {}
    weights: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if not factors and is_factor(model, name):
            continue
        if isinstance(module, _PRUNABLE) and (head is None or module is not head[1]):

            def note(called: nn.Module, _: object, name: str = name) -> None:
                found.setdefault(name, called)

            hooks.append(module.register_forward_pre_hook(note))
            weight = module._parameters.get("weight")
            if weight is not None:  # else it is computed from parameters of another name
                weights[name] = weight
    with Meetings(example, weights) as meetings:
        run_hooked(model, example, hooks)
    owners = [id(own) for _, own in model.named_parameters(remove_duplicate=False)]
    for name in weights:
        # a weight that is shared may be read where its other owner runs
        if name in meetings.met and name not in found and owners.count(id(weights[name])) == 1:
            raise GeneralistError(
                f"{type(model).__name__}: the weight of layer {name!r} is used without running "
                "the layer, so that it could not be pruned or counted; this architecture is not "
                "supported"
            )
    return {name: layer for name, layer in found.items() if name in meetings.met}


def run_hooked(
    model: nn.Module, example: tuple[Tensor, ...], hooks: Sequence[RemovableHandle]
) -> None:
    """Run in eval mode; training mode is put back afterwards, and the hooks are gone."""
    training = {module for module in model.modules() if module.training}
    try:
        model.eval()(*example)
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()


def segments(model: nn.Module, example: tuple[Tensor, ...]) -> list[Segment]:
    """Cut the body into segments, in execution order; each prunable layer is in exactly one.

    A family in `BLOCKS` gives one segment a block; of any other model each direct child is one,
    unless it holds the head, or is a mere list whose members run by themselves: then these are
    looked at in its place. A layer outside every block (stem, downsampling, last convolution) is a
    segment of its own.
    """
    layers = prunable_layers(model, example)
    pattern = _block_pattern(model)
    if pattern is not None:
        blocks = {name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    else:
        head = find_head(model)
        above_head = "" if head is None else head[0].partition(".")[0]
        ran = _run_modules(model, example)
        blocks = set(_outermost(model, "", ran, above_head))
    ordered: dict[str, nn.Module] = {}
    for layer_name in layers:
        parts = layer_name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        name = next((prefix for prefix in prefixes if prefix in blocks), layer_name)
        ordered.setdefault(name, model.get_submodule(name))
    return [Segment(name, module) for name, module in ordered.items()]


@torch.no_grad()
def _run_modules(model: nn.Module, example: tuple[Tensor, ...]) -> set[nn.Module]:
    """Return the modules that are called as such: no list, no container that is only iterated."""
    ran: set[nn.Module] = set()

    def note(module: nn.Module, _: object) -> None:
        ran.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    run_hooked(model, example, hooks)
    return ran


def _outermost(
    module: nn.Module, prefix: str, ran: Collection[nn.Module], left_out: str
) -> Iterator[str]:
    """Yield the names of the largest parts that run, down to single layers."""
    for own, child in module.named_children():
        name = f"{prefix}{own}"
        if name == left_out:
            continue
        if child in ran:
            yield name
        else:
            yield from _outermost(child, f"{name}.", ran, left_out)
