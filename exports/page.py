"""From Markdown to one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from exports.page_style import STYLE

# Raw HTML in the Markdown is shown as text: class names and examples are anybody's.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LONG = 16  # rows; a longer table is folded away
_FEW = 5  # sections
_MAGIC = b"\x89PNG\r\n\x1a\n"


def page_html(title: str, head: str, body: str, pictures: Mapping[str, bytes]) -> str:
    """Return a page with a table of contents.

    Light and dark follow the reader's setting, tables scroll on narrow screens, long ones fold,
    and a content security policy says that nothing is fetched.

    Args:
        title: of the window.
        head: HTML above the body, the page's only h1 in it.
        body: Markdown; its second-level headings become the table of contents.
        pictures: PNG by the name that the Markdown gives it. A picture that is missing is left
            out; where NAME-dark.png is there too, it stands in for NAME.png on a dark ground.
    """
    tokens = _MARKDOWN.parse(body)
    contents = _anchored(tokens)
    _unwrap_pictures(tokens, pictures)
    _head_rows(tokens)
    html = _renderer(pictures).render(tokens, _MARKDOWN.options, {})
    entries = "".join(f'<li><a href="#{slug}">{escape(text)}</a></li>' for slug, text in contents)
    # a handful of sections need no list of them
    menu = _MENU.format(entries=entries) if len(contents) > _FEW else ""
    return _PAGE.format(
        title=escape(title),
        style=STYLE,
        head=head,
        menu=menu,
        body=html,
        end="</div>\n" if menu else "",
        script=_SCRIPT,
        digest=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )


def inline_html(text: str) -> str:
    """Return one paragraph of Markdown as HTML without the paragraph."""
    return str(_MARKDOWN.renderInline(text))


# MLflow shows a page in a sandboxed frame at a blob: address, where links to a place on the same
# page are refused. Elsewhere they work without this.
_SCRIPT = (
    'if(location.protocol==="blob:")addEventListener("click",event=>{'
    "const link=event.target.closest('a[href^=\"#\"]');if(!link)return;event.preventDefault();"
    "const place=document.getElementById(link.hash.slice(1));if(place)place.scrollIntoView()})"
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'">
<meta name="generator" content="winnow">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
{head}</header>
{menu}<main id="content">
{body}</main>
{end}<script>{script}</script>
</body>
</html>
"""


_MENU = """<div class="columns">
<nav aria-labelledby="contents"><p id="contents">Contents</p><ol>{entries}</ol></nav>
"""


def _anchored(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give every second-level heading an id; returns id and text of each, in order."""
    found: list[tuple[str, str]] = []
    taken = {"contents", "content"}
    for token, content in pairwise(tokens):
        if token.type != "heading_open" or token.tag != "h2":
            continue
        text = "".join(child.content for child in content.children or [])
        stem = slug = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        while slug in taken:
            slug = f"{stem}-{len(taken)}"
        taken.add(slug)
        token.attrSet("id", slug)
        found.append((slug, text))
    return found


def _unwrap_pictures(tokens: list[Token], pictures: Mapping[str, bytes]) -> None:
    """Take paragraphs that are one picture out of their <p>; drop pictures that are not there."""
    for at in range(len(tokens) - 2, 0, -1):
        children = tokens[at].children or []
        if tokens[at].type != "inline" or [child.type for child in children] != ["image"]:
            continue
        if tokens[at - 1].type != "paragraph_open":
            continue
        if children[0].attrGet("src") in pictures:
            tokens[at - 1].hidden = tokens[at + 1].hidden = True
        else:
            del tokens[at - 1 : at + 2]


def _head_rows(tokens: Sequence[Token]) -> None:
    """Say what the header cells head, and that the first cell of a row names it."""
    first = False
    rows = 0
    opened: Token | None = None
    for at, token in enumerate(tokens):
        match token.type:
            case "table_open":
                opened, rows = token, -1  # the header's row is not counted
            case "tr_open":
                first, rows = True, rows + 1
            case "th_open":
                token.attrSet("scope", "col")
            case "td_open" if first:
                first, token.tag = False, "th"
                token.attrSet("scope", "row")
                closing = next(t for t in tokens[at:] if t.type == "td_close")
                closing.tag = "th"
            case "table_close" if opened is not None:
                opened.meta["rows"] = token.meta["rows"] = rows


def _renderer(pictures: Mapping[str, bytes]) -> RendererHTML:
    """Return a renderer that wraps tables and takes the pictures in."""
    renderer = RendererHTML()
    rules: dict[str, Any] = renderer.rules  # of functions, whatever its annotation says

    def table_open(tokens: Sequence[Token], at: int, *_: Any) -> str:
        rows = tokens[at].meta.get("rows", 0)
        fold = f"<details><summary>Table of {rows} rows</summary>" if rows > _LONG else ""
        # focusable, so that a keyboard can scroll it
        return f'{fold}<div class="table" tabindex="0" role="group" aria-label="Table"><table>\n'

    def table_close(tokens: Sequence[Token], at: int, *_: Any) -> str:
        fold = "</details>" if tokens[at].meta.get("rows", 0) > _LONG else ""
        return f"</table></div>{fold}\n"

    def image(tokens: Sequence[Token], at: int, *_: Any) -> str:
        name = str(tokens[at].attrGet("src"))
        return _figure(name, tokens[at].content, pictures) if name in pictures else ""

    rules |= {"table_open": table_open, "table_close": table_close, "image": image}
    return renderer


def _figure(name: str, alt: str, pictures: Mapping[str, bytes]) -> str:
    """Return a picture as a data address, with its size, so that the page does not jump."""
    content = pictures[name]
    width, height = png_size(content)
    stem, _, kind = name.rpartition(".")
    dark = pictures.get(f"{stem}-dark.{kind}")
    source = (
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{_address(dark)}">'
        if dark
        else ""
    )
    return (
        f'<figure class="picture" tabindex="0"><picture>{source}<img src="{_address(content)}" '
        f'width="{width}" height="{height}" alt="{escape(alt)}"></picture></figure>\n'
    )


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png_size(content: bytes) -> tuple[int, int]:
    """Return width and height in pixels.

    Raises:
        ValueError: it is not a PNG.
    """
    if content[:8] != _MAGIC or len(content) < 24:
        raise ValueError("a picture of the page must be a PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height
