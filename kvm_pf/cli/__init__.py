# SPDX-License-Identifier: GPL-2.0-only
"""The command line: one module for each command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from kvm_pf.cli.common import OK, PLAIN, UNREADABLE
from kvm_pf.common.errors import InputError

COMMANDS = ("decode", "explain", "check", "replay", "patch", "prove", "compare", "evaluate", "export")


def _line(text: str) -> str:
    return " ".join(text.splitlines())


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(UNREADABLE, f"{self.prog}: {_line(message)}; {self.prog} --help shows more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvm-pf",
        description="KVM's page-fault path: decode, follow, check.",
        epilog="examples:\n"
        "  kvm-pf decode 0x2000100000006\n"
        "  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf check cases_posted.csv.gz",
        formatter_class=PLAIN,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"kvm_pf.cli.{name}").add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 fine, 1 differences found, 2 unusable input."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (InputError, OSError) as error:
        print(f"kvm-pf: {_line(str(error))}", file=sys.stderr)
        return UNREADABLE
    return status
