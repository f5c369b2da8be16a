"""Load a generalist from timm or transformers, from the hub, a folder or an installed package."""

from __future__ import annotations

from models.checkpoint import Bundle
from models.encoders import load_encoder
from models.errors import GeneralistError
from models.image_models import load_image_model

__all__ = ["load_generalist"]

_FORMS = "timm:NAME, timm:local-dir:DIR, hf:NAME, hf:DIR or hf:package:MODULE/FOLDER"


def load_generalist(
    source: str,
    *,
    max_length: int = 128,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Bundle:
    """Load the generalist that ``source`` names, ready to run on the CPU in float32.

    Args:
        source: ``timm:NAME``, ``timm:local-dir:DIR``, ``hf:NAME``, ``hf:DIR``, or
            ``hf:package:MODULE/FOLDER`` (a folder inside an installed Python package).
        max_length: longest text in tokens; lowered to what the encoder's positions allow.
        allow_pickle: also read weights from a pickle, with PyTorch's reader for weights alone.
        trust_remote_code: run Python code that an ``hf:`` checkpoint brings along.

    Raises:
        GeneralistError: one line that names the source and what would be right.
    """
    library, _, name = source.partition(":")
    if library == "timm" and name:
        return load_image_model(source, name, allow_pickle=allow_pickle)
    if library == "hf" and name:
        return load_encoder(
            source,
            name,
            max_length=max_length,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    raise GeneralistError(f"generalist {source!r}: expected {_FORMS}")
