"""Stage 8, never cached: the run's record in MLflow, the registry, and the user's folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from exports.card import card_html, card_markdown
from exports.plots import card_pictures
from exports.reference import REFERENCE
from tasks import promotion, registry, tracking
from tasks.artifacts import Artifact, write_atomically
from tasks.champions import SOURCES, remember, sources_read
from tasks.config import Recipe
from tasks.home import page
from tasks.layout import ship
from tasks.outages import worth_another_try
from tasks.runs import note_run
from tasks.splits import load_split
from tasks.stage import Finished


def flow_page() -> tuple[str, str]:
    """The current flow run's id and the address of its page; empty outside a flow."""
    if flow_run.id is None:
        return "", ""
    url = url_for("flow-run", flow_run.id, default_base_url=page("prefect"))
    return str(flow_run.id), url or ""


_parent: ContextVar[str] = ContextVar("winnow_parent_run", default="")


@contextmanager
def nested_in(run_id: str) -> Iterator[None]:
    """MLflow runs that begin inside the block are shown below another one, such as a fleet's."""
    token = _parent.set(run_id)
    try:
        yield
    finally:
        _parent.reset(token)


@contextmanager
def tracked(recipe: Recipe, command: str = "specialize") -> Iterator[str]:
    """An MLflow run that names this flow run; FAILED when anything inside raises."""
    run_id, url = flow_page()
    tags = {"prefect.flow_run_id": run_id, "prefect.flow_run_url": url}
    if url:  # shown as the run's description, which can hold a link; a tag cannot
        tags["mlflow.note.content"] = f"[Its flow run in Prefect]({url})"
    if _parent.get():
        tags["mlflow.parentRunId"] = _parent.get()
    with tracking.tracked(recipe, tags, command) as run:
        yield run


# The store may be busy, or away for a minute, so this is tried again; nothing is logged twice.
@task(
    name="track",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 15, 60],
    retry_condition_fn=worth_another_try,
)
def track(
    recipe: Recipe,
    run_id: str,
    data: Artifact,
    specialist: Artifact,
    verified: Artifact,
    stages: Sequence[Finished],
    out: Path,
    started: float,
    kept: Sequence[int] | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Register the specialist, let it challenge the champion, fill `out`, record everything.

    Args:
        kept: rows of the test set that were judged; None: all.
        sweep: content of sweep.json, where the run is a point of one: the card shows its front.

    Returns:
        The finished report.
    """
    # first of all: without a folder for its results there is to be no version, and no champion
    out.mkdir(parents=True, exist_ok=True)
    report = verified.json_file("report.json")
    example = load_split(data.folder / "support.parquet").inputs[0]
    report["mlflow"] = {"run_id": run_id, "model_uri": None, "alias": None}
    report["seconds"] = {stage.title: stage.artifact.seconds for stage in stages}
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    pictures = card_pictures(report, sweep)
    del report["models"]["pruned"]  # a step on the way: in the picture, not in the contract
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        folder = Path(scratch, "specialist")
        folder.mkdir()
        files = [(path.name, path.read_bytes()) for path in ship(specialist.folder, folder)]
        if recipe.track.register_model:
            for name, content in _card(report, pictures, sweep).items():
                (folder / name).write_bytes(content)
            (folder / promotion.RECIPE).write_text(plain, encoding="utf-8")
            _write_json(folder / promotion.REPORT, report)
            _write_json(folder / "host.json", report["host"])
            _write_json(folder / promotion.TEST, _test_facts(data, report, kept, stages))
            remember(folder, data, recipe, kept).save(folder / REFERENCE)
            registered = _register(recipe, run_id, folder, report, example)
            registry.tag(registered.version, {SOURCES: sources_read(recipe, data)})
            trial = promotion.Trial(recipe, report["task"]["classes"], _judged(data, kept))
            report["champion"] = promotion.promote_if_better(
                registered.version, trial, promotion.card_head(card_markdown(report))
            )
            is_champion = report["champion"]["version"] == registered.version.number
            report["mlflow"] |= {
                "model_uri": registered.version.uri,
                "alias": registry.CHAMPION if is_champion else None,
            }
        else:
            report["champion"] = None
    report["seconds"]["total"] = round(time.time() - started, 3)
    files += [*_card(report, pictures, sweep).items(), ("recipe.yaml", plain.encode())]
    for name, content in files:
        write_atomically(out / name, content)
    # last, so that a report always describes the files that lie beside it
    write_atomically(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    names = [name for name, _ in files] + ["report.json"]
    url = tracking.log_run(run_id, recipe, report, stages, [out / name for name in names])
    note_run(
        "specialize",
        recipe.name,
        [stage.artifact for stage in stages],
        flow_run=flow_page()[0],
        mlflow_run=run_id,
        model=(report["mlflow"]["model_uri"] or "").removeprefix("models:/") or None,
    )
    return {**report, "page": url, "example": example if isinstance(example, str) else None}


def _card(
    report: Mapping[str, Any], pictures: Mapping[str, bytes], sweep: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """The card as Markdown and as one page, and the pictures that the Markdown names."""
    return {
        "card.md": card_markdown(report, sweep).encode(),
        "card.html": card_html(report, pictures, sweep).encode(),
        **{name: content for name, content in pictures.items() if "-dark" not in name},
    }


def _register(
    recipe: Recipe, run_id: str, folder: Path, report: Mapping[str, Any], example: Any
) -> registry.Registered:
    """A version that carries what it was made of: run, recipe, data, host, verdict."""
    task, host = report["task"], report["host"]
    # where it is recorded and what is reused does not change what a recipe makes
    asked = recipe.model_dump(mode="json", exclude={"track", "cache"})
    identity = {
        registry.DIGEST: registry.served_digest(folder),
        registry.VERDICT: report["verdict"]["status"],
        "winnow.recipe_sha256": _digest(asked),
        "winnow.support_sha256": task["support"]["sha256"],
        "winnow.test_sha256": task["test"]["sha256"],
        "winnow.host_sha256": _digest(host),
    }
    tags = {
        "winnow.run_id": run_id,
        "winnow.recipe": recipe.name,
        "winnow.host": f"{host['cpu']}, onnxruntime {host['onnxruntime']}",
        "prefect.flow_run_id": flow_page()[0],
    }
    return registry.register(
        run_id,
        recipe.model_name,
        folder,
        identity=identity,
        tags=tags,
        example=[example],
        description=_summary(report),
        about=promotion.card_head(card_markdown(report)),
    )


def _summary(report: Mapping[str, Any]) -> str:
    """A version in one line, for lists of versions."""
    task, models, drop = report["task"], report["models"], report["accuracy"]
    low, high = drop["drop_ci"]
    return (
        f"{report['verdict']['status']}: {len(task['classes'])} classes, "
        f"accuracy {models['specialist']['accuracy']:.3f} (teacher "
        f"{models['teacher']['accuracy']:.3f}, drop {100 * drop['drop']:.1f} points "
        f"[{100 * low:.1f}, {100 * high:.1f}], {drop['n']} examples), "
        f"{report['speed']['ratio']:.1f}x faster and {report['sparsity']['bytes_ratio']:.1f}x "
        f"smaller than the generalist on {report['host']['cpu']}"
    )


def _test_facts(
    data: Artifact,
    report: Mapping[str, Any],
    kept: Sequence[int] | None,
    stages: Sequence[Finished],
) -> dict[str, Any]:
    """What `winnow promote` and `winnow recheck` need to find the test set and teacher again."""
    teacher = next((x.artifact for x in stages if x.title == "export teacher"), None)
    return {
        "path": f"{data.path}/test.parquet",
        "sha256": data.metrics["test"]["sha256"],
        "classes": report["task"]["classes"],
        "kept": None if kept is None else list(kept),
        "teacher": None if teacher is None else teacher.model_dump(include={"path", "sha256"}),
    }


def _judged(data: Artifact, kept: Sequence[int] | None) -> Any:
    test = load_split(data.folder / "test.parquet")
    return test if kept is None else test.rows(kept)


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _text(path: Path | None) -> str:
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
