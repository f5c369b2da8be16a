"""Which form of an INT8 graph runs fastest here: write the candidates, time them, keep one.

All routes carry the same integers and scales.

    static   QDQ form: quantize_qdq as it is; the runtime fuses what it can.
    fused    bias inside each product, tokens before batch, short masks, the class token alone in
             the last layers (exports.fused, masks, tokens_first, first_token). Same numbers to
             the last bit.
    dynamic  as fused, but a Linear's activation range is found at run time.

Measured with ONNX Runtime 1.31 on an EPYC with AVX512-VNNI, one thread, spinning off, batch 1,
interleaved medians in milliseconds, uint8 activations unless it says int8; one model's row is one
process. A busy host was up to 1.4 times slower, with ratios of fused to static of 0.86 to 0.90;
int8 columns: times the uint8 form, from such runs.

                        FP32  static  bias, mask  tokens first  dynamic  int8 static  int8 fused
    MiniLM, 32 tokens   6.21   2.47      2.30         2.21        2.17      x 3.2-4.1    x 11-14
    DeiT-S, 128 px     19.52   7.65      7.26         6.71        6.71      x 1.0        x 11-13
      batch 16, MiniLM        24.09     22.74        22.04
      batch 16, DeiT-S       109.00     97.62        91.52

                        FP32  static  float stem  int8 static
    ResNet-50, 128 px  16.84   6.17      7.81       12.59
    ConvNeXt-nano      12.26   6.78      6.76        9.60
    MobileNetV2         4.98   2.88      2.57        4.49

'bias, mask' and 'tokens first' are the two steps of 'fused'. In DeiT-S the second holds the class
token's: its last layer works on one token of 65. Dynamic ranges are within 2 per cent of fused;
such ties go to the ranges that were calibrated. A float first convolution (three channels suit no
8-bit kernel) is timed against the chosen form. int8 activations meet no kernel of x86's in
MatMulIntegerToFloat; 'dynamic' always makes uint8.

What did not pay, and is not among the candidates:

    onnxruntime.transformers optimizer on the static file   MiniLM 1.00 and DeiT-S 1.28 times static
        (SkipLayerNormalization is slow; it finds no attention in these traces)
    MultiHeadAttention instead of the written-out products  12 attentions 0.81 against 0.71 ms
        (12 heads of 32, 32 tokens, masked), 1.24 against 1.13 ms (6 heads of 64, 65 tokens)
    q, k and v as one product   0.063 us a column at 1536 of them, 0.055 us at 384; and
        one into three: DeiT-S 7.38 -> 7.35 ms, not worth a split weight
    MatMulNBits of 8 bits, uint8 weights   1.8 to 2.0 and 1.5 to 2.0 times MatMulIntegerToFloat
    1x1 convolutions as MatMulIntegerToFloat   198 against 105 us (1024 x 80 by 80 x 320)
    Gelu in 8 bits (QLinearSigmoid, QLinearMul)   ConvNeXt-nano 5.75 -> 5.48 ms, but logits off by
        0.39 instead of 0.07: it is x * sigmoid(1.7 x); no operator looks up 256 free entries
    FastGelu, QuickGelu   as slow as Gelu
    image padded to four channels before an 8-bit stem   MobileNetV2 2.85 -> 2.66 ms, exact, but a
        float stem saves more; ResNet-50 5.29 -> 5.22 ms
    depthwise convolutions left float   ConvNeXt-nano 5.75 -> 5.67 ms, within the noise
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

from exports.calibrate import Progress, Rule, needed_tensors, observe, range_of
from exports.forms import Ranges, Route, Stem, stem_of, write_route
from exports.grids import Activation, QuantizationError, WeightGrid
from exports.pick import Candidate, Feed, RouteChoice, in_order, pick_route
from exports.placement import Residual
from exports.runtime import default_activation

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
    tie: float = 0.02,
    threads: int = 1,
    warmup: int = 5,
    repeats: int = 40,
    seed: int = 0,
    clock: Callable[[], AbstractContextManager[None]] = nullcontext,
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
        tie: share of the time; 'static' is preferred, then 'fused'.
        threads: of the sessions.
        warmup: untimed calls.
        repeats: timed rounds.
        seed: of the order within a round.
        clock: held while files are timed.

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
            tie=tie,
            threads=threads,
            warmup=warmup,
            repeats=repeats,
            seed=seed,
            clock=clock,
        )

    first: Stem = "int8" if "int8" in stems or stem is None else "float"
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".routes-") as folder:
        kinds = [kind for kind in activations if kind in ranges]
        usual = [kind for kind in kinds if kind == default_activation()] or kinds[:1]
        for route in sorted(routes, key=ROUTES.index):
            # a product with ranges of its own has but one type: uint8
            for kind in usual if route == "dynamic" else kinds:
                write(Candidate(route, kind, first))
        if not files:
            reason = refused[0].rejected if refused else "no activation type has ranges"
            raise QuantizationError(f"no INT8 route works: {reason}")
        choice = pick(list(files))
        best = _unmeasured(choice.chosen)
        other = replace(best, stem="float")
        both = "float" in stems and first == "int8"
        if both and stem is not None and stem not in left_out and write(other):
            choice = _joined(choice, pick([best, other]))
        os.replace(files[_unmeasured(choice.chosen)], out)
    return replace(choice, candidates=in_order([*choice.candidates, *refused]))


def _joined(first: RouteChoice, second: RouteChoice) -> RouteChoice:
    """Return the first choice with what the second added, in the first's milliseconds.

    The host may be slower in one race than in the other; the candidate in both tells how much.
    """
    known = {row.name: row for row in first.candidates}
    shared = next(row for row in second.candidates if row.name in known)
    factor = known[shared.name].milliseconds / shared.milliseconds
    new = [
        replace(row, milliseconds=row.milliseconds * factor)
        for row in second.candidates
        if row.name not in known
    ]
    rows = {row.name: row for row in (*first.candidates, *new)}
    return replace(first, chosen=rows[second.chosen.name], candidates=in_order(rows.values()))


def _unmeasured(item: Candidate) -> Candidate:
    """Return a candidate as it was before anything was known of it."""
    return Candidate(item.route, item.activation, item.stem)
