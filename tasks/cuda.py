"""The ledger's rows for a GPU: half precision, and the smaller structure in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exports.cuda_latency import cuda_timings
from exports.half import HalfError, convert_half
from exports.runtime import SessionError, host_profile
from tasks.config import Recipe
from tasks.host_clock import host_clock
from tasks.ledger import WORTH

_BATCHES = (1, 32, 256)
_PROVIDER = "CUDAExecutionProvider"


def cuda_rows(
    recipe: Recipe,
    files: Mapping[str, Path],
    feeds: Mapping[str, Mapping[str, np.ndarray]],
    counts: Mapping[str, Mapping[str, int]],
    scratch: Path,
) -> list[dict[str, Any]]:
    """Time the float graphs as FP16 on the GPU with bound inputs; none where there is no GPU.

    INT8 is slower than FP32 there, so that what a GPU gains is half precision and structure.
    Rows are over the graph that lacks just that: FP32 for FP16, the dense FP16 for structure, and
    the FP16 generalist for both together.
    """
    if _PROVIDER not in host_profile()["providers"]:
        return []
    halves: dict[str, Path] = {"float32": files["teacher"]}
    inputs = {"float32": feeds["teacher"]}
    try:
        for name in ("generalist", "teacher", "pruned"):
            halves[name] = scratch / f"{name}-half.onnx"
            inputs[name] = feeds[name]
            convert_half(files[name], halves[name], feed=feeds[name])
        with host_clock():
            found = cuda_timings(
                halves,
                inputs,
                batches=_BATCHES,
                repeats=recipe.verify.repeats,
                seed=recipe.task.seed,
            )
    except (HalfError, SessionError):  # a provider that is listed may still lack its libraries
        return []
    smaller = counts["teacher"]["prunable"] / max(1, counts["pruned"]["prunable"])
    rows = []
    for batch, timings in found.items():
        for kind, nominal, before, after in (
            ("float16", 2.0, "float32", "teacher"),
            ("structure in float16", smaller, "teacher", "pruned"),
            ("together in float16", smaller, "generalist", "pruned"),
        ):
            if kind.startswith("structure") and smaller == 1:
                continue
            measured, low, _ = timings.ratio(before, after, recipe.verify.confidence)
            rows.append(
                {
                    "kind": kind,
                    "nominal": nominal,
                    "runtime": f"onnxruntime cuda, batch {batch}",
                    "measured_ratio": measured,
                    "pays": bool(low > WORTH),
                    "bytes_ratio": halves[before].stat().st_size / halves[after].stat().st_size,
                }
            )
    return rows
