from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from exports.card import card_html
from exports.page import page_html, png_size
from exports.plots import card_pictures, sweep_pictures
from exports.sweep_card import sweep_page
from tests.exports.reports import full_report, full_sweep, with_classes

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "img", "source", "br", "hr", "link"}


class Outline(HTMLParser):
    """All elements of a page, and that every one that opens closes in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def every(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def card() -> str:
    return card_html(full_report(), card_pictures(full_report(), full_sweep()), full_sweep())


def test_the_page_is_whole_and_its_contents_lead_to_its_sections(card: str) -> None:
    outline = Outline(card)
    assert len(outline.every("h1")) == 1 and outline.every("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in outline.every("a")]
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    assert [link[1:] for link in links[1:]] == [h["id"] for h in outline.every("h2")]


def test_the_page_fetches_nothing(card: str) -> None:
    outline = Outline(card)
    for tag, attributes in outline.elements:
        for key in ("src", "srcset", "href", "action", "data"):
            assert attributes.get(key, "#").startswith(("#", "data:image/png;base64,")), tag
    assert "@import" not in card and "url(" not in card
    (script,) = re.findall(r"<script>(.*?)</script>", card, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in outline.every("meta") if "http-equiv" in m]
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_every_picture_is_inside_with_its_size_and_a_text(card: str) -> None:
    pictures = card_pictures(full_report(), full_sweep())
    shown = Outline(card).every("img")
    assert len(shown) == 4
    for image in shown:
        content = base64.b64decode(image["src"].partition(",")[2])
        assert content in pictures.values()
        assert (int(image["width"]), int(image["height"])) == png_size(content)
        assert len(image["alt"]) > 40
    dark = [base64.b64decode(s["srcset"].partition(",")[2]) for s in Outline(card).every("source")]
    assert dark == [
        pictures[f"{name}-dark.png"] for name in ("tradeoff", "front", "per-class", "calibration")
    ]


def test_a_missing_picture_leaves_no_hole() -> None:
    page = card_html(full_report(), {})
    assert not Outline(page).every("img") and "<p></p>" not in page and ".png" not in page


def test_tables_name_their_rows_and_columns_and_long_ones_fold() -> None:
    names = [f"class {at}" for at in range(40)]
    page = card_html(with_classes(names), {})
    scopes = [head.get("scope") for head in Outline(page).every("th")]
    assert set(scopes) == {"row", "col"}
    assert "<summary>Table of 40 rows</summary>" in page
    few = card_html(with_classes(names[:12]), {})
    assert "<summary>" not in few


def test_names_of_the_users_stay_texts() -> None:
    names = ["<script>alert(1)</script>", 'a" onload="x', "plain"]
    report = with_classes(names)
    report["task"]["name"] = "a<b>"
    page = card_html(report, {})
    outline = Outline(page)
    assert len(outline.every("script")) == 1 and not any("onload" in a for _, a in outline.elements)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


@pytest.mark.parametrize("status", ["pass", "fail", "inconclusive"])
def test_the_verdict_is_a_word_and_a_sign(status: str) -> None:
    report = full_report()
    report["verdict"]["status"] = status
    page = card_html(report, {})
    assert re.search(rf'class="badge {status}"><span aria-hidden="true">.</span> {status}', page)


def test_the_strip_puts_the_interval_where_it_is() -> None:
    report = full_report()
    report["accuracy"] |= {"drop": 0.02, "drop_ci": [0.0, 0.05], "max_drop": 0.04}
    page = card_html(report, {})
    at = {
        name: float(re.search(rf'class="{name}" style="left:([\d.]+)%', page)[1])
        for name in ("zero", "bound", "bar", "dot")
    }
    width = float(re.search(r'class="bar" style="left:[\d.]+%;width:([\d.]+)%', page)[1])
    unit = (at["bound"] - at["zero"]) / 0.04  # per cent of the strip for a drop of one
    assert at["bar"] == pytest.approx(at["zero"], abs=0.02)
    assert at["dot"] == pytest.approx(at["zero"] + 0.02 * unit, abs=0.02)
    assert width == pytest.approx(0.05 * unit, abs=0.02)
    assert at["bar"] + width < 100


def test_equal_headings_get_places_of_their_own() -> None:
    page = page_html("t", "<h1>t</h1>", "## Same\n\na\n\n## Same\n\n## Content\n\n## !\n", {})
    ids = [h["id"] for h in Outline(page).every("h2")]
    assert len(set(ids)) == 4 and "content" not in ids


def test_what_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="PNG"):
        page_html("t", "", "![a](a.png)", {"a.png": b"GIF89a"})


def test_a_sweep_has_a_page_too() -> None:
    page = sweep_page(full_sweep(), sweep_pictures(full_sweep()))
    outline = Outline(page)
    assert len(outline.every("img")) == 1 and not outline.every("nav")
    assert "<dd>3x-int8<small>of 12 points</small></dd>" in page
    assert page.count('<th scope="row">') == 13
    none = sweep_page(full_sweep() | {"picked": None, "picked_why": "none passed"}, {})
    assert "none passes" in none and 'class="tiles"' not in none


def looked_at(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    (folder / "card.html").write_text(page, encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "pages.py"), "--out", str(folder)]
    return subprocess.run(
        [*command, "--card", str(folder / "card.html")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a Chromium on PATH")
def test_a_browser_shows_it_wide_dark_and_narrow(tmp_path: Path, card: str) -> None:
    done = looked_at(tmp_path, card)
    assert done.returncode == 0, done.stdout + done.stderr
    for view in ("wide", "dark", "narrow"):
        assert png_size((tmp_path / f"card-{view}.png").read_bytes())[1] > 5000
    # and the checks find what they are for
    spoilt = card.replace("--soft: #565e66", "--soft: #c9ced3").replace(
        "</main>", '<div style="width:70rem">x</div><a href="#nowhere">y</a></main>'
    )
    done = looked_at(tmp_path, spoilt)
    assert done.returncode == 1
    found = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    for name in ("card-wide: contrast", "card-narrow: fits", "card-dark: links"):
        assert any(name in line for line in found), done.stdout
    assert not any("dark: contrast" in line for line in found)
