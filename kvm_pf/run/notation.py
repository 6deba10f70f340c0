# SPDX-License-Identifier: GPL-2.0-only
"""How people write a number: prefixes, suffixes, separators, signs, terms, bytes of memory.

`spellings` reads one number in every way that its digits allow, `several` takes a text apart that holds nothing but
numbers, `alike` puts ASCII in the place of characters that only look like it.
"""

from __future__ import annotations

import re

from kvm_pf.common.errors import InputError

HEX, DECIMAL, NAMES = "hexadecimal", "decimal", "names"
BINARY, OCTAL, TERMS, BYTES = "binary", "octal", "a term", "bytes in memory order"
NEGATIVE, SIGNED = "a negative number", "a sign-extended number"

SPELLED = {
    HEX: "in hexadecimal, as the kernel prints", DECIMAL: "in decimal, as bpftrace and Rust print",
    SIGNED: "of 32 bits, the upper ones copies of bit 31",
}  # fmt: skip
"""Who writes so; said where a number can be read in several ways."""

_ALIKE: dict[int, str | int] = {
    **{n: n - 0xFEE0 for n in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " "),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"), ""),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u2018\u2019"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u00ab\u00bb"), '"'),
    **str.maketrans("\u00d7\u0445\u0425\u03c7\u03a7", "xxXxX"),
    **str.maketrans("\u0430\u0410\u0412\u0441\u0421\u0435\u0415\u0391\u0392\u0395", "aABcCeEABE"),
}
"""Fullwidth forms, blanks and quotes that editors and web pages put in, Cyrillic and Greek letters like hexadecimal."""


def alike(text: str) -> str:
    """Put ASCII in the place of characters that only look like it; digits of other scripts stay as they are.

    >>> alike("0\u0445683\u00a0")
    '0x683 '
    """
    return text if text.isascii() else text.translate(_ALIKE)


_SUFFIX = r"(?:[uU]?[lL]{0,2}[uU]?|[hH])"
_GROUPS = r"[0-9a-fA-F]+(?:[_'`][0-9a-fA-F]+)*"
_HEX = re.compile(rf"(?:0[xX] ?|\\?[xX]|#x|&[hH]|\$(?:0[xX])?|16#|[0-9]{{1,2}}'h)({_GROUPS}){_SUFFIX}")
_BARE = re.compile(
    r"[0-9a-fA-F]+(?:`[0-9a-fA-F]{8})?|[0-9a-fA-F]{1,4}(?:_[0-9a-fA-F]{4})+|[0-9]{1,3}(?:_[0-9]{3})+"
)
_MARKED = re.compile(r"([0-9][0-9a-fA-F]*)[hH]")
_C = re.compile(r"([0-9]+)(?:[uU][lL]{0,2}|[lL]{1,2}[uU]?)")
_BINARY = re.compile(rf"0[bB]([01]+(?:[_'][01]+)*){_SUFFIX}")
_OCTAL = re.compile(r"0[oO]([0-7]+)")
_NEGATIVE = re.compile(r"-([0-9]+)")
_BYTES = re.compile(
    r"(?:(?:\\x)?[0-9a-fA-F]{2}[ ,]+){3}(?:(?:(?:\\x)?[0-9a-fA-F]{2}[ ,]+){4})?(?:\\x)?[0-9a-fA-F]{2}"
)
_ESCAPED = re.compile(r"(?:\\x[0-9a-fA-F]{2}){4}|(?:\\x[0-9a-fA-F]{2}){8}")
_BIT = re.compile(r"(?:BIT|BIT_ULL|_BITULL)\( ?([0-9]{1,2}) ?\)|\(?(?:0x)?1[uUlL]{0,3} ?<< ?([0-9]{1,2})\)?")


LONGEST = 2000
"""The longest text that is taken for one number or sum of bits, in characters."""


def bare(text: str) -> str:
    """Take off what stands around a number or a term: quotes, brackets, punctuation, a sign, a remark on its base."""
    if len(text) > LONGEST:
        return text
    text = text.strip().strip("\"'`").strip(" =").rstrip(".,;:")
    text = re.sub(
        r"^(?:hex(?:adecimal)?|dec(?:imal)?)\b[ :]*|[ (,]*\b(?:hex(?:adecimal)?|dec(?:imal)?)\)?$", "", text
    )
    if re.fullmatch(r"\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^]]*\]|<[^>]*>|\{[^}]*\}", text) and len(text) > 2:
        text = text[1:-1].strip()
    return re.sub(r"^[+#](?=[0-9])", "", text)


def said_base(text: str) -> int:
    """Say which base stands beside a number in words, 16 or 10; 0 if none.

    >>> said_base("683 (hex)"), said_base("decimal 1667"), said_base("683")
    (16, 10, 0)
    """
    found = re.search(
        r"^(hex|dec)(?:adecimal|imal)?\b|\b(hex|dec)(?:adecimal|imal)?\)?$", text.strip().lower()
    )
    return 0 if not found else 16 if "hex" in found.groups() else 10


def term(text: str) -> int | None:
    """Read one term of a sum of bits: hexadecimal with 0x, `BIT(n)`, `1 << n`; None if it is none (u64)."""
    text = text.strip()
    if found := _BIT.fullmatch(text):
        bit = int(found[1] or found[2])
        return 1 << bit if bit < 64 else None
    if found := re.fullmatch(rf"0[xX]({_GROUPS}){_SUFFIX}", text):
        value = _digits(found[1], 16)
        return value if not value >> 64 else None
    return None


def _digits(text: str, base: int) -> int:
    text = re.sub("[_'`]", "", text)
    return int(text, base) if len(text) <= 70 else 1 << 64


def spellings(text: str, base: int = 0) -> list[tuple[int, str]]:
    """Read a number in every way that its digits allow, the kernel's first; [] if it is none.

    Returns codes (u64), each with how it was spelled.  `base` 10 or 16 decides how bare digits are read.  Raises
    InputError for a number of more than 64 bits, or one that is not of the base asked for.
    """
    text = bare(text)
    found = _ways(text, base)
    if base == 10 and found and found[0][1] != DECIMAL:
        raise InputError(f"{text[:60]!r} is no decimal number")
    fitting = [(code, spelled) for code, spelled in found if not code >> 64]
    extended = [(code & (1 << 32) - 1, SIGNED) for code, _ in fitting if code >> 31 == (1 << 33) - 1]
    extended = [way for way in extended if not way[0] & _NO_CODE]
    if len(fitting) < len(found) and not extended:
        raise InputError(f"{text[:60]}: a code has at most 64 bits")
    return fitting + extended


_NO_CODE = 0x7FFF0000
"""Bits that no code of 32 bits has, so that a negative number with one of them is an errno or the like."""


def _ways(text: str, base: int) -> list[tuple[int, str]]:
    if found := _NEGATIVE.fullmatch(text):
        value = _digits(found[1], 10)
        code = -value & (1 << 32) - 1
        if value > 1 << 31 or code & _NO_CODE:
            raise InputError(
                f"{text[:60]}: a negative number is no code; -14 and the like are errors (EFAULT)"
            )
        return [(code, NEGATIVE)]
    if found := _BINARY.fullmatch(text):
        return [(_digits(found[1], 2), BINARY)]
    if found := _OCTAL.fullmatch(text):
        return [(_digits(found[1], 8), OCTAL)]
    if _BYTES.fullmatch(text) or _ESCAPED.fullmatch(text):
        return [(int.from_bytes(bytes.fromhex(re.sub(r"\\x|[ ,]", "", text)), "little"), BYTES)]
    if found := _HEX.fullmatch(text) or _MARKED.fullmatch(text):
        return [(_digits(found[1], 16), HEX)]
    if found := _C.fullmatch(text):
        return [(_digits(found[1], 10), DECIMAL), (_digits(found[1], 16), HEX)][: 1 if base == 10 else 2]
    if not _BARE.fullmatch(text):
        terms = [term(part) for part in text.split("|")]
        if None in terms or not any(_BIT.fullmatch(part.strip()) or "|" in text for part in text.split("|")):
            return []
        code = 0
        for each in terms:
            code |= each or 0
        return [(code, TERMS)]
    digits = re.sub("[_`]", "", text)
    if base == 10 and digits.isdigit():
        return [(_digits(digits, 10), DECIMAL)]
    both = digits.isdigit() and digits[0] != "0" and len(digits) > 1 and not base and "`" not in text
    return [(_digits(digits, 16), HEX), *([(_digits(digits, 10), DECIMAL)] if both else [])]


_ONE = r"(?:0[xX][0-9a-fA-F]{1,16})"
_BETWEEN = r"(?:[ \t\r\n]*(?:[,;/]|vs\.?|and|or|to|->|=>|\u2192|\u21d2)[ \t\r\n]*|[ \t\r\n]+)"
_LIST = re.compile(rf"{_ONE}(?:{_BETWEEN}{_ONE})+[.;,]?")
_COUNTED = re.compile(r"[ \t]*[0-9]+[ \t]+(0[xX][0-9a-fA-F]{1,16}|[0-9a-fA-F]{1,16})[ \t]*")


def several(text: str) -> list[str]:
    r"""List the different numbers of a text that holds nothing else: a list, a column, or what `uniq -c` counted.

    Raises InputError if they are more than MOST.

    >>> several("0x683 vs 0x200000006"), several("    521 683\n     12 181\n"), several("error 4")
    (['0x683', '0x200000006'], ['683', '181'], [])
    """
    found = list(dict.fromkeys(_several(text)))
    if len(found) > MOST:
        raise InputError(f"{len(found)} numbers: too many at once, {MOST} are read")
    return found


MOST = 100
"""How many numbers are read at once."""


def _several(text: str) -> list[str]:
    if _LIST.fullmatch(text.strip()):
        return re.findall(_ONE, text)
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and all(line[0] in " \t" or "x" in line for line in lines):
        counted = [_COUNTED.fullmatch(line.rstrip("\r")) for line in lines]
        if all(counted):
            return [match[1] for match in counted if match]
    if len(lines) > 1 and all(re.fullmatch(r"\s*(?:0[xX])?[0-9a-fA-F]{1,16}\s*", line) for line in lines):
        return [line.strip() for line in lines]
    return []
