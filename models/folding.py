"""Fold BatchNorm into the convolution before it.

With y = W x + b and BatchNorm's (gamma, beta, mu, var, eps), s = gamma / sqrt(var + eps):
BN(y) = (s W) x + (b - mu) s + beta. Pairs are found by running the model: a convolution and a
BatchNorm belong together when the tensor that the one returns is the tensor that the other
takes and nothing else takes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models._torchvision import ensure_torchvision
from models.checkpoint import Bundle
from models.delta import find_head, fold_structure
from models.errors import GeneralistError

ensure_torchvision()

from timm.layers import BatchNormAct2d  # noqa: E402
from timm.layers.conv2d_same import Conv2dSame  # noqa: E402

__all__ = ["find_pairs", "fold_batchnorm"]

# exact types: a subclass may standardise its weight in forward, or do more after the norm
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)

_TOLERANCE = 1e-3  # of the largest logit; folding reorders float32 sums and no more


def find_pairs(model: nn.Module, example: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    """Return the (convolution, BatchNorm) names that can be folded, in execution order."""
    produced: dict[int, tuple[str, Tensor]] = {}  # id of a tensor -> its convolution, the tensor
    takers: dict[int, list[str]] = {}
    calls: dict[str, int] = {}
    order: list[tuple[str, int]] = []  # (BatchNorm, id of its input)
    modules = dict(model.named_modules())
    leaves = {name: module for name, module in modules.items() if not list(module.children())}
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            key = id(inputs[0]) if inputs else 0
            if key in takers and not isinstance(module, nn.Identity):  # hands the same tensor on
                takers[key].append(name)
            if type(module) in _NORMS:
                order.append((name, key))

        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if type(module) in _CONVOLUTIONS:
                produced[id(output)] = (name, output)  # kept alive, so that its id stays its own
                takers[id(output)] = []

        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(after))

    norms = {name: module for name, module in modules.items() if type(module) in _NORMS}
    for name, module in (leaves | norms).items():
        watch(name, module)
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()

    pairs = []
    for norm_name, key in order:
        norm = norms[norm_name]
        if key not in produced or norm.running_mean is None or calls[norm_name] != 1:
            continue
        conv_name = produced[key][0]
        if calls[conv_name] == 1 and takers[key] == [norm_name]:
            pairs.append((conv_name, norm_name))
    return pairs


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the folded weight and bias, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    mu, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mu) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mu) if norm.bias is None else norm.bias.double()
    b = torch.zeros_like(mu) if conv.bias is None else conv.bias.double()
    s = gamma * torch.rsqrt(var + norm.eps)  # (out,)
    weight = conv.weight.double() * s.view(-1, 1, 1, 1)  # (out, in/groups, kh, kw)
    return weight.to(conv.weight.dtype), ((b - mu) * s + beta).to(conv.weight.dtype)


def _outcome(model: nn.Module, example: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what the head reads, where the model has one, and the logits."""
    head, hook = find_head(model), None
    seen: list[Tensor] = []
    if head is not None:
        hook = head[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        return [model(*example), *seen]
    finally:
        if hook is not None:
            hook.remove()


@torch.no_grad()
def fold_batchnorm(bundle: Bundle, example: tuple[Tensor, ...]) -> Bundle:
    """Return a copy of ``bundle`` with every foldable BatchNorm folded into its convolution.

    A BatchNorm that has no convolution of its own directly before it stays, in eval mode. The
    logits on ``example`` are compared before and after, and so is what the head reads: a head of
    zeros gives equal logits for anything.

    Raises:
        GeneralistError: folding changed the logits or the head's input (an architecture that reads
            a convolution's output twice in a way that hooks do not see).
    """
    copied = bundle.copy()
    model = copied.model.eval()
    pairs = find_pairs(model, example)
    if not pairs:
        return copied
    before = _outcome(model, example)
    folded = {}
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded[conv_name] = _fold(conv, norm)
    fold_structure(model, pairs)
    for conv_name, (weight, bias) in folded.items():
        conv = model.get_submodule(conv_name)
        conv.weight.copy_(weight)  # type: ignore[operator]
        conv.bias.copy_(bias)  # type: ignore[operator]
    for was, now in zip(before, _outcome(model.eval(), example), strict=True):
        gap = float((now - was).abs().max())
        if not gap <= _TOLERANCE * (1.0 + float(was.abs().max())):  # a NaN is no small gap
            raise GeneralistError(
                f"{type(model).__name__}: folding BatchNorm changed the logits, or what the head "
                f"reads, by {gap:.2g}; this architecture is not supported"
            )
    copied.delta.append({"op": "fold_batchnorm", "pairs": [list(pair) for pair in pairs]})
    return copied
