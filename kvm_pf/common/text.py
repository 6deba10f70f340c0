# SPDX-License-Identifier: GPL-2.0-only
"""How values are written for people, and the text of others made fit to be shown."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

LINE = 1000
"""The most characters of a message on one line."""


def visible(text: object, keep: str = "") -> str:
    r"""Return text with each character that a terminal would obey, or not show, written as its escape.

    `text` is a str, or anything that has one.  `keep` holds the characters that stay as they are, such as
    "\n\t" for text of many lines.

    >>> visible("v6.12\x1b[2J \u202etxt.exe")
    'v6.12\\x1b[2J \\u202etxt.exe'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if each in keep or _is_seen(each) else repr(each)[1:-1] for each in text)


def _is_seen(character: str) -> bool:
    """Say whether it is neither a control (C0, C1), a format (direction, no width), an end of line, nor unknown."""
    return character.isprintable() or unicodedata.category(character) == "Zs"  # blanks of every width


def escaped(text: object) -> str:
    """Return text as HTML shows it: no markup in it, and no control character but ends of lines and tabs.

    >>> escaped("<b> & c")
    '&lt;b&gt; &amp; c'
    """
    return html.escape(visible(text, keep="\n\t"))


def one_line(text: object, longest: int = LINE) -> str:
    r"""Return text as one visible line: ends of lines are blanks, and the middle of a long one is left out.

    >>> one_line("a\nb"), one_line("0123456789" * 9, longest=20)
    ('a b', '0123456 … 0123456789')
    """
    # A cut before the escapes bounds the work, one after them the line.
    return _shortened(visible(" ".join(_shortened(str(text), 4 * longest).split())), longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 2
    return f"{text[: longest - end - 3]} … {text[-end:]}"


def named_bits(bits: int, names: Sequence[str]) -> list[str]:
    """Name the bits that are set, lowest first; `names` are those of the bits in that order.

    >>> named_bits(0b101, ("implicit", "synthetic", "bad_root")), named_bits(0b101, ("implicit",))
    (['implicit', 'bad_root'], ['implicit', 'bit2'])
    """
    known = dict(enumerate(names))
    return [known.get(n, f"bit{n}") for n in range(bits.bit_length()) if bits >> n & 1]


def bit_names(bits: int, names: Sequence[str]) -> str:
    """Name the bits that are set, joined by "|", as `named_bits` does.

    >>> bit_names(0b101, ("implicit", "synthetic", "bad_root"))
    'implicit|bad_root'
    """
    return "|".join(named_bits(bits, names))


def write_number(value: int) -> str:
    """Write a number: a small one and an error (a negative errno) in decimal, others in hexadecimal.

    >>> [write_number(value) for value in (9, 10, -14, True)]
    ['9', '0xa', '-14', '1']
    """
    return str(int(value)) if -4096 < value < 10 else hex(value)
