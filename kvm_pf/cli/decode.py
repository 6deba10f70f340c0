# SPDX-License-Identifier: GPL-2.0-only
"""Name the bits of a code."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from kvm_pf.bits import EPT, PFERR, Bit, decode, encode
from kvm_pf.cli.common import OK, PLAIN
from kvm_pf.common.errors import InputError

ENCODINGS: dict[str, tuple[tuple[Bit, ...], str]] = {
    "pferr": (PFERR, "page-fault error code (#NPF, or inside KVM)"),
    "ept": (EPT, "EPT-violation exit qualification"),
    "pf": (PFERR, "legacy #PF error code (32 bits)"),
}


def read_code(text: str, table: tuple[Bit, ...], bits: int) -> int:
    """Read a code given in hexadecimal or by names."""
    code = hexadecimal(text)
    if code is None:
        try:
            code = encode(text, table)
        except ValueError as error:
            raise InputError(f"{text[:80]!r} is no hexadecimal number, and {error}") from None
    if code >> bits:
        raise InputError(f"{text[:80]}: such a code has {bits} bits, 0 to {(1 << bits) - 1:#x}")
    return code


def hexadecimal(text: str) -> int | None:
    """Read a hexadecimal number, with or without 0x; None if it is none."""
    return int(text, 16) if re.fullmatch(r"(0[xX])?[0-9a-fA-F]+", text) else None


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    table, title = ENCODINGS[args.encoding]
    code = read_code(args.code, table, 32 if args.encoding == "pf" else 64)
    rows = decode(code, table)
    if args.json:
        bits = [{"bit": r.bit, "name": r.name, "set_by": r.set_by.value, "means": r.means} for r in rows]
        print(json.dumps({"code": f"{code:#x}", "encoding": args.encoding, "bits": bits}, indent=1))
        return OK
    print(f"{code:#x}: {title}")
    for row in rows:
        print(f"  {row.bit:>2}  {row.label:<24} {row.set_by.value:<10} {row.means}")
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "decode",
        help="name the bits of a code",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf decode 10000000c\n  kvm-pf decode 0x683 --as ept\n"
        "  kvm-pf decode 'WRITE|USER' --json",
    )
    p.add_argument("code", help="hexadecimal, with or without 0x, or names joined by |")
    p.add_argument(
        "--as", dest="encoding", choices=tuple(ENCODINGS), default="pferr", help="how to read it (pferr)"
    )
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=run)
