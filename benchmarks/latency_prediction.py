"""How well times of single blocks predict the time of a whole shrunk network, on this machine.

    python benchmarks/latency_prediction.py timm:local-dir:DIR hf:package:MODULE/FOLDER ...

For each generalist a latency table is measured, then networks whose branches have random sizes
(groups kept at random, by seed) are exported, timed whole, batch 1, one thread, and compared with
what the table predicts, float32 and int8. INT8 files are on made-up ranges: right in time only.
`smallest ms` is the fastest of the compared networks, `seconds` what measuring the parts took.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generalists", nargs="+", help="as `generalist.source` in a recipe")
    parser.add_argument("--allocations", type=int, default=6, help="random networks a generalist")
    parser.add_argument("--tokens", type=int, default=32, help="length of texts")
    parser.add_argument("--cache", type=Path, help="JSON of times to read and extend")
    parser.add_argument("--each", action="store_true", help="print every network's two times")
    parser.add_argument(
        "--one-point",
        dest="small",
        action="store_false",
        help="correct by the dense network alone, not by the smallest as well",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    import torch

    torch.set_num_threads(1)
    columns = ("generalist", "format", "dense ms", "smallest ms", "median error", "worst error")
    print("| " + " | ".join((*columns, "parts", "seconds")) + " |")
    print("|" + "---|" * (len(columns) + 2), flush=True)
    for source in args.generalists:
        for row in compare(source, args):
            print("| " + " | ".join(row) + " |", flush=True)


def compare(source: str, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return one row a format for one generalist."""
    import torch

    from exports.graph import export_onnx
    from exports.latency_table import measure_variants, table_of, time_files
    from exports.microbench import lower_static
    from exports.runtime import default_activation
    from models.folding import fold_batchnorm
    from models.generalists import load_generalist
    from models.shrinking import shrink
    from models.units import branches, sizes
    from models.variants import block_inputs, variant, variant_key

    formats = ("float32", "int8")
    activation = default_activation()
    bundle = load_generalist(source)
    if bundle.modality == "image":
        example: tuple[torch.Tensor, ...] = (torch.randn(1, 3, *bundle.preprocess["size"]),)
        names: tuple[str, ...] = ("pixel_values",)
        bundle = fold_batchnorm(bundle, example)
    else:
        ids = torch.randint(5, 500, (1, args.tokens))
        example, names = (ids, torch.ones_like(ids)), ("input_ids", "attention_mask")
    begin = time.perf_counter()
    found = branches(bundle.model, example)
    inputs = block_inputs(bundle.model, example)
    keys: dict[str, dict[tuple[int, ...], str]] = {}
    parts = {}
    for branch in found:
        x = inputs[branch.block]
        keys[branch.name] = {
            size: variant_key(branch, size, x.shape[1:]) for size in sizes(branch, branch)
        }
        for size, key in keys[branch.name].items():
            if key not in parts:
                parts[key] = (variant(bundle.model, branch, size), x)
    times = measure_variants(
        parts,
        formats=formats,
        threads=1,
        batch=1,
        repeats=30,
        residual="int8",
        activation=activation,
        cache=args.cache,
    )
    seconds = time.perf_counter() - begin

    rng = random.Random(args.seed)
    allocations = [
        {branch.name: branch.size for branch in found},
        {branch.name: [size for size in keys[branch.name] if any(size)][-1] for branch in found},
    ]
    for number in range(args.allocations):
        lean = 2.0 ** (1 - 2 * number / max(1, args.allocations - 1))  # mostly large ... small
        chosen = {}
        for branch in found:
            offered = list(keys[branch.name])
            chosen[branch.name] = offered[int(len(offered) * rng.random() ** lean)]
        allocations.append(chosen)
    names_of = ("dense", "small", *(str(number) for number in range(args.allocations)))
    chosen_keys = {
        name: [keys[branch][size] for branch, size in chosen.items()]
        for name, chosen in zip(names_of, allocations, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, dict[str, Path]] = {}
        for name, chosen in zip(names_of, allocations, strict=True):
            kept = {
                unit.name: sorted(rng.sample(range(unit.groups), count))
                for branch in found
                for unit, count in zip(branch.units, chosen[branch.name], strict=True)
            }
            files[name] = {fmt: Path(folder) / f"{name}.{fmt}.onnx" for fmt in formats}
            shrunk = shrink(bundle, kept).model
            export_onnx(shrunk, example, files[name]["float32"], input_names=names)
            lower_static(activation, "int8")(files[name]["float32"], files[name]["int8"])
        feed = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
        measured = time_files(files, feed, threads=1, repeats=REPEATS, seed=args.seed)
    known = {
        "generalist": measured["dense"],
        **{name: measured[name] for name in ("dense", "small") if args.small or name == "dense"},
    }
    table = table_of(times, known, chosen_keys, threads=1, batch=1)
    rows = []
    for fmt in formats:
        pairs = {
            name: (table.predict(chosen_keys[name], fmt), measured[name][fmt]) for name in names_of
        }
        if args.each:
            base = f"{fmt}: base {table.base_ms[fmt]:.3f};"
            print(base, *(f"{p:.2f}/{m:.2f}" for p, m in pairs.values()), file=sys.stderr)
        # with --one-point the smallest network is one more that is predicted
        drawn = [pairs[name] for name in names_of if name not in known]
        errors = [abs(predicted / real - 1) for predicted, real in drawn]
        rows.append(
            (
                source.removesuffix("/model").rstrip("/").replace(":", "/").rpartition("/")[2],
                fmt,
                f"{pairs['dense'][1]:.2f}",
                f"{min(real for _, real in drawn):.2f}",
                f"{statistics.median(errors):.1%}",
                f"{max(errors):.1%}",
                str(len(parts)),
                f"{seconds:.0f}",
            )
        )
    return rows


if __name__ == "__main__":
    main()
