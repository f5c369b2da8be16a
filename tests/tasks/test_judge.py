"""What a verdict tells beside its status."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exports.parity import hop, judged
from tasks.config import Recipe
from tasks.judge import _verdict

RECIPE = Recipe.model_validate(
    {
        "name": "n",
        "generalist": {"source": "hf:x"},
        "task": {"train": "a", "test": "b"},
        "verify": {"max_drop": 0.02},
    }
)


@pytest.mark.parametrize(("off", "status"), [(0.0, "inconclusive"), (1.0, "fail")])
def test_more_examples_are_not_asked_for_where_the_export_is_wrong(off: float, status: str) -> None:
    logits = np.eye(2)[[0, 1] * 50]
    row = hop("torch->onnx", logits, logits + off, np.array([0, 1] * 50))
    report: dict[str, Any] = {
        "accuracy": {"drop_ci": [-0.005, 0.03], "n": 600, "mcnemar": {"lost": 12, "gained": 5}},
        "parity": [judged(row, {"max_abs": 1e-2})],
        "speed": {"spread": {"a": 1.0}, "ratio": 1.0},
        "models": {"specialist": {"latency_ms": 1, "bytes": 1}},
        "sparsity": {"nonzero_ratio": 1},
    }
    found = _verdict(RECIPE, report)
    assert found["status"] == status
    assert (found["needed"] is None) == (status == "fail")
