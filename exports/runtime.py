"""ONNX Runtime sessions set up for honest timing, and what this host is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FLAG_PREFIXES = ("avx", "amx", "sse4", "fma", "vnni", "asimd", "sve", "i8mm", "bf16")


class SessionError(RuntimeError):
    """A graph that ONNX Runtime does not load, or a provider that is not there; one line."""


def session(path: Path | bytes, threads: int = 1, provider: str = "cpu") -> ort.InferenceSession:
    """Open an ONNX file, or the bytes of one, in ONNX Runtime.

    Spinning is off: on shared or virtual cores the default busy waiting between operators
    inflates the FP32 baseline, and with it every ratio, several times over.

    Args:
        path: the ONNX file, or a graph in memory as bytes.
        threads: threads inside one operator; operators run one after the other.
        provider: 'cpu' or 'cuda'.

    Raises:
        SessionError: unknown or missing provider, one whose libraries do not load (ONNX Runtime
            would fall back to the CPU without a word), or a graph that does not load.
    """
    wanted = _PROVIDERS.get(provider)
    if wanted is None:
        raise SessionError(f"provider {provider!r}: expected one of {', '.join(_PROVIDERS)}")
    if wanted not in ort.get_available_providers():
        raise SessionError(
            f"provider {provider!r}: this onnxruntime ({ort.__version__}) has no {wanted}; install "
            "onnxruntime-gpu in its place, or use provider 'cpu'"
        )
    if provider == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in pip's nvidia packages
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    chosen = [wanted] if provider == "cpu" else [wanted, _PROVIDERS["cpu"]]
    try:
        source = path if isinstance(path, bytes) else str(path)
        opened = ort.InferenceSession(source, options, providers=chosen)
    except Exception as problem:  # pybind raises one type per status code
        lines = str(problem).splitlines() or [type(problem).__name__]
        name = "a graph in memory" if isinstance(path, bytes) else path
        raise SessionError(f"{name}: ONNX Runtime does not load it: {lines[0]}") from None
    if wanted not in opened.get_providers():
        raise SessionError(
            f"provider {provider!r}: {wanted} does not start here (driver, CUDA or cuDNN "
            "libraries); mend them, or use provider 'cpu'"
        )
    return opened


def run_logits(
    open_session: ort.InferenceSession,
    feeds: Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]],
) -> np.ndarray:
    """Run one feed or several and return the first output, rows stacked: (N, K) float32."""
    batches = [feeds] if isinstance(feeds, Mapping) else feeds
    name = open_session.get_outputs()[0].name
    rows = [open_session.run([name], dict(batch))[0] for batch in batches]
    if not rows:
        raise ValueError("run_logits: no batch was given")
    return np.concatenate(rows)


def host_profile() -> dict[str, Any]:
    """Return what a timing depends on: processor, its vector extensions, cores, versions."""
    info = _cpu_info()
    flags = sorted(f for f in info["flags"] if f.startswith(_FLAG_PREFIXES) or "vnni" in f)
    return {
        "cpu": info["model"],
        "machine": platform.machine(),
        "flags": flags,
        "vnni": any("vnni" in flag for flag in flags),
        "cores": os.cpu_count() or 1,
        "usable_cores": _usable_cores(),
        "onnxruntime": ort.__version__,
        "providers": list(ort.get_available_providers()),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
    }


def default_activation() -> str:
    """Return the activation type that this host's kernels are fastest with: x86 wants uint8."""
    return "uint8" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "int8"


def _usable_cores() -> int:
    """Return the cores this process may use (a container often has fewer than the host)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_info() -> dict[str, Any]:
    """Return the processor's name and flags; empty where the system does not tell."""
    name, flags = platform.processor() or platform.machine(), []
    source = Path("/proc/cpuinfo")
    if source.is_file():
        for line in source.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = value.split()
                break
    return {"model": name, "flags": flags}
