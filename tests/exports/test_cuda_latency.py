from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from exports.cuda_latency import (
    PROVIDER,
    bind,
    bound_interleaved,
    bound_logits,
    cuda_session,
    cuda_timings,
    resized,
)
from exports.half import convert_half
from exports.runtime import SessionError, run_logits, session

from .conftest import Exported

needs_cuda = pytest.mark.skipif(
    PROVIDER not in ort.get_available_providers(),
    reason="this onnxruntime has no CUDA provider (install onnxruntime-gpu on a machine with one)",
)


def test_a_bound_run_answers_as_a_plain_one(exported) -> None:
    item: Exported = exported("deit")
    opened, feed = session(item.fp32), item.feed(5)
    assert np.array_equal(bound_logits(opened, feed, "cpu"), run_logits(opened, feed))


def test_bound_timings_count_rounds_and_models(exported) -> None:
    item: Exported = exported("deit")
    sessions = {"small": session(item.fp32), "large": session(item.fp32)}
    feeds = {"small": item.feed(1), "large": resized(item.feed(1), 64)}
    timings = bound_interleaved(sessions, feeds, warmup=1, repeats=7, seed=0, device="cpu")
    assert {name: len(times) for name, times in timings.rounds_ms.items()} == {
        "small": 7,
        "large": 7,
    }
    assert timings.median_ms["large"] > 4 * timings.median_ms["small"]  # 64 rows against one


def test_feeds_are_repeated_or_cut(exported) -> None:
    feed = exported("bert").feed(3)
    assert np.array_equal(resized(feed, 2)["input_ids"], feed["input_ids"][:2])
    longer = resized(feed, 7)
    assert longer["attention_mask"].shape == (7, 11)
    assert np.array_equal(longer["input_ids"][3:6], feed["input_ids"])


def test_a_missing_input_is_named(exported) -> None:
    with pytest.raises(SessionError, match="'attention_mask'"):
        bind(session(exported("bert").fp32), {"input_ids": np.ones((1, 4), np.int64)}, "cpu")


def test_without_a_gpu_it_says_so(exported) -> None:
    if PROVIDER in ort.get_available_providers():
        pytest.skip("there is a CUDA provider here")
    with pytest.raises(SessionError, match="'cuda'"):
        cuda_session(exported("deit").fp32)


@needs_cuda
def test_half_on_the_gpu_answers_as_float_on_the_cpu(exported, tmp_path) -> None:
    item: Exported = exported("deit")
    half = tmp_path / "half.onnx"
    convert_half(item.fp32, half)
    feed = item.feed(8)
    exact, got = run_logits(session(item.fp32), feed), bound_logits(cuda_session(half), feed)
    assert np.abs(exact - got).max() < 0.05 * np.abs(exact).max()
    paths = {"float": item.fp32, "half": half}
    feeds = {"float": feed, "half": feed}
    timings = cuda_timings(paths, feeds, batches=(1, 8), warmup=1, repeats=3)
    assert set(timings) == {1, 8} and len(timings[8].rounds_ms["half"]) == 3
