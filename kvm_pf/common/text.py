# SPDX-License-Identifier: GPL-2.0-only
"""How values are written for people, and text that others wrote made fit to be shown."""

import unicodedata
from collections.abc import Sequence


def bit_names(bits: int, names: Sequence[str]) -> str:
    """Name the bits that are set, joined by "|"; `names` are those of the bits, lowest first.

    >>> bit_names(0b101, ("implicit", "synthetic", "bad_root"))
    'implicit|bad_root'
    """
    return "|".join(name for n, name in enumerate(names) if bits >> n & 1)


def write_number(value: int) -> str:
    """Write a number: a small one and an error (a negative errno) in decimal, others in hexadecimal.

    >>> [write_number(value) for value in (9, 10, -14, True)]
    ['9', '0xa', '-14', '1']
    """
    return str(int(value)) if -4096 < value < 10 else hex(value)


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
