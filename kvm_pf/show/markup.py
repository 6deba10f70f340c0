# SPDX-License-Identifier: GPL-2.0-only
"""Small pieces of HTML that say the same with and without style.

Some readers of notebooks drop every style, so a mark is a character or bold type first and a colour second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kvm_pf.common.text import escaped

__all__ = (
    "Html", "Shown", "beside", "bold", "breakable", "cell", "changed", "cited", "code", "details", "element", "framed",
    "halves", "join", "notice", "source_line", "table",
)  # fmt: skip

STYLE = """<style>
.kvm-pf.kvm-pf {overflow-x: auto; max-width: 100%}
.kvm-pf.kvm-pf p {margin: 4px 0; line-height: 1.4; overflow-wrap: anywhere}
.kvm-pf.kvm-pf table {border-collapse: collapse; margin: 0 0 6px; font-size: 13px; line-height: 1.35}
.kvm-pf.kvm-pf table caption {caption-side: top; text-align: left; padding: 6px 0 2px; font-weight: bold;
  color: inherit;
  font-size: 13px; white-space: normal}
.kvm-pf.kvm-pf table th, .kvm-pf.kvm-pf table td {border: 1px solid rgba(127, 127, 127, .35); padding: 1px 6px;
  text-align: left; vertical-align: top; white-space: normal; max-width: 34em; overflow-wrap: break-word}
.kvm-pf.kvm-pf table th {font-weight: bold; background: rgba(127, 127, 127, .12)}
.kvm-pf.kvm-pf code {background: none; padding: 0; color: inherit}
.kvm-pf.kvm-pf table.diff {width: 100%; table-layout: fixed}
.kvm-pf.kvm-pf table.diff td {border-width: 0 1px; max-width: none}
.kvm-pf.kvm-pf table.diff code, .kvm-pf.kvm-pf code.line {white-space: normal}
.kvm-pf.kvm-pf td.gone {background: rgba(213, 94, 0, .16)}
.kvm-pf.kvm-pf td.new {background: rgba(0, 114, 178, .16)}
.kvm-pf.kvm-pf table.bits {width: 100%; table-layout: fixed; font-size: 10px}
.kvm-pf.kvm-pf table.bits td {padding: 1px 2px; overflow-wrap: anywhere}
.kvm-pf.kvm-pf .halves {display: flex; flex-wrap: wrap; gap: 0 14px}
.kvm-pf.kvm-pf .halves > div {flex: 2 1 340px; min-width: 0}
.kvm-pf.kvm-pf .halves > div + div {flex-grow: 3}
.kvm-pf.kvm-pf pre {font-size: 12px; line-height: 1.35; margin: 4px 0; padding: 4px 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid rgba(127, 127, 127, .35); background: none; color: inherit}
.kvm-pf.kvm-pf details {font-size: 12px; margin: 0 0 6px}
.kvm-pf.kvm-pf td.on {background: rgba(0, 114, 178, .2); outline: 2px solid currentColor; outline-offset: -2px}
</style>"""
"""The class stands twice in each rule: it must outweigh JupyterLab's rules for tables and code."""


class Html(str):
    """Text that is HTML already; all other text is escaped where it is used."""


class Shown:
    """Something to be looked at: HTML where that is read, a name elsewhere."""

    def __init__(self, name: str, html: Html) -> None:
        self.name = name
        self.html = html

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.name


def markup(content: object) -> str:
    """Return content as HTML: as it is, or escaped."""
    return content if isinstance(content, Html) else escaped(content)


def element(name: str, *content: object, **attributes: str) -> Html:
    """Return an element; `class_` stands for class, and an attribute that is "" is left out.

    >>> print(element("td", "a < b", class_="new"))
    <td class="new">a &lt; b</td>
    """
    given = "".join(f' {key.rstrip("_")}="{escaped(value)}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{given}>{''.join(map(markup, content))}</{name}>")


def join(parts: Iterable[object], between: object = "") -> Html:
    """Return pieces one after the other."""
    return Html(markup(between).join(map(markup, parts)))


def framed(*content: object) -> Html:
    """Return content with the style of this module, which touches nothing outside of it."""
    return element("div", Html(STYLE), *content, class_="kvm-pf")


def breakable(text: str) -> Html:
    """Return text that may go on in the next line after each _ and |, for names and lists of them are long."""
    return Html(re.sub("([_|])(?=.)", r"\1<wbr>", escaped(text)))


def bold(content: object) -> Html:
    """Return it in bold type."""
    return element("b", content if isinstance(content, Html) else breakable(str(content)))


def code(content: object) -> Html:
    """Return it in the type of code."""
    return element("code", content if isinstance(content, Html) else breakable(str(content)))


def cited(text: str) -> Html:
    """Return a source as it is given in a docstring, with paths between backticks in the type of code."""
    return Html(re.sub("`([^`]*)`", r"<code>\1</code>", markup(text)))


def source_line(text: str, sign: str = "") -> Html:
    """Return a line of a program, its indentation kept; the rest may be wrapped."""
    line = text.expandtabs(8)
    indent = len(line) - len(line.lstrip())
    return element("code", sign, "\u00a0" * indent, line[indent:], class_="line")


def changed(content: object, is_changed: bool = True) -> object:
    """Mark what has changed: ▲ and bold type."""
    return bold(join(["▲\u00a0", content])) if is_changed else content


def details(summary: object, *content: object) -> Html:
    """Return content that is folded under its summary until somebody opens it."""
    return element("details", element("summary", summary), *content)


def notice(text: str) -> Html:
    """Return a message to the user, which a screen reader speaks; nothing for no text."""
    look = "border-left:4px solid #d55e00;padding:4px 8px;margin:4px 0;line-height:1.4;overflow-wrap:anywhere"
    return element("div", bold("✗ "), text, role="alert", style=look) if text else Html()


def cell(content: object) -> Html:
    """Return a cell of a table: content, unless it is a cell already."""
    if isinstance(content, Html) and content.startswith("<td"):
        return content
    return element("td", content if isinstance(content, Html) else breakable(str(content)))


def table(caption: object, head: Sequence[object], rows: Iterable[Sequence[object]], look: str = "") -> Html:
    """Return a table; `caption` may be "", and `head` empty; `look` is one of this module's classes."""
    lines = [element("tr", *map(cell, row)) for row in rows]
    if head:
        lines.insert(0, element("tr", *(element("th", each, scope="col") for each in head)))
    if caption:
        lines.insert(0, element("caption", caption))
    return element("table", *lines, class_=look)


def halves(left: Iterable[object], right: Iterable[object]) -> Html:
    """Return two columns, or one after the other where there is no room."""
    return element("div", element("div", *left), element("div", *right), class_="halves")


def beside(rows: Sequence[Sequence[object]], sets: int) -> Iterator[list[object]]:
    """Yield long rows for a long table that is cut into `sets` pieces, which then stand side by side.

    >>> list(beside([("a", 1), ("b", 2), ("c", 3)], 2))
    [['a', 1, 'c', 3], ['b', 2, '', '']]
    """
    height = -(-len(rows) // sets)
    for n in range(height):
        row = [cell for part in rows[n::height] for cell in part]
        yield [*row, *[""] * (sets * len(rows[0]) - len(row))]
