# SPDX-License-Identifier: GPL-2.0-only
"""Say in which states two revisions differ, in what, and what shows it."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN, Progress
from kvm_pf.common.errors import InputError


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.proof.compare import compare
    from kvm_pf.proof.terms import Unknown

    progress = Progress("compare")
    try:
        found = compare(args.a, args.b, reachable=not args.all_states, way=args.way, progress=progress.show)
    except Unknown as error:
        raise InputError(f"the solver gave up: {error}") from None
    finally:
        progress.done()
    args.differing = len(found.kinds)
    print(found)
    if args.diff:
        print("", found.diff(), sep="\n")
    return DIFFERENT if args.differing else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "compare",
        help="say in which states two revisions differ, in what, and what shows it",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf compare before posted\n  kvm-pf compare posted v6_10 --way source --diff\n\n"
        "The exit status is 0 if there is no difference, 1 if there is one.",
    )
    p.add_argument("a", metavar="A", help="a revision")
    p.add_argument("b", metavar="B", help="another")
    p.add_argument("--all-states", action="store_true", help="also those that a fault cannot meet")
    p.add_argument("--way", help="compare this way into the path alone, such as kvm_mmu_page_fault (all)")
    p.add_argument("--diff", action="store_true", help="show the steps that are not the same, line by line")
    p.set_defaults(run=run)
