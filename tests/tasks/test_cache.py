"""Cache keys: which files a stage depends on, and what changes its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks import cache
from tasks.cache import code_digest, import_closure, stage_key

FILES = {
    "tasks/__init__.py": "",
    "tasks/config.py": "import models.unused",
    "tasks/one.py": "from tasks.config import x\nfrom tasks import helper\n"
    "def f():\n    from models.deep import thing\n    import torch",
    "tasks/two.py": "import exports.graph as g",
    "tasks/helper.py": "",
    "models/__init__.py": "",
    "models/deep.py": "from .shallow import y\nfrom . import side",
    "models/shallow.py": "from models.deep import thing  # a cycle",
    "models/side.py": "",
    "models/unused.py": "",
    "exports/__init__.py": "",
    "exports/graph.py": "import exports.runtime",
    "exports/runtime.py": "",
}


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_closure_follows_imports_at_any_level_and_stops_at_the_wiring(rooms: Path) -> None:
    assert set(import_closure("tasks.one", rooms)) == {
        "tasks.one",
        "tasks.helper",
        "models",
        "models.deep",
        "models.shallow",
        "models.side",
    }
    assert set(import_closure("tasks.two", rooms)) == {
        "tasks.two",
        "exports",
        "exports.graph",
        "exports.runtime",
    }


@pytest.mark.parametrize(
    ("edited", "one", "two"),
    [
        ("models/side.py", True, False),
        ("models/unused.py", False, False),
        ("exports/runtime.py", False, True),
        ("tasks/config.py", False, False),
        ("tasks/one.py", True, False),
    ],
)
def test_an_edit_changes_exactly_the_stages_that_reach_it(
    rooms: Path, edited: str, one: bool, two: bool
) -> None:
    before = [code_digest(f"tasks.{name}", rooms) for name in ("one", "two")]
    (rooms / edited).write_text(FILES[edited] + "\n# touched\n")
    after = [code_digest(f"tasks.{name}", rooms) for name in ("one", "two")]
    assert [a != b for a, b in zip(after, before, strict=True)] == [one, two]


def test_every_part_of_a_key_counts(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**changes: Any) -> str:
        parts: dict[str, Any] = {"inputs": ["a"], "values": {"x": 1}, "outside": {"d": "1"}}
        return stage_key("one", "tasks.one", **(parts | changes), root=rooms)

    first = key()
    assert first == key()
    others = {
        key(inputs=["b"]),
        key(inputs=["a", "a"]),
        key(values={"x": 2}),
        key(outside={"d": "2"}),
    }
    monkeypatch.setattr(cache, "versions", lambda: {"torch": "0"})
    others.add(key())
    assert len(others) == 5 and first not in others
    assert len(first) == 64


STAGES = (
    *("prepare", "load", "teach", "profile", "shrink", "prune", "trim"),
    *("smooth", "quantize", "export", "verify"),
)


@pytest.mark.parametrize("name", STAGES)
def test_our_own_stages_reach_the_rooms_they_use(name: str) -> None:
    reached = set(import_closure(f"tasks.{name}"))
    assert f"tasks.{name}" in reached
    expected = {
        "prepare": {"tasks.sources", "tasks.splits"},
        "load": {"models.generalists"},
        "teach": {"models.teacher", "models.augment", "exports.preprocess"},
        "profile": {"exports.latency_table", "models.variants", "tasks.measure"},
        "shrink": {"compression.structured", "compression.search", "models.shrinking"},
        "prune": {"compression.sweep", "compression.recovery", "models.structure"},
        "trim": {"models.vocabulary"},
        "smooth": {"compression.smoothing.repq", "models.feeds"},
        "quantize": {"compression.grids", "models.structure"},
        "export": {"exports.graph", "exports.quantize", "tasks.lower"},
        "verify": {"exports.verdict", "exports.latency", "tasks.judge"},
    }[name]
    assert expected <= reached
    unwanted = {
        "teach": "compression.sweep",
        "load": "compression.sweep",
        "prepare": "models.generalists",
        "export": "compression.sweep",
        "profile": "compression.structured",
        "trim": "compression.sweep",
        "verify": "compression.sweep",
    }.get(name)
    assert unwanted not in reached
    assert "tasks.tracking" not in reached and "tasks.config" not in reached
