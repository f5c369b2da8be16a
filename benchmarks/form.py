"""Prefect's form as a person uses it: a recipe is typed in, the run is started and watched.

Used by pages.py; each step leaves a picture.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from browser import Page

# Small enough to be over within minutes: handwritten digits, few steps, one kind of compression.
# Fields of the form by section, as their labels are written; empty: the field is emptied.
TINY: dict[tuple[str, ...], str] = {
    ("recipe", "name"): "form-digits",
    ("recipe", "generalist", "source"): "timm:local-dir:{root}/recipes/generalists/compact-vision",
    ("recipe", "task", "train"): "sklearn:digits",
    ("recipe", "task", "test"): "sklearn:digits",
    ("recipe", "task", "shots"): "8",
    ("recipe", "target", "speedup"): "",
    ("recipe", "teacher", "steps"): "10",
    ("recipe", "teacher", "folds"): "2",
    ("recipe", "distill", "steps"): "10",
    ("recipe", "prune", "samples"): "64",
    ("recipe", "verify", "max drop"): "0.3",
    ("recipe", "verify", "repeats"): "10",
}

# The control of a field, found by the labels of the sections around it: scrolled to the middle of
# the window, it answers with its place there; or, asked so, with whether it has the focus.
_FIND = """((path, focused) => {
  const label = field => field.querySelector('.schema-form-property__label').innerText
    .replace(/ \\(Optional\\)$/, '').trim().toLowerCase();
  let around = null;
  for (const name of path) {
    const found = [...document.querySelectorAll('.schema-form-property')].find(field =>
      field.parentElement.closest('.schema-form-property') === around && label(field) === name);
    if (!found) return null;
    around = found;
  }
  const control = around.querySelector('textarea, input:not([type=checkbox])');
  if (!control) return null;
  if (focused) return control === document.activeElement;
  control.scrollIntoView({block: 'center', behavior: 'instant'});
  const box = control.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})"""


def fill(page: Page, values: Mapping[tuple[str, ...], str], root: Path) -> list[str]:
    """Type values into the form; returns what could not be typed."""
    missed = []
    for path, value in values.items():
        text, holds = value.format(root=root), None
        for _ in range(4):  # the page may still move under the mouse
            if page.evaluate(f"{_FIND}({json.dumps(path)})") is None:
                holds = "no such field"
                break
            time.sleep(0.3)
            page.press(*page.evaluate(f"{_FIND}({json.dumps(path)})"))
            if page.evaluate(f"{_FIND}({json.dumps(path)}, true)"):
                page.replace_text(text)
                holds = page.evaluate("document.activeElement.value")
                if holds == text:
                    break
        if holds != text:
            missed.append(f"{'.'.join(path)}: {holds!r}")
    return missed


def submit(page: Page, base: str, deployment: str, root: Path, out: Path, check: Any) -> str | None:
    """Fill the form of a deployment and press its button; returns the flow run's id."""
    page.open(f"{base}/deployments/deployment/{deployment}", width=1500, height=1100)
    page.wait_for_text("Parameters")
    time.sleep(2)
    page.picture(out / "form-deployment.png", whole=False)
    page.open(f"{base}/deployments/deployment/{deployment}/run", width=1500, height=1300)
    there = page.wait("document.querySelectorAll('.schema-form-property').length > 40")
    check("form: shows the recipe's fields", there)
    described = page.evaluate(
        "[...document.querySelectorAll('.schema-form-property')].filter(field =>"
        " !field.querySelector('.schema-form-property__description')?.innerText.trim()"
        ").map(field => field.querySelector('.schema-form-property__label').innerText)"
    )
    check("form: every field is described", not described, described or "")
    page.picture(out / "form-empty.png", whole=False)
    missed = fill(page, TINY, root)
    check("form: takes a recipe that is typed in", not missed, missed or "")
    page.evaluate(f"{_FIND}(['recipe', 'name'])")
    page.picture(out / "form-filled.png", whole=False)
    before = page.evaluate("location.href")
    check("form: has a button to submit", page.click("Submit"))
    left = page.wait(f"location.href !== {json.dumps(before)}", 60)
    check("form: is accepted", left, "" if left else page.text()[-300:])
    if not left:
        page.picture(out / "form-refused.png", whole=False)
        return None
    asked = {"deployments": {"id": {"any_": [deployment]}}, "sort": "START_TIME_DESC", "limit": 1}
    runs = ask(f"{base}/api/flow_runs/filter", asked)
    return str(runs[0]["id"]) if runs else None


def watch(page: Page, base: str, run: str, out: Path, check: Any, seconds: float = 1200) -> str:
    """Look at the run's page while it works, and wait for its end; returns the final state."""
    page.open(f"{base}/runs/flow-run/{run}", width=1500, height=1200)
    states: list[str] = []
    pictures = {
        "running": _progress_is_shown(base, run),
        "logs": lambda: _is_logged(base, run, "load: "),
    }
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = str(ask(f"{base}/api/flow_runs/{run}")["state"]["name"])
        if state not in states:
            states.append(state)
        if state in ("Completed", "Failed", "Crashed", "Cancelled"):
            break
        for name, ready in list(pictures.items()):
            if ready():
                page.click("Artifacts" if name == "running" else "Logs")
                time.sleep(3)
                page.picture(out / f"form-run-{name}.png", whole=False)
                del pictures[name]
        time.sleep(2)
    check("form: the run goes through its states", "Running" in states, " > ".join(states))
    if _is_logged(base, run, "= verify: reused"):  # a second run of the same recipe
        print("     no bars: every stage is reused; take a new folder to see them")
    else:
        check("form: a bar and log lines while it ran", not pictures, list(pictures) or "")
    page.open(f"{base}/runs/flow-run/{run}", width=1500, height=1200)
    page.wait_for_text("Finished in state")
    time.sleep(8)  # the graph draws itself last
    page.picture(out / "form-run-over.png", whole=False)
    return states[-1]


def _progress_is_shown(base: str, run: str) -> Callable[[], bool]:
    """Whether a stage's bar stands in the middle."""
    asked = {"flow_runs": {"id": {"any_": [run]}}, "artifacts": {"type": {"any_": ["progress"]}}}

    def shown() -> bool:
        found = ask(f"{base}/api/artifacts/filter", {**asked, "sort": "CREATED_DESC", "limit": 50})
        return any(0 < float(artifact["data"]) < 100 for artifact in found)

    return shown


def _is_logged(base: str, run: str, text: str) -> bool:
    asked = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return any(text in line["message"] for line in ask(f"{base}/api/logs/filter", asked))


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """Return a server's JSON answer."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
