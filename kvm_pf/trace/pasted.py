# SPDX-License-Identifier: GPL-2.0-only
"""Faults in lines that somebody has at hand, a sentence each: standard library only, for where pandas is not."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.revisions import Revision
from kvm_pf.trace.advice import ended
from kvm_pf.trace.faults import Joiner, Sense, protected, sense
from kvm_pf.trace.lines import Pace, Reader, Unread
from kvm_pf.trace.reading import Traced, _events, load, vendor_of
from kvm_pf.trace.record import Fault
from kvm_pf.trace.release import ReadAs, Signs
from kvm_pf.trace.report import aside

LARGEST = 1 << 24
"""The most bytes that are taken; larger traces are for `kvm_pf.trace.load`."""

UNPACKED = 16 * LARGEST
"""The most bytes that they may hold, if they are packed."""


CYCLE = 8
"""The most faults that one turn of a repetition may have."""


class Told(NamedTuple):
    """A fault and what its code says."""

    fault: Fault
    sense: Sense

    @property
    def sentence(self) -> str:
        """What the guest did, in words."""
        return self.sense.meaning


class Kind(NamedTuple):
    """Faults that are alike in vCPU, rip, address, code and outcome, in the order of the trace; at least one.

    `run` is how many of them followed each other in a cycle of up to CYCLE faults of their vCPU: 1 if none did.
    """

    faults: tuple[Told, ...]
    run: int = 1

    @property
    def first(self) -> Told:
        """The one that came first."""
        return self.faults[0]

    @property
    def rate(self) -> float | None:
        """Faults a second from the first to the last; None without times or with one moment only."""
        begun, ended = self.faults[0].fault.time, self.faults[-1].fault.time
        span = 0.0 if begun is None or ended is None else ended - begun
        return (len(self.faults) - 1) / span if span > 0 else None


@dataclass
class Pasted:
    """What some lines hold: `faults` in their order, `unread` the lines that look like ours and cannot be read.

    `lines` counts all lines (0 for a trace.dat), `events` all events of ours, `vendor` is "amd", "intel", "both" or
    None, `read_as` says which kernel's trace it is, as far as it shows that.  `aside` is what the events tell that are
    no faults: titles, lines, and how many there are of each.
    """

    faults: list[Told]
    lines: int = 0
    events: int = 0
    vendor: str | None = None
    read_as: ReadAs | None = None
    unread: list[Unread] = field(default_factory=list)
    aside: list[tuple[str, list[str], int]] = field(default_factory=list)

    def kinds(self) -> list[Kind]:
        """Put faults together that are alike, in the order in which they came first."""
        groups: dict[object, list[Told]] = {}
        places: dict[object, list[int]] = {}
        of_each: Counter[object] = Counter()
        for told in self.faults:
            f = told.fault
            who = f.vcpu if f.vcpu is not None else f.pid
            of_each[who] += 1
            alike = (who, f.rip, f.address, f.raw_code, f.whole, f.source, f.outcome)
            groups.setdefault(alike, []).append(told)
            places.setdefault(alike, []).append(of_each[who])
        return [Kind(tuple(group), _run(places[alike])) for alike, group in groups.items()]


def read_text(given: str | bytes, name: str = "text", revision: Revision | str | None = None) -> Pasted:
    """Read the faults in a text, or in the bytes of a file of any kind that `kvm_pf.trace.load` takes.

    `name` is used in complaints, `revision` names the kernel whose exit handlers make the error codes; without it
    that is the one that the text shows, else the patch as posted.  Raises InputError if it is larger than LARGEST or
    cannot be read.
    """
    signs = Signs(revision)
    reader, joiner = Reader(), Joiner()
    with _as_file(given, name) as path:
        faults = sorted(joiner.join(_events(path, reader, Pace(UNPACKED))[1]), key=lambda fault: fault.line)
    vendor = vendor_of(joiner)
    signs.look(faults)
    read_as = signs.read_as(joiner, reader)
    rest = vendor, joiner.tdp, read_as.revision
    told = [
        Told(f, sense(f.source, f.raw_code, f.whole, *rest, protected(f.rip, f.address), f.traced))
        for f in faults
    ]
    gave_up = ended(joiner, read_as)
    others = [part for part in (*aside(joiner), ("To know", gave_up, len(gave_up))) if part[1]]
    return Pasted(told, reader.lines, sum(joiner.events.values()), vendor, read_as, reader.unread, others)


def load_text(
    given: str | bytes, name: str = "pasted lines", revision: Revision | str | None = None
) -> Traced:
    """Read a text, or the bytes of a file, as `kvm_pf.trace.load` reads a file (this takes pandas).

    `name` is what the trace is called.  Raises InputError as `read_text` does.
    """
    with _as_file(given, name) as path:
        traced = load(path, revision, Pace(UNPACKED))
    traced.name = name
    return traced


@contextmanager
def _as_file(given: str | bytes, name: str) -> Iterator[Path]:
    """Give it as a file for a while; complaints about that name `name`."""
    data = given.encode(errors="replace") if isinstance(given, str) else bytes(given)
    if len(data) > LARGEST:
        raise InputError(
            f"{name}: {len(data):,} bytes, more than {LARGEST:,}; `kvm-pf trace FILE` reads any size"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        try:
            yield path
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from error
        except ImportError as error:
            raise InputError(
                f"{name}: it is packed with zstd, which takes pyarrow to unpack: unpack it first"
            ) from error


def _run(places: Sequence[int]) -> int:
    """Count the longest run of places that are equally far apart, by CYCLE at most."""
    longest = run = 1
    before = 0
    for one, other in pairwise(places):
        step = other - one
        run = run + 1 if step == before else 2 if step <= CYCLE else 1
        before, longest = (step if step <= CYCLE else 0), max(longest, run)
    return longest


def repeated(kinds: Sequence[Kind], at_least: int = 5) -> list[Kind]:
    """Choose the kinds that came `at_least` times in a run, the most frequent first."""
    return sorted((k for k in kinds if k.run >= at_least), key=lambda k: -len(k.faults))
