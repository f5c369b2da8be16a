"""Pictures and checks of the pages that people read: the card, MLflow's model page, Prefect's.

    python benchmarks/pages.py --out DIR [--card FILE.html]... [--home HOME] [--form HOME]

Takes a headless Chromium (`chromium` on PATH). A card, or a sweep's page, is shown wide, dark, on
a telephone and on paper; it must fetch nothing, fit a window of 400 pixels, and keep a contrast
of 4.5 to 1 (WCAG 2.2, AA). With --home both servers of `winnow up` run over the stores there, and
the newest registered version, its run and its Prefect artifacts are opened; they must show the
verdict. With --form a worker runs, too: a small recipe is typed into the form of `specialize`, the
run is watched to its end (minutes), its artifacts are opened, and the links to MLflow's page and
back are followed. Exit code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from browser import Page, browser, find_browser  # noqa: E402
from form import ask, submit, watch  # noqa: E402

# Texts whose colour is too close to what is behind them, with the ratio (WCAG 2.2, 1.4.3).
_FAINT = """(() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const text = walker.currentNode.data.trim().slice(0, 40);
    if (ratio < 4.5) found.add(`${ratio.toFixed(2)}: ${text}`);
  }
  return [...found];
})()"""
# what the servers' pages say of an address that leads nowhere
_LOST = ("page not found", "something went wrong", "doesn't exist", "artifact not found")
_VIEWS: dict[str, dict[str, Any]] = {
    "wide": {"width": 1280},
    "dark": {"width": 1280, "dark": True},
    "narrow": {"width": 400, "height": 850},
}


class Checks:
    """What was looked at, and what was wrong."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, holds: bool, detail: object = "") -> None:
        """Print one check."""
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {name} {detail}".rstrip(), flush=True)


def look_at_card(page: Page, card: Path, out: Path, check: Checks) -> None:
    """Show one self-contained page in every view."""
    for view, window in _VIEWS.items():
        name = f"{card.stem}-{view}"
        page.open(card.resolve().as_uri(), **window)
        page.picture(out / f"{name}.png")
        size = page.evaluate("document.documentElement.scrollWidth")
        check(f"{name}: fits its window", size <= window["width"], f"({size} px)")
        fetched = [url for url in page.requests if not url.startswith(("data:", "file:"))]
        check(f"{name}: fetches nothing", not fetched and not page.complaints, page.complaints)
        faint = page.evaluate(_FAINT)
        check(f"{name}: contrast", not faint, faint or "")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth || !i.alt).length")
        check(f"{name}: pictures are there, with texts", broken == 0)
        dead = page.evaluate(
            "[...document.querySelectorAll('a')].map(a => a.hash.slice(1))"
            ".filter(id => id && !document.getElementById(id))"
        )
        check(f"{name}: links lead somewhere", not dead, dead or "")
    page.open(card.resolve().as_uri())
    paper = page.pdf(out / f"{card.stem}.pdf")
    check(f"{card.stem}: prints", paper.stat().st_size > 10_000)


def look_at_mlflow(page: Page, base: str, out: Path, check: Checks) -> None:
    """Open the newest version's pages and those of its run."""
    found = ask(f"{base}/ajax-api/2.0/mlflow/model-versions/search?max_results=1000")
    versions = found.get("model_versions", [])
    check("mlflow: a version is registered", bool(versions))
    if not versions:
        return
    newest = max(versions, key=lambda version: int(version["creation_timestamp"]))
    name, number, run = newest["name"], newest["version"], newest["run_id"]
    tags = {tag["key"]: tag["value"] for tag in newest.get("tags", [])}
    verdict = tags.get("winnow.verdict", "")
    experiment = ask(f"{base}/ajax-api/2.0/mlflow/runs/get?run_id={run}")["run"]["info"][
        "experiment_id"
    ]
    models, runs = f"{base}/#/models/{name}", f"{base}/#/experiments/{experiment}/runs/{run}"
    for title, url, needle in (
        ("model", models, f"Version {number}"),
        ("version", f"{models}/versions/{number}", verdict or "winnow.verdict"),
        ("run", runs, run),
        ("card", f"{runs}/artifacts/card.html", "Accuracy lost against the teacher"),
    ):
        _look(page, f"mlflow-{title}", url, needle, out, check)


def look_at_prefect(page: Page, base: str, out: Path, check: Checks) -> None:
    """Open the newest flow run's page and each of its artifacts."""
    asked = {"sort": "CREATED_DESC", "limit": 50}
    artifacts = [a for a in ask(f"{base}/api/artifacts/filter", asked) if a.get("key")]
    check("prefect: there are artifacts", bool(artifacts))
    if not artifacts:
        return
    run = artifacts[0]["flow_run_id"]
    _look(page, "prefect-run", f"{base}/runs/flow-run/{run}", "Completed", out, check)
    check("prefect-run: lists its artifacts", page.click("Artifacts"))
    check("prefect-run: names the card", page.wait_for_text(_card_of(artifacts)))
    page.picture(out / "prefect-run-artifacts.png", whole=False)
    for artifact in (a for a in artifacts if a["flow_run_id"] == run):
        key, url = artifact["key"], f"{base}/artifacts/artifact/{artifact['id']}"
        needle = "Verdict" if key.endswith("-card") else key
        _look(page, f"prefect-{key}", url, needle, out, check)


def use_form(page: Page, addresses: dict[str, str], out: Path, check: Checks) -> None:
    """Start a run from the form, watch it, open what it leaves, follow its links."""
    base = addresses["prefect"]
    deployment = ask(f"{base}/api/deployments/name/specialize/specialize")["id"]
    run = submit(page, base, deployment, ROOT, out, check)
    if run is None:
        return
    state = watch(page, base, run, out, check)
    check("form: the run ends well", state == "Completed", state)
    look_at_prefect(page, base, out, check)
    look_at_mlflow(page, addresses["mlflow"], out, check)
    follow_links(page, addresses, run, out, check)


def follow_links(page: Page, addresses: dict[str, str], run: str, out: Path, check: Checks) -> None:
    """From the flow run's page to MLflow's, by the link in its artifact, and back, by the tag."""
    base = addresses["prefect"]
    asked = {"flow_runs": {"id": {"any_": [run]}}, "sort": "CREATED_DESC", "limit": 50}
    linked = [
        artifact
        for artifact in ask(f"{base}/api/artifacts/filter", asked)
        if (artifact["key"] or "").endswith("-mlflow")
    ]
    check("links: the run names its MLflow run", len(linked) == 1)
    if not linked:
        return
    page.open(f"{base}/artifacts/artifact/{linked[0]['id']}", width=1700, height=1100)
    page.wait_for_text("MLflow run")
    href = page.evaluate(
        "[...document.querySelectorAll('a')].find(a => a.innerText.trim() === 'MLflow run')?.href"
    )
    check("links: lead to the server that runs", str(href).startswith(addresses["mlflow"]), href)
    if not href:
        return
    _look(page, "link-to-mlflow", href, "prefect.flow_run_url", out, check)
    told = f"{base}/runs/flow-run/{run}"
    back = page.evaluate(
        f"[...document.querySelectorAll('a')].map(a => a.href).find(url => url.endsWith({run!r}))"
    )
    check("links: lead back to the flow run", back == told, back)
    _look(page, "link-back", told, "Completed", out, check)


def _card_of(artifacts: list[dict[str, Any]]) -> str:
    """Return the key of the newest card."""
    return next((str(a["key"]) for a in artifacts if a["key"].endswith("-card")), "-card")


def _look(page: Page, name: str, url: str, needle: str, out: Path, check: Checks) -> None:
    """Open a page that scripts build, wait until it tells something, take its picture."""
    page.open(url, width=1700, height=1100)
    told = page.wait_for_text(needle)
    time.sleep(1.5)  # tables and pictures follow the text
    page.picture(out / f"{name}.png", whole=False)
    lost = [text for text in _LOST if text in page.text().lower()]
    check(f"{name}: tells {needle!r}", told and not lost, " ".join([*lost, url]))


@contextlib.contextmanager
def servers(home: Path, *, worker: bool = False) -> Iterator[dict[str, str]]:
    """Run `winnow up` over the stores of `home`, on free ports; yields addresses.

    Args:
        worker: also deploy, and run flows, in the folder `home`/work.
    """
    ports = {name: _free_port() for name in ("mlflow", "prefect")}
    command = [sys.executable, "-m", "flows.cli", "up"]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    if not worker:
        command += ["--no-worker", "--no-deploy"]
    environment = {
        **os.environ,
        "WINNOW_HOME": str(home.resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)
    work = home.resolve() / "work"
    work.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        _wait_for_the_end_of_the_start(process)
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        process.terminate()  # it ends everything
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(90)
        if process.poll() is None:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_the_end_of_the_start(process: subprocess.Popen[bytes]) -> None:
    """Read what `winnow up` says until it is up; raises `SystemExit` with it where it ends."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.decode())
        if b"Ctrl-C" in line:
            return
    raise SystemExit("winnow up: " + "".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--card", type=Path, action="append", default=[], help="an HTML file")
    parser.add_argument("--home", type=Path, help="a WINNOW_HOME whose stores to open")
    parser.add_argument("--form", type=Path, help="a WINNOW_HOME to run the form's recipe in")
    args = parser.parse_args()
    binary = find_browser()
    if binary is None:
        raise SystemExit("no Chromium on PATH; install one (apt-get install chromium)")
    args.out.mkdir(parents=True, exist_ok=True)
    check = Checks()
    with browser(binary) as page:
        for card in args.card:
            look_at_card(page, card, args.out, check)
        if args.home:
            with servers(args.home) as addresses:
                look_at_mlflow(page, addresses["mlflow"], args.out, check)
                look_at_prefect(page, addresses["prefect"], args.out, check)
        if args.form:
            with servers(args.form, worker=True) as addresses:
                use_form(page, addresses, args.out, check)
    print(f"{check.failed} checks failed; pictures in {args.out}")
    raise SystemExit(bool(check.failed))


if __name__ == "__main__":
    main()
