# SPDX-License-Identifier: GPL-2.0-only
"""Run a Parquet table of faults through the model."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import OK, PLAIN, Progress, millions
from kvm_pf.common.text import visible
from kvm_pf.run.tables import ENTRY_POINTS


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.run.batch import evaluate_parquet

    progress = Progress("evaluate")
    rows = evaluate_parquet(
        args.source,
        args.target,
        args.revision,
        kind=args.kind,
        most_rows=args.limit * 1_000_000,
        progress=lambda done, rows: progress.show(f"{done} of {rows} rows"),
    )
    progress.done()
    print(f"{visible(args.target)}: {rows} rows")
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "evaluate",
        help="run a Parquet table of faults through the model",
        formatter_class=PLAIN,
        epilog="example:\n  kvm-pf evaluate states.parquet outcomes.parquet --revision v6_12",
    )
    p.add_argument("source", help="Parquet file with input columns")
    p.add_argument("target", help="Parquet file to write")
    p.add_argument("--revision", default="posted", help="revision of the kernel (posted)")
    p.add_argument("--kind", choices=tuple(ENTRY_POINTS), default="cases", help="kind of table (cases)")
    p.add_argument(
        "--limit", type=millions, default=1000, metavar="N", help="read N million rows at most (1000)"
    )
    p.set_defaults(run=run)
