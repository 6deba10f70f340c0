# SPDX-License-Identifier: GPL-2.0-only
"""Read a trace of any kind into a table of faults."""

from __future__ import annotations

import io
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.revisions import Revision
from kvm_pf.trace.dat import MAGIC, TraceDat
from kvm_pf.trace.digest import Digest
from kvm_pf.trace.faults import Joiner, frame
from kvm_pf.trace.lines import Event, Pace, Reader, open_bytes
from kvm_pf.trace.record import Fault
from kvm_pf.trace.release import Signs

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Survey:
    """What a trace amounts to: `digest` counts its faults, `joiner` and `reader` hold what else the file told."""

    name: str
    kind: str
    reader: Reader = field(repr=False)
    joiner: Joiner = field(repr=False)
    digest: Digest = field(repr=False)

    def check(self) -> None:
        """Raise InputError if what was read is no trace of KVM."""
        if (
            not self.joiner.events
            and not self.reader.foreign
            and self.reader.unread_count == self.reader.cut
            and self.kind != "Parquet"
        ):
            cut = f", {self.reader.cut} of them too long" if self.reader.cut else ""
            raise InputError(
                f"{self.name}: no event of a trace in {self.reader.lines} lines{cut}; a trace of KVM is wanted"
            )

    @property
    def vendor(self) -> str | None:
        """Whose CPU it was, by the exits and codes of this trace alone: "amd", "intel", "both" or None."""
        return vendor_of(self.joiner)


@dataclass
class Traced(Survey):
    """A trace that was read whole: `faults` is the table."""

    faults: pd.DataFrame = field(repr=False)


def vendor_of(joiner: Joiner) -> str | None:
    """Say whose CPU the exits, or without any the codes, suggest: "amd", "intel", "both"; None if nothing does."""
    amd, intel = joiner.amd, joiner.intel
    if not amd and not intel:
        amd, intel = joiner.amd_codes, joiner.intel_codes
    if amd and intel:
        return "both"
    return "amd" if amd else "intel" if intel else None


def _seekable(name: str, stream: IO[bytes], head: bytes) -> Any:
    """Give a trace.dat as a memory map: of itself, or of a copy on disk if it comes through a pipe or packed."""
    kept = tempfile.TemporaryFile()  # noqa: SIM115 - unlinked already; the map keeps it
    kept.write(head)
    while chunk := stream.read(1 << 20):
        kept.write(chunk)
    kept.flush()
    return mmap.mmap(kept.fileno(), 0, access=mmap.ACCESS_READ)


class _Joined(io.RawIOBase):
    """A stream with bytes put back before it."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Give the bytes that were put back; then what the stream has, without waiting for more."""
        if not self.head:
            count: int = self.stream.readinto1(buffer)
            return count
        count = min(len(self.head), len(buffer))
        buffer[:count], self.head = self.head[:count], self.head[count:]
        return count


_OTHERS = {
    b"PERFILE2": "perf.data, which perf alone reads; give what perf script prints",
    b"\xc1\x1f\xfc\xc1": "a stream of LTTng (CTF); give what babeltrace2 prints of its folder",
    b"\x7fELF": "a program, no trace",
}
"""How files begin that are no trace that is read, and what they are; `open_bytes` refuses archives."""


def _events(file: str | Path, reader: Reader, pace: Pace | None = None) -> tuple[str, Iterator[Event]]:
    """Open a file; return its kind and its events."""
    name = _name(file)
    pace = pace or Pace()
    stream = open_bytes(file, pace)
    try:
        head = stream.read(len(MAGIC)) if str(file) != "-" else stream.peek(len(MAGIC))[: len(MAGIC)]  # type: ignore[attr-defined]
        if head == MAGIC:
            head = stream.read(len(MAGIC)) if str(file) == "-" else head
            dat = TraceDat(name, _seekable(name, stream, head), reader, pace.limit)
            return "trace.dat", _paced(dat.events(), pace)
        if other := next((why for magic, why in _OTHERS.items() if head.startswith(magic)), None):
            raise InputError(f"{name}: {other}")
    except (OSError, EOFError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error
    text: Any = stream if str(file) == "-" else io.BufferedReader(_Joined(head, stream), 1 << 16)
    return "text", _guarded(name, reader.read(text), pace)


def _name(file: str | Path) -> str:
    return "standard input" if str(file) == "-" else visible(file)


def _guarded(name: str, events: Iterator[Event], pace: Pace) -> Iterator[Event]:
    try:
        yield from events
    except (OSError, EOFError) as error:
        if not pace.stopped:
            raise InputError(f"{name}: cannot be read: {error}") from error


def _paced(events: Iterator[Event], pace: Pace) -> Iterator[Event]:
    for n, event in enumerate(events):
        if not n % 4096:
            pace.tick()
            if pace.stopped:
                return
        yield event


@typed()
def load(file: str | Path, revision: Revision | str | None = None, pace: Pace | None = None) -> Traced:
    """Read a trace whole: the table of faults, and what else the file told.

    `file` is a path or "-" for standard input; ftrace's text, trace-cmd's report or trace.dat, perf script and
    trace, bpftrace, kernel logs, text pasted into mails; packed or not.  `revision` names the kernel whose exit
    handlers make `error_code` of the codes and whose path the faults are compared with; without it that is the one
    that the trace shows, else the patch as posted (`digest.read_as` says which, and why).  `pace` limits what a
    packed file may hold.  Raises InputError if the file cannot be read, or there is no such revision.
    """
    signs = Signs(revision)
    reader, joiner = Reader(), Joiner()
    kind, events = _events(file, reader, pace)
    rows: list[Fault] = sorted(joiner.join(events), key=lambda row: row.line)
    signs.look(rows)
    read_as = signs.read_as(joiner, reader)
    table = frame(rows, vendor_of(joiner), joiner.tdp, read_as.revision)
    table.attrs["unread"] = reader.unread_count
    digest = Digest()
    digest.events = joiner.events
    digest.take(read_as)
    return Traced(_name(file), kind, reader, joiner, digest.add(table), table)


@typed()
def read(file: str | Path, revision: Revision | str | None = None) -> pd.DataFrame:
    """Read a trace into a table, one row a fault, the columns of `kvm_pf.trace.faults.COLUMNS`.

    Takes what `load` takes.  64-bit values are UInt64, `time` is in seconds, gaps are NA.  `attrs["unread"]` is the
    number of lines that look like events of KVM's faults and could not be read.
    """
    return load(file, revision).faults


ROWS = 1 << 14
"""Faults in a part of a table."""


class Stream(Survey):
    """A trace that is read in parts: memory stays bounded, however long it is, and the digest grows with each part.

    Takes what `load` takes, and a Pace.  The vendor of a code that can be read in several ways, and the revision unless
    one is given, are taken from what the trace has shown up to there.
    """

    def __init__(
        self, file: str | Path, revision: Revision | str | None = None, pace: Pace | None = None
    ) -> None:
        super().__init__(_name(file), "", Reader(), Joiner(), Digest())
        self.digest.events = self.joiner.events
        self._signs = Signs(revision)
        self.digest.take(self._signs.read_as())
        self.kind, self._events = _events(file, self.reader, pace)
        self._waiting: list[Fault] = []

    def parts(self, rows: int = ROWS) -> Iterator[pd.DataFrame]:
        """Yield the faults in tables of at most `rows` each, those that began first before the others."""
        for row in self.joiner.join(self._events):
            self._waiting.append(row)
            if len(self._waiting) >= rows:
                yield self._part()
        if self._waiting:
            yield self._part()
        else:  # what names a kernel may stand where no fault is
            self.digest.take(self._signs.read_as(self.joiner, self.reader))

    def so_far(self) -> pd.DataFrame | None:
        """Give the faults that have ended since the last part, while the next one is being read; None without any."""
        self._waiting += self.joiner.release()
        return self._part() if self._waiting else None

    def _part(self) -> pd.DataFrame:
        rows, self._waiting = self._waiting, []
        self._signs.look(rows)
        self.digest.take(self._signs.read_as(self.joiner, self.reader))
        part = frame(rows, self.vendor, self.joiner.tdp, self.digest.read_as.revision)
        self.digest.add(part)
        return part


@typed(rows=40)
def chunks(
    file: str | Path, revision: Revision | str | None = None, rows: int = ROWS
) -> Iterator[pd.DataFrame]:
    """Read a trace in tables of at most `rows` faults each, as `Stream` does: memory stays bounded."""
    yield from Stream(file, revision).parts(rows)
