"""A model with all that is needed to use it, saved as config.json and safetensors; no pickle."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from models._torchvision import ensure_torchvision
from models.delta import replay
from models.errors import GeneralistError
from models.text import build_text

ensure_torchvision()

import timm  # noqa: E402

__all__ = [
    "Bundle",
    "check_finite",
    "load_bundle",
    "read_safetensors",
    "run_every_layer",
    "save_bundle",
]

_FORMAT = "winnow-bundle"
_VERSION = 1
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass
class Bundle:
    """A model and its surroundings.

    Attributes:
        model: eval mode, float32; ``model(*batch)`` returns logits (N, K), or embeddings (N, D)
            where there is no head.
        modality: ``image`` (batch ``(pixels,)``) or ``text`` (``(input_ids, attention_mask)``).
        labels: names of the head's rows in order; None where they are unnamed or there is no head.
        preprocess: what turns raw input into a batch (the serving side's preprocess.json).
        tokenizer: the text of tokenizer.json, text only.
        config: all that rebuilds the untouched architecture.
        delta: changes made to that architecture since (`models.delta`).
        licence: of the weights, where the source states one.
    """

    model: nn.Module
    modality: Literal["image", "text"]
    labels: tuple[str, ...] | None
    preprocess: dict[str, Any]
    tokenizer: str | None
    config: dict[str, Any]
    delta: list[dict[str, Any]] = field(default_factory=list)
    licence: str | None = None

    def copy(self) -> Bundle:
        """Return a bundle that shares no tensor and no dictionary with this one."""
        return copy.deepcopy(self)


def build_architecture(config: dict[str, Any]) -> nn.Module:
    """Build the untouched architecture that ``config`` describes, with random weights."""
    if config.get("library") == "transformers":
        return build_text(config)
    if config.get("library") != "timm":
        raise GeneralistError(f"library {config.get('library')!r}: expected timm or transformers")
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise GeneralistError(f"architecture {architecture!r} is not one that timm knows")
    return run_every_layer(
        timm.create_model(
            architecture, pretrained=False, num_classes=config["classes"], **config["model_args"]
        )
    )


def run_every_layer(model: nn.Module) -> nn.Module:
    """Let timm's attentions run their qkv layer and add its bias to what it gives; return model.

    Some give the layer's weight and a bias put together of three to one function, past the layer,
    which then could be neither pruned nor counted. The logits are the same.
    """
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # type: ignore[assignment]
    return model


def check_finite(state: Mapping[str, torch.Tensor], source: object) -> None:
    """Raise GeneralistError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GeneralistError(
                f"{source}: tensor {name!r} holds NaN or infinite values; use an intact checkpoint"
            )


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; GeneralistError where it is missing, broken or holds a NaN."""
    if not path.is_file():
        pickles = sorted(found.name for kind in _PICKLES for found in path.parent.glob(kind))
        if pickles:
            raise GeneralistError(
                f"{path.parent}: holds {pickles[0]} but no {path.name}; pickled weights are not "
                "read; convert them: safetensors.torch.save_file(torch.load(FILE, "
                f"weights_only=True), {path.name!r}), or, where you trust them, set "
                "generalist.allow_pickle: true"
            )
        raise GeneralistError(f"{path}: no such file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise GeneralistError(f"{path}: not a readable safetensors file ({error})") from error
    check_finite(state, path)
    return state


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_bundle(bundle: Bundle, directory: Path) -> None:
    """Write ``bundle`` as model.safetensors, tokenizer.json (text) and config.json.

    The same bundle gives the same bytes; config.json is written last, so that a folder that has
    it is complete.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in bundle.model.state_dict().items()
    }
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "modality": bundle.modality,
        "labels": None if bundle.labels is None else list(bundle.labels),
        "preprocess": bundle.preprocess,
        "config": bundle.config,
        "delta": bundle.delta,
        "licence": bundle.licence,
    }
    _write(directory / "model.safetensors", save(state, metadata={"format": "pt"}))
    if bundle.tokenizer is not None:
        _write(directory / "tokenizer.json", bundle.tokenizer.encode())
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    _write(directory / "config.json", text.encode())


def _load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load ``state`` strictly; every difference is an error that names the tensor."""
    expected = model.state_dict()
    for problem, names in (
        ("lacks tensor", [name for name in expected if name not in state]),
        ("has an unexpected tensor", [name for name in state if name not in expected]),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise GeneralistError(f"{path}: {problem} {names[0]!r}{more}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise GeneralistError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    model.load_state_dict(state)


def load_bundle(directory: Path) -> Bundle:
    """Read what `save_bundle` wrote; the model comes back in eval mode, float32, on the CPU.

    Raises:
        GeneralistError: a file is missing, broken, pickled or not a bundle; a tensor is missing,
            superfluous, of another shape, or holds a NaN.
    """
    directory = Path(directory)
    path = directory / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GeneralistError(f"{path}: no such file; expected a saved bundle") from error
    except ValueError as error:
        raise GeneralistError(f"{path}: not JSON ({error})") from error
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise GeneralistError(f"{path}: not a saved bundle (no format {_FORMAT!r})")
    if stored.get("version") != _VERSION:
        raise GeneralistError(f"{path}: version {stored.get('version')!r}, expected {_VERSION}")
    state = read_safetensors(directory / "model.safetensors")
    try:
        model = build_architecture(stored["config"])
        replay(model, stored["delta"])
        modality, labels = stored["modality"], stored["labels"]
        preprocess, licence = stored["preprocess"], stored["licence"]
    except (KeyError, TypeError, AttributeError) as error:
        raise GeneralistError(f"{path}: {type(error).__name__} {error}") from error
    _load_weights(model, state, directory / "model.safetensors")
    tokenizer = None
    if modality == "text":
        try:
            tokenizer = (directory / "tokenizer.json").read_text(encoding="utf-8")
        except OSError as error:
            raise GeneralistError(f"{directory / 'tokenizer.json'}: no such file") from error
    return Bundle(
        model=model.float().eval(),
        modality=modality,
        labels=None if labels is None else tuple(labels),
        preprocess=preprocess,
        tokenizer=tokenizer,
        config=stored["config"],
        delta=stored["delta"],
        licence=licence,
    )
