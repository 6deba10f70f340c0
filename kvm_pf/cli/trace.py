# SPDX-License-Identifier: GPL-2.0-only
"""Tell on one page what a trace of page faults shows, also while it is being recorded."""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from kvm_pf.cli.common import (
    OK,
    PLAIN,
    UNREADABLE,
    Progress,
    empty_terminal,
    files,
    mebibytes,
    stopped_by_interrupt,
)
from kvm_pf.common.errors import InputError
from kvm_pf.common.files import check_target
from kvm_pf.common.text import one_line
from kvm_pf.trace.lines import FILES, UNPACKED, Pace

if TYPE_CHECKING:
    import pandas as pd

    from kvm_pf.trace.reading import Stream, Survey
    from kvm_pf.trace.tables import TableStream


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.revisions import get

    if args.revision is not None:
        get(args.revision)  # before anything is read
    is_one = len(args.files) == 1 and not os.path.isdir(args.files[0])
    return _one(args) if is_one and not args.workers and not args.scheduler else _many(args)


def _many(args: argparse.Namespace) -> int:
    """Read several traces; tell on one page what they amount to."""
    from kvm_pf.trace.fleet import Fleet, cluster, fleet_page, read_all

    if "-" in args.files or args.every:
        raise InputError("standard input and --every are for one trace alone")
    progress = Progress("trace")

    def read(client: Any) -> Fleet:
        limit = args.limit << 20
        return read_all(args.files, args.revision, args.out, client, progress.show, limit, args.most)

    if args.workers or args.scheduler:
        with cluster(args.workers, args.scheduler, progress.note) as client:
            fleet = read(client)
    else:
        fleet = read(None)
    progress.done()
    if not fleet.surveys:
        none = f"none of {len(fleet.refused)} files can be read, the first: " if fleet.refused[1:] else ""
        raise InputError(none + fleet.refused[0].why)
    if args.json:
        parts = {
            "files": fleet.files(), "meanings": fleet.digest().meanings(), "storms": fleet.storms(),
            "disagreements": fleet.disagreements(), "follows": fleet.digest().follows(),
        }  # fmt: skip
        told = {name: _records(part) for name, part in parts.items()}
        print(json.dumps({**told, "refused": [vars(one) for one in fleet.refused]}, indent=1))
    else:
        print(fleet_page(fleet))
    if fleet.refused:
        first = one_line(fleet.refused[0].why, 300)
        print(f"kvm-pf: {len(fleet.refused)} not read, the first: {first}", file=sys.stderr)
    return UNREADABLE if fleet.refused else OK


def _one(args: argparse.Namespace) -> int:
    """Read one trace; tell on one page what it amounts to."""
    from kvm_pf.trace import page
    from kvm_pf.trace.fleet import stream_of

    args.file = args.files[0]
    pace = _Live(args)
    with stopped_by_interrupt(pace.stop), ExitStack() as opened:
        pace.stream = stream = stream_of(args.file, args.revision, pace)
        pace.sinks = list(_sinks(args, opened))
        for part in stream.parts():
            pace.hand_on(part)
        pace.progress.done()
        if not pace.stopped:
            _check(stream)
        else:
            stream.name += f", interrupted after {stream.reader.lines} lines"
    pace.clear()
    if args.json:
        print(json.dumps(as_dict(stream), indent=1).removeprefix("{\n"))
    else:
        print(page(stream))
    if pace.stopped:
        raise KeyboardInterrupt
    return OK


def _check(stream: Survey) -> None:
    """Raise InputError if what was read is no trace; say what it is, if that is known."""
    from kvm_pf.trace.report import what_else

    try:
        stream.check()
    except InputError as error:
        said = what_else(stream)
        raise InputError(f"{error}, here is: {'; '.join(said[:3])}" if said else str(error)) from None


class _Live(Pace):
    """What happens while a trace is read: progress; with a live one, the page so far, again and again."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.limit << 20)
        self.progress = Progress("trace")
        self.stream: Stream | TableStream | None = None
        self.sinks: list[Callable[[pd.DataFrame], None]] = []
        self.every = args.every
        if self.every is None and _is_live(args.file) and sys.stdout.isatty() and not args.json:
            self.every = 2.0
        self.is_json = args.json
        self.begun = self.last = time.monotonic()
        self.rows = 0

    def stop(self) -> None:
        """Take what was read for all there is."""
        self.stopped = True

    def hand_on(self, part: pd.DataFrame) -> None:
        """Hand a part of the table on to where it is written."""
        for sink in self.sinks:
            sink(part)

    def tick(self) -> None:
        """Show how far it is, or the page so far."""
        now = time.monotonic()
        if self.stream is None or now < self.last + (self.every or 0.25):
            return
        self.last = now
        if self.every is None and not self.is_json:
            of = f" of {self.size / 1e6:,.0f}" if self.size else ""
            self.progress.show(
                f"{self.done / 1e6:,.0f}{of} MB, {self.stream.joiner.events['kvm_page_fault']} faults"
            )
            return
        if (part := self.stream.so_far()) is not None:
            self.hand_on(part)
        if self.every is not None and not self.is_json and self.stream.digest.rows != self.rows:
            from kvm_pf.trace import page

            self.rows = self.stream.digest.rows
            self.clear()
            print(page(self.stream, most=4))
            if not sys.stdout.isatty():
                print(f"\n--- so far, after {now - self.begun:.0f} s ---\n")
            sys.stdout.flush()

    def clear(self) -> None:
        """Empty the terminal, if the page is shown there again and again."""
        if self.every is not None and not self.is_json:
            empty_terminal()


def _is_live(file: str) -> bool:
    """Say whether a file is a pipe, from which a trace may come while it is recorded."""
    with suppress(OSError, ValueError):
        mode = os.fstat(0).st_mode if file == "-" else os.stat(file).st_mode
        return not stat.S_ISREG(mode)
    return False


def _sinks(args: argparse.Namespace, opened: ExitStack) -> Any:
    """Open where the faults are written part by part: a Parquet file, and standard output if JSON is wanted."""
    from kvm_pf.trace.tables import writing

    if args.out is not None:
        check_target(args.out, [args.file])
        yield opened.enter_context(writing(args.out))
    if args.json:
        print('{\n "faults": [', end="")
        first = True

        def show(part: pd.DataFrame) -> None:
            nonlocal first
            for row in _records(part):
                print("\n  " if first else ",\n  ", json.dumps(row), sep="", end="")
                first = False
            sys.stdout.flush()

        opened.callback(print, "\n ],")
        yield show


def as_dict(traced: Survey) -> dict[str, Any]:
    """Give everything on the page as JSON takes it; 64-bit values as hexadecimal text."""
    from kvm_pf.trace import conversions, disagreements, next_steps, summary

    read_as = traced.digest.read_as
    return {
        "revision": read_as.revision.name,
        "revision_why": read_as.why,
        "summary": dict(summary(traced).itertuples(index=False)),
        "meanings": _records(traced.digest.meanings()),
        "top_addresses": _records(traced.digest.pages()),
        "storms": _records(traced.digest.storms()),
        "conversions": _records(conversions(traced)),
        "disagreements": _records(disagreements(traced)),
        "follows": _records(traced.digest.follows()),
        "unread": [unread._asdict() for unread in traced.reader.unread],
        "next": next_steps(traced),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    import pandas as pd

    rows = []
    for values in table.itertuples(index=False):
        row: dict[str, Any] = {}
        for name, dtype, value in zip(table.columns, table.dtypes, values, strict=True):
            if pd.isna(value):
                row[str(name)] = None
            elif str(dtype) == "UInt64":
                row[str(name)] = f"{int(value):#x}"
            else:
                row[str(name)] = value.item() if hasattr(value, "item") else value
        rows.append(row)
    return rows


def _seconds(text: str) -> float:
    value = float(text) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{0,9})?|\.[0-9]{1,9}", text) else 0.0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds is wanted, 0.1 to 86400")
    return value


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= 1024:
        raise argparse.ArgumentTypeError(f"{text}: a number of processes is wanted, 1 to 1024")
    return int(text)


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "trace",
        help="tell what a trace of page faults shows",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf trace trace.dat\n  trace-cmd report | kvm-pf trace -\n"
        "  cat /sys/kernel/tracing/trace_pipe | kvm-pf trace -      # live; Ctrl-C gives the page so far\n"
        "  kvm-pf trace trace.txt.gz --out faults.parquet\n  kvm-pf trace traces/ --workers 2",
    )
    p.add_argument(
        "files", nargs="+", metavar="FILE",
        help="ftrace, trace-cmd, perf, bpftrace, a kernel log, pasted text, or a Parquet table of faults; - for "
        "standard input; several, or a folder of them, are told of together",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="for programs, with every fault")
    p.add_argument(
        "--out",
        "--parquet",
        metavar="FILE",
        help="write the table of faults to this Parquet file (several traces: to a folder)",
    )
    p.add_argument(
        "--every", type=_seconds, metavar="SECONDS",
        help="show the page so far that often (2 on a terminal, if the trace comes through a pipe)",
    )  # fmt: skip
    p.add_argument(
        "--workers", type=_workers, default=0, metavar="N",
        help="read several traces at once in so many processes, with Dask; each trace is read by one of them",
    )  # fmt: skip
    p.add_argument("--scheduler", default="", metavar="ADDRESS", help="or on the Dask cluster there")
    p.add_argument(
        "--limit", type=mebibytes, default=UNPACKED >> 20, metavar="MIB",
        help="what a packed trace holds at most, unpacked (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--most", type=files, default=FILES, metavar="FILES",
        help="so many traces are read at once (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--revision",
        help="the kernel that the trace is of, such as 6.12 (by default as far as the trace shows it, else posted)",
    )
    p.set_defaults(run=run)
