"""YAML as recipes use it: plain values only, no key twice, bounded in size, depth and expansion.

A recipe may come from anywhere. Tags, which build objects, are refused; so are aliases that stand
for more values than a recipe can have (ten lines can stand for billions).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from tasks.errors import RecipeError

MAX_BYTES = 2_000_000  # fifty thousand class names; reading it takes ten seconds
_MAX_NODES = 500_000  # values, aliases counted for what they stand for
_MAX_DEPTH = 32  # a recipe's own is 4
_CHARACTERS_A_NODE = 64  # a long text counts as several values


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars. In 1.1, 2:4 is the number 124, and a class called `no` is False."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; raises where it is nested too deep or stands for too much."""
        mark = self.peek_event().start_mark
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {_MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if alias:
            if id(node) not in self._sizes:
                raise ComposerError(None, None, "an alias stands for what it is part of", mark)
            return node
        size = self._size(node)
        if size > _MAX_NODES:
            raise ComposerError(None, None, f"stands for more than {_MAX_NODES:,} values", mark)
        self._sizes[id(node)] = size
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value) // _CHARACTERS_A_NODE
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(part)] for pair in node.value for part in pair)
        return 1 + sum(self._sizes[id(part)] for part in node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; raises where a key is there twice."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(
                        None, None, f"{key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] in ("null", "merge")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first]
    )
# what a recipe is made of; any other tag is refused by name
_KNOWN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _KNOWN
}


def plain_yaml(text: str) -> Any:
    """The plain values of a YAML text; raises `ValueError` with the reason in one line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        # an explicit tag on what it does not fit, or a number of five thousand digits
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(reason) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file, one mapping; raises `RecipeError` (one line)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: is larger than {MAX_BYTES:,} bytes; no recipe is")
        raw = plain_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: holds {type(raw).__name__}, not the fields of a recipe")
    strange = next((key for key in raw if not isinstance(key, str)), None)
    if strange is not None:
        raise RecipeError(f"{path}: {strange!r} is no field's name")
    return raw
