"""What keeps a checkpoint from running code, naming other files or filling the memory.

A checkpoint is data from somebody else. Its weights are read from safetensors, which hold numbers
alone; a pickle and Python code of its own are refused unless the caller says so.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from models._torchvision import ensure_torchvision
from models.errors import GeneralistError

ensure_torchvision()

import timm  # noqa: E402
from transformers.utils.hub import cached_file  # noqa: E402

__all__ = [
    "LARGEST",
    "exists",
    "optional_file",
    "plain_name",
    "read_json",
    "require_no_code",
    "require_own_files",
    "require_plain_index",
    "safe_weights",
    "unloadable",
]

LARGEST = 1_000_000  # no width, depth or side of a model that fits this machine
_MAX_JSON = 200_000_000  # bytes; a large multilingual tokenizer.json has 20 million
_SAFE = ("model.safetensors", "open_clip_model.safetensors")
# what timm itself would take instead
_PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
_CODED = ("config.json", "tokenizer_config.json")


def unloadable(source: str, error: Exception, *, local: bool) -> GeneralistError:
    """Turn whatever a library or the network raised into one line."""
    text = str(error).strip()
    reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    remedy = "" if local else "; check the name and the connection, or name a local folder"
    return GeneralistError(f"generalist {source!r} cannot be loaded{remedy} ({reason})")


def exists(folder: Path) -> bool:
    """Return whether a folder is there; a name that no file system takes is not."""
    try:
        return folder.is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> Any:
    """Return a JSON file's content; GeneralistError where it is missing, huge or broken."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise GeneralistError(f"{path}: larger than {_MAX_JSON:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GeneralistError(f"{path}: no such file") from error
    except RecursionError:
        raise GeneralistError(f"{path}: not JSON (nested too deep)") from None
    except ValueError as error:
        raise GeneralistError(f"{path}: not JSON ({error})") from error


def require_own_files(folder: Path, source: str) -> None:
    """Raise where a link of a checkpoint's folder leads to a file elsewhere.

    The hub's cache is made of links, from a model's snapshots to its blobs: those may be.
    """
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    for path in folder.rglob("*"):
        if not path.is_symlink():
            continue
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a loop
            target = Path("/")
        if not any(target.is_relative_to(home) for home in homes):
            raise GeneralistError(
                f"generalist {source!r}: {path.name} is a link to a file outside the folder; put "
                "a copy in its place"
            )


def require_plain_index(index: Path) -> None:
    """Raise where an index of weights names a file that is not in its own folder."""
    stored = read_json(index)
    names = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(names, dict) or not names:
        raise GeneralistError(f"{index}: no field 'weight_map'")
    for name in set(map(str, names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise GeneralistError(f"{index}: {name!r} is no safetensors file of this folder")


def plain_name(name: Any, source: str) -> str:
    """Return a folder's name inside a checkpoint; raises where it leads out of it."""
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise GeneralistError(f"generalist {source!r}: modules.json names {name!r}, outside it")
    return str(path)


def optional_file(name: str, file: str) -> Path | None:
    """Return a file of a repository or folder, None where it has none."""
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def require_no_code(source: str, name: str) -> None:
    """Raise where a checkpoint's settings name Python code of its own (`auto_map`)."""
    for file in _CODED:
        found = optional_file(name, file)
        stored = None if found is None else read_json(found)
        if isinstance(stored, dict) and stored.get("auto_map"):
            raise GeneralistError(
                f"generalist {source!r}: {file} names Python code of the checkpoint's own "
                "(auto_map), which is not run; where you trust it, set "
                "generalist.trust_remote_code: true"
            )


def safe_weights(source: str, name: str) -> dict[str, Any]:
    """Return settings that make timm read a hub's model from its safetensors file.

    Raises:
        GeneralistError: there are only pickled weights.
    """
    library, _, repository = name.rpartition(":")
    facts: dict[str, Any] = {}
    if not library:
        found = timm.get_pretrained_cfg(name)
        facts = found.to_dict() if found is not None else {}
        repository = str(facts.get("hf_hub_id") or "")
    if str(facts.get("file") or facts.get("url") or "").endswith((".npz", ".safetensors")):
        return {}  # arrays alone, read without pickle
    if facts and not repository:
        raise _pickled(source, str(facts.get("url") or "its weights"))
    repository, _, revision = repository.partition("@")
    stated = str(facts.get("hf_hub_filename") or "")
    for file in [stated] if stated.endswith((".safetensors", ".npz")) else _SAFE:
        try:
            path = hf_hub_download(repository, file, revision=revision or None)
        except LocalEntryNotFoundError as error:
            # no connection: only where the cache has the pickle is it known what there is
            if any(isinstance(try_to_load_from_cache(repository, x), str) for x in _PICKLES):
                continue
            raise unloadable(source, error, local=False) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # the network, or a name that is none
            raise unloadable(source, error, local=False) from error
        return {} if file.endswith(".npz") else {"file": path, "source": "", "custom_load": False}
    raise _pickled(source, repository)


def _pickled(source: str, where: str) -> GeneralistError:
    return GeneralistError(
        f"generalist {source!r}: {where} has its weights in a pickle alone, which can carry code; "
        "name a checkpoint with safetensors or, where you trust it, set "
        "generalist.allow_pickle: true"
    )
