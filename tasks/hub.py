"""Which commit a hub's name stands for now: names stay while what they name changes."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]

_SECONDS = 10.0  # to wait for the hub
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")


def commit_of_model(source: str) -> str | None:
    """The commit behind a generalist's hub name (`timm:NAME`, `hf:NAME`), None where none is known.

    Args:
        source: as the recipe has it, and not a folder.
    """
    library, _, name = source.partition(":")
    if library == "timm":
        return _commit(_timm_repository(name) or "", "model")
    return _commit(name, "model") if library == "hf" else None


def commit_of_data(name: str) -> str | None:
    """The commit behind a hub's data set NAME[@CONFIG][:SPLIT], None where none is known."""
    if name == "rest" or name.startswith("sklearn:"):
        return None
    hub = name.partition(":")[0].partition("@")[0]
    if Path(hub).suffix in _TABLES:  # a file that is not there
        return None
    return _commit(hub, "dataset")


def _commit(repository: str, kind: Kind) -> str | None:
    """What the hub says, else what this machine's cache last saw: what loading would take, too."""
    if not _NAME.fullmatch(repository):
        return None
    return _told_by_hub(repository, kind) or _cached(repository, kind)


def _told_by_hub(repository: str, kind: Kind) -> str | None:
    # half a second to import, and only names of a hub need it
    from huggingface_hub import HfApi

    try:
        found = HfApi().repo_info(repository, repo_type=kind, timeout=_SECONDS).sha
    except Exception:  # offline, unknown, gated: the client raises many kinds
        return None
    return found if found and _COMMIT.fullmatch(found) else None


def _cached(repository: str, kind: Kind) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}")
    try:
        found = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return found if _COMMIT.fullmatch(found) else None


@functools.cache
def _timm_repository(name: str) -> str | None:
    """The hub's repository of a timm model, None where timm takes its weights from elsewhere."""
    place, _, rest = name.partition(":")
    if place in ("hf-hub", "hf_hub"):
        return rest
    if rest:
        return None
    # five seconds to import, and only timm's own names need it
    from models._torchvision import ensure_torchvision

    ensure_torchvision()
    import timm

    try:
        settings = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):
        return None
    # filled in, such as timm/resnet50.a1_in1k
    return None if settings is None else settings.hf_hub_id
