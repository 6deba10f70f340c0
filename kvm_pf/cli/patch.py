# SPDX-License-Identifier: GPL-2.0-only
"""Say what a mail or diff is: this patch, a damaged copy, or another."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import PLAIN, UNREADABLE
from kvm_pf.common.errors import InputError


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.patch.reader import report

    text, status = report(args.file)
    if status == UNREADABLE:
        raise InputError(text)
    print(text)
    return status


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "patch",
        help="say what a mail or diff is: this patch, a damaged copy, or another",
        formatter_class=PLAIN,
        epilog="example:\n  kvm-pf patch 0001-KVM-x86-mmu.patch",
    )
    p.add_argument("file", help="mail, mbox, git format-patch or git show output, or a reply that quotes it")
    p.set_defaults(run=run)
