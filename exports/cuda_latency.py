"""Time graphs on a GPU with inputs and outputs bound there, so that no copy is timed.

What is timed is one `run_with_iobinding` from a caller's view: launch, kernels, and waiting for
the device to finish. Models are interleaved as in `exports.latency`, round by round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from exports.latency import Timings
from exports.runtime import SessionError, session

PROVIDER = "CUDAExecutionProvider"


def cuda_session(path: Path) -> ort.InferenceSession:
    """Open an ONNX file on the GPU.

    Raises:
        SessionError: no CUDA provider, or one whose libraries do not load: ONNX Runtime would
            fall back to the CPU without a word.
    """
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN in pip's nvidia packages
        ort.preload_dlls()
    opened = session(path, provider="cuda")
    if PROVIDER not in opened.get_providers():
        raise SessionError(
            f"provider 'cuda': {PROVIDER} does not start here (driver, CUDA or cuDNN libraries)"
        )
    return opened


def bind(
    opened: ort.InferenceSession, feed: Mapping[str, np.ndarray], device: str = "cuda"
) -> ort.IOBinding:
    """Copy a feed to the device once and bind it; outputs stay on the device too.

    Args:
        opened: a session whose provider runs on `device`.
        feed: input name -> array; only the graph's own inputs are taken.
        device: 'cuda' or 'cpu'.

    Raises:
        SessionError: an input of the graph is not in the feed.
    """
    binding = opened.io_binding()
    for value in opened.get_inputs():
        if value.name not in feed:
            raise SessionError(f"input {value.name!r}: not in the feed")
        held = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed[value.name]), device, 0)
        binding.bind_ortvalue_input(value.name, held)
    for value in opened.get_outputs():
        binding.bind_output(value.name, device)
    return binding


def bound_logits(
    opened: ort.InferenceSession, feed: Mapping[str, np.ndarray], device: str = "cuda"
) -> np.ndarray:
    """Run once through a binding and return the first output, (N, K) float32, on the host."""
    binding = bind(opened, feed, device)
    binding.synchronize_inputs()
    opened.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return np.asarray(binding.copy_outputs_to_cpu()[0])


def bound_interleaved(
    sessions: Mapping[str, ort.InferenceSession],
    feeds: Mapping[str, Mapping[str, np.ndarray]],
    *,
    warmup: int,
    repeats: int,
    seed: int,
    device: str = "cuda",
) -> Timings:
    """Time every session on bound inputs, one call each a round, in shuffled order.

    Args:
        sessions: open sessions by name.
        feeds: one input a session by the session's name.
        warmup: untimed calls of each (the first picks convolution algorithms).
        repeats: timed rounds.
        seed: seed of the order within a round.
        device: 'cuda' or 'cpu'.

    Raises:
        ValueError: no session or no repeats.
    """
    if not sessions or repeats < 1:
        raise ValueError(f"bound_interleaved: {len(sessions)} sessions, {repeats} repeats")
    bindings = {name: bind(opened, feeds[name], device) for name, opened in sessions.items()}
    for name, opened in sessions.items():
        for _ in range(warmup):
            _run(opened, bindings[name])
    order, shuffler = list(sessions), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            _run(sessions[name], bindings[name])
            times[name].append((time.perf_counter() - start) * 1e3)
    return Timings({name: np.asarray(values) for name, values in times.items()}, seed)


def _run(opened: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Run once and wait for the device."""
    opened.run_with_iobinding(binding)
    binding.synchronize_outputs()


def cuda_timings(
    paths: Mapping[str, Path],
    feeds: Mapping[str, Mapping[str, np.ndarray]],
    *,
    batches: Iterable[int] = (1, 32, 256),
    warmup: int = 20,
    repeats: int = 100,
    seed: int = 0,
) -> dict[int, Timings]:
    """Time files on the GPU at several batch sizes.

    Args:
        paths: files by name.
        feeds: one feed a file by the same names; its rows are repeated or cut to each batch.
        batches: batch sizes.
        warmup: untimed calls of each file at each batch size.
        repeats: timed rounds.
        seed: of the order within a round.

    Returns:
        Timings by batch size, in milliseconds a call.

    Raises:
        SessionError: no GPU, or a file does not load.
    """
    sessions = {name: cuda_session(path) for name, path in paths.items()}
    found = {}
    for batch in batches:
        sized = {name: resized(feeds[name], batch) for name in sessions}
        found[batch] = bound_interleaved(sessions, sized, warmup=warmup, repeats=repeats, seed=seed)
    return found


def resized(feed: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """Return a feed of `batch` rows: the first ones, or all of them over and over."""
    return {
        name: np.ascontiguousarray(values[np.arange(batch) % len(values)])
        for name, values in feed.items()
    }
