"""Recipes are plain values: no objects, no bombs, no key twice; each refusal is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import RecipeError
from tasks.plain_yaml import MAX_BYTES, plain_yaml, read_yaml


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(12), "stands for more than"),
        ("a: &a [b, *a]", "an alias stands for what it is part of"),
        ("[" * 40 + "]" * 40, "nested deeper than"),
        ("[" * 5000, "nested deeper than"),
        ("name: x\nname: y", "line 2, column 1: 'name' is there twice"),
        ("a: {b: 1, b: 2}", "'b' is there twice"),
        ("x: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("x: !!binary aGk=", "could not determine a constructor"),
        ("x: !!set {a}", "could not determine a constructor"),
        ("x: !!int abc", "invalid literal"),
        ("x: !!int ''", "index"),
        ("x: !!bool perhaps", "perhaps"),
        ("x: " + "9" * 6000, "limit"),
        ("a: 1\n---\nb: 2", "found another document"),
        ("x: *gone", "undefined alias"),
        ("x: \x00", "special characters"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        plain_yaml(text)
    assert "\n" not in str(caught.value)


def test_aliases_and_merges_of_a_usual_size_still_work() -> None:
    text = "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\nlist: [*b, *b]"
    assert plain_yaml(text) == {
        "base": {"x": 1, "y": 2},
        "mine": {"x": 1, "y": 3},
        "list": [{"x": 1, "y": 2}] * 2,
    }


def test_scalars_are_those_of_yaml_1_2() -> None:
    plain = plain_yaml("[no, on, 2:4, 1_000, 1e3, 0x10, .5, null, ~, 2024-01-01]")
    assert plain == ["no", "on", "2:4", 1000, 1000.0, "0x10", 0.5, None, None, "2024-01-01"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds NoneType"),
        (b"- a", "holds list"),
        (b"1: 2", "1 is no field's name"),
        ("name: é".encode("latin-1"), "not UTF-8"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"x" * (MAX_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_yaml(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path) == {"name": "x"}
