"""A transformers encoder with pooling and a linear head, called as one module."""

from __future__ import annotations

import json
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models._torchvision import ensure_torchvision
from models.errors import GeneralistError
from models.quiet import quiet_transformers

ensure_torchvision()

import transformers  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

__all__ = [
    "ENCODERS",
    "TextClassifier",
    "build_text",
    "plain_tokenizer",
    "special_token_id",
]

Pooling = Literal["mean", "cls"]

# model types whose encoder is called as encoder(input_ids, attention_mask) -> (N, T, D);
# to add a family: name it here, its blocks in structure.py, its head in encoders.py
ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")

_NECK_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}

# keys of a transformers configuration that say where it came from, not what it computes
_PROVENANCE = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "dtype",
    "torch_dtype",
)


class TextClassifier(nn.Module):
    """Encoder, pooling, optional dense neck, optional L2 normalisation, optional linear head.

    ``forward(input_ids, attention_mask)`` takes int64 (N, T) twice and returns logits (N, K),
    or the embeddings (N, D) where there is no head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        neck: str | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise GeneralistError(f"pooling {pooling!r}: only 'mean' and 'cls' are known")
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]  # never read: keep it out of the graph
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        self.width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.neck_name = neck
        self.neck: nn.Sequential | None = None
        if neck is not None:
            dense = nn.Linear(self.width, self.width)
            self.neck = nn.Sequential(dense, _NECK_ACTIVATIONS[neck]())
        self.head = head

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the head reads: (N, D)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]  # (N, T, D)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (N, T, 1)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        if self.neck is not None:
            pooled = self.neck(pooled)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (N, K), or embeddings (N, D) without a head."""
        embedding = self.embed(input_ids, attention_mask)
        return embedding if self.head is None else self.head(embedding)


def encoder_config(encoder: nn.Module) -> dict[str, Any]:
    """Return the encoder's configuration without provenance, as plain JSON values."""
    config = encoder.config.to_dict()  # type: ignore[union-attr, operator]
    kept = {key: value for key, value in config.items() if key not in _PROVENANCE}
    return json.loads(json.dumps(kept))


def build_text(config: dict[str, Any]) -> TextClassifier:
    """Rebuild the module that ``config`` (of a text bundle) describes, with random weights."""
    values = dict(config["encoder"])
    model_type = values.pop("model_type", None)
    if model_type not in ENCODERS:
        raise GeneralistError(
            f"model_type {model_type!r} is not an encoder winnow knows: {', '.join(ENCODERS)}"
        )
    with quiet_transformers():
        settings = transformers.AutoConfig.for_model(model_type, **values)
        encoder = transformers.AutoModel.from_config(settings, attn_implementation="eager")
    classes = config.get("classes")
    model = TextClassifier(
        encoder.float(),
        pooling=config["pooling"],
        normalize=config["normalize"],
        neck=config.get("neck"),
    )
    if classes:
        model.head = nn.Linear(model.width, classes)
    return model


def plain_tokenizer(tokenizer_json: str) -> str:
    """Return tokenizer.json without its own truncation and padding: the caller decides both."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


def special_token_id(tokenizer_json: str, role: Literal["pad", "mask"]) -> int | None:
    """Return the id of the padding or mask token by its usual spellings, None if there is none."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    for token in (f"[{role.upper()}]", f"<{role}>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return None


def max_positions(encoder: nn.Module) -> int:
    """Return how many tokens the encoder's position table holds."""
    settings: Any = encoder.config
    positions = int(getattr(settings, "max_position_embeddings", 512))
    if settings.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(settings.pad_token_id) + 1  # their positions start after padding's
    return positions
