# SPDX-License-Identifier: GPL-2.0-only
"""Say what each diff in mails and files is: this patch, a part of it, a damaged copy, a relative, or another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kvm_pf.cli.common import PLAIN, UNREADABLE, mebibytes
from kvm_pf.common.errors import InputError
from kvm_pf.patch import LIMIT


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.patch.identify import report

    if args.file.count("-") > 1:
        raise InputError("- is given twice; standard input can be read once")
    worst = 0
    for number, file in enumerate(args.file):
        text, status = report(Path(file) if "\n" in file else file, args.limit << 20)
        worst = max(worst, status)
        if status != UNREADABLE:
            print(("\n" if number else "") + text)
        elif len(args.file) == 1:
            raise InputError(text)
        else:
            sys.stdout.flush()
            print(f"kvm-pf: {text}", file=sys.stderr)
    return worst


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "patch",
        help="say what mails and diffs are: this patch, part of it, damaged, a relative, or another",
        description="Say of each diff in each file what it is: this patch; a part of it, and which hunks; a damaged "
        "copy,\nand where it first differs; a known relative (as merged, v2, the two ways of borrowing AMD's bit,\n"
        "the other patches of the series); or another patch.  Of the three changes, which are made; and the\n"
        "revision that is closest in behaviour.",
        formatter_class=PLAIN,
        epilog="exit status: 0 each file holds this patch, whole; 1 some file does not; 2 some file cannot be read or\n"
        "holds no diff.\n\n"
        "examples:\n  kvm-pf patch 0001-KVM-x86-mmu.patch\n  git log -p -3 | kvm-pf patch -",
    )
    p.add_argument(
        "file", nargs="+", metavar="FILE",
        help="mail, mbox, archived page, git format-patch, show or log output, a reply that quotes it; - for "
        "standard input; gzip, bzip2, xz and zstd are undone",
    )  # fmt: skip
    p.add_argument(
        "--limit", type=mebibytes, default=LIMIT >> 20, metavar="MIB",
        help="what a file holds at most, unpacked (%(default)s)",
    )  # fmt: skip
    p.set_defaults(run=run)
