"""Find the licence of a generalist's weights where its source states one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

__all__ = ["licence_of", "licence_of_source"]

Licence = dict[str, str | None]

_UNKNOWN: Licence = {"name": None, "where": None}
_CARDS = ("README.md", "README.MD", "readme.md", "MODEL_CARD.md")
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
_SAY_NOTHING = {"", "unknown", "none", "other", "n/a"}
_KEYS = ("license", "licence", "license_name")
# how the texts of common licences begin, by name in SPDX's list
_TITLES = (
    (r"apache license,?\s+version 2\.0", "apache-2.0"),
    (r"\bmit license\b", "mit"),
    (r"permission is hereby granted, free of charge", "mit"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"gnu general public license\s+version 2", "gpl-2.0"),
    (r"mozilla public license,?\s+version 2\.0", "mpl-2.0"),
    (r"neither the name of .* may be used to endorse", "bsd-3-clause"),
    (r"creative commons attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"creative commons attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"creative commons attribution 4\.0", "cc-by-4.0"),
    (r"cc0 1\.0 universal", "cc0-1.0"),
)


def licence_of(
    folder: Path | None, settings: Mapping[str, Any], package: str | None = None
) -> Licence:
    """Return what is stated first of: settings, model card, licence file, package's metadata.

    Args:
        folder: of the weights, None where there is none on this disk.
        settings: the model's own, such as config.json or timm's pretrained_cfg.
        package: module of the installed Python package that carries the folder.

    Returns:
        {"name": such as 'apache-2.0', or a licence file's first line, "where": file or setting};
        both None where nothing states it.
    """
    for name, where in _stated(folder, settings, package):
        if name is not None and name.strip().lower() not in _SAY_NOTHING:
            return {"name": " ".join(name.split())[:100], "where": where}
    return dict(_UNKNOWN)


def licence_of_source(source: str, settings: Mapping[str, Any]) -> Licence:
    """Return the licence of a generalist by the source that a recipe gives.

    Nothing is downloaded: of a hub's model, what loading it has left in the cache is read.

    Args:
        source: as `models.generalists.load_generalist` takes it.
        settings: the loaded model's, such as timm's `pretrained_cfg`.
    """
    library, _, name = source.partition(":")
    if name.startswith("package:"):
        module, _, inner = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
        roots = list(spec.submodule_search_locations or []) if spec else []
        return licence_of(Path(roots[0], inner) if roots else None, settings, module)
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_dir():
        return licence_of(folder, settings)
    repository = str(settings.get("hf_hub_id") or "") if library == "timm" else name
    return licence_of(_cached(repository), settings)


def _stated(
    folder: Path | None, settings: Mapping[str, Any], package: str | None
) -> Iterator[tuple[str | None, str]]:
    """Yield what each place says, the closest to the weights first."""
    nested = settings.get("pretrained_cfg")
    for values, where in ((settings, "its settings"), (nested, "its pretrained_cfg")):
        if isinstance(values, Mapping):
            yield _value(values), where
    if folder is not None:
        for file in _present(folder, _CARDS):
            yield _value(_front_matter(file)), file.name
        for file in _present(folder, _FILES):
            yield _title(file), file.name
    if package is not None:
        yield from _of_package(package)


def _value(values: Mapping[str, Any]) -> str | None:
    """Return the first licence key that names something."""
    for key in _KEYS:
        value = values.get(key)
        if isinstance(value, list):
            value = ", ".join(name for name in value[:9] if isinstance(name, str))
        if isinstance(value, str) and value.strip().lower() not in _SAY_NOTHING:
            return value
    return None


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _front_matter(card: Path) -> Mapping[str, Any]:
    """Return the YAML between the first two lines of dashes; empty where there is none."""
    text = _beginning(card).lstrip("\ufeff")
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, LookupError, RecursionError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _beginning(file: Path) -> str:
    """Return as much of a text file as any card or licence has."""
    with file.open("rb") as stream:
        return stream.read(1_000_000).decode(errors="replace")


def _title(file: Path) -> str | None:
    """Return a licence's name by its text, else the first line that says something."""
    text = _beginning(file)
    plain = " ".join(text.lower().split())
    for pattern, name in _TITLES:
        if re.search(pattern, plain[:4000]):
            return name
    return next((line.strip("# \t") for line in text.splitlines() if line.strip("# \t")), None)


def _of_package(module: str) -> Iterator[tuple[str | None, str]]:
    """Yield what the metadata of the distribution that carries a module says."""
    for name in importlib.metadata.packages_distributions().get(module, [])[:1]:
        facts = importlib.metadata.metadata(name)
        where = f"the metadata of the package {name}"
        yield next(iter(facts.get_all("License-Expression") or []), None), where
        kinds = (kind.rpartition(" :: ")[2] for kind in facts.get_all("Classifier") or [])
        yield next((kind for kind in kinds if "license" in kind.lower()), None), where
        stated = next(iter(facts.get_all("License") or []), "")
        yield next(iter(stated.splitlines()), None), where


def _cached(repository: str) -> Path | None:
    """Return the folder of a hub's model in the local cache, None where there is none."""
    if not repository or "/" not in repository:
        return None
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
