"""Image models as timm knows them: by name from the hub, or a folder of the hub's layout."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

from torch import nn

from models._torchvision import ensure_torchvision
from models.checkpoint import Bundle, check_finite, read_safetensors, run_every_layer
from models.delta import find_head
from models.errors import GeneralistError
from models.quiet import quiet_hub
from models.safety import LARGEST, read_json, require_own_files, safe_weights, unloadable

ensure_torchvision()

import timm  # noqa: E402
import timm.data  # noqa: E402

__all__ = ["load_image_model"]

# what create_model would take as a place to read from
_NOT_ARGUMENTS = ("pretrained", "checkpoint", "cache_dir", "state_dict", "file", "url")


def load_image_model(source: str, name: str, *, allow_pickle: bool) -> Bundle:
    """Load ``NAME`` or ``local-dir:DIR`` through timm; the rest as `load_generalist` has it."""
    model_args: dict[str, Any] = {}
    # weights come from a file of our choice: left alone, timm falls back to a pickle
    overlay: dict[str, Any] | None = None
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        if not folder.is_dir():
            raise GeneralistError(f"generalist {source!r}: no such folder")
        require_own_files(folder, source)
        config = read_json(folder / "config.json")
        if not isinstance(config, dict) or "architecture" not in config:
            raise GeneralistError(f"{folder / 'config.json'}: no field 'architecture'")
        _known_architecture(str(config["architecture"]), source)
        weights = folder / "model.safetensors"
        if weights.is_file() or not allow_pickle:
            read_safetensors(weights)  # refuses pickles and NaN by name
        model_args = _model_args(config, folder / "config.json")
        name = f"local-dir:{folder}"
    elif not allow_pickle:
        if ":" not in name:
            _known_architecture(name.partition(".")[0], source)
        with quiet_hub():
            overlay = safe_weights(source, name)
    with quiet_hub():
        try:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            raise unloadable(source, error, local=name.startswith("local-dir:")) from error
    model = run_every_layer(model).float().eval()
    check_finite(model.state_dict(), source)
    card = dict(cast("dict[str, Any]", model.pretrained_cfg))
    channels, *_ = card.get("input_size") or (3, 224, 224)
    if channels != 3:
        raise GeneralistError(f"generalist {source!r}: takes {channels} channels, expected 3")
    head = find_head(model)
    classes = 0 if head is None else head[1].out_features
    if not model_args:
        recorded = getattr(model, "_model_args", {})
        model_args = {key: value for key, value in recorded.items() if _is_plain(value)}
    model_args.pop("num_classes", None)  # kept as `classes`, which the delta of heads refers to
    architecture = str(card.get("architecture") or name.partition(".")[0])
    return Bundle(
        model=model,
        modality="image",
        labels=_timm_labels(card, classes),
        preprocess=_image_preprocess(model),
        tokenizer=None,
        config={
            "library": "timm",
            "architecture": architecture,
            "classes": classes,
            "model_args": _of_card(card, architecture) | model_args,
        },
        licence=card.get("license"),
    )


def _model_args(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a folder's arguments for the architecture; none may name a file or be huge."""
    found = config.get("model_args") or {}
    if not isinstance(found, dict):
        raise GeneralistError(f"{path}: model_args is {type(found).__name__}, expected an object")
    for key, value in found.items():
        if key.startswith(_NOT_ARGUMENTS):
            raise GeneralistError(f"{path}: model_args.{key} is not taken from a folder; remove it")
        sizes = value if isinstance(value, list) else [value]
        if any(isinstance(x, int | float) and abs(x) > LARGEST for x in sizes):
            raise GeneralistError(f"{path}: model_args.{key} {value!r} is no size of a model")
    return dict(found)


def _of_card(card: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the arguments that timm took from the checkpoint's card: its size and its pooling.

    The architecture is built again without that card.
    """
    found: dict[str, Any] = {}
    if card.get("fixed_input_size") and card.get("input_size"):
        found["img_size"] = list(card["input_size"][-2:])
    usual = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if card.get("global_pool") not in (None, getattr(usual, "global_pool", None)):
        found["global_pool"] = card["global_pool"]
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, str, bool, list, tuple))


def _known_architecture(architecture: str, source: str) -> None:
    if timm.is_model(architecture):
        return
    close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise GeneralistError(
        f"generalist {source!r}: architecture {architecture!r} is not one that timm knows{hint}"
    )


def _timm_labels(card: dict[str, Any], classes: int) -> tuple[str, ...] | None:
    """Return the head's label names from the checkpoint's card, else ImageNet's by their number."""
    names = card.get("label_names")
    if not names:
        subset = timm.data.infer_imagenet_subset({"num_classes": classes})
        names = timm.data.ImageNetInfo(subset).label_descriptions() if subset else None
    if not names or len(names) != classes:
        return None
    return tuple(str(name) for name in names)


def _image_preprocess(model: nn.Module) -> dict[str, Any]:
    data = timm.data.resolve_model_data_config(model)
    height, width = data["input_size"][1:]
    interpolation = data["interpolation"]
    return {
        "modality": "image",
        "size": [height, width],
        "resize": int(min(height, width) / data["crop_pct"]),
        "interpolation": "bilinear" if interpolation == "bilinear" else "bicubic",
        "mean": [float(value) for value in data["mean"]],
        "std": [float(value) for value in data["std"]],
    }
