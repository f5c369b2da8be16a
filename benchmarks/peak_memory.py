"""Peak memory of structured compression beyond the model itself, over depths and real models.

    python benchmarks/peak_memory.py [SOURCE...]

Each case runs in a process of its own: levels of all branches at all sizes (the database), then
the removal at half size, from 128 random images in batches of 32. Printed: the model's own size,
and how far the process grew, at its peak, beyond what it held with the model loaded and run once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPTHS = (12, 24, 48)
MEGABYTE = 1 << 20


def _status(field: str) -> float:
    """A field of Linux's /proc/self/status, in megabytes: VmRSS now, VmHWM the largest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux")


def one(case: str) -> dict[str, float]:
    """Measure one model: `depth:N` for a ViT-S of N blocks with random weights, else a source."""
    sys.path.insert(0, str(ROOT))
    import torch

    from compression.levels import build_levels
    from compression.shrink import remove_structure
    from models.folding import fold_batchnorm
    from models.generalists import load_generalist
    from models.structure import segments
    from models.units import branches, sizes

    torch.manual_seed(0)
    torch.set_num_threads(1)
    if case.startswith("depth:"):
        import timm

        depth = int(case.removeprefix("depth:"))
        model = timm.create_model(
            "vit_small_patch16_224", img_size=128, depth=depth, num_classes=10
        ).eval()
        pixels = 128
    else:
        bundle = load_generalist(case)
        pixels = bundle.preprocess["size"][0]
        model = fold_batchnorm(bundle, (torch.zeros(2, 3, pixels, pixels),)).model
        del bundle
    example = (torch.zeros(2, 3, pixels, pixels),)
    batches = [(torch.randn(32, 3, pixels, pixels),) for _ in range(4)]
    with torch.no_grad():
        model(*batches[0])
    found = branches(model, example)
    levels = {branch.name: sizes(branch, branch) for branch in found}
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / MEGABYTE
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that making the model left
    before, started = _status("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        build_levels(
            model,
            segments(model, example),
            lambda: iter(batches),
            found,
            levels,
            Path(folder),
            rows_per_column=8.0,
        )
        stored = sum(file.stat().st_size for file in Path(folder).iterdir()) / MEGABYTE
    half = {branch.name: tuple(max(1, n // 2) for n in branch.size) for branch in found}
    remove_structure(
        model,
        segments(model, example),
        lambda: iter(batches),
        found,
        half,
        rows_per_column=8.0,
    )
    return {
        "model_mb": size,
        "beyond_mb": _status("VmHWM") - before,
        "on_disk_mb": stored,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("sources", nargs="*", help="such as timm:local-dir:DIR")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    print("| model | weights (MB) | peak beyond (MB) | levels on disk (MB) | seconds |")
    print("|---|---|---|---|---|")
    for case in (*(f"depth:{depth}" for depth in DEPTHS), *args.sources):
        command = [sys.executable, __file__, "--one", case]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(printed.splitlines()[-1])
        name = f"ViT-S, {case[6:]} blocks, random" if case.startswith("depth:") else case
        cells = [f"{found[key]:.0f}" for key in ("model_mb", "beyond_mb", "on_disk_mb", "seconds")]
        print(f"| {name.rpartition('/')[2]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
