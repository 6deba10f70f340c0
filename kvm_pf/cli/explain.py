# SPDX-License-Identifier: GPL-2.0-only
"""Follow one fault, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from kvm_pf.bits import PFERR
from kvm_pf.cli.common import OK, PLAIN
from kvm_pf.cli.decode import read_code
from kvm_pf.common.errors import InputError


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{pair!r}: a setting has the form NAME=VALUE, such as vm_type=sw-protected")
        settings[name] = value
    return settings


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.run.watch import explain

    settings = _settings(args.setting)
    if args.private:
        settings["private"] = True
    if args.vm:
        settings["vm_type"] = args.vm
    if args.mode:
        settings["mode"] = args.mode
    code = read_code(args.code, PFERR, 64)
    given = {"error_code": code, "cr2_or_gpa": args.gpa, "revision": args.revision, **settings}
    print(explain(**given))
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "explain",
        help="follow one fault, step by step",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf explain 'RSVD|USER' --revision v6_12 --set gen=0x17 --set pf_ret=EMULATE",
    )
    p.add_argument("code", help="error code: hexadecimal, or names joined by |")
    p.add_argument("--gpa", default="0x100000000", help="address of the fault (0x100000000)")
    p.add_argument("--revision", default="posted", help="revision of the kernel (posted)")
    p.add_argument("--vm", help="kind of VM: default, sw-protected, sev, sev-es, snp, tdx")
    p.add_argument("--mode", help="paging mode: tdp, nonpaging, shadow, l2_ntdp, l2_tdp, l2_shadow")
    p.add_argument("--private", action="store_true", help="user space declared the page private")
    p.add_argument(
        "--set", dest="setting", action="append", default=[], metavar="NAME=VALUE", help="any other input"
    )
    p.set_defaults(run=run)
