"""Bad recipes and data files, generated from good ones: what `bad_input.py` runs.

A case is a folder of files and a command line. Each is drawn from a random stream of its own, so
that case 4711 is the same whatever ran before it. `stayed_valid` tells a case whose damage turned
out to be none: every command meets a fence (an output that is a file, a model that is absent, a
layer that is not there) behind what is damaged, and complains of the fence alone.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import yaml
from bad_bytes import BYTES
from bad_recipes import bad_recipe, good_recipe
from bad_tables import FORMS, broken_image, broken_table, image_folder, picture, rows, write_data

FENCES = ("--out: fence is a file", "generalist 'hf:./absent'", "'absent-layer'")

# {"w": 1} as protocol 4 writes it
_PICKLE = b"\x80\x04\x95\n\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01w\x94K\x01s."


@dataclass
class Case:
    """One command line over a folder of files; paths are relative to the folder."""

    kind: str
    damage: str
    arguments: list[str] = field(default_factory=list)

    def stayed_valid(self, code: int, line: str) -> bool:
        """Whether nothing was wrong with the input after all."""
        return code == 0 or any(fence in line for fence in FENCES)


@dataclass(frozen=True)
class Goods:
    """Good things to damage: a generalist's folder and two specialists' folders."""

    generalist: Path
    text_model: Path
    image_model: Path


def recipe_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """A recipe, or a change of one by --set, that cannot be used."""
    command, damage, arguments = bad_recipe(r, folder)
    return Case(f"recipe ({command})", damage, arguments)


def _specialize(folder: Path, plain: dict[str, Any]) -> list[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return ["specialize", "recipe.yaml", "--out", "out"]


def data_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """A good recipe whose data cannot be used."""
    write_data(folder)
    plain = good_recipe()
    where = r.choice(["train", "test", "test", "unlabelled", "outside"])
    section = plain.setdefault("limits", {}) if where == "outside" else plain["task"]
    how = r.choice(["table", "table", "table", "folder", "folder", "named", "name"])
    if how == "table":
        suffix, damage, raw = broken_table(r, rows(8, 3))
        (folder / f"broken{suffix}").write_bytes(raw)
        section[where] = f"broken{suffix}"
    elif how == "folder":
        damage = image_folder(r, folder / "images")
        for k in range(12):
            place = folder / "good" / "ab"[k % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{k}.png").write_bytes(picture(value=5 * k + 1))
        plain["task"] |= {"train": "good", "test": "good", "shots": 2}
        plain["leaks"] = {"exact": "drop"}
        section[where] = "images"
    elif how == "named":  # an image file that a table names
        damage, raw = broken_image(r)
        (folder / "x.png").write_bytes(raw)
        names = [
            {"image": "x.png" if k == 3 else f"{k}.png", "label": "ab"[k % 2]} for k in range(8)
        ]
        for k in range(8):
            (folder / f"{k}.png").write_bytes(picture(value=20 * k))
        suffix = r.choice([".csv", ".jsonl", ".parquet"])
        (folder / f"named{suffix}").write_bytes(FORMS[suffix](names))
        plain["task"] |= {"train": f"named{suffix}", "test": f"named{suffix}", "shots": 2}
    else:
        damage = "a name that is none"
        section[where] = r.choice([
            "gone.csv", "./gone", "~/gone", "/dev/null", "/dev/zero", "gone/deep/er",
            "no one/at all", "csv", "pandas", "imagefolder", "parquet", "http://127.0.0.1:9/x.csv", "s3://bucket/x.csv",
            "x" * 300, "x/" * 2000, "zip://x.csv::a.zip", "recipe.yaml", "a@b:c", "@", ":", "💥",
            "postgresql://user:hunter2@host/db", "someone/something", "sklearn:digit", ".", "..",
        ])  # fmt: skip
    return Case("data (specialize)", damage, _specialize(folder, plain))


def task_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """A recipe that is well-formed and does not fit its data."""
    write_data(folder)
    plain = good_recipe()
    changes: list[dict[str, Any]] = [
        {"classes": ["card", "boat"]}, {"classes": ["card"]}, {"classes": ["card", "card"]},
        {"shots": r.randrange(7, 10**8)}, {"label_column": r.choice(["text", "x", "", "intent "])},
        {"text_column": r.choice(["intent", "x", "", "Text"])}, {"image_column": "text"},
        {"text_column": "text", "image_column": "text"}, {"test": "train.jsonl"},
        {"train": "sklearn:digits"}, {"test": "sklearn:digits"}, {"unlabelled": "sklearn:digits"},
    ]  # fmt: skip
    change = r.choice(changes)
    plain["task"] |= change
    if r.random() < 0.3:
        source = r.choice(["keras:x", "timm:resnet19", "hf:", ":", "timm:", "hf:package:os/..",
                           "hf:package:no_such/x", "timm:local-dir:", "timm:hf-hub:a/b", "x" * 2000,
                           "hf:../../../etc", "hf:a/b", "timm:local-dir:.", "hf:.", "timm:../x"])  # fmt: skip # noqa: E501
        plain["generalist"]["source"] = source
        return Case("generalist's name", "not there", _specialize(folder, plain))
    return Case("task", ", ".join(change), _specialize(folder, plain))


def checkpoint_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """A generalist's folder with a damaged file."""
    write_data(folder)
    plain = good_recipe()
    plain["generalist"]["source"] = "hf:./model"
    plain["prune"] = {"keep_dense": ["absent-layer"]}
    model = folder / "model"
    shutil.copytree(goods.generalist, model)
    name = r.choice(
        [
            "config.json",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    path = model / name
    how = r.choice(["bytes", "bytes", "gone", "value", "pickle"])
    if how == "gone":
        path.unlink()
    elif how == "pickle":
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(_PICKLE)
    elif how == "value" and name.endswith("json"):
        stored = json.loads(path.read_text())
        stored[r.choice([*stored])] = r.choice([None, -1, 0, "x", [], {}, 1e9, True])
        path.write_text(json.dumps(stored))
    else:
        how = f"bytes: {(damage := r.choice([*BYTES]))}"
        path.write_bytes(BYTES[damage](r, path.read_bytes()))
    return Case("checkpoint", f"{name}, {how}", _specialize(folder, plain))


def predict_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """`winnow predict` of a file that cannot be read, or to one that cannot be written."""
    model = str(goods.text_model)
    how = r.choice(["table", "table", "image", "image", "folder", "option", "text"])
    options: list[str] = []
    arguments = ["x"]
    if how == "table":
        suffix, damage, raw = broken_table(r, rows(8, 3))
        (folder / f"broken{suffix}").write_bytes(raw)
        arguments = [f"broken{suffix}"]
        if r.random() < 0.7:
            options = ["--out", r.choice(["answers.csv", "answers.jsonl"])]
    elif how == "image":
        model = str(goods.image_model)
        damage, raw = broken_image(r)
        (folder / "x.png").write_bytes(raw)
        arguments = ["x.png"]
    elif how == "folder":
        model = str(goods.image_model)
        damage = image_folder(r, folder / "images")
        arguments = ["images"]
    elif how == "option":
        damage = "an option"
        (folder / "good.jsonl").write_bytes(FORMS[".jsonl"](rows(4, 1)))
        arguments = ["good.jsonl"]
        options = r.choice([
            ["--column", "x"], ["--column", ""], ["--out", "answers.txt"], ["--out", "."],
            ["--out", "gone/answers.csv"], ["--batch-size", "0"], ["--batch-size", "-5"],
            ["--threads", "0"], ["--threads", "-1"], ["--provider", "tpu"], ["--provider", ""],
            ["--out", "x" * 300 + ".csv"], ["--out", ""],
        ])  # fmt: skip
    else:
        damage = "a text"
        arguments = [r.choice(["", " ", "\n", "x" * 1_100_000, "gone.csv", "gone.parquet"])]
    return Case("data (predict)", damage, ["predict", model, *arguments, *options])


def model_case(r: random.Random, folder: Path, goods: Goods) -> Case:
    """A specialist's folder with a damaged file, or a report or a sweep that is none."""
    good = r.choice([goods.text_model, goods.image_model])
    shutil.copytree(good, folder / "model")
    kind = r.choice(["model", "model", "model", "report", "from-sweep"])
    if kind != "model":
        name = "report.json" if kind == "report" else "sweep.json"
        stored: Any = {"schema": 1, "task": {"name": "x"}, "points": [{"point": "a"}],
                       "picked": "a", "picked_why": "",
                       "verdict": {"status": "pass", "reasons": []}}  # fmt: skip
        raw = json.dumps(stored).encode()
        how = r.choice(["bytes", "value"])
        if how == "value":
            stored[r.choice([*stored])] = r.choice([None, [], {}, 3, "x", [{}], {"a": 1}])
            raw = json.dumps(stored).encode()
        else:
            how = f"bytes: {(damage := r.choice([*BYTES]))}"
            raw = BYTES[damage](r, raw)
        (folder / name).write_bytes(raw)
        arguments = (
            ["report", "."]
            if kind == "report"
            else ["specialize", "--from-sweep", ".", "--out", "out"]
        )
        return Case(f"result ({kind})", how, arguments)
    names = [path.name for path in sorted((folder / "model").iterdir())]
    path = folder / "model" / r.choice(names)
    how = r.choice(["bytes", "bytes", "gone", "value", "outside"])
    if how == "gone":
        path.unlink()
    elif how == "value" and path.name == "preprocess.json":
        stored = json.loads(path.read_text())
        stored[r.choice([*stored])] = r.choice(
            [None, -1, 0, "x", [], {}, 1e9, True, 10**10, [10**9, 10**9]]
        )
        path.write_text(json.dumps(stored))
    elif how == "outside":  # weights in another file, as a path that leads away
        graph = onnx.load(folder / "model" / "specialist.onnx")
        where = r.choice(["../../../../etc/passwd", "/etc/passwd", "../secret.bin", "gone.bin"])
        weight = graph.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=where)
        (folder / "secret.bin").write_bytes(bytes(4096))
        (folder / "model" / "specialist.onnx").write_bytes(graph.SerializeToString())
    else:
        how = f"bytes: {(damage := r.choice([*BYTES]))}"
        path.write_bytes(BYTES[damage](r, path.read_bytes()))
    shown = "my card" if good == goods.text_model else "x.png"
    (folder / "x.png").write_bytes(picture())
    return Case("model (predict)", f"{path.name}, {how}", ["predict", "model", shown])


KINDS: list[tuple[Callable[[random.Random, Path, Goods], Case], float]] = [
    (recipe_case, 0.44),
    (predict_case, 0.34),
    (model_case, 0.125),
    (data_case, 0.06),
    (task_case, 0.02),
    (checkpoint_case, 0.015),
]


def draw(seed: int, number: int, attempt: int, folder: Path, goods: Goods) -> Case:
    """Case `number`; a further attempt replaces one that stayed valid by another of its kind."""
    chosen = random.Random(f"{seed} {number}")
    make = chosen.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    return make(random.Random(f"{seed} {number} {attempt}"), folder, goods)
