"""Steps of recovery a second, by model; alone on a device, and with several processes on it.

    python benchmarks/recovery_speed.py --assets DIR [--models NAME...] [--device cuda]
    python benchmarks/recovery_speed.py --assets DIR --processes 1 4 12 [--trained low_rank]

Each generalist is halved by size of weight and distilled from itself on random examples of its own
kind, as a rung of the ladder does: 64 examples a step, half with labels, augmentation, features
compared after every block, weights averaged. The first steps, which compile and capture, are left
out. `--profile` prints where a GPU's time goes instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed_times import MINILM, source_of  # noqa: E402

MODELS = (
    "deit_small-tin200",
    "resnet50-tin200",
    "convnext_nano-tin200",
    "mobilenetv2_100-in1k",
    MINILM,
)
EXAMPLES, CLASSES, WARM = 400, 10, 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="generalists, a folder each")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--device", default=None)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="*", default=[1], help="at once")
    parser.add_argument("--trained", default="full")
    parser.add_argument("--channels-last", action="store_true", help="images as N, H, W, C")
    parser.add_argument("--compile", action="store_true", help="student and teacher by Inductor")
    parser.add_argument("--profile", action="store_true", help="kernels by time, one process")
    parser.add_argument("--out", type=Path, help="append rows as JSON lines")
    return parser.parse_args()


def prepared(name: str, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """`recover`'s arguments for a generalist, but for steps and progress."""
    import torch

    from compression.ladder import frozen_copy
    from compression.losses import UNLABELLED
    from compression.prune import masks_of
    from models.generalists import load_generalist
    from models.heads import features, with_head
    from models.samples import ImageSamples, TextSamples
    from models.structure import prunable_layers, segments
    from tasks import batches

    at = torch.device(args.device) if args.device else batches.device()
    bundle = load_generalist(source_of(name, args.assets))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    labels[EXAMPLES // 2 :] = UNLABELLED
    samples: Any
    if bundle.modality == "image":
        tall, wide = bundle.preprocess["size"]
        pixels = torch.randint(0, 256, (EXAMPLES, 3, tall, wide), generator=generator)
        mean, std = bundle.preprocess["mean"], bundle.preprocess["std"]
        samples = ImageSamples(pixels.to(torch.uint8), labels, mean, std)
    else:
        words = torch.randint(1000, 2000, (EXAMPLES, 24), generator=generator)
        lengths = torch.randint(6, 24, (EXAMPLES,), generator=generator).tolist()
        ids = [[101, *row[:n], 102] for row, n in zip(words.tolist(), lengths, strict=True)]
        samples = TextSamples(ids, labels, 0, 103)
    with torch.no_grad():
        width = features(bundle.model, batches.blank(bundle)).shape[1]
    rows = torch.randn(CLASSES, width, generator=generator) / width**0.5
    bundle = with_head(bundle, [str(label) for label in range(CLASSES)], rows)
    model = bundle.model.to(at).eval()
    teacher = frozen_copy(model)
    example = tuple(part.to(at) for part in batches.blank(bundle))
    parts, layers = segments(model, example), prunable_layers(model, example)
    with torch.no_grad():
        for layer in layers.values():
            weight = layer.weight
            weight.mul_(weight.abs() > weight.abs().flatten()[::7].median())
    mix = batches.mixture(samples, seed=0)
    draw = mix.draw(64, 0.5, at)
    if args.channels_last and bundle.modality == "image":
        for each in (model, teacher):
            each.to(memory_format=torch.channels_last)
        plain = draw

        def draw(generator: torch.Generator) -> Any:
            (x,), labels = plain(generator)
            return (x.contiguous(memory_format=torch.channels_last),), labels

    if args.compile:
        for each in (model, teacher):
            each.compile(dynamic=False)
    return at, {
        "student": model,
        "teacher": teacher,
        "kept": masks_of(model, list(layers)),
        "taps": [part.name for part in parts if part.name not in layers],
        "draw": draw,
        "holdout": mix.holdout(64, at),
        "device": at,
    }


def measured(name: str, args: argparse.Namespace, gate: Any = None, out: Any = None) -> list[float]:
    """Seconds of each timed step; with a gate, begun together with other processes."""
    import torch

    from compression.recovery import RecoverySettings, recover

    torch.set_num_threads(1 if gate is not None else torch.get_num_threads())
    at, given = prepared(name, args)
    seconds: list[float] = []
    last = 0.0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal last
        if done == WARM and gate is not None:
            gate.wait()
        if (done - WARM) % 10 == 0 and done >= WARM:  # ten steps are waited for together
            if at.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if done > WARM:
                seconds.append((now - last) / 10)
            last = now

    settings = RecoverySettings(
        steps=WARM + args.steps,
        lr=1e-5,
        weight_decay=0.01,
        warmup=0.1,
        temperature=2.0,
        ce=0.5,
        kl=1.0,
        square_head=1.0,
        ema_decay=0.99,
        autocast_bf16=at.type == "cuda",
        check_every=25,
        seed=0,
        trained=args.trained,
    )
    recover(**given, settings=settings, progress=progress)
    if out is not None:
        out.put(seconds)
    return seconds


def profiled(name: str, args: argparse.Namespace) -> str:
    """Kernels of a few steps by time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as seen:
        measured(name, args)
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def together(name: str, count: int, args: argparse.Namespace) -> list[float]:
    """Seconds a step of `count` processes on one device."""
    context = mp.get_context("spawn")
    gate, out = context.Barrier(count), context.Queue()
    children = [
        context.Process(target=measured, args=(name, args, gate, out)) for _ in range(count)
    ]
    for child in children:
        child.start()
    found = [seconds for _ in children for seconds in out.get(timeout=300)]
    for child in children:
        child.join()
    return found


def main() -> None:
    args = arguments()
    if args.profile:
        for name in args.models:
            print(f"{name}\n{profiled(name, args)}", flush=True)
        return
    print("| model | processes | ms a step | steps a second, all together |\n|---|---:|---:|---:|")
    for name in args.models:
        for count in args.processes:
            seconds = measured(name, args) if count == 1 else together(name, count, args)
            low, high = 1000 * min(seconds), 1000 * max(seconds)
            middle = median(seconds)
            told = f"{1000 * middle:.1f} ({low:.1f} to {high:.1f})"
            print(f"| {name} | {count} | {told} | {count / middle:.1f} |", flush=True)
            if args.out:
                row = {
                    "model": name,
                    "processes": count,
                    "seconds": seconds,
                    "last": args.channels_last,
                    "compiled": args.compile,
                }
                with args.out.open("a") as stream:
                    stream.write(json.dumps({**row, "trained": args.trained}) + "\n")


if __name__ == "__main__":
    main()
