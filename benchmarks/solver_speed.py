"""The column sweep against llm-compressor's SparseGPT: the same layers, Hessians and zeros.

    python benchmarks/solver_speed.py --peer llmcompressor-0.14.0.1-py3-none-any.whl \\
        --assets DIR [--device cuda] [--threads 2] [--repeats 7] [--out ROWS.jsonl]
    python benchmarks/solver_speed.py --assets DIR --pack layers.safetensors
    python benchmarks/solver_speed.py --peer WHEEL --layers-from layers.safetensors --device cuda

Prints for every layer the loss 1/2 tr(dW H dW^T) and the median time of both with their spread,
the ratio of the times repeat by repeat, and how much of the measured rate of a large matrix
product each reaches, counted as the 2/3 D^3 + R D^2 flops that the algorithm needs. Both start
from a Hessian that is not damped and end with a weight; they alternate within one process. Ours is
given as many zeros as the peer made (its threshold takes one more a block). 'refined' adds the
polish that winnow's `sweep` method ends with, which the peer has nothing like.

The peer is one file of its wheel (`pip download --no-deps llmcompressor`), run as it is; where
transformers or loguru, of which it takes a class and a logger, are not installed, stand-ins are
put in their place. Without it the comparison is with `algorithm_1` below: our own plain reading
of the paper (arXiv 2301.00774), called so in the table.

Layers: four of DeiT-S's seventh block and of MiniLM's fourth, with the inputs of 128 images and
256 sentences; 4096 x 4096 and 4096 x 11008 of a factor model of activations with loud channels.
Without --assets the small ones are drawn from the same model, and are called so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.solver_layers import SHAPES, Case, drawn, real  # noqa: E402
from compression.hessian import damp, factorise, layer_loss  # noqa: E402
from compression.masks import Unstructured  # noqa: E402
from compression.problem import LayerProblem  # noqa: E402
from compression.pruners.sweep import prune  # noqa: E402
from compression.sweep import sweep  # noqa: E402

REL_DAMP, BLOCK = 0.01, 128  # the peer's defaults; the damping is ours too
IN_WHEEL = "llmcompressor/modifiers/pruning/sparsegpt/sgpt_sparsify.py"
Solver = Callable[[Tensor, Tensor], Tensor]  # weight (R, C), Hessian (C, C) to use up -> weight


def load_peer(wheel: Path | None) -> Any:
    """llm-compressor's `sgpt_sparsify` module, from a wheel, a folder or the environment."""
    scratch = tempfile.TemporaryDirectory(prefix="solver-speed-")
    if wheel is not None and wheel.is_file():
        with zipfile.ZipFile(wheel) as content:
            source = Path(content.extract(IN_WHEEL, scratch.name))
    else:
        folder = wheel
        if folder is None:
            spec = importlib.util.find_spec("llmcompressor")
            if spec is None or spec.origin is None:
                return None
            folder = Path(spec.origin).parents[1]
        source = folder / IN_WHEEL
    stand_ins: dict[str, dict[str, Any]] = {
        "transformers": {"Conv1D": type("Conv1D", (nn.Module,), {})},
        "loguru": {"logger": types.SimpleNamespace(warning=print)},
    }
    for name, attributes in stand_ins.items():
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(attributes)
    with scratch:
        found = importlib.util.spec_from_file_location("sgpt_sparsify", source)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return module


def peer_solver(peer: Any, sparsity: float) -> Solver:
    """The peer's function as it is; without the peer, algorithm 1."""
    if peer is None:
        return lambda weight, hessian: algorithm_1(weight, hessian, sparsity)

    def solve(weight: Tensor, hessian: Tensor) -> Tensor:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        found: Tensor = peer.sparsify_weight(
            layer, {layer: hessian}, sparsity, 0, 0, BLOCK, REL_DAMP, False
        )[1]
        return found

    return solve


def algorithm_1(weight: Tensor, hessian: Tensor, sparsity: float) -> Tensor:
    """SparseGPT's algorithm 1 as the paper writes it, with a mask chosen every 128 columns."""
    damped, _ = damp(hessian[None], REL_DAMP)
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped[0])), upper=True)
    W = weight.clone()
    for start in range(0, W.shape[1], BLOCK):
        stop = min(start + BLOCK, W.shape[1])
        errors = torch.zeros_like(W[:, start:stop])
        score = W[:, start:stop].square() / U.diagonal()[start:stop].square()
        edge = score.flatten().sort().values[int(score.numel() * sparsity)]
        for c in range(start, stop):
            q = torch.where(score[:, c - start] < edge, 0.0, W[:, c])
            e = (W[:, c] - q) / U[c, c]
            W[:, c] = q
            W[:, c + 1 : stop] -= torch.outer(e, U[c, c + 1 : stop])
            errors[:, c - start] = e
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return W


def swept(zeros: int) -> Solver:
    """Factorise and sweep."""

    def solve(weight: Tensor, hessian: Tensor) -> Tensor:
        factor = factorise(hessian[None], rel_damp=REL_DAMP, layer="layer", samples=1)
        return sweep(weight[None], factor, Unstructured(zeros)).weight[0]

    return solve


def refined(zeros: int) -> Solver:
    """The whole `sweep` method."""

    def solve(weight: Tensor, hessian: Tensor) -> Tensor:
        problem = LayerProblem("layer", weight[None], None, hessian[None], 1, REL_DAMP)
        return prune(problem, Unstructured(zeros)).weight[0]

    return solve


class Clock:
    """Times calls, the device's work included; or this process's CPU time, on a busy machine."""

    def __init__(self, device: torch.device, *, cpu_time: bool) -> None:
        self.now = time.process_time if cpu_time else time.perf_counter
        self.device = device

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        begin = self.now()
        result = call()
        self._wait()
        return self.now() - begin, result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def product_rate(device: torch.device, clock: Clock) -> float:
    """Flops a second of a large float32 product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    clock(lambda: a @ a)
    return 2 * size**3 / min(clock(lambda: a @ a)[0] for _ in range(5))


@torch.no_grad()
def compare(
    case: Case, peer: Any, sparsity: float, repeats: int, clock: Clock, polish: bool
) -> dict[str, Any]:
    """One layer's row."""
    theirs = peer_solver(peer, sparsity)
    W, H = case.weight, case.hessian
    zeros = int((theirs(W, H.clone()) == 0).sum())  # and a first run, not timed
    solvers = {"peer": theirs, "sweep": swept(zeros)}
    if polish:
        solvers["refined"] = refined(zeros)
    swept(zeros)(W, H.clone())
    damped, _ = damp(H[None], REL_DAMP)
    times: dict[str, list[float]] = {name: [] for name in solvers}
    losses: dict[str, float] = {}
    for at in range(repeats):
        order = list(solvers)
        for name in order[at % len(order) :] + order[: at % len(order)]:
            given = H.clone()
            spent, solved = clock(partial(solvers[name], W, given))
            times[name].append(spent)
            if name not in losses:
                losses[name] = float(layer_loss((solved - W)[None], damped))
                assert name == "peer" or int((solved == 0).sum()) == zeros
    R, D = W.shape
    return {
        "layer": case.name,
        "source": case.source,
        "shape": [R, D],
        "zeros": zeros,
        "flops": 2 / 3 * D**3 + R * D**2,
        "loss": losses,
        "seconds": times,
    }


def line(row: dict[str, Any], rate: float) -> str:
    """A row of the table."""
    R, D = row["shape"]
    cells = [f"{row['layer']} ({row['source']})", f"{R}x{D}"]
    base = row["loss"]["peer"]
    for name in ("peer", "sweep", "refined"):
        if name not in row["seconds"]:
            cells += ["", ""]
            continue
        spent = sorted(row["seconds"][name])
        middle = statistics.median(spent)
        unit, scale = ("s", 1) if middle >= 1 else ("ms", 1000)
        share = "" if name == "refined" else f", {100 * row['flops'] / middle / rate:.2g} %"
        cells.append(f"{row['loss'][name] / base:.3f}")
        least, most = spent[0] * scale, spent[-1] * scale
        cells.append(f"{middle * scale:.3g} {unit} ({least:.3g} to {most:.3g}{share})")
    for name in ("sweep", "refined"):
        if name in row["seconds"]:
            pairs = zip(row["seconds"][name], row["seconds"]["peer"], strict=True)
            ratios = sorted(ours / theirs for ours, theirs in pairs)
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        else:
            cells.append("")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Time every layer and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, help="llm-compressor's wheel, or a folder with it")
    parser.add_argument("--assets", type=Path, help="generalists and data, for real activations")
    parser.add_argument("--pack", type=Path, help="write the real layers to a file, and end")
    parser.add_argument("--layers-from", type=Path, help="a file that --pack wrote")
    parser.add_argument("--only", nargs="*", default=[], help="parts of layer names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is not quiet")
    parser.add_argument("--no-refined", action="store_true", help="leave the polish out")
    parser.add_argument("--out", type=Path, help="append rows as JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    wanted = [name for name in SHAPES if not args.only or any(x in name for x in args.only)]

    small: list[Case] = []
    if args.layers_from is not None:
        from safetensors.torch import load_file

        stored = load_file(args.layers_from)
        names = [key.removesuffix(" weight") for key in stored if key.endswith(" weight")]
        small = [Case(n, stored[f"{n} weight"], stored[f"{n} hessian"], "real") for n in names]
    elif args.assets is not None:
        small = real(args.assets)
    if args.pack is not None:
        from safetensors.torch import save_file

        parts = {f"{case.name} weight": case.weight.contiguous() for case in small}
        save_file(parts | {f"{case.name} hessian": case.hessian for case in small}, args.pack)
        return

    known = [*(case.name for case in small), *SHAPES]
    if args.only and not any(x in name for x in args.only for name in known):
        parser.error(f"--only {' '.join(args.only)} names none of {', '.join(known)}")
    peer = load_peer(args.peer)
    clock = Clock(device, cpu_time=args.cpu_time)
    rate = product_rate(device, clock)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    where = platform.processor() or platform.machine()
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    what = "llm-compressor's SparseGPT" if peer else "algorithm 1 (our reading; no peer found)"
    kind = "CPU time" if args.cpu_time else "wall time"
    print(
        f"Peer: {what}. {where}, {args.threads} thread(s), torch {torch.__version__}, commit "
        f"{commit or 'unknown'}; a float32 product runs at {rate / 1e9:.0f} Gflop/s. Sparsity "
        f"{args.sparsity:.0%}, {args.repeats} repeats, {kind}: median (least to most, share of "
        "that rate). Losses over the peer's.\n"
    )
    print("| layer | shape | peer's loss | peer | sweep's loss | sweep | refined's loss |", end="")
    print(" refined | sweep / peer | refined / peer |")
    print("|---" * 10 + "|")
    by_name = {case.name: case for case in small}
    for seed, name in enumerate(wanted):
        case = by_name.get(name) or drawn(name, seed, device)
        case.weight, case.hessian = case.weight.to(device), case.hessian.to(device)
        row = compare(case, peer, args.sparsity, args.repeats, clock, not args.no_refined)
        print(line(row, rate), flush=True)
        if args.out is not None:
            row |= {"rate": rate, "peer": what, "machine": where, "commit": commit, "clock": kind}
            with args.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps({**row, "threads": args.threads}) + "\n")


if __name__ == "__main__":
    main()
