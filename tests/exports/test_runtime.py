from __future__ import annotations

import numpy as np
import pytest

from exports.latency import Timings, interleaved
from exports.runtime import SessionError, host_profile, run_logits, session

from .conftest import images


def test_sessions_do_not_spin(exported) -> None:
    options = session(exported("resnet").fp32, threads=2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2 and options.inter_op_num_threads == 1


def test_run_logits_stacks_batches(exported) -> None:
    open_session = session(exported("resnet").fp32)
    feeds = [images(2, 0), images(3, 1)]
    stacked = run_logits(open_session, feeds)
    assert stacked.shape == (5, 5)
    np.testing.assert_allclose(stacked[:2], run_logits(open_session, feeds[0]), atol=1e-6)
    with pytest.raises(ValueError, match="no batch"):
        run_logits(open_session, [])


def test_bad_sessions_are_one_line(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a graph")
    for path, provider, match in (
        (tmp_path / "m.onnx", "cpu", "does not load"),
        (tmp_path / "gone.onnx", "cpu", "does not load"),
        (tmp_path / "m.onnx", "abacus", "expected one of"),
    ):
        with pytest.raises(SessionError, match=match) as caught:
            session(path, provider=provider)
        assert "\n" not in str(caught.value)


def test_host_profile_says_what_a_timing_depends_on() -> None:
    profile = host_profile()
    assert profile["cpu"] and profile["onnxruntime"] and profile["cores"] >= 1
    assert 1 <= profile["usable_cores"] <= profile["cores"]
    assert isinstance(profile["vnni"], bool) and isinstance(profile["flags"], list)


class FakeSession:
    """Counts its calls and remembers the order of all."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def run(self, outputs: None, feed: dict) -> list:
        self.calls.append(self.name)
        return []


def test_rounds_are_interleaved_shuffled_and_seeded() -> None:
    orders = []
    for seed in (0, 0, 1):
        calls: list[str] = []
        fakes = {name: FakeSession(name, calls) for name in "abc"}
        timings = interleaved(fakes, {"x": np.zeros(1)}, warmup=2, repeats=20, seed=seed)
        assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
        rounds = [calls[start : start + 3] for start in range(6, 66, 3)]
        assert len(rounds) == 20 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
        assert len({tuple(r) for r in rounds}) > 2
        assert all(len(times) == 20 for times in timings.rounds_ms.values())
        orders.append(calls)
    assert orders[0] == orders[1] != orders[2]


def test_ratio_of_medians_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    host = 1 + rng.exponential(0.3, 200)  # disturbances that meet both models of a round
    slow = 6.0 * host * rng.normal(1, 0.01, 200)
    fast = 2.0 * host * rng.normal(1, 0.01, 200)
    timings = Timings({"slow": slow, "fast": fast})
    ratio, low, high = timings.ratio("slow", "fast")
    assert timings.median_ms["slow"] == pytest.approx(np.median(slow))
    assert low <= ratio <= high and low > 2.9 and high < 3.1
    assert timings.ratio("slow", "fast") == (ratio, low, high)  # seeded
    wide = timings.ratio("slow", "fast", confidence=0.99)
    assert wide[1] <= low and high <= wide[2]
    assert Timings({"a": np.ones(5), "b": np.ones(5)}).ratio("a", "b") == (1, 1, 1)


def test_real_sessions_take_time(exported) -> None:
    path = exported("resnet").fp32
    both = {"one": session(path), "two": session(path)}
    timings = interleaved(both, images(1), warmup=1, repeats=5, seed=0)
    assert all(value > 0 for value in timings.median_ms.values())
    with pytest.raises(ValueError, match="0 repeats"):
        interleaved(both, images(1), warmup=0, repeats=0, seed=0)
