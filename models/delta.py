"""Changes made to an architecture after it was built, replayable from their record.

A checkpoint stores the configuration of the untouched architecture and a list of such records;
`replay` turns the freshly built module into the one whose weights were saved. To add an
operation: write a function ``(model, **fields) -> None`` and name it in `OPERATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from models.errors import GeneralistError
from models.families.surgery import shrink_structure
from models.low_rank import add_low_rank
from models.text import TextClassifier

__all__ = [
    "OPERATIONS",
    "find_head",
    "fold_structure",
    "replace_head",
    "replay",
    "trim_embeddings",
]


def find_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return the classifier's module name and module; None where the model has no head."""
    if isinstance(model, TextClassifier):
        return None if model.head is None else ("head", model.head)
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    if classifier is None or isinstance(classifier, nn.Identity):
        return None
    if not isinstance(classifier, nn.Linear):
        raise GeneralistError(
            f"{type(model).__name__}: the classifier is {type(classifier).__name__}, "
            "only a single Linear layer is supported"
        )
    for name, module in model.named_modules():
        if module is classifier:
            return name, classifier
    raise GeneralistError(f"{type(model).__name__}: its classifier is not one of its modules")


def replace_head(model: nn.Module, classes: int) -> nn.Linear:
    """Put a fresh ``classes``-way Linear layer in the head's place and return it."""
    with torch.random.fork_rng(devices=[]):  # its random weights are overwritten, so cost no draw
        return _replaced_head(model, classes)


def _replaced_head(model: nn.Module, classes: int) -> nn.Linear:
    if isinstance(model, TextClassifier):
        model.head = nn.Linear(model.width, classes)
        return model.head
    found = find_head(model)
    if found is None:
        model.reset_classifier(classes)  # type: ignore[operator]
        found = find_head(model)
        if found is None:
            raise GeneralistError(f"{type(model).__name__}: no classifier could be added")
        return found[1]
    name, old = found
    head = nn.Linear(old.in_features, classes)
    model.set_submodule(name, head)
    model.num_classes = classes  # type: ignore[assignment]
    return head


def fold_structure(model: nn.Module, pairs: Sequence[Sequence[str]]) -> None:
    """Give each convolution of ``pairs`` a bias and replace its BatchNorm by what is left of it.

    What is left is nothing, or the dropout and activation that timm's BatchNormAct2d carries.
    Weights are not touched: `models.folding` computes them, a checkpoint loads them.
    """
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        if conv.bias is None:
            weight = conv.weight
            conv.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))
        rest = [getattr(norm, part, nn.Identity()) for part in ("drop", "act")]
        rest = [part for part in rest if not isinstance(part, nn.Identity)]
        left = nn.Identity() if not rest else rest[0] if len(rest) == 1 else nn.Sequential(*rest)
        model.set_submodule(norm_name, left)


def trim_embeddings(model: nn.Module, rows: int) -> None:
    """Give a text model's word embeddings ``rows`` rows; which tokens they are is its tokenizer's.

    The row of the padding token keeps its number (`models.vocabulary`). Weights are not kept:
    the caller writes them, a checkpoint loads them.
    """
    if not isinstance(model, TextClassifier):
        raise GeneralistError(f"{type(model).__name__} has no vocabulary; only text models do")
    old = model.encoder.get_input_embeddings()  # type: ignore[operator]
    fresh = nn.Embedding(
        rows,
        old.embedding_dim,
        padding_idx=old.padding_idx,
        _weight=old.weight.new_zeros(rows, old.embedding_dim),
    )
    model.encoder.set_input_embeddings(fresh)  # type: ignore[operator]


OPERATIONS: dict[str, Callable[..., object]] = {
    "fold_batchnorm": fold_structure,
    "head": replace_head,
    "low_rank": add_low_rank,
    "shrink": shrink_structure,
    "vocabulary": trim_embeddings,
}


def replay(model: nn.Module, delta: Sequence[dict[str, Any]]) -> None:
    """Apply every recorded change to ``model`` in order."""
    for record in delta:
        fields = dict(record)
        operation = fields.pop("op", None)
        if operation not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise GeneralistError(f"config.json: delta op {operation!r} is unknown; known: {known}")
        OPERATIONS[operation](model, **fields)
