# SPDX-License-Identifier: GPL-2.0-only
"""The command line: one module for each command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from kvm_pf.cli.common import BROKEN, DIFFERENT, GONE, OK, PLAIN, UNREADABLE, Shown, end_on_signals
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line

COMMANDS = (
    "decode",
    "explain",
    "check",
    "replay",
    "patch",
    "trace",
    "prove",
    "compare",
    "evaluate",
    "export",
)


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(UNREADABLE, f"{self.prog}: {one_line(message)}; {self.prog} --help shows more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvm-pf",
        description="KVM's page-fault path: decode, follow, check.",
        epilog="examples:\n"
        "  kvm-pf decode 0x2000100000006\n"
        "  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf check",
        formatter_class=PLAIN,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"kvm_pf.cli.{name}").add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0 fine, 1 differences found, 2 unusable input, 3 a mistake in this program, 130 interrupted, 141 nobody reads the
    output to its end (1 if differences had been found by then).  Whatever is printed has its control characters shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, err = Shown(sys.stdout), Shown(sys.stderr)
    args = argparse.Namespace(differing=0)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status: int = _run(args, argv)
            out.flush()
            return status
        except BrokenPipeError:
            out.close_quietly()
            return DIFFERENT if args.differing else GONE
        except (InputError, OSError) as error:
            if error is out.error:
                out.close_quietly()
                error = OSError(f"standard output: {error.strerror}")
            said, status = str(error), UNREADABLE
        except MemoryError:
            said, status = "there is not enough memory for that", UNREADABLE
        except RecursionError:
            said, status = "the input is nested too deep", UNREADABLE
        except ImportError as error:
            said, status = f"a library that is wanted cannot be loaded: {error}", UNREADABLE
        except KeyboardInterrupt:
            said, status = "interrupted", 128 + signal.SIGINT
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            said, status = f"a mistake in kvm-pf, at {where}: {type(error).__name__}: {error}", BROKEN
        with suppress(OSError):
            print(f"kvm-pf: {one_line(said)}", file=err, flush=True)
        return status


def _run(args: argparse.Namespace, argv: Sequence[str] | None) -> int:
    try:
        _parser().parse_args(argv, args)
    except SystemExit as end:  # after --help, or a complaint
        return int(end.code or OK)
    status: int = args.run(args)
    return status


def script() -> NoReturn:
    """Run the command line as a process: what was typed, until it ends or is ended."""
    end_on_signals()
    # numpy's threads: none is used, and many end the process where memory is short.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
