# SPDX-License-Identifier: GPL-2.0-only
"""Undo what mailers, chats, terminals and pages do to the lines of a diff, each as far as the text shows it.

Nothing is undone by guess: a form counts where all lines of the diff, or its marks, say so.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from collections.abc import Callable
from contextlib import suppress

_SPAN = r"@@ -\d{1,9}(?:,\d{1,9})? \+\d{1,9}(?:,\d{1,9})? @@"
_HUNK = re.compile(rf"^{_SPAN}", re.MULTILINE)
_ANYWHERE = re.compile(rf"^(.{{1,60}}?){_SPAN}", re.MULTILINE)
_QUOTING = re.compile(r"(?:[ \t]*[A-Za-z]{0,4}[>|])*[ \t]*")
"""What quotes, which the reader undoes itself, for it tells who quotes whom."""


def unflowed(text: str, delsp: bool = False) -> str:
    """Undo `format=flowed`: join the lines that end with a blank to the next, and take away the blanks put before.

    A text that was not stuffed, though its header says so, is given back as it is.  `delsp`: the blank goes as well.

    Source: RFC 3676, sections 4.1 to 4.5.
    """
    inside = text.partition("@@ -")[2]
    if re.search(r"^ [^ \n]", inside, re.MULTILINE):
        return text
    lines: list[str] = []
    soft: str | None = None  # the quoting of a line that goes on
    for line in text.split("\n"):
        marks = line[: len(line) - len(line.lstrip(">"))]
        rest = line[len(marks) :].removeprefix(" ")
        if soft == marks:
            lines[-1] += rest
        else:
            lines.append(f"{marks} {rest}" if marks else rest)
        soft = None
        if rest.endswith(" ") and rest != "-- ":
            soft = marks
            lines[-1] = lines[-1][:-1] if delsp else lines[-1]
    return "\n".join(lines)


def _unprinted(text: str) -> str:
    """Undo quoted-printable without a header that says so."""
    if "=3D" not in text or not re.search(r"=(?:20|09)?\n", text):
        return text
    joined = re.sub(r"=\n(?:>[> ]*)?", "", text)
    return quopri.decodestring(joined.encode()).decode(errors="replace")


def _unwritten(text: str) -> str:
    """Undo the escapes of a string of C, Python or JSON."""
    if "\\n@@ -" not in text or _HUNK.search(text) or not re.search(rf"\\n{_SPAN}", text):
        return text
    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ('\\"', '"'), ("\\'", "'"), ("\\\\", "\\")):
        text = text.replace(written, meant)
    return re.sub(r"""['"](?=diff --git |--- )""", "\n", text)


def _undoubled(text: str) -> str:
    """Undo a blank line behind every line."""
    start = re.search(r"^(?:diff |Index: |--- )", text, re.MULTILINE)
    if start is None:
        return text
    lines = text[start.start() :].split("\n")
    if len(lines) < 12 or any(lines[1::2]) or sum(map(bool, lines[::2])) < len(lines) // 4:
        return text
    return text[: start.start()] + "\n".join(lines[::2])


def _unprefixed(text: str) -> str:
    """Undo what stands before every line of a diff: a comment's mark, a speaker's name, a time."""
    found = None if _HUNK.search(text) else _ANYWHERE.search(text)
    if found is None or "&" in found[1] or _QUOTING.fullmatch(found[1]):
        return text
    shape = re.sub(r"\d+", r"\\d+", re.escape(found[1].rstrip()))
    prefix = re.compile(rf"^{shape}(?: |$)" if found[1].endswith(" ") else f"^{shape}", re.MULTILINE)
    if len(prefix.findall(text)) < 5:
        return text
    return prefix.sub("", text)


def _uncolumned(text: str) -> str:
    """Undo the columns with old and new numbers that pages show beside a diff, if they are copied with it."""
    numbers = re.compile(r"^\d{0,7}\t\d{0,7}\t(?=[-+ ]|$)", re.MULTILINE)
    return numbers.sub("", text) if len(numbers.findall(text)) >= 5 and _HUNK.search(text) else text


_STEPS: tuple[Callable[[str], str], ...] = (_unprinted, _unwritten, _undoubled, _unprefixed, _uncolumned)

LONGEST = 1 << 22
"""How long a text is at most that is restored, in characters."""


def restored(text: str) -> str:
    """Undo what was done to all lines of a diff."""
    if len(text) <= LONGEST:
        for step in _STEPS:
            text = step(text)
    return text


_BLOCK = re.compile(r"(?:^[A-Za-z0-9+/]{60,76}\n){3,}(?:^[A-Za-z0-9+/]{1,76}={0,2}$)?", re.MULTILINE)


def packed_inside(text: str) -> str:
    """Find a diff in a block of base64 within a text; "" if there is none."""
    for block in _BLOCK.finditer(text[:LONGEST]):
        with suppress(binascii.Error):
            inside = base64.b64decode(block[0]).decode(errors="replace")
            if "@@ -" in inside:
                return inside
    return ""
