# SPDX-License-Identifier: GPL-2.0-only
"""Tell on one page what a trace of page faults shows."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_pf.cli.common import OK, PLAIN
from kvm_pf.common.errors import InputError
from kvm_pf.common.files import write


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.revisions import REVISIONS
    from kvm_pf.trace import load, page

    if args.revision not in REVISIONS:
        raise InputError(f"--revision {args.revision!r:.60}: it takes one of {', '.join(REVISIONS)}")
    traced = load(args.file, args.revision)
    if not traced.joiner.events and not traced.reader.foreign and not traced.reader.unread:
        raise InputError(
            f"{traced.name}: no event of a trace in {traced.reader.lines} lines; a trace of KVM is wanted"
        )
    if args.parquet:
        with write(args.parquet) as file:
            traced.faults.to_parquet(file, index=False)
    if args.json:
        print(json.dumps(as_dict(traced), indent=1))
    else:
        print(page(traced))
    return OK


def as_dict(traced: Any) -> dict[str, Any]:
    """Give everything on the page, and the faults themselves, as JSON takes it; 64-bit values as hexadecimal text."""
    from kvm_pf.trace import conversions, disagreements, meanings, next_steps, storms, summary, top_addresses

    return {
        "summary": dict(summary(traced).itertuples(index=False)),
        "meanings": _records(meanings(traced.faults)),
        "top_addresses": _records(top_addresses(traced.faults)),
        "storms": _records(storms(traced.faults)),
        "conversions": _records(conversions(traced)),
        "disagreements": _records(disagreements(traced)),
        "unread": [unread._asdict() for unread in traced.reader.unread],
        "next": next_steps(traced),
        "faults": _records(traced.faults),
    }


def _records(table: Any) -> list[dict[str, Any]]:
    import pandas as pd

    rows = []
    for values in table.itertuples(index=False):
        row: dict[str, Any] = {}
        for name, dtype, value in zip(table.columns, table.dtypes, values, strict=True):
            if pd.isna(value):
                row[name] = None
            elif str(dtype) == "UInt64":
                row[name] = f"{int(value):#x}"
            else:
                row[name] = value.item() if hasattr(value, "item") else value
        rows.append(row)
    return rows


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "trace",
        help="tell what a trace of page faults shows",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf trace trace.dat\n  trace-cmd report | kvm-pf trace -\n"
        "  kvm-pf trace trace.txt.gz --parquet faults.parquet",
    )
    p.add_argument(
        "file", help="ftrace, trace-cmd, perf, bpftrace, a kernel log or pasted text; - for standard input"
    )
    p.add_argument("--json", action="store_true", help="for programs, with every fault")
    p.add_argument("--parquet", metavar="OUT", help="write the table of faults to this file")
    p.add_argument(
        "--revision", default="posted", help="the kernel whose exit handlers make the error codes (posted)"
    )
    p.set_defaults(run=run)
