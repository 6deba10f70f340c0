# SPDX-License-Identifier: GPL-2.0-only
"""Write the whole corpus as JSON lines, with its JSON Schema."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_pf.cli.common import OK, PLAIN, Progress


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.conformance.corpus import export

    progress = Progress("export")
    written = export(args.directory, progress.show)
    progress.done()
    for path, rows in written.items():
        print(f"{path}: {rows} rows")
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "export",
        help="write the whole corpus as JSON lines, with its JSON Schema",
        formatter_class=PLAIN,
        epilog="example:\n  kvm-pf export corpus/",
    )
    p.add_argument("directory", help="folder to write to; it is made if absent")
    p.set_defaults(run=run)
