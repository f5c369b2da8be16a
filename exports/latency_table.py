"""What each size of each part of a network costs on this machine, and what a whole one will cost.

The parts are timed as small graphs (`measure_variants`), the whole dense network once, and a
shrunk network is predicted as the dense one's time less what its parts got cheaper:

    T(sizes) = T(dense) - k * sum over branches of [t(branch, dense) - t(branch, size)]

so that whatever the parts do not hold (stem, head, norms, the cost of a call) is exact; k is one,
or what makes a second whole network, the smallest, exact as well (`table_of`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exports import microbench
from exports.grids import Activation
from exports.latency_cache import LatencyError, TimesStore
from exports.microbench import Bench, Lower
from exports.parts import Part, export_parts, parameter_bytes, rows_of
from exports.placement import Residual
from exports.runtime import host_profile

__all__ = ["LatencyError", "LatencyTable", "measure_variants", "table_of", "time_files"]

FLOAT, INTEGER = "float32", "int8"
SCHEMA = 1
_CHUNK_BYTES = 250_000_000  # FP32 weights traced and open in sessions at once

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LatencyTable:
    """Predicted times of one network, at any sizes of its branches, on one machine.

    Attributes:
        host: `host_profile()` of the machine that was timed.
        threads: threads inside one operator.
        batch: rows a call.
        base_ms: by format ('float32', 'int8'), the whole dense network less its dense branches.
        branch_ms: by variant key, then by format.
        generalist_ms: the FP32 generalist, timed beside the dense network.
    """

    host: dict[str, Any]
    threads: int
    batch: int
    base_ms: dict[str, float]
    branch_ms: dict[str, dict[str, float]]
    generalist_ms: float

    def predict(self, keys: Iterable[str], fmt: str) -> float:
        """Return the time in milliseconds of a network whose branches have these keys.

        Args:
            keys: one variant key a branch; equal branches repeat their key.
            fmt: 'float32' or 'int8'.

        Raises:
            LatencyError: the table has no such format or key.
        """
        if fmt not in self.base_ms:
            known = ", ".join(sorted(self.base_ms))
            raise LatencyError(f"format {fmt!r}: the latency table has {known}; profile it too")
        return self.base_ms[fmt] + _sum_of(self.branch_ms, keys, fmt)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Return the table that `to_dict` gave.

        Raises:
            LatencyError: another schema, or a field that is missing.
        """
        if data.get("schema") != SCHEMA:
            raise LatencyError(
                f"latency table: schema {data.get('schema')!r}, expected {SCHEMA}; profile again"
            )
        try:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})
        except KeyError as missing:
            raise LatencyError(f"latency table: no field {missing}; profile again") from None


def _sum_of(branch_ms: Mapping[str, Mapping[str, float]], keys: Iterable[str], fmt: str) -> float:
    total = 0.0
    for key in keys:
        if fmt not in branch_ms.get(key, {}):
            raise LatencyError(f"variant {key!r}: not in the latency table as {fmt}; profile again")
        total += branch_ms[key][fmt]
    return total


def table_of(
    branch_ms: Mapping[str, Mapping[str, float]],
    whole_ms: Mapping[str, Mapping[str, float]],
    keys: Mapping[str, Sequence[str]],
    *,
    threads: int,
    batch: int,
) -> LatencyTable:
    """Combine the parts' times with those of whole networks.

    Two whole networks, the dense one and a small one, give the base and one factor a format by
    which all parts are scaled, so that both are predicted exactly and what lies between them is
    interpolated. The factor takes up what else would be magnified (a specialist of a fifth of the
    time is what is left of a difference): the host's speed of the minute, caches that a whole
    network finds otherwise filled. With the dense network alone the factor is one.

    Args:
        branch_ms: from `measure_variants`.
        whole_ms: times of 'generalist' (format 'float32'), 'dense' and, better also, 'small' (the
            dense network with its branches at their smallest) by format; of one interleaved run
            (`time_files`).
        keys: of 'dense' and 'small', one variant key a branch, repeats included.
        threads: threads inside one operator, as timed.
        batch: rows a call, as timed.

    Raises:
        LatencyError: a network, a format or a variant was not measured.
    """
    for name in ("generalist", "dense"):
        if name not in whole_ms or (name == "dense" and name not in keys):
            raise LatencyError(f"whole networks: {', '.join(whole_ms) or 'none'}; {name!r} missing")
    base: dict[str, float] = {}
    scaled: dict[str, dict[str, float]] = {key: {} for key in branch_ms}
    for fmt, dense in whole_ms["dense"].items():
        parts, factor = _sum_of(branch_ms, keys["dense"], fmt), 1.0
        if "small" in whole_ms:
            fewer = parts - _sum_of(branch_ms, keys["small"], fmt)
            saved = dense - whole_ms["small"][fmt]
            if fewer <= 0 or saved <= 0:
                raise LatencyError(
                    f"{fmt}: the smallest network is not faster than the dense one "
                    f"({whole_ms['small'][fmt]:.2f} and {dense:.2f} ms); time again on a quiet host"
                )
            factor = saved / fewer
        base[fmt] = dense - factor * parts
        for key, row in branch_ms.items():
            if fmt in row:
                scaled[key][fmt] = factor * row[fmt]
    return LatencyTable(
        host=host_profile(),
        threads=threads,
        batch=batch,
        base_ms=base,
        branch_ms=scaled,
        generalist_ms=whole_ms["generalist"][FLOAT],
    )


def time_files(
    files: Mapping[str, Mapping[str, Path]],
    feed: Mapping[str, np.ndarray],
    *,
    threads: int,
    repeats: int,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Time whole networks together, in shuffled order: {name: {format: milliseconds}}.

    Args:
        files: ONNX files by name, then by format.
        feed: the input that all of them take.
        threads: threads inside one operator.
        repeats: timed rounds.
        seed: seed of the order within a round.
    """
    benches = {
        f"{fmt} {name}": microbench.Bench(path, feed)
        for name, paths in files.items()
        for fmt, path in paths.items()
    }
    times = microbench.time_benches(benches, threads=threads, repeats=repeats, seed=seed)
    return {name: {fmt: times[f"{fmt} {name}"] for fmt in paths} for name, paths in files.items()}


def measure_variants(
    variants: Mapping[str, Part],
    *,
    formats: Sequence[str],
    threads: int,
    batch: int,
    repeats: int,
    residual: Residual,
    activation: Activation,
    lower: Lower | None = None,
    route: str = "static",
    cache: Path | None = None,
    spared: Callable[[float], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Time modules on ONNX Runtime's CPU provider, in the surroundings that they are made for.

    Args:
        variants: by key, a module and its input, (N, ...) float; it returns one tensor of N rows.
            Modules of one call with one shape of input (without N) are taken to stand in one
            chain. Only what the cache lacks is asked for, each key once, so that a mapping may
            make it then.
        formats: 'float32', 'int8' or both.
        threads: threads inside one operator.
        batch: rows a timed call; the inputs are repeated or cut to it.
        repeats: timed rounds; all files of a chunk are interleaved in shuffled order.
        residual: how the INT8 form adds two 8-bit tensors; see `placement`.
        activation: type of the INT8 form's activations.
        lower: writes the INT8 file of an FP32 file; None: static quantize-dequantize form.
        route: name of `lower` in the cache; times of different routes never mix.
        cache: JSON file of times by host; read first, and extended chunk by chunk.
        spared: called once with the seconds that taking the times found there had cost.
        progress: called with (done, total, note).

    Returns:
        By key and format, the time in milliseconds (lower quartile of the rounds, see
        `time_benches`) less that of a graph that only copies its input. Parts between convolutions
        include those, equally at all sizes.

    Raises:
        LatencyError: an unknown format, `lower` without a route of its own, or a broken cache.
        GraphError: a module that cannot be traced or quantized.
    """
    unknown = set(formats) - {FLOAT, INTEGER}
    if unknown or not formats:
        raise LatencyError(f"formats: {', '.join(formats) or 'none'}; expected float32, int8")
    if lower is not None and route == "static":
        raise LatencyError("route 'static': is the built-in lowering; name the one that is given")
    notes = f"batch {batch}, threads {threads}"
    suffix = {FLOAT: notes, INTEGER: f"{notes}, {route} {activation}, residual {residual}"}
    suffix = {fmt: f"{fmt}, {suffix[fmt]}" for fmt in formats}
    store = TimesStore(cache)
    missing = [
        key
        for key in variants
        if any(f"{key} | {suffix[fmt]}" not in store.times for fmt in formats)
    ]
    lower = lower or microbench.lower_static(activation, residual)
    given = set(variants)
    # of this call's parts alone: another network's of the same shape need not be convolutions
    known = (name.partition(" | ") for name, is_so in store.chained.items() if is_so)
    chained = {shape for shape, _, key in known if key in given}
    done = len(variants) - len(missing)
    if spared is not None:
        found = [key for key in variants if key not in set(missing)]
        names = [f"{key} | {suffix[fmt]}" for key in found for fmt in formats]
        spared(sum(store.seconds.get(name, 0.0) for name in names))
    for chunk in _chunks(variants, missing):
        if progress is not None:
            progress(done, len(variants), f"timing {len(chunk)} parts")
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            files = export_parts(chunk, Path(folder))
            for key, (_, example) in chunk.items():
                if microbench.in_conv_chain(files[key]):
                    store.chained[f"{_shape(example)} | {key}"] = True
                    chained.add(_shape(example))
            benches = _prepare(chunk, files, chained, batch, formats, lower)
            times = microbench.time_benches(benches, threads=threads, repeats=repeats)
        each = (time.perf_counter() - started) / (len(chunk) * len(formats))
        for key, (_, example) in chunk.items():
            empty = times[f"bare {_shape(example)}"]
            for fmt in formats:
                copies, name = benches[f"{fmt} {key}"].copies, f"{key} | {suffix[fmt]}"
                store.times[name] = (times[f"{fmt} {key}"] - empty) / copies
                store.seconds[name] = round(each, 4)
        store.save()
        done += len(chunk)
    if progress is not None:
        progress(len(variants), len(variants), "timed")
    return {
        key: {fmt: store.times[f"{key} | {suffix[fmt]}"] for fmt in formats} for key in variants
    }


def _shape(example: Any) -> str:
    """Return the text of an input's shape without its rows."""
    return "x".join(str(size) for size in example.shape[1:])


def _chunks(parts: Mapping[str, Part], keys: Iterable[str]) -> Iterator[dict[str, Part]]:
    """Take the parts, each once, in chunks whose weights are bounded.

    All of a chunk are timed in one interleaved run, so that a slower minute of the host meets all
    sizes of a branch alike.
    """
    chunk: dict[str, Part] = {}
    weight = 0
    for key in keys:
        part = parts[key]
        more = parameter_bytes(part[0])
        if chunk and weight + more > _CHUNK_BYTES:
            yield chunk
            chunk, weight = {}, 0
        chunk[key] = part
        weight += more
    if chunk:
        yield chunk


def _prepare(
    chunk: Mapping[str, Part],
    files: Mapping[str, Path],
    chained: Collection[str],
    batch: int,
    formats: Sequence[str],
    lower: Lower,
) -> dict[str, Bench]:
    """Write every file that a chunk's timing opens; by 'format key' and 'bare shape'.

    Args:
        chunk: the parts.
        files: their FP32 files, as `export_parts` wrote them.
        chained: shapes of input whose parts stand between convolutions. A branch that is gone shows
            none itself: its neighbours of equal input tell for it.
        batch: rows a timed call.
        formats: to write.
        lower: writes the INT8 form.
    """
    benches: dict[str, Bench] = {}
    for key, (_, example) in chunk.items():
        path, shape = files[key], _shape(example)
        rows = rows_of(example, batch).numpy()
        bench = microbench.prepared(path, rows, chained=shape in chained)
        if f"bare {shape}" not in benches:
            empty = path.parent / f"bare{len(benches)}.onnx"
            benches[f"bare {shape}"] = microbench.bare(bench, empty)
        if FLOAT in formats:
            benches[f"{FLOAT} {key}"] = bench
        if INTEGER in formats:
            integer = path.with_suffix(".int8.onnx")
            lower(bench.path, integer)
            benches[f"{INTEGER} {key}"] = replace(bench, path=integer)
    return benches
