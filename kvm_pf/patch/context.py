# SPDX-License-Identifier: GPL-2.0-only
"""Context diffs (diff -c) written as unified ones, hunk by hunk.

Source of the form: the manual of GNU diffutils, "Detailed Description of Context Format".
"""

from __future__ import annotations

import re

_HUNK = re.compile(r"\*{15}(?: (.*))?$")
_OLD = re.compile(r"\*\*\* (\d{1,9})(?:,(\d{1,9}))? \*{4}$")
_NEW = re.compile(r"--- (\d{1,9})(?:,(\d{1,9}))? -{4}$")


def as_unified(text: str) -> str:
    r"""Write each context diff in a text, unquoted, as a unified diff; all else, damaged ones too, stays as it is.

    >>> as_unified("*** a\n--- b\n***************\n*** 1 ****\n! x\n--- 1 ----\n! y").split("\n")
    ['--- a', '+++ b', '@@ -1,1 +1,1 @@', '-x', '+y']
    """
    if "\n***************" not in text:
        return text
    lines = text.split("\n")
    made: list[str] = []
    at = 0
    while at < len(lines):
        head = [line.rstrip("\r") for line in lines[at : at + 3]]
        if (
            len(head) == 3
            and head[0].startswith("*** ")
            and head[1].startswith("--- ")
            and _HUNK.match(head[2])
        ):
            hunks, end = _hunks(lines, at + 2)
            if hunks:
                made += [f"--- {head[0][4:]}", f"+++ {head[1][4:]}", *hunks]
                at = end
                continue
        made.append(lines[at])
        at += 1
    return "\n".join(made)


def _hunks(lines: list[str], at: int) -> tuple[list[str], int]:
    """Read the hunks from a line on; return them as unified ones, none if one is damaged, and where they end."""
    made: list[str] = []
    while at + 1 < len(lines) and (start := _HUNK.match(lines[at].rstrip("\r"))):
        span = _OLD.match(lines[at + 1].rstrip("\r"))
        if not span:
            return [], at
        old, at = _side(lines, at + 2, " -!")
        following = _NEW.match(lines[at].rstrip("\r")) if at < len(lines) else None
        if not following:
            return [], at
        new, at = _side(lines, at + 1, " +!")
        counts = [_count(span), _count(following)]
        body = _merged(old, new, *counts)
        if body is None:
            return [], at
        section = f" {start[1]}" if start[1] else ""
        made += [f"@@ -{span[1]},{counts[0]} +{following[1]},{counts[1]} @@{section}", *body]
    return made, at


def _count(span: re.Match[str]) -> int:
    """Count a side's lines: "n,m" are both ends, "n" is one line, "0" none."""
    if span[2] is None:
        return int(span[1] != "0")
    return max(0, int(span[2]) - int(span[1]) + 1)


def _side(lines: list[str], at: int, signs: str) -> tuple[list[tuple[str, str]], int]:
    """Read one side of a hunk: its lines, each with its sign, and where it ends."""
    found: list[tuple[str, str]] = []
    while at < len(lines):
        line = lines[at]
        if not line.startswith("\\ "):
            if line[:1] not in tuple(signs) or line[1:2] not in ("", " "):
                break
            found.append((line[0], line[2:]))
        at += 1
    return found, at


def _merged(
    old: list[tuple[str, str]], new: list[tuple[str, str]], old_count: int, new_count: int
) -> list[str] | None:
    """Put the two sides together; None if they do not fit.  A side without a change is left out by diff."""
    if not old and (not new or all(sign != "!" for sign, _ in new)):
        old = [line for line in new if line[0] == " "]
    if not new and all(sign != "!" for sign, _ in old):
        new = [line for line in old if line[0] == " "]
    if len(old) != old_count or len(new) != new_count:
        return None
    made: list[str] = []
    n = m = 0
    while n < len(old) or m < len(new):
        while n < len(old) and old[n][0] != " ":
            made.append(f"-{old[n][1]}")
            n += 1
        while m < len(new) and new[m][0] != " ":
            made.append(f"+{new[m][1]}")
            m += 1
        if n < len(old) and m < len(new) and old[n] == new[m]:
            made.append(f" {old[n][1]}")
            n, m = n + 1, m + 1
        elif n < len(old) or m < len(new):
            return None
    return made
