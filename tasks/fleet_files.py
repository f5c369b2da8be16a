"""Reading a fleet's file: what all share, `members`, `--set` changes, faults told in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.errors import RecipeError
from tasks.fences import there
from tasks.fleet import Fleet, Member, merged
from tasks.plain_yaml import plain_yaml, read_yaml
from tasks.recipes import _apply as apply_change
from tasks.recipes import _shown as shown
from tasks.recipes import parse_recipe

# what may name a file or a folder beside the fleet's file
_PATHS = (
    "generalist.source",
    "task.train",
    "task.test",
    "task.unlabelled",
    "task.generic",
    "limits.outside",
    "shrink.profile",
)
_OWN = ("name", "gpu", "members")


def load_fleet(path: str | Path, changes: Sequence[str] = ()) -> Fleet:
    """Read a fleet's file, apply `--set a.b=value` changes, resolve its paths.

    `--set` changes what all share, or one member: `members.NAME.a.b=value`. Relative paths are
    looked up in the current directory, then in the file's folder. Raises `RecipeError` (one line).
    """
    file = Path(path)
    if not there(file) or not file.is_file():
        raise RecipeError(f"fleet: {file} is not a file; give the path of a YAML file")
    raw = read_yaml(file)
    members = _members(raw, str(file))
    for change in changes:
        _change(raw, members, change)
    for holder in (raw, *members):
        _resolve(holder, file.parent)
    return parse_fleet(raw, str(file))


def parse_fleet(raw: dict[str, Any], where: str = "fleet") -> Fleet:
    """Validate plain values; the first fault becomes a one-line `RecipeError`."""
    members = _members(raw, where)
    shared = {key: value for key, value in raw.items() if key not in _OWN}
    for member in members:
        own = {key: value for key, value in member.items() if key not in _OWN}
        try:
            parse_recipe(merged(shared, own) | {"name": "member"}, "")
        except RecipeError as error:
            told = str(error).removeprefix(": ")
            whose = f"members.{member['name']}." if _holds(own, told.partition(":")[0]) else ""
            raise RecipeError(f"{where}: {whose}{told}") from None
    try:
        return Fleet.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    fault = error.errors()[0]
    path = list(fault["loc"])
    if not path:
        return str(fault["ctx"]["error"])
    model = Member if len(path) > 1 else Fleet
    field = model.model_fields.get(str(path[-1]))
    reason = fault["msg"].removeprefix("Input ")
    told = f"; {field.description.rstrip('.')}" if field and field.description else ""
    return f"{'.'.join(map(str, path))}: {shown(fault['input'])} {reason}{told}"


def _members(raw: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The members' plain values, each with a name."""
    found = raw.get("members")
    if not isinstance(found, list) or not found:
        raise RecipeError(
            f"{where}: members: {'missing' if found is None else shown(found)}; give a list of "
            "members, such as [{name: billing, task: {train: billing.csv}}]"
        )
    for at, member in enumerate(found):
        if not isinstance(member, dict) or not isinstance(member.get("name"), str):
            raise RecipeError(f"{where}: members.{at}: has no name; give it one, such as billing")
    return found


def _holds(own: dict[str, Any], dotted: str) -> bool:
    """Whether a member itself says anything of a field."""
    return dotted.partition(".")[0] in own


def _change(raw: dict[str, Any], members: list[dict[str, Any]], change: str) -> None:
    dotted, equals, text = change.partition("=")
    first, _, rest = dotted.strip().partition(".")
    holder = raw
    if first == "members":
        known = [member["name"] for member in members]
        # names may hold dots, and one may begin with another
        fitting = [each for each in known if f"{rest}.".startswith(f"{each}.")]
        name = max(fitting, key=len, default="")
        if not name:
            asked = rest.partition(".")[0]
            raise RecipeError(f"--set: members.{asked}: no such member; known: {', '.join(known)}")
        rest = rest[len(name) + 1 :]
        holder, change = members[known.index(name)], f"{rest}{equals}{text}"
        first = rest
    if first == "gpu" and equals:
        try:
            holder["gpu"] = plain_yaml(text)
        except ValueError:
            raise RecipeError(
                f"--set: {dotted}: {shown(text)} is not readable as a YAML value"
            ) from None
        return
    apply_change(holder, change)


def _resolve(holder: dict[str, Any], folder: Path) -> None:
    for dotted in _PATHS:
        section, key = dotted.split(".")
        inner = holder.get(section)
        text = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(text, str) or text == "rest":
            continue
        prefix = ""
        if dotted == "generalist.source":
            prefix, mark, text = text.rpartition(":")
            if prefix not in ("hf", "timm:local-dir"):
                continue
            prefix += mark
        beside = folder / text
        if not there(Path(text)) and there(beside):
            inner[key] = f"{prefix}{beside}"  # type: ignore[index]  # a dictionary, as seen above
