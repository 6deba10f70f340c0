# SPDX-License-Identifier: GPL-2.0-only
"""A step of two revisions side by side, as a table of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from kvm_pf.patch.diff import Row
from kvm_pf.show.markup import Html, bold, element, framed, source_line, table


def diff_table(rows: Sequence[Row], left: str = "before", right: str = "posted", caption: str = "") -> Html:
    """Return a comparison as a table; − and + and bold type say what colour says."""

    def side(text: str, sign: str, look: str, same: bool) -> Html:
        if same or not text:
            return element("td", source_line(text, "\u00a0\u00a0"))
        return element("td", bold(source_line(text, f"{sign}\u00a0")), class_=look)

    lines = [
        [side(one, "−", "gone", tag == "equal"), side(other, "+", "new", tag == "equal")]
        for tag, one, other in rows
    ]
    return table(caption, (left, right), lines, "diff")


def only_changes(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield a comparison with one line around each change; how many are alike stands for the others.

    >>> from kvm_pf.patch.diff import compared
    >>> [row.left for row in only_changes(compared(list("abcde"), list("abcdx")))]
    ['… 3 alike', 'd', 'e']
    """
    runs = [(alike, list(run)) for alike, run in groupby(rows, lambda row: row.tag == "equal")]
    for number, (alike, run) in enumerate(runs):
        first, last = int(number > 0), int(number < len(runs) - 1)
        between = run[first : len(run) - last]
        if not alike or len(between) < 2:
            yield from run
            continue
        yield from run[:first]
        yield Row("equal", f"… {len(between)} alike", f"… {len(between)} alike")
        yield from run[len(run) - last :]


def diff_html(rows: Sequence[Row], left: str = "before", right: str = "posted") -> Html:
    """Draw a comparison side by side, to be shown by itself."""
    return framed(diff_table(rows, left, right))
