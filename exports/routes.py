"""Which form of an INT8 graph runs fastest here: write the candidates, time them, keep one.

All routes carry the same integers and scales.

    static   QDQ form: quantize_qdq as it is; the runtime fuses what it can.
    fused    bias inside each product, tokens before batch, short masks, the class token alone in
             the last layers (exports.fused, masks, tokens_first, first_token). Same numbers to
             the last bit.
    dynamic  as fused, but a Linear's activation range is found at run time.

@TABLE@
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from exports.calibrate import Progress, Rule, needed_tensors, observe, range_of
from exports.forms import Ranges, Route, Stem, stem_of, write_route
from exports.grids import Activation, QuantizationError, WeightGrid
from exports.pick import Candidate, Feed, RouteChoice, in_order, pick_route
from exports.placement import Residual

__all__ = [
    "ACTIVATIONS",
    "ROUTES",
    "Candidate",
    "RouteChoice",
    "best_int8",
    "pick_route",
    "ranges_by_activation",
    "write_route",
]

ROUTES: tuple[Route, ...] = get_args(Route)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def ranges_by_activation(
    fp32: Path,
    feeds: Iterable[Feed],
    *,
    weights: Iterable[str],
    rule: Rule = "minmax",
    percentile: float = 99.99,
    activations: Sequence[Activation] = ACTIVATIONS,
    threads: int = 1,
    progress: Progress | None = None,
    total: int = 0,
) -> dict[Activation, dict[str, tuple[float, float]]]:
    """Calibrate once for every candidate of `best_int8`.

    Args:
        fp32: the float graph.
        feeds: batches by input name; class-balanced, and without padding tokens.
        weights: initializers of the layers to quantize.
        rule: see `calibrate.range_of`.
        percentile: for the rule of that name.
        activations: the types to find ranges for.
        threads: of the calibration session.
        progress: called with (done, total, note) after each batch.
        total: number of batches, for `progress`.

    Returns:
        (low, high) by activation type and tensor.
    """
    every = list(weights)
    stem = stem_of(fp32)
    tensors = needed_tensors(fp32, every)
    tensors += needed_tensors(fp32, [name for name in every if name != stem])
    seen = observe(
        fp32, feeds, list(dict.fromkeys(tensors)), threads=threads, progress=progress, total=total
    )
    return {
        kind: {
            name: range_of(counted, rule, percentile=percentile, symmetric=kind == "int8")
            for name, counted in seen.items()
        }
        for kind in activations
    }


def best_int8(
    fp32: Path,
    out: Path,
    *,
    weights: Mapping[str, WeightGrid],
    ranges: Mapping[Activation, Ranges],
    feed: Feed,
    samples: Sequence[Feed] = (),
    routes: Sequence[Route] = ROUTES,
    activations: Sequence[Activation] = ACTIVATIONS,
    stems: Sequence[Stem] = ("int8", "float"),
    exclude: Iterable[str] = (),
    residual: Residual = "int8",
    slack: float = 0.01,
    widest: float = 2.0,
    threads: int = 1,
    warmup: int = 5,
    repeats: int = 40,
    seed: int = 0,
) -> RouteChoice:
    """Write the fastest INT8 form of a graph on this host.

    Routes and activation types are timed against each other; then the fastest against itself
    with a float first convolution, if the graph begins with one. See `pick_route` for the guard.

    Args:
        fp32: the float graph, whose weights are the grids' values.
        out: the file to write (may be `fp32`); replaced in one step.
        weights: grids, see `quantize_qdq`.
        ranges: (low, high) by activation type and tensor; see `ranges_by_activation`.
        feed: the input to time: one image, or one text of the usual length.
        samples: inputs to compare the candidates with FP32 on; `feed` if none.
        routes: which to try.
        activations: which types to try; those without `ranges` are left out.
        stems: 'int8', 'float' or both: how the first convolution may run.
        exclude: names in `weights` to leave float.
        residual: how residual branches of convolutions are added.
        slack: see `pick_route`, as the arguments after it.
        widest: factor.
        threads: of the sessions.
        warmup: untimed calls.
        repeats: timed rounds.
        seed: of the order within a round.

    Raises:
        QuantizationError: no candidate could be written and run.
    """
    left_out, stem = set(exclude), stem_of(fp32, weights)
    files: dict[Candidate, Path] = {}
    refused: list[Candidate] = []

    def write(item: Candidate) -> bool:
        path = Path(folder) / f"{item.name}.onnx"
        try:
            differs = write_route(
                fp32,
                path,
                route=item.route,
                weights=weights,
                ranges=ranges[item.activation],
                activation=item.activation,
                exclude=left_out | ({stem} if stem and item.stem == "float" else set()),
                residual=residual,
            )
        except QuantizationError as problem:
            refused.append(replace(item, rejected=str(problem)))
            return False
        if item.route != "static" and not differs and len(routes) > 1 and "static" in routes:
            refused.append(replace(item, rejected="nothing to rewrite in this graph"))
            return False
        files[item] = path
        return True

    def pick(items: Iterable[Candidate]) -> RouteChoice:
        return pick_route(
            {item: files[item] for item in items},
            fp32,
            feed,
            samples=samples,
            slack=slack,
            widest=widest,
            threads=threads,
            warmup=warmup,
            repeats=repeats,
            seed=seed,
        )

    first: Stem = "int8" if "int8" in stems or stem is None else "float"
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".routes-") as folder:
        for kind in activations:
            for route in routes if kind in ranges else ():
                write(Candidate(route, kind, first))
        if not files:
            reason = refused[0].rejected if refused else "no activation type has ranges"
            raise QuantizationError(f"no INT8 route works: {reason}")
        choice = pick(list(files))
        best = _unmeasured(choice.chosen)
        other = replace(best, stem="float")
        both = "float" in stems and first == "int8"
        if both and stem is not None and stem not in left_out and write(other):
            again = pick([best, other])
            rest = [row for row in choice.candidates if row.name != best.name]
            choice = replace(again, candidates=in_order([*again.candidates, *rest]))
        os.replace(files[_unmeasured(choice.chosen)], out)
    return replace(choice, candidates=in_order([*choice.candidates, *refused]))


def _unmeasured(item: Candidate) -> Candidate:
    """Return a candidate as it was before anything was known of it."""
    return Candidate(item.route, item.activation, item.stem)
