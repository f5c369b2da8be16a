"""What a specialist gains on a GPU: FP16 and FP32 files of generalist and specialist, on CUDA.

    python benchmarks/gpu_runtime.py --pair NAME GENERALIST.onnx SPECIALIST.onnx [--pair ...]
        [--feeds DIR] [--tokens 16] [--batches 1 32 256] [--out rows.jsonl]

Takes FP32 files and needs onnxruntime-gpu, onnx, numpy and scipy. Each file is converted by
`exports.half`, its logits on the GPU are compared with the FP32 file's on the CPU, and all forms of
a pair are timed in one process, interleaved, inputs and outputs bound on the device. ONNX Runtime
multiplies FP32 in TF32 where the GPU has it, so the FP32 baseline is the fast one.

DIR may hold NAME-generalist.npz and NAME-specialist.npz with arrays by input name; otherwise the
inputs are random (pixels from a normal distribution, ids below the vocabulary), which is enough
for times and logit gaps; agreement then says little.

Prints a Markdown table a pair and one JSON line a row; `--out` keeps the lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exports.cuda_latency import (
    bound_interleaved,
    bound_logits,
    cuda_session,
    resized,
)
from exports.embeddings import embedding_tables
from exports.half import FLOAT_OPERATORS, NORMALISATIONS, convert_half
from exports.runtime import host_profile, run_logits, session

CHECKED = 64  # examples whose logits are compared
PIXELS = 224  # of an image input whose size the file leaves open
Feed = dict[str, np.ndarray]
HALF = {
    "half": FLOAT_OPERATORS,
    "half, norms too": tuple(name for name in FLOAT_OPERATORS if name not in NORMALISATIONS),
}


def random_feed(path: Path, rows: int, tokens: int, seed: int = 0) -> Feed:
    """Inputs of the shapes that a file asks for."""
    random, feed = np.random.default_rng(seed), Feed()
    vocabulary = max((rows for rows, _ in embedding_tables(path).values()), default=2)
    for value in session(path).get_inputs():
        if value.type == "tensor(float)":
            rest = [d if isinstance(d, int) else PIXELS for d in value.shape[1:]]
            feed[value.name] = random.standard_normal((rows, *rest)).astype(np.float32)
        elif "mask" in value.name:
            feed[value.name] = np.ones((rows, tokens), np.int64)
        elif "type" in value.name:
            feed[value.name] = np.zeros((rows, tokens), np.int64)
        else:
            feed[value.name] = random.integers(0, vocabulary, (rows, tokens))
    return feed


def feed_of(args: argparse.Namespace, pair: str, side: str, path: Path) -> Feed:
    """Recorded inputs where there are any, random ones otherwise."""
    stored = None if args.feeds is None else args.feeds / f"{pair}-{side}.npz"
    if stored is not None and stored.is_file():
        with np.load(stored) as arrays:
            return {name: arrays[name][:CHECKED] for name in arrays.files}
    return random_feed(path, CHECKED, args.tokens)


def open_session(path: Path, device: str) -> ort.InferenceSession:
    return cuda_session(path) if device == "cuda" else session(path)


def gap(exact: np.ndarray, got: np.ndarray) -> dict[str, Any]:
    """How far logits on the device are from the CPU's, also against their own spread."""
    same = exact.argmax(axis=1) == got.argmax(axis=1)
    return {
        "finite": bool(np.isfinite(got).all()),
        "max_abs": float(np.abs(exact - got).max()),
        "relative": float(np.abs(exact - got).max() / max(float(np.abs(exact).max()), 1e-12)),
        "agreement": float(same.mean()),
    }


def measure_pair(
    args: argparse.Namespace, pair: str, files: Mapping[str, Path], folder: Path
) -> list[dict[str, Any]]:
    """Rows of one pair: a form of a file at a batch size."""
    sessions: dict[str, ort.InferenceSession] = {}
    feeds: dict[str, Feed] = {}
    facts: dict[str, dict[str, Any]] = {}
    for side, path in files.items():
        feed = feed_of(args, pair, side, path)
        exact = run_logits(session(path, threads=args.threads), feed)
        forms = {"float32": path}
        for form, operators in HALF.items():
            forms[form] = folder / f"{pair}-{side}-{len(forms)}.onnx"
            convert_half(path, forms[form], feed=feed, float_operators=operators)
        for form, file in forms.items():
            name = f"{side} {form}"
            sessions[name], feeds[name] = open_session(file, args.device), feed
            found = gap(exact, bound_logits(sessions[name], feed, args.device))
            facts[name] = {"side": side, "form": form, "bytes": file.stat().st_size, **found}
    rows = []
    for batch in args.batches:
        timings = bound_interleaved(
            sessions,
            {name: resized(feed, batch) for name, feed in feeds.items()},
            warmup=args.warmup,
            repeats=args.repeats,
            seed=0,
            device=args.device,
        )
        for name, fact in facts.items():
            against = {}
            for base in ("generalist float32", "generalist half"):
                ratio, low, high = timings.ratio(base, name)
                against[f"over {base}"] = {"ratio": ratio, "low": low, "high": high}
            row = {"pair": pair, "batch": batch, **fact, "ms": timings.median_ms[name], **against}
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a form and batch size."""
    lines = [
        "| pair | batch | model | form | ms | MB | over FP32 generalist | over FP16 generalist "
        "| logit gap to CPU FP32 | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = (row["over generalist float32"], row["over generalist half"])
        first, second = (f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in ratios)
        gaps = f"{row['max_abs']:.3g} ({row['relative']:.2%})"
        lines.append(
            f"| {row['pair']} | {row['batch']} | {row['side']} | {row['form']} | {row['ms']:.3f} "
            f"| {row['bytes'] / 1e6:.1f} | {first} | {second} "
            f"| {gaps if row['finite'] else 'NOT FINITE'} | {row['agreement']:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--pair",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "GENERALIST", "SPECIALIST"),
    )
    parser.add_argument("--feeds", type=Path, default=None)
    parser.add_argument("--tokens", type=int, default=16, help="text length of random inputs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=4, help="of the CPU that checks logits")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args(arguments)
    print(json.dumps({"host": host_profile(), "device": args.device}), flush=True)
    every: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for pair, generalist, specialist in args.pair:
            files = {"generalist": Path(generalist), "specialist": Path(specialist)}
            rows = measure_pair(args, pair, files, Path(folder))
            every += rows
            print(f"\n{table(rows)}\n", flush=True)
            for row in rows:
                print(json.dumps(row), flush=True)
    if args.out is not None:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in every))
    broken = [row for row in every if not row["finite"]]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
