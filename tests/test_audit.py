"""The audit finds what it is for, and our own code does none of what it forbids."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
sys.modules["audit"] = audit  # its data classes look themselves up there
spec.loader.exec_module(audit)


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-2.0-only OR MIT AND Apache-2.0", True),
        ("GPL-2.0-only AND MIT OR Apache-2.0", True),
        ("(GPL-2.0-only OR MIT) AND Apache-2.0", True),
        ("MIT AND (GPL-2.0-only OR LGPL-3.0-only)", False),
        ("Apache-2.0 WITH LLVM-exception AND BSD-3-Clause", True),
        ("", False),
        ("MIT AND", False),
        ("(MIT", False),
        ("MIT MIT", False),
    ],
)
def test_an_expression_is_met_as_spdx_reads_it(expression: str, fine: bool) -> None:
    assert audit.permitted(expression) is fine


def test_the_lock_and_what_is_installed_must_agree() -> None:
    pins = {"a": "1", "b": "2", "stale": "3", "torch": "2.13.0"}
    found = {"a": "1", "b": "2.1", "c": "1", "torch": "2.13.0+cpu"}
    told = list(audit.lock_problems(pins, found, {"gone"}))
    assert [line.split(":")[0] for line in told if "constraints" not in line] == ["gone"]
    rest = [line for line in told if "constraints" in line]
    assert len(rest) == 3
    assert any("b==2, but 2.1" in line for line in rest)
    assert any("c is missing" in line for line in rest)
    assert any("stale==3 is stale" in line for line in rest)
    assert list(audit.lock_problems({"a": "1"}, {"a": "1"}, ())) == []


def test_the_closure_follows_extras_and_markers() -> None:
    found, missing = audit.closure(
        [
            Requirement("pytest"),
            Requirement("never-heard-of==1; sys_platform == 'plan9'"),
            Requirement("not-there-at-all"),
        ]
    )
    assert {"pytest", "pluggy", "iniconfig"} <= set(found) and missing == {"not-there-at-all"}
    assert "hypothesis" not in found  # of pytest's own extra `dev`


def test_licences_need_leave_and_exceptions_need_a_reason() -> None:
    told = list(audit.licence_problems({"a": "MIT", "b": "GPL-3.0-only", "c": ""}, {}))
    assert len(told) == 2 and told[0].startswith("b: licence 'GPL") and "none" in told[1]
    granted = {"b": ("GPL-3.0-only", "never shipped")}
    assert list(audit.licence_problems({"b": "GPL-3.0-only"}, granted)) == []
    assert "no exception any more" in next(audit.licence_problems({"b": "MIT"}, granted))
    assert all(reason for _, reason in audit.EXCEPTIONS.values())


def test_denied_releases_are_named_with_their_reason() -> None:
    assert list(audit.denied({"torch": "2.6.0", "pillow": "13.0.0"})) == []
    (line,) = audit.denied({"torch": "2.5.1"})
    assert "CVE-2025-32434" in line and "2026-" in line


def test_a_service_that_knows_no_package_is_no_clean_bill() -> None:
    skipped = {"name": "a", "skip_reason": "not found"}
    assert audit.advisories(json.dumps({"dependencies": [skipped]})) == (
        [],
        "no advisory service in reach: skipped",
    )
    assert "skipped" in audit.advisories("")[1]
    known = {"name": "b", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    problems, told = audit.advisories(json.dumps({"dependencies": [skipped, known]}))
    assert problems == ["b 1: CVE-1, mended in 2"] and told.startswith("1 of 2")


# --- our own code ----------------------------------------------------------------------------

ROOMS = ("compression", "exports", "flows", "models", "tasks", "benchmarks", ".ci")
_CODE_FROM_DATA = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
_UNSAFE_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader"}
_FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.unsafe_load_all",
    "yaml.full_load_all",
    "joblib.load",
}


def dotted(node: ast.expr) -> str:
    """The name that a call goes by, such as yaml.load; '?' stands for what has none."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def faults(source: str) -> Iterator[str]:
    """What of a source file runs code that data brings, or opens a port to everybody."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (x.name for x in names if x.name.split(".")[0] in _CODE_FROM_DATA)
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] in _CODE_FROM_DATA:
                yield name
            case ast.Constant(value="0.0.0.0" | "::"):
                yield "an address of all interfaces"
            case ast.Call(func=func):
                named = {each.arg: each.value for each in node.keywords}
                name = dotted(func)
                if name in _FORBIDDEN_CALLS:
                    yield name
                if name in ("yaml.load", "yaml.load_all"):
                    loader = named.get("Loader", node.args[1] if len(node.args) > 1 else None)
                    if loader is None or dotted(loader).split(".")[-1] in _UNSAFE_LOADERS:
                        yield f"{name} without a safe loader"
                if name == "torch.load" and not true(named.get("weights_only")):
                    yield "torch.load without weights_only=True"
                if true(named.get("shell")):
                    yield f"{name} with shell=True"
                if true(named.get("allow_pickle")) or true(named.get("trust_remote_code")):
                    yield f"{name} told to run what data brings"
                if name.endswith(".extractall") and "filter" not in named:
                    yield "extractall without a filter"


@pytest.mark.parametrize("room", ROOMS)
def test_our_own_code_runs_nothing_that_data_brings(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ holds no module"
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in files
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "eval('1')",
        "import os\nos.system('ls')",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "torch.load(path)",
        "torch.load(path, weights_only=asked)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "run('--host', '0.0.0.0')",
        "archive.extractall(folder)",
    ],
)
def test_the_check_itself_finds(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=OneKeyOnce)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "model.float().eval()",
        "re.compile(pattern)",
        "subprocess.run([line], check=True)",
    ],
)
def test_the_check_itself_lets_pass(source: str) -> None:
    assert list(faults(source)) == []
