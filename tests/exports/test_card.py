from __future__ import annotations

import copy
from typing import Any

import pytest
from PIL import Image

from exports.card import card_markdown, model_table
from exports.plots import tradeoff_png
from exports.verdict import wilson

REPORT: dict[str, Any] = {
    "schema": 1,
    "task": {
        "name": "support-intents",
        "modality": "text",
        "classes": [f"intent {index}" for index in range(14)],
        "shots": 16,
        "seed": 0,
        "support": {"n": 224, "sha256": ""},
        "test": {"n": 400, "sha256": ""},
        "leaks": 0,
    },
    "models": {
        "generalist": {
            "parameters": 22_000_000,
            "nonzero": 22_000_000,
            "bytes": 90_000_000,
            "accuracy": None,
            "latency_ms": 4.0,
        },
        "teacher": {
            "parameters": 22_000_000,
            "nonzero": 22_000_000,
            "bytes": 90_000_000,
            "accuracy": 0.965,
            "latency_ms": 4.0,
        },
        "specialist": {
            "parameters": 22_000_000,
            "nonzero": 12_000_000,
            "bytes": 18_000_000,
            "accuracy": 0.96,
            "latency_ms": 1.6,
        },
    },
    "accuracy": {
        "drop": 0.005,
        "drop_ci": [-0.01, 0.02],
        "confidence": 0.95,
        "method": "Tango",
        "n": 400,
    },
    "speed": {
        "runtime": "cpu",
        "batch": 1,
        "threads": 1,
        "ratio": 2.5,
        "ratio_ci": [2.4, 2.6],
        "repeats": 100,
    },
    "sparsity": {
        "nonzero_ratio": 2.0,
        "nonzero_ratio_all": 1.8,
        "bytes_ratio": 5.0,
        "ledger": [
            {
                "kind": "unstructured",
                "nominal": 2.0,
                "runtime": "cpu",
                "measured_ratio": 1.01,
                "pays": False,
            }
        ],
    },
    "interplay": {
        "dense": 0.965,
        "sparse": 0.962,
        "quantized": 0.964,
        "both": 0.96,
        "threshold": 0.961,
        "orthogonal": False,
    },
    "parity": [{"hop": "torch->onnx", "max_abs": 1e-6, "agreement": 1.0, "accuracy": 0.965}],
    "verdict": {"status": "pass", "reasons": ["accuracy drop is small | enough"]},
    "mlflow": {"run_id": "", "model_uri": "", "alias": None},
    "host": {"cpu": "EPYC", "usable_cores": 2, "flags": ["avx2"], "onnxruntime": "1", "os": "L"},
    "seconds": {"total": 1.0},
}


def test_the_card_tells_every_number_of_the_report() -> None:
    card = card_markdown(REPORT)
    low, high = wilson(384, 400)
    for text in (
        "# support-intents",
        "**Pass.**",
        "accuracy drop is small",
        f"0.960 ({low:.3f} to {high:.3f})",
        "does not know these classes",
        "18.0 MB",
        "1.60 ms",
        "2.50x",
        "5.00x",
        "2.50 times faster",
        "| unstructured |  | 2.00x | cpu | 1.01x | no |",
        "cost more than the sum",
        "torch->onnx",
        "specialist.predict",
        "and 2 more",
        "EPYC",
        "tradeoff.png",
    ):
        assert text in card
    assert "None" not in card and "nan" not in card


def test_the_card_lives_without_optional_parts() -> None:
    report = copy.deepcopy(REPORT)
    for key in ("speed", "sparsity", "interplay", "parity", "host"):
        del report[key]
    card = card_markdown(report)
    assert "## Parity" not in card and "## Use it" in card


def test_the_table_has_one_row_a_model() -> None:
    lines = model_table(REPORT).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "generalist",
        "teacher",
        "specialist",
    ]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("full", [True, False])
def test_the_picture_is_a_png_and_reproducible(tmp_path, full: bool) -> None:
    report = copy.deepcopy(REPORT)
    if full:
        report["models"]["pruned"] = dict(report["models"]["teacher"], accuracy=0.962)
        report["models"]["generalist"]["accuracy"] = 0.9
        report["accuracy"]["max_drop"] = 0.03
    for name in ("a.png", "b.png"):
        tradeoff_png(report, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.size[0] > 800
        assert len(set(image.convert("RGB").get_flattened_data())) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
