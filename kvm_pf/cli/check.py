# SPDX-License-Identifier: GPL-2.0-only
"""Compare the model with tables of the kernel's answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN


def _counter(name: str) -> Callable[[int], None]:
    """Show the rows done on the error stream, if somebody is looking."""

    def show(rows: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {rows} rows", end="\r", file=sys.stderr, flush=True)

    return show


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.conformance.vectors import check_table

    differing = 0
    for file in args.file:
        report = check_table(
            file, args.revision, first=args.first, engine=args.engine, progress=_counter(file)
        )
        print(report, flush=True)
        differing += report.differing
    return DIFFERENT if differing else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "check",
        help="compare the model with tables of the kernel's answers",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf check cases_posted.csv.gz sources_v6_12.csv.gz\n"
        "  kvm-pf check cases_before.csv.gz --revision posted   # what the patch changes",
    )
    p.add_argument("file", nargs="+", help="KIND_REVISION.csv, .csv.gz or .parquet")
    p.add_argument("--revision", help="compare with this revision, whatever the name says")
    p.add_argument("--first", type=int, default=5, help="how many differences to show (5)")
    p.add_argument(
        "--engine", choices=("auto", "plain", "compiled"), default="auto", help="how to run (auto)"
    )
    p.set_defaults(run=run)
