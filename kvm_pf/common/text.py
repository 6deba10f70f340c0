# SPDX-License-Identifier: GPL-2.0-only
"""How values are written for people."""

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
