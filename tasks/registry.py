"""MLflow's registry: versions that carry what they were made of, and the champion among them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.models import Model

from tasks.cache import ROOT, import_closure
from tasks.digests import file_digest
from tasks.errors import RecipeError
from tasks.home import tracking_uri
from tasks.layout import SERVED
from tasks.mlflow_store import empty, pointed, require_reachable, steady_client
from tasks.outages import patiently, raise_if_away

CHAMPION = "champion"
DIGEST, VERDICT = "winnow.specialist_sha256", "winnow.verdict"
# a JSON list of the versions that were champion before this one, the latest first
BEFORE = "winnow.champions_before"
# what MLflow answers where there is no such model, and no such alias of it
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_KEPT_BEFORE = 50  # the longest history: a tag is no place for more
# distributions that serving imports
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "tokenizers")


@dataclass(frozen=True)
class Version:
    """A version of a registered model and its tags."""

    name: str
    number: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The address that MLflow loads it by."""
        return f"models:/{self.name}/{self.number}"

    @property
    def told(self) -> str:
        """What messages call it."""
        return f"{self.name}/{self.number}"

    @property
    def before(self) -> list[str]:
        """Versions that were champion before this one, the latest first."""
        return [str(number) for number in json.loads(self.tags.get(BEFORE, "[]"))]


@dataclass(frozen=True)
class Registered:
    """The version that a run registered, or found registered with the same content."""

    version: Version
    reused: bool


def served_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that answer: graph and preprocessing."""
    total = hashlib.sha256()
    for name in sorted(SERVED):
        if (folder / name).is_file():
            total.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return total.hexdigest()


def register(
    run_id: str,
    name: str,
    folder: Path,
    *,
    identity: Mapping[str, str],
    tags: Mapping[str, str],
    example: Any,
    description: str,
    about: str,
) -> Registered:
    """Log the specialist as a model that loads without torch, and register it; no alias moves.

    Args:
        folder: of specialist.onnx, preprocess.json, tokenizer.json, and what else is to travel.
        identity: tags that together say what this version is; one that has them all is reused.
        tags: further tags. A version has all of its tags from its first moment.
        example: one valid input, stored beside the model.
        description: of the version.
        about: of the registered model, set where it has none yet.
    """
    with pointed():
        client = steady_client()
        found = _same_version(client, name, identity)
        if found is None:
            made = _log_model(run_id, name, folder, example, {**identity, **tags})
            number = _without_twins(client, name, identity, made)
        else:
            number = found
        # also of one that was found: the run that made it may have been broken off right after
        if not client.get_model_version(name, number).description:
            client.update_model_version(name, number, description)
            if not client.get_registered_model(name).description:
                client.update_registered_model(name, about)
        client.set_tag(run_id, "winnow.model_version", f"{name}/{number}")
        return Registered(_version(client, name, number), found is not None)


def find_version(name: str, number: str | None = None) -> Version:
    """A version of a registered model, the newest where none is named; raises `RecipeError`."""
    where = f"MODEL: {name}" + (f"/{number}" if number else "")
    require_reachable(tracking_uri())
    if empty():
        raise RecipeError(f"{where} is not in {tracking_uri()}, which no run has filled yet")
    with pointed():
        client = steady_client()
        try:
            known = client.search_model_versions(f"name = '{name}'")
            numbers = sorted((str(found.version) for found in known), key=int)
            if not numbers:
                names = ", ".join(m.name for m in client.search_registered_models()) or "none"
                raise RecipeError(f"{where} is not in {tracking_uri()}; models there: {names}")
            if number is not None and number not in numbers:
                raise RecipeError(f"{where} is not there; versions of {name}: {', '.join(numbers)}")
            return _version(client, name, number or numbers[-1])
        except MlflowException as error:
            raise_if_away(error)
            raise RecipeError(f"{where}: {error.message.splitlines()[0]}") from None


def champion_of(name: str) -> Version | None:
    """The version that the alias `champion` names, None where there is none."""
    with pointed():
        client = steady_client()
        try:
            found = client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            # a store that is busy or away has a champion all the same: never take it for none
            if error.error_code in _NOT_THERE:
                return None
            raise
        return Version(name, str(found.version), dict(found.tags))


def champions() -> list[Version]:
    """The champion of every registered model that winnow made, by name."""
    require_reachable(tracking_uri())
    if empty():
        return []
    found = []
    with pointed():
        client, page = steady_client(), None
        while page != "":
            models = client.search_registered_models(page_token=page)
            for model in models:
                if CHAMPION in model.aliases:
                    version = _version(client, model.name, str(model.aliases[CHAMPION]))
                    found += [version] if DIGEST in version.tags else []
            page = models.token or ""
    return sorted(found, key=lambda version: version.name)


def versions_of(name: str) -> list[Version]:
    """Every version of a registered model, the newest first."""
    with pointed():
        known = steady_client().search_model_versions(f"name = '{name}'")
        found = [Version(name, str(each.version), dict(each.tags)) for each in known]
    return sorted(found, key=lambda version: -int(version.number))


def experiment_of(version: Version) -> str:
    """Name of the experiment that a version's run is in; `winnow` where the run is gone."""
    with pointed():
        client = steady_client()
        try:
            run = client.get_run(version.tags.get("winnow.run_id", ""))
            return str(client.get_experiment(run.info.experiment_id).name)
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                return "winnow"
            raise


def tag(version: Version, tags: Mapping[str, str]) -> None:
    """Write tags of a version; what has the value already is left alone."""
    with pointed():
        client = steady_client()
        for key, value in tags.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(version.name, version.number, key, value)


def crown(chosen: Version, before: Sequence[str], *, tags: Mapping[str, str], about: str) -> None:
    """Make a version the champion: its tags first, then the alias, in one SQL statement.

    Whatever happens in between, the alias names the old champion or the new one, and the tags of a
    version that is not champion mean nothing.

    Args:
        before: the champions before it, the latest first.
        tags: further tags of the version.
        about: the registered model's description from now on; left as it is where empty.
    """
    with pointed():
        client = steady_client()
        history = json.dumps(list(before)[:_KEPT_BEFORE])
        for key, value in {**tags, BEFORE: history}.items():
            client.set_model_version_tag(chosen.name, chosen.number, key, value)
        client.set_registered_model_alias(chosen.name, CHAMPION, chosen.number)
        if about:
            client.update_registered_model(chosen.name, about)


def fetch_model(uri: str, into: Path) -> Path:
    """Download a registered model; returns the folder that holds the specialist's files."""
    require_reachable(tracking_uri())
    if empty():
        raise RecipeError(f"MODEL: {uri} is not in {tracking_uri()}, which no run has filled yet")
    with pointed():
        try:
            folder = patiently(
                lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into))
            )
        except (MlflowException, OSError) as error:
            raise_if_away(error)
            reason = error.message if isinstance(error, MlflowException) else str(error)
            raise RecipeError(
                f"MODEL: {uri} is not in {tracking_uri()} ({reason.splitlines()[0]})"
            ) from None
    found = next(Path(folder).rglob(SERVED[0]), None)
    if found is None:
        raise RecipeError(f"MODEL: {uri} holds no {SERVED[0]}; name a model that winnow made")
    return found.parent


def fetch_whole(chosen: Version, into: Path) -> Path:
    """Download a version; raises `RecipeError` where it is not what was registered."""
    folder = fetch_model(chosen.uri, into)
    digest = chosen.tags.get(DIGEST)
    if digest is not None and served_digest(folder) != digest:
        raise RecipeError(f"MODEL: {chosen.told}: its files are not those that were registered")
    return folder


def fetch_sound(chosen: Version, into: Path) -> Path:
    """Download a version and make sure of it: whole, and answering when MLflow loads it.

    Returns the folder that holds the specialist's files; raises `RecipeError` where it is not
    what was registered, or does not load.
    """
    folder = fetch_whole(chosen, into)
    settings = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    shown: Any = "a" if settings.get("modality") == "text" else [[[127] * 3] * 8] * 8
    path = list(sys.path)
    with pointed():
        try:
            # the whole way that a server takes: the served script, its code, the graph
            mlflow.pyfunc.load_model(chosen.uri).predict([shown])
        except Exception as error:  # whatever does not load must not be served
            raise_if_away(error)
            lines = str(error).splitlines() or [type(error).__name__]
            raise RecipeError(f"MODEL: {chosen.told} does not load ({lines[0]})") from None
        finally:
            sys.path[:] = path  # MLflow leaves the model's code folder on it
    return folder


def _version(client: MlflowClient, name: str, number: str) -> Version:
    return Version(name, number, dict(client.get_model_version(name, number).tags))


def _same_version(client: MlflowClient, name: str, identity: Mapping[str, str]) -> str | None:
    for found in client.search_model_versions(f"name = '{name}'"):
        if all(found.tags.get(key) == value for key, value in identity.items()):
            return str(found.version)
    return None


def _without_twins(client: MlflowClient, name: str, identity: Mapping[str, str], made: str) -> str:
    """The version that stays where MLflow's client made one twice, its first answer being lost.

    A version of another run with the same content, made at the same moment, has another `run_id`
    and stays.
    """
    run_id = client.get_model_version(name, made).run_id
    same = [
        str(found.version)
        for found in client.search_model_versions(f"name = '{name}'")
        if found.run_id == run_id
        and all(found.tags.get(key) == value for key, value in identity.items())
    ]
    first, *twins = sorted({made, *same}, key=int)
    for twin in twins:
        client.delete_model_version(name, twin)
    return first


def _log_model(run_id: str, name: str, folder: Path, example: Any, tags: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        # of our code, only what serving imports travels with the model
        for module, path in import_closure("exports.specialist").items():
            target = Path(scratch, *module.split(".")).with_suffix(".py")
            if path.name == "__init__.py":
                target = Path(scratch, *module.split("."), "__init__.py")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # made by hand, because Model.log would put it into the default experiment
        client = steady_client()
        experiment = client.get_run(run_id).info.experiment_id
        of_this_run = f"tags.`winnow.run_id` = '{run_id}'"
        for left in client.search_logged_models([experiment], of_this_run):
            client.delete_logged_model(left.model_id)  # of a try that was broken off
        logged = client.create_logged_model(
            experiment,
            "specialist",
            source_run_id=run_id,
            tags=dict(tags),
        )
        info = Model.log(
            None,
            mlflow.pyfunc,
            name=logged.name,
            model_id=logged.model_id,
            run_id=run_id,
            registered_model_name=name,
            tags=dict(tags),
            python_model=str(ROOT / "exports" / "serving.py"),
            artifacts={"specialist": str(folder)},
            code_paths=[str(path) for path in Path(scratch).iterdir()],
            input_example=example,
            model_config={"provider": "cpu", "threads": 1},
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
        )
    return str(info.registered_model_version)
