# SPDX-License-Identifier: GPL-2.0-only
"""A step of two revisions side by side, as a table of a page."""

from __future__ import annotations

from collections.abc import Sequence

from kvm_pf.patch.diff import Row
from kvm_pf.show.markup import Html, bold, element, framed, source_line, table


def diff_table(rows: Sequence[Row], left: str = "before", right: str = "posted") -> Html:
    """Return a comparison as a table; − and + and bold type say what colour says."""

    def side(text: str, sign: str, look: str, same: bool) -> Html:
        if same or not text:
            return element("td", source_line(text, "\u00a0\u00a0"))
        return element("td", bold(source_line(text, f"{sign}\u00a0")), class_=look)

    lines = [
        [side(one, "−", "gone", tag == "equal"), side(other, "+", "new", tag == "equal")]
        for tag, one, other in rows
    ]
    return table("", (left, right), lines, "diff")


def diff_html(rows: Sequence[Row], left: str = "before", right: str = "posted") -> Html:
    """Draw a comparison side by side, to be shown by itself."""
    return framed(diff_table(rows, left, right))
