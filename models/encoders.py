"""Text encoders as transformers knows them, with the head of a classifier where they have one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models._torchvision import ensure_torchvision
from models.checkpoint import Bundle, check_finite, read_safetensors
from models.errors import GeneralistError
from models.licence import licence_of_source
from models.quiet import quiet_hub, quiet_transformers
from models.safety import (
    LARGEST,
    exists,
    optional_file,
    plain_name,
    read_json,
    require_no_code,
    require_own_files,
    require_plain_index,
    unloadable,
)
from models.text import (
    ENCODERS,
    TextClassifier,
    build_text,
    encoder_config,
    max_positions,
    plain_tokenizer,
)

ensure_torchvision()

import transformers  # noqa: E402

__all__ = ["load_encoder"]

# how a *ForSequenceClassification model of each type ends: its dense layer before the head,
# that layer's activation, the head
_Ending = tuple[nn.Linear, str, nn.Linear]
_ENDINGS: dict[str, Callable[[Any], _Ending]] = {
    "bert": lambda model: (model.bert.pooler.dense, "tanh", model.classifier),
    "distilbert": lambda model: (model.pre_classifier, "relu", model.classifier),
    "roberta": lambda model: (model.classifier.dense, "tanh", model.classifier.out_proj),
}
_ENDINGS["xlm-roberta"] = _ENDINGS["camembert"] = _ENDINGS["roberta"]


def _package_folder(source: str, name: str) -> str:
    """Return the folder that ``MODULE/FOLDER`` names inside an installed Python package."""
    module, _, folder = name.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise GeneralistError(
            f"generalist {source!r}: Python package {module!r} is not installed; "
            "install the distribution that carries it"
        )
    found = Path(roots[0]) / folder
    if not found.resolve().is_relative_to(Path(roots[0]).resolve()):
        raise GeneralistError(f"generalist {source!r}: {folder!r} leads out of the package")
    return str(found)


def load_encoder(
    source: str, name: str, *, max_length: int, allow_pickle: bool, trust_remote_code: bool
) -> Bundle:
    """Load ``NAME``, ``DIR`` or ``package:MODULE/FOLDER``; the rest as `load_generalist` has it."""
    if name.startswith("package:"):
        name = _package_folder(source, name.removeprefix("package:"))
    folder = Path(name).expanduser()
    if exists(folder):
        name = str(folder)
        _check_folder(folder, source, allow_pickle)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise GeneralistError(f"generalist {source!r}: no such folder")
    with quiet_transformers(), quiet_hub():
        try:
            if not trust_remote_code:
                require_no_code(source, name)
            model, labels = _read_encoder(name, allow_pickle, trust_remote_code)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, trust_remote_code=trust_remote_code
            )
            pad_id = tokenizer.pad_token_id
            backend = getattr(tokenizer, "backend_tokenizer", None)
            extras = _sentence_settings(name)
        except GeneralistError:
            raise
        except Exception as error:
            raise unloadable(source, error, local=folder.is_dir()) from error
    if backend is None:
        raise GeneralistError(f"generalist {source!r}: has no fast tokenizer (tokenizer.json)")
    if labels is None and model.head is None:
        model.pooling, model.normalize = extras["pooling"], extras["normalize"]
    model = model.float().eval()
    check_finite(model.state_dict(), source)
    config = _text_config(model)
    if trust_remote_code:
        _require_rebuilt(source, model, config)
    longest = min(max_length, max_positions(model.encoder), extras["max_length"] or max_length)
    return Bundle(
        model=model,
        modality="text",
        labels=labels,
        preprocess={"modality": "text", "max_length": longest, "pad_id": int(pad_id or 0)},
        tokenizer=plain_tokenizer(backend.to_str()),
        config=config,
        licence=licence_of_source(f"hf:{name}", {})["name"],
    )


def _text_config(model: TextClassifier) -> dict[str, Any]:
    """Return all that rebuilds the untouched architecture."""
    return {
        "library": "transformers",
        "encoder": encoder_config(model.encoder),
        "pooling": model.pooling,
        "normalize": model.normalize,
        "neck": model.neck_name,
        "classes": 0 if model.head is None else model.head.out_features,
    }


def _require_rebuilt(source: str, model: TextClassifier, config: dict[str, Any]) -> None:
    """Raise where a checkpoint's own code computes what its settings alone do not say.

    Every later stage rebuilds the model from its settings and weights, without that code.
    """
    ids = torch.arange(6).reshape(1, 6) % int(config["encoder"].get("vocab_size", 6))
    batch = ids, torch.ones_like(ids)
    try:
        plain = build_text(config).float().eval()
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            same = torch.allclose(plain(*batch), model(*batch), atol=1e-5)
    except Exception as error:  # whatever does not fit is another architecture
        raise unloadable(source, error, local=True) from error
    if not same:
        raise GeneralistError(
            f"generalist {source!r}: its own code computes another model than its settings "
            "describe; name a checkpoint of a known architecture"
        )


def _check_folder(folder: Path, source: str, allow_pickle: bool) -> None:
    """Refuse a folder without safetensors, or with a NaN in them, before anything is built."""
    require_own_files(folder, source)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise GeneralistError(f"{folder / 'config.json'}: not an object of named values")
    for key, value in config.items():
        if isinstance(value, int | float) and abs(value) > LARGEST and "token" not in key:
            raise GeneralistError(f"{folder / 'config.json'}: {key} {value} is no size of a model")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        require_plain_index(index)
    elif (folder / "model.safetensors").is_file() or not allow_pickle:
        read_safetensors(folder / "model.safetensors")


def _read_encoder(
    name: str, allow_pickle: bool, trust_remote_code: bool
) -> tuple[TextClassifier, tuple[str, ...] | None]:
    """Load the encoder, with its head where the checkpoint is a sequence classifier."""
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if config.model_type not in ENCODERS:
        raise GeneralistError(
            f"generalist {name!r}: model_type {config.model_type!r} is not an encoder "
            f"winnow knows: {', '.join(ENCODERS)}"
        )
    architecture = (config.architectures or [""])[0]
    classifier = architecture.endswith("ForSequenceClassification")
    if classifier and config.model_type not in _ENDINGS:
        raise GeneralistError(
            f"generalist {name!r}: {architecture} is not supported with its head; "
            f"supported: {', '.join(_ENDINGS)}"
        )
    loader = (
        transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModel
    )
    loaded, report = loader.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=None if allow_pickle else True,
        weights_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key or classifier)
    if missing:
        raise GeneralistError(f"generalist {name!r}: its weights lack tensor {missing[0]!r}")
    if not classifier:
        return TextClassifier(loaded), None
    if config.problem_type == "multi_label_classification" or config.num_labels < 2:
        raise GeneralistError(
            f"generalist {name!r}: {config.num_labels} labels, problem_type "
            f"{config.problem_type!r}; expected a single-label classifier of 2 or more"
        )
    dense, activation, head = _ENDINGS[config.model_type](loaded)
    encoder = loaded.base_model
    model = TextClassifier(encoder, pooling="cls", neck=activation, head=head)
    assert model.neck is not None
    model.neck[0] = dense
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return model, None if unnamed else names


def _sentence_settings(name: str) -> dict[str, Any]:
    """Read pooling, normalisation and length as sentence-transformers stores them."""
    settings: dict[str, Any] = {"pooling": "mean", "normalize": False, "max_length": None}
    length = optional_file(name, "sentence_bert_config.json")
    if length is not None:
        settings["max_length"] = _longest(length)
    modules = optional_file(name, "modules.json")
    if modules is None:
        return settings
    for entry in read_json(modules):
        kind = str(entry["type"]).rpartition(".")[2]
        if kind == "Normalize":
            settings["normalize"] = True
        elif kind == "Pooling":
            pooling = optional_file(name, f"{plain_name(entry['path'], name)}/config.json")
            if pooling is not None:
                settings["pooling"] = _pooling_mode(read_json(pooling), name)
        elif kind != "Transformer":
            raise GeneralistError(
                f"generalist {name!r}: modules.json names {kind!r}; "
                "only Transformer, Pooling (mean or cls) and Normalize are supported"
            )
    return settings


def _longest(path: Path) -> int | None:
    """Return the tokens that a sentence-transformers model takes; None where it does not say."""
    length = read_json(path).get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise GeneralistError(
            f"{path}: max_seq_length {length!r}; expected a whole number of tokens, at least 1"
        )
    return length


def _pooling_mode(config: dict[str, Any], name: str) -> str:
    """Read either form of a Pooling configuration: one mode by name, or one flag a mode."""
    mode = config.get("pooling_mode")
    if mode is None:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        mode = "+".join(flag.removeprefix("pooling_mode_") for flag in flags)
    modes = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if mode not in modes:
        raise GeneralistError(f"generalist {name!r}: pooling {mode!r}; supported: mean, cls")
    return modes[mode]
