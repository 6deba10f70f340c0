# SPDX-License-Identifier: GPL-2.0-only
"""Small pieces of HTML that say the same with and without style.

Some readers of notebooks drop every style, so a mark is a character or bold type first and a colour second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ("Html", "bold", "changed", "code", "element", "join", "notice", "table")


class Html(str):
    """Text that is HTML already; all other text is escaped where it is used."""


def markup(content: object) -> str:
    """Return content as HTML: as it is, or escaped."""
    return content if isinstance(content, Html) else escape(str(content))


def element(name: str, *content: object, **attributes: str) -> Html:
    """Return an element; an attribute that is "" is left out.

    >>> element("td", "a < b", scope="row")
    '<td scope="row">a &lt; b</td>'
    """
    given = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{given}>{''.join(map(markup, content))}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return pieces one after the other."""
    return Html(between.join(map(markup, parts)))


def bold(content: object) -> Html:
    """Return it in bold type."""
    return element("b", content)


def code(content: object) -> Html:
    """Return it in the type of values."""
    return element("code", content, style="background:none;padding:0;white-space:nowrap")


def changed(content: object, is_changed: bool = True) -> object:
    """Mark what has changed: ▲ and bold type."""
    return bold(join(["▲ ", content])) if is_changed else content


def notice(text: str) -> Html:
    """Return a message to the user, which a screen reader speaks; nothing for no text."""
    look = "border-left:4px solid #d55e00;padding:4px 8px;margin:4px 0;overflow-wrap:anywhere"
    return element("div", bold("✗ "), text, role="alert", style=look) if text else Html()


_LINE = "border:1px solid rgba(127,127,127,.35);"
_CELL = _LINE + "padding:2px 7px;text-align:left;vertical-align:top;white-space:normal;max-width:32em;"
_HEAD = _CELL + "font-weight:bold;background:rgba(127,127,127,.12);"


def table(caption: object, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table with a caption; it scrolls by itself where the page is narrow."""
    lines = [
        element("caption", bold(caption), style="caption-side:top;text-align:left;padding:6px 0 2px;color:inherit"),
        element("tr", *(element("th", cell, scope="col", style=_HEAD) for cell in head)),
        *(element("tr", *(element("td", cell, style=_CELL) for cell in row)) for row in rows),
    ]
    look = "border-collapse:collapse;margin:0 0 6px;font-size:13px;line-height:1.35"
    return element("div", element("table", *lines, style=look), style="overflow-x:auto;max-width:100%")
