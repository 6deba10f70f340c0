# SPDX-License-Identifier: GPL-2.0-only
"""Compare the model with tables of the kernel's answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN, Progress, mebibytes
from kvm_pf.common.paths import data_dir


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.conformance.vectors import check_table

    for file in args.file or sorted((data_dir() / "vectors").glob("*.parquet")):
        progress = Progress(f"check {Path(file).name}, rows")
        report = check_table(
            file,
            args.revision,
            first=args.first,
            engine=args.engine,
            limit=args.limit << 20,
            progress=progress.show,
        )
        progress.done()
        args.differing += report.differing
        print(report, flush=True)
    return DIFFERENT if args.differing else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "check",
        help="compare the model with tables of the kernel's answers",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf check                                  # all that the package carries\n"
        "  kvm-pf check vectors/cases_v6_12.csv.gz vectors/sources_v6_12.parquet\n"
        "  kvm-pf check vectors/cases_before.parquet --revision posted   # what the patch changes",
    )
    p.add_argument(
        "file", nargs="*", help="KIND_REVISION.csv, .csv.gz or .parquet (all that the package carries)"
    )
    p.add_argument("--revision", help="compare with this revision, whatever the name says")
    p.add_argument("--first", type=int, default=5, help="how many differences to show (5)")
    p.add_argument(
        "--engine", choices=("auto", "plain", "compiled"), default="auto", help="how to run (auto)"
    )
    p.add_argument(
        "--limit",
        type=mebibytes,
        default=4096,
        metavar="MIB",
        help="what a table has at most, unpacked (4096)",
    )
    p.set_defaults(run=run)
