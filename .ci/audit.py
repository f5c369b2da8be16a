"""What winnow stands on, looked at: one lock for all of it, its licences, known bad releases.

`make audit` runs it, and so does .ci/run. It passes without a network: where an advisory service
answers, pip-audit is asked too. Every complaint is one line; exit code 1 where there is any.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 300  # for pip-audit to answer
# torch is built for CUDA on some machines and for the processor alone on others. What its CUDA
# build brings (NVIDIA's libraries under NVIDIA's terms, Triton) it pins itself; winnow ships none.
_OF_TORCH = ("cuda-", "nvidia-", "triton")
_OF_THE_INTERPRETER = {"pip"}  # comes with the virtual environment, and installs the rest

# What may be shipped beside Apache-2.0 and linked without asking anybody: permissive ones, and
# MPL-2.0, whose terms end at the files that it covers (we change none).
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "HPND",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
}
# Distributions whose metadata says something else, or nothing: (what holds, why it is fine).
EXCEPTIONS = {
    "huey": ("MIT", "its metadata names none; the LICENSE file in its sources is MIT's text"),
    "psycopg2-binary": (
        "LGPL-3.0-or-later WITH exceptions",
        "the optional extra `postgres`; imported unchanged, never part of what winnow ships",
    ),
    "skops": (
        "MIT",
        "its classifier says OSI Approved only; the licence file that it carries is MIT's",
    ),
    "text-unidecode": ("Artistic-1.0", "offered under that or the GPL; taken under the former"),
}
# What older metadata calls them.
_OLD_NAMES = {
    "2-clause bsd license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
_NO_LICENCE = {"OSI Approved", "DFSG approved"}


@dataclass(frozen=True)
class Bad:
    """Releases that must not be installed: which ones, why, and when that was looked at."""

    releases: str
    why: str
    reviewed: str


# Reviewed by hand; an entry goes when pyproject.toml's range leaves it out by itself for good.
DENIED: dict[str, tuple[Bad, ...]] = {
    "fastapi": (Bad(">=0.156", "Prefect 3.8.8 cannot import its server with it", "2026-11-22"),),
    "gunicorn": (Bad("<22.0.0", "request smuggling, CVE-2024-1135", "2026-11-22"),),
    "h11": (Bad("<0.16.0", "request smuggling, CVE-2025-43859", "2026-11-22"),),
    "jinja2": (Bad("<3.1.6", "sandbox escape, CVE-2025-27516", "2026-11-22"),),
    "pillow": (Bad("<10.3.0", "buffer overflow, CVE-2024-28219", "2026-11-22"),),
    "pyarrow": (Bad(">=0.14,<14.0.1", "reading a file runs code, CVE-2023-47248", "2026-11-22"),),
    "pyyaml": (Bad("<5.4", "full_load runs code, CVE-2020-14343", "2026-11-22"),),
    "setuptools": (Bad("<78.1.1", "path traversal, CVE-2025-47273", "2026-11-22"),),
    "sqlalchemy": (Bad(">=2.1", "Prefect 3.8.8's scheduler plans no run with it", "2026-11-22"),),
    "torch": (Bad("<2.6.0", "weights_only runs code all the same, CVE-2025-32434", "2026-11-22"),),
    "torchtriton": (Bad(">=0", "dependency confusion of December 2022", "2026-11-22"),),
    "transformers": (Bad("<4.48.0", "unsafe deserialization, CVE-2024-11392", "2026-11-22"),),
    "werkzeug": (Bad("<3.0.6", "multipart bodies exhaust memory, CVE-2024-49767", "2026-11-22"),),
}


def locked(text: str) -> dict[str, str]:
    """Exact versions by name, of constraints.txt."""
    lines = (line.strip() for line in text.splitlines())
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def stated(project: Mapping[str, object]) -> list[Requirement]:
    """What pyproject.toml asks for, every extra included, and what builds it."""
    body, build = project["project"], project["build-system"]
    assert isinstance(body, dict) and isinstance(build, dict)
    extras = body["optional-dependencies"].values()
    lines = [*build["requires"], *body["dependencies"], *(x for extra in extras for x in extra)]
    return [Requirement(line) for line in lines]


def closure(wanted: Iterable[Requirement]) -> tuple[dict[str, metadata.Distribution], set[str]]:
    """All that is installed for `wanted`, by name, and the names that are missing."""
    found: dict[str, metadata.Distribution] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(each, "") for each in wanted]
    while waiting:
        asked, extra = waiting.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(asked.name)
        try:
            found[name] = metadata.distribution(asked.name)
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        for inner in ("", *asked.extras):
            if (name, inner) not in seen:
                seen.add((name, inner))
                waiting += [(Requirement(x), inner) for x in found[name].requires or ()]
    return found, missing


def lock_problems(
    pins: Mapping[str, str],
    installed: Mapping[str, str],
    missing: Iterable[str],
    elsewhere: Iterable[str] = (),
) -> Iterator[str]:
    """Where constraints.txt and what is installed for us disagree.

    Args:
        elsewhere: what is asked for on other machines, such as with an older Python 3.11.
    """
    for name in sorted(missing):
        yield f"{name}: asked for and not installed; run make setup"
    for name, version in sorted(installed.items()):
        if name not in pins:
            yield f"constraints.txt: {name} is missing; add {name}=={version}"
        elif Version(pins[name]) != Version(Version(version).public):  # 2.13.0+cpu is 2.13.0
            yield f"constraints.txt: {name}=={pins[name]}, but {version} is installed"
    for name in sorted(set(pins) - set(installed) - set(missing) - set(elsewhere)):
        yield f"constraints.txt: {name}=={pins[name]} is stale: nothing asks for it; remove it"


def licence_of(facts: metadata.PackageMetadata) -> str:
    """A distribution's licence as an SPDX expression as far as its metadata tells, '' else."""
    expression = [str(each) for each in facts.get_all("License-Expression") or ()]
    if expression:
        return expression[0]
    kinds = [str(kind) for kind in facts.get_all("Classifier") or ()]
    names = [kind.rpartition(" :: ")[2] for kind in kinds if kind.startswith("License ::")]
    known = [_OLD_NAMES.get(name.lower(), name) for name in names if name not in _NO_LICENCE]
    if known:  # several classifiers: it is offered under each of them
        return " OR ".join(dict.fromkeys(known))
    text = "\n".join(str(each) for each in facts.get_all("License") or ()).strip()
    first = text.splitlines()[0].strip() if text else ""
    return _OLD_NAMES.get(first.lower(), first)


def permitted(expression: str, allowed: Iterable[str] = ALLOWED) -> bool:
    """Whether an SPDX expression can be met with allowed licences alone.

    AND binds closer than OR (SPDX specification, annex D.4); an exception (WITH) only permits more.
    """
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r"\s+WITH\s+[\w.-]+", "", expression))
    place, names = 0, set(allowed)

    def either() -> bool:
        nonlocal place
        met = both()
        while place < len(tokens) and tokens[place].upper() == "OR":
            place += 1
            met = both() or met
        return met

    def both() -> bool:
        nonlocal place
        met = one()
        while place < len(tokens) and tokens[place].upper() == "AND":
            place += 1
            met = one() and met
        return met

    def one() -> bool:
        nonlocal place
        if place >= len(tokens):
            return False
        token, place = tokens[place], place + 1
        if token != "(":
            return token in names
        met = either() and place < len(tokens) and tokens[place] == ")"
        place += 1
        return met

    return either() and place >= len(tokens)


def licence_problems(
    licences: Mapping[str, str], exceptions: Mapping[str, tuple[str, str]] = EXCEPTIONS
) -> Iterator[str]:
    """Licences that nobody allowed, and exceptions that nothing needs any more."""
    for name, expression in sorted(licences.items()):
        if name not in exceptions and not permitted(expression):
            told = repr(expression) if expression else "none in its metadata"
            yield f"{name}: licence {told} is not allowed; see EXCEPTIONS in .ci/audit.py"
    for name in sorted(exceptions):
        if name in licences and permitted(licences[name]):
            yield f"{name}: needs no exception any more ({licences[name]}); remove it"


def denied(installed: Mapping[str, str]) -> Iterator[str]:
    """Releases that are installed though they were found bad."""
    for name, version in sorted(installed.items()):
        for bad in DENIED.get(name, ()):
            if SpecifierSet(bad.releases).contains(version, prereleases=True):
                yield f"{name} {version}: denied ({bad.why}; reviewed {bad.reviewed})"


def advisories(answer: str) -> tuple[list[str], str]:
    """Problems and a line for the log, of pip-audit's JSON.

    A service that knows none of our packages knows nothing: that is no clean bill.
    """
    try:
        rows = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return [], "no advisory service in reach: skipped"
    audited = [row for row in rows if "skip_reason" not in row]
    if not audited:
        return [], "no advisory service in reach: skipped"
    problems = [
        f"{row['name']} {row['version']}: {each['id']}, mended in "
        f"{', '.join(each.get('fix_versions') or ()) or 'no release yet'}"
        for row in audited
        for each in row.get("vulns") or ()
    ]
    return problems, f"{len(audited)} of {len(rows)} packages known to the advisory service"


def _ask_pip_audit() -> str:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _pip_check() -> list[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip().splitlines() if done.returncode else []


def main() -> int:
    """Run every check; returns the number of complaints, at most 1."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found, missing = closure(stated(project))
    found = {
        name: each
        for name, each in found.items()
        if name not in _OF_THE_INTERPRETER and not name.startswith(_OF_TORCH)
    }
    installed = {name: each.version for name, each in found.items()}
    licences = {name: licence_of(each.metadata) for name, each in found.items()}
    pins = locked((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    asked = (Requirement(x) for each in found.values() for x in each.requires or ())
    elsewhere = {canonicalize_name(x.name) for x in asked if "python" in str(x.marker or "")}
    known, told = advisories(_ask_pip_audit())
    complaints = {
        "requirements agree (pip check)": _pip_check(),
        f"lock: {len(pins)} pins": list(lock_problems(pins, installed, missing, elsewhere)),
        f"licences: {len(licences)} packages": list(licence_problems(licences)),
        f"denied releases: {sum(map(len, DENIED.values()))} entries": list(denied(installed)),
        f"advisories: {told}": known,
    }
    for title, lines in complaints.items():
        print(f"{'ok' if not lines else 'NO':4}{title}")
        for line in lines:
            print(f"      {line}")
    return int(any(complaints.values()))


if __name__ == "__main__":
    raise SystemExit(main())
