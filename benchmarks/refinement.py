"""What refining the kept weights adds to the column sweep, on real layers.

    python benchmarks/refinement.py --generalist timm:local-dir:DIR --images FILE.parquet LAYER...

Prints the loss 1/2 tr(dW H dW^T) of the sweep with 128 and 32 columns a block, and of the latter
after 5, 10 and 20 steps of conjugate gradients, with seconds; H from 128 images, drawn by seed.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generalist", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("layers", nargs="+")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from compression.hessian import HessianAccumulator, factorise, layer_loss
    from compression.layers import matrix_of
    from compression.masks import Unstructured
    from compression.refine import refine
    from compression.sweep import sweep
    from exports.preprocess import ImagePreprocess
    from models.generalists import load_generalist

    torch.set_num_threads(1)
    bundle = load_generalist(args.generalist)
    cells = pq.read_table(args.images)["image"]
    rows = np.random.default_rng(args.seed).permutation(len(cells))[:128]
    raws = [io.BytesIO(cells[int(row)].as_py()["bytes"]).getvalue() for row in rows]
    x = torch.from_numpy(ImagePreprocess.from_dict(bundle.preprocess)(raws)["pixel_values"])
    seen = {}
    for name in args.layers:
        layer = bundle.model.get_submodule(name)
        seen[name] = HessianAccumulator(layer)  # type: ignore[arg-type]
        layer.register_forward_pre_hook(lambda _, given, name=name: seen[name].add(given[0]))
    with torch.no_grad():
        for part in x.split(32):
            bundle.model(part)

    print("| layer | sparsity | sweep 128 | sweep 32 | + 5 steps | + 10 | + 20 |")
    print("|---|---|---|---|---|---|---|")
    for name, found in seen.items():
        weight = matrix_of(found.layer)
        bias = found.layer.bias
        bias = None if bias is None else bias.detach().reshape(weight.shape[:2])
        full = weight if bias is None else torch.cat([weight, bias[..., None]], -1)
        factor = factorise(found.hessian, rel_damp=0.01, layer=name, samples=found.samples)
        for sparsity in (0.5, 0.75, 0.9):
            cells_out = []
            for block in (128, 32):
                begin = time.perf_counter()
                rule = Unstructured(round(sparsity * weight.numel()))
                swept = sweep(weight, factor, rule, bias=bias, block_columns=block)
                cells_out.append(f"{swept.loss:.4g} ({time.perf_counter() - begin:.2f} s)")
            start, kept = swept.weight, swept.kept
            if swept.bias is not None:
                start = torch.cat([start, swept.bias[..., None]], -1)
                kept = torch.cat([kept, torch.ones_like(kept[..., :1])], -1)
            for steps in (5, 10, 20):
                begin = time.perf_counter()
                solved = refine(start, full, factor.damped, kept, iterations=steps)
                loss = float(layer_loss(solved - full, factor.damped))
                cells_out.append(f"{loss:.4g} ({time.perf_counter() - begin:.2f} s)")
            print(f"| {name} | {sparsity:.0%} | " + " | ".join(cells_out) + " |", flush=True)


if __name__ == "__main__":
    main()
