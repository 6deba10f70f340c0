# SPDX-License-Identifier: GPL-2.0-only
"""Compare the model with recordings of a running KVM."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN, UNREADABLE, mebibytes
from kvm_pf.common.paths import data_dir


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.conformance.replay import replay

    for directory in args.directory or sorted((data_dir() / "recordings").glob("*/")):
        report = replay(directory, args.revision, limit=args.limit << 20)
        args.differing += report.differing
        print(report, flush=True)
        args.damaged += len(report.damage)
    return DIFFERENT if args.differing else UNREADABLE if args.damaged else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "replay",
        help="compare the model with recordings of a running KVM",
        formatter_class=PLAIN,
        epilog="example:\n  kvm-pf replay recordings/6.12 recordings/7.3-intel\n\n"
        "The exit status is 1 if anything differs, 2 if a recording was cut or cannot be read.",
    )
    p.add_argument(
        "directory", nargs="*", help="a folder of one boot's recordings (all that the package carries)"
    )
    p.add_argument("--revision", help="compare with this revision, whatever the kernel says")
    p.add_argument(
        "--limit",
        type=mebibytes,
        default=64,
        metavar="MIB",
        help="text that a folder has at most, unpacked (64)",
    )
    p.set_defaults(run=run, damaged=0)
