"""Stage: the vocabulary cut to what the task's texts and the tokenizer's fallback use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact
from tasks.config import Recipe
from tasks.progress import Callback
from tasks.stage import stage


@stage(reads=("shrink.vocabulary_extra",), splits=("support", "unlabelled"))
def trim(
    recipe: Recipe, data: Artifact, model: Artifact, *, into: Path, progress: Callback
) -> dict[str, Any]:
    """Drop rows that no text of the task can reach; the tokenizer is rewritten with the table.

    Last of all that learns: until here teacher and student read the same token numbers.
    """
    # see load.py: only a stage that computes pays for torch
    from models.checkpoint import load_bundle, save_bundle
    from models.vocabulary import trim_vocabulary
    from tasks import batches

    bundle = load_bundle(model.folder)
    texts = [str(text) for text in batches.splits(data, "support", "unlabelled").inputs]
    trimmed = trim_vocabulary(bundle, texts, extra=recipe.shrink.vocabulary_extra)
    save_bundle(trimmed, into)
    return {"full": _rows(bundle.model), "kept": _rows(trimmed.model)}


def _rows(model: Any) -> int:
    """Rows of the model's table of words."""
    return int(model.encoder.get_input_embeddings().num_embeddings)
