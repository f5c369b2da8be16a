"""Bad recipes and bad changes to good ones, for `bad_cases.py`."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, get_args

import yaml
from bad_bytes import BYTES
from bad_tables import write_data
from pydantic import BaseModel

from tasks.config import Recipe


def good_recipe() -> dict[str, Any]:
    """A recipe of the smallest kind."""
    task = {"train": "train.jsonl", "test": "test.jsonl", "shots": 4}
    return {"name": "tiny", "generalist": {"source": "hf:./absent"}, "task": task}


_VALUES: list[Any] = [
    None, True, "", " ", "nan", ".inf", "-.inf", float("inf"), 1e999, -1, -1e30, 10**30, 10**400,
    0.5, "0x10", "1e", "١٢", "yes please", "\x00", "a\x1b[31mb", "a\nb", "\u202eevil", "x" * 5000,
    "../../etc/passwd", "/", [], [[]], [1, [2, [3]]], {}, {"a": 1}, {"": None}, [None], ["", ""],
    "http://user:hunter2@host/x", "hf_" + "a" * 34, "💥", "task.train", "-", [True],
    {"1": {"2": {}}},
]  # fmt: skip


def _leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, facts in model.model_fields.items():
        here = (*path, facts.alias or name)
        kinds = [facts.annotation, *get_args(facts.annotation)]
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        found += [here, *(_leaves(inner, here) if inner else [])]
    return found


LEAVES = _leaves(Recipe)
_FILES = [
    "&a [" + "x, " * 9 + "x]\nb: &b [" + "*a, " * 9 + "*a]",
    "a: &a {b: *a}",
    "name: !!python/object/apply:os.system ['touch pwned']",
    "name: !!binary aGVsbG8=",
    "name: !!set {a, b}",
    "name: !unknown x",
    "name: x\nname: y",
    "--- \nname: x\n---\nname: y",
    "? [a, b]\n: 1",
    "1: 2",
    "null: 3",
    "- a\n- b",
    "just words",
    "name:\tx\n\t- y",
    "name: 'x",
    "name: \"\\ud800\"",
    "name: \"\\0\"",
    "%YAML 9.9\n---\nname: x",
    "<<: 3\nname: x",
    "name: !!int 'abc'",
    "name: !!int ''",
    "name: !!bool maybe",
    "name: !!float x",
    "name: " + "9" * 6000,
    "[" * 5000,
    "a: " * 3000,
    "{" * 60 + "}" * 60,
    "# nothing\n",
    "name: x\n" + "".join(f"k{i}: {i}\n" for i in range(2000)),
    "x: " + "y" * 3_000_000,
    "@: 1",
    "name: *gone",
]  # fmt: skip


def _bomb_recipe(r: random.Random) -> str:
    levels = r.randrange(6, 12)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines)


def _put(plain: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        plain = plain.setdefault(key, {})
        if not isinstance(plain, dict):
            return
    plain[path[-1]] = value


def _misspelt(r: random.Random, name: str) -> str:
    at = r.randrange(len(name))
    return r.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper(),
                     name + "\u200b", name.replace("e", "\u0435"), f" {name}", "__class__",
                     "$ref"])  # fmt: skip


def bad_recipe(r: random.Random, folder: Path) -> tuple[str, str, list[str]]:
    """A recipe, or a change of one by --set, that cannot be used: (command, damage, arguments)."""
    command = r.choice(["specialize", "specialize", "specialize", "sweep", "profile"])
    (folder / "fence").touch()
    end = ["--out", "fence" if command != "profile" else "fence/x"]
    plain, options = good_recipe(), []
    write_data(folder)
    how = r.choice(["value", "value", "value", "set", "set", "name", "missing", "bytes", "file"])
    path = r.choice(LEAVES)
    if how == "value":
        _put(plain, path, r.choice(_VALUES))
    elif how == "set":
        value = r.choice(_VALUES)
        text = r.choice([yaml.safe_dump(value)[:4000], str(value)[:4000], "[", "{a", "'", "&a *a"])
        key = ".".join(path) if r.random() < 0.7 else _misspelt(r, ".".join(path))
        options = [
            "--set",
            r.choice([f"{key}={text}", f"{key}={text}", key, f"={text}", f"{key}.x=1"]),
        ]
        options = [option.replace("\0", "") for option in options]  # no command line holds a NUL
    elif how == "name":
        _put(plain, (*path[:-1], _misspelt(r, path[-1])), 1)
    elif how == "missing":
        key = r.choice(["name", "generalist", "task"])
        del plain[key]
        if r.random() < 0.5:
            plain[key] = r.choice([None, {}, [], 3, "x"])
    dump = yaml.safe_dump(plain, allow_unicode=r.random() < 0.5)
    raw = dump.encode("utf-8", "surrogatepass")
    if how == "bytes":
        how = f"bytes: {(name := r.choice([*BYTES]))}"
        raw = BYTES[name](r, raw)
    elif how == "file":
        text = _bomb_recipe(r) if r.random() < 0.1 else r.choice(_FILES)
        raw = text.encode("utf-8", "surrogatepass")
    target = "recipe.yaml"
    if r.random() < 0.01:
        target = r.choice(["gone.yaml", ".", "x" * 300, "train.jsonl/x", "loop.yaml"])
        os.symlink("loop.yaml", folder / "loop.yaml")
        how = "no such file"
    (folder / "recipe.yaml").write_bytes(raw)
    return command, how, [command, target, *options, *end]
