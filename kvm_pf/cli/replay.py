# SPDX-License-Identifier: GPL-2.0-only
"""Compare the model with recordings of a running KVM."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.conformance.replay import replay

    differing = 0
    for directory in args.directory:
        report = replay(directory, args.revision)
        print(report, flush=True)
        differing += report.differing
    return DIFFERENT if differing else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "replay",
        help="compare the model with recordings of a running KVM",
        formatter_class=PLAIN,
        epilog="example:\n  kvm-pf replay recordings/6.12 recordings/7.3-intel",
    )
    p.add_argument("directory", nargs="+", help="a folder of one boot's recordings")
    p.add_argument("--revision", help="compare with this revision, whatever the kernel says")
    p.set_defaults(run=run)
