from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.parity
from benchmarks.parity_faults import FAULTS, FORMS, Fault, edit, has, named, outcomes
from benchmarks.small_runs import Run, build
from exports.forms import Route
from exports.onnxfile import layers, load_model
from exports.parity import first_broken
from exports.runtime import host_profile, session
from exports.specialist import Specialist
from tasks.layout import GRAPH

HOPS = [
    "preprocess", "torch->onnx", "onnx->pruned", "preprocess specialist", "torch->onnx specialist",
    "pruned->int8", "int8->served", "batches",
]  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Route], Run]:
    folder, made = tmp_path_factory.mktemp("runs"), dict[tuple[str, str], Run]()

    def get(family: str, route: Route) -> Run:
        if (family, route) not in made:
            made[family, route] = build(folder / f"{family}-{route}", family, route)
        return made[family, route]

    return get


@pytest.mark.parametrize(("family", "route"), [("resnet", "static"), ("bert", "dynamic")])
def test_a_healthy_run_breaks_nowhere(healthy, family: str, route: Route) -> None:
    rows = healthy(family, route).chain()
    assert [row["hop"] for row in rows if row["hop"] not in ("threads", "cpu->cuda")] == HOPS
    assert ("threads" in [row["hop"] for row in rows]) == (host_profile()["usable_cores"] > 1)
    assert first_broken(rows) is None
    assert not any(row["broken"] or row["node"] or row["why"] for row in rows)
    assert {row["kind"] for row in rows} == {"conversion", "compression"}
    by_hop = {row["hop"]: row for row in rows}
    assert by_hop["torch->onnx"]["max_abs"] < 1e-4
    assert by_hop["int8->served"]["max_abs"] == 0
    assert by_hop["pruned->int8"]["max_abs"] > 1e-3  # or nothing was rounded
    assert by_hop["preprocess"]["accuracy"] is None
    json.dumps(rows, allow_nan=False)


def fault(what: str) -> Fault:
    return next(fault for fault in FAULTS if fault.what == what)


@pytest.mark.parametrize(
    ("family", "route", "what"),
    [
        ("resnet", "static", "teacher: other mean"),
        ("bert", "dynamic", "teacher: two words swapped"),
        ("resnet", "static", "teacher: weight transposed"),
        ("bert", "dynamic", "teacher: first weight transposed"),
        ("resnet", "static", "specialist: labels swapped"),
        ("resnet", "static", "pruned: weight transposed"),
        ("resnet", "static", "int8: one row's scale doubled"),
        ("resnet", "static", "int8: zero point lost"),
        ("bert", "dynamic", "int8: one row's scale doubled"),
        ("bert", "dynamic", "int8: attention's scale tripled"),
        ("resnet", "static", "served: other mean"),
        ("bert", "dynamic", "served: labels swapped"),
        ("bert", "dynamic", "served: other graph"),
    ],
)
def test_a_planted_fault_is_named(healthy, tmp_path: Path, family, route, what: str) -> None:
    planted = fault(what)
    assert has(planted, family, route)
    run = healthy(family, route).copy(tmp_path / "run")
    expected = planted.plant(run)
    rows = run.chain()
    found, node = named(rows)
    assert found == planted.hop
    assert expected in node
    reason = first_broken(rows)
    assert reason is not None and reason.startswith(f"parity {planted.hop}: ")
    assert expected in reason and "\n" not in reason
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_every_planted_fault_is_named_in_every_form(tmp_path: Path) -> None:
    rows = list(outcomes(tmp_path))
    assert len(rows) > 100
    assert len({form for form, *_ in rows}) == len(FORMS)
    assert [row for row in rows if not row[-1]] == []


def test_a_fault_that_hides_behind_rounding_is_named_by_its_node(healthy, tmp_path: Path) -> None:
    """One wrong scale leaves the labels as they were: only the node tells."""
    run = healthy("bert", "dynamic").copy(tmp_path / "run")
    fault("int8: one row's scale doubled").plant(run)
    row = next(row for row in run.chain() if row["hop"] == "pruned->int8")
    assert row["agreement"] >= 0.8  # the bound of the labels holds
    assert row["broken"]
    assert row["node"]["error"] == pytest.approx(1, abs=0.05)  # twice the scale is 100 % off
    assert row["node"]["error_before"] == 0


def test_a_missing_file_is_a_broken_hop_and_no_crash(healthy, tmp_path: Path) -> None:
    run = healthy("bert", "dynamic").copy(tmp_path / "run")
    (run.root / "served" / "tokenizer.json").unlink()
    row = next(row for row in run.chain() if row["broken"])
    assert row["hop"] == "int8->served" and row["max_abs"] is None
    assert "tokenizer.json" in row["why"]
    assert row["node"]["name"] == "tokenizer.json"


def test_threads_that_change_answers_are_named(healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = healthy("resnet", "static")
    load = Specialist.load

    def faulty(directory: Path, threads: int = 1, provider: str = "cpu") -> Specialist:
        found = load(directory, threads, provider)
        if threads == 1:
            monkeypatch.setattr(Specialist, "logits", lambda *_: np.zeros((24, 4), np.float32))
        return found

    monkeypatch.setattr(tasks.parity, "host_profile", lambda: {"usable_cores": 2, "providers": []})
    monkeypatch.setattr(tasks.parity.Specialist, "load", faulty)
    rows = run.chain()
    assert [row["hop"] for row in rows if row["broken"]] == ["threads"]


def test_the_hop_to_a_gpu_is_named_with_its_node(
    healthy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half file is run on the CPU in the GPU's place: what is tested is who is blamed."""
    provider = "CUDAExecutionProvider"
    monkeypatch.setattr(
        tasks.parity, "host_profile", lambda: {"usable_cores": 1, "providers": [provider]}
    )
    monkeypatch.setattr(
        tasks.parity, "session", lambda path, threads, _: session(path, threads, "cpu")
    )
    looked = tasks.parity.first_departure

    def on_cpu(*args: Any, **how: Any) -> Any:
        return looked(*args, **{**how, "provider": "cpu"})

    monkeypatch.setattr(tasks.parity, "first_departure", on_cpu)
    run = healthy("resnet", "static").copy(tmp_path / "run")
    row = run.chain()[-1]
    assert (row["hop"], row["runtime"], row["broken"]) == ("cpu->cuda", "cuda", False)
    assert 0 < row["max_abs"] < 0.1  # half numbers
    convert = tasks.parity.convert_half

    def damaged(fp32: Path, out: Path, **how: Any) -> Any:
        made = convert(fp32, out, **how)
        weight = layers(load_model(out))[3].weight
        edit(out, weight, lambda values: -values)
        return made

    monkeypatch.setattr(tasks.parity, "convert_half", damaged)
    row = run.chain()[-1]
    graph = load_model(run.root / "pruned" / GRAPH)
    assert row["broken"] and row["hop"] == "cpu->cuda"
    assert row["node"]["tensor"].removesuffix("_half") == layers(graph)[3].node.output[0]
