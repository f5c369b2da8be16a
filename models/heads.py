"""The label space: which rows of a generalist's head a task needs, and new heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.checkpoint import Bundle
from models.delta import find_head, replace_head
from models.errors import GeneralistError

__all__ = ["covers", "features", "head_of", "head_rows", "restrict_head", "with_head"]


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the head's module name and module; GeneralistError where there is none."""
    found = find_head(model)
    if found is None:
        raise GeneralistError(f"{type(model).__name__} has no classification head")
    return found


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _lookups(labels: Sequence[str]) -> list[dict[str, int | None]]:
    """Return name -> row tables from the strictest spelling to the loosest; None: ambiguous."""
    exact: dict[str, int | None] = {}
    plain: dict[str, int | None] = {}
    synonym: dict[str, int | None] = {}
    for row, label in enumerate(labels):
        exact[label] = None if label in exact else row
        name = _plain(label)
        plain[name] = None if name in plain else row
        # ImageNet's names list synonyms: 'tench, Tinca tinca'
        for part in {_plain(part) for part in label.split(",")}:
            synonym[part] = None if part in synonym else row
    return [exact, plain, synonym]


def head_rows(labels: Sequence[str] | None, classes: Sequence[str]) -> list[int] | None:
    """Return the row of each class in ``labels``, None where one is missing or ambiguous.

    A class is found by its exact name, else ignoring case and underscores, else as one of the
    comma-separated synonyms of a label.
    """
    if labels is None:
        return None
    exact, plain, synonym = _lookups(labels)
    rows: list[int] = []
    for name in classes:
        for table, key in ((exact, name), (plain, _plain(name)), (synonym, _plain(name))):
            if key in table:
                row = table[key]
                break
        else:
            return None
        if row is None or row in rows:
            return None
        rows.append(row)
    return rows


def covers(labels: Sequence[str] | None, classes: Sequence[str]) -> bool:
    """Say whether every class has one row of its own among ``labels``."""
    return head_rows(labels, classes) is not None


def with_head(
    bundle: Bundle,
    classes: Sequence[str],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Bundle:
    """Return a copy of ``bundle`` with a new head for ``classes``.

    Args:
        weight: (K, D), zeros if None.
        bias: (K,), zeros if None.
    """
    if not classes or len(set(classes)) != len(classes):
        raise GeneralistError(f"classes must be distinct and at least one, got {list(classes)}")
    copied = bundle.copy()
    old = next(bundle.model.parameters())
    head = replace_head(copied.model, len(classes)).to(old.device, old.dtype)
    for target, source in ((head.weight, weight), (head.bias, bias)):
        with torch.no_grad():
            if source is None:
                target.zero_()
            elif source.shape != target.shape:
                raise GeneralistError(
                    f"head: expected shape {tuple(target.shape)}, got {tuple(source.shape)}"
                )
            else:
                target.copy_(source)
    copied.model.eval()
    copied.labels = tuple(classes)
    # only the last head counts, so that a chain of them does not grow the record
    copied.delta = [record for record in copied.delta if record["op"] != "head"]
    copied.delta.append({"op": "head", "classes": len(classes)})
    return copied


def restrict_head(bundle: Bundle, classes: Sequence[str]) -> Bundle:
    """Return a copy of ``bundle`` whose head holds the rows of ``classes``, in their order.

    Raises:
        GeneralistError: a class has no row, or more than one.
    """
    rows = head_rows(bundle.labels, classes)
    if rows is None:
        unknown = [name for name in classes if head_rows(bundle.labels, [name]) is None]
        raise GeneralistError(f"the generalist has no unambiguous row for {unknown or classes}")
    head = head_of(bundle.model)[1]
    weight = head.weight.detach()[rows]  # (K, D)
    bias = None if head.bias is None else head.bias.detach()[rows]
    return with_head(bundle, classes, weight, bias)


def features(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the head's input (N, D); the model's own output where it has no head."""
    found = find_head(model)
    if found is None:
        return model(*batch)
    captured: list[Tensor] = []
    hook = found[1].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        model(*batch)
    finally:
        hook.remove()
    if len(captured) != 1 or captured[0].dim() != 2:
        shapes = [tuple(tensor.shape) for tensor in captured]
        raise GeneralistError(f"head input: expected one (N, D) tensor, got {shapes}")
    return captured[0]
