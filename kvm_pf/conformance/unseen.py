# SPDX-License-Identifier: GPL-2.0-only
"""What a recording may not show: one input to a fault that would explain every value on which it differs.

A recording is only as good as its trace.  A debugger that changes a code, a system call that no step tells of, or a
host that drops a mapping without an event leads to a fault that differs in twenty values for one reason.  Each
differing fault is replayed with one input changed, such as the recorded values suggest; what makes all of its
differences go is named.  That it explains them does not prove that it happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kvm_pf.bits import PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK
from kvm_pf.conformance.fault_rows import FaultRow
from kvm_pf.conformance.recordings import Recording, Scenario
from kvm_pf.conformance.replay import Replay, ReplayReport, Rows
from kvm_pf.exits import Event
from kvm_pf.guest.machine import Taken
from kvm_pf.guest.memory import Given
from kvm_pf.revisions import Revision
from kvm_pf.state import PAGE_SHIFT, PAGE_SIZE

MOST_FAULTS = 8
"""For how many differing faults of a scenario an explanation is looked for."""
MOST_IN_VAIN = 2
"""After how many faults in a row that nothing explains a scenario is given up: the kernel is another one."""


class Unseen(NamedTuple):
    """One input to a fault that differs from what the recording shows, and in words."""

    text: str
    pf: int = 0  # bits that are flipped in kvm_mmu_page_fault()'s argument
    cpu: int = 0  # bits that are flipped in what the CPU reported
    attribute: bool = False  # the page was declared the other way
    meant: bool = False  # of L2's fault: the page of L1's that is meant was declared the other way
    entry: bool = False  # the page's entry had gone
    invalidated: bool | None = None  # whether host mappings were dropped meanwhile


class Cause(NamedTuple):
    """An unseen input that explains a fault: where, what, and how many differences it makes go, there and elsewhere."""

    where: str
    unseen: Unseen
    here: int
    elsewhere: int

    def __str__(self) -> str:
        here = f"all {self.here} differences go" if self.here > 1 else "the difference goes"
        also = f", and {self.elsewhere} elsewhere" if self.elsewhere else ""
        return f"{self.where}: {here}{also}, if {self.unseen.text}; the recording does not show it"


class Supposing(Replay):
    """A replay in which some faults get an input that the recording does not show."""

    def __init__(
        self, recording: Recording, revision: Revision, rows: Rows, unseen: Mapping[str, Unseen]
    ) -> None:
        report = ReplayReport(recording.name, recording.kernel, revision.name)
        super().__init__(recording, revision, report, rows)
        self.unseen = unseen
        self.met: dict[str, tuple[FaultRow, Taken]] = {}

    def before(self, where: str, event: Event, given: Given) -> tuple[Event, Given]:
        """Change what is supposed of the fault at `where`."""
        if (u := self.unseen.get(where)) is None:
            return event, given
        machine = self.machine
        page = machine.page(event.addr)
        l2 = machine.l2 if machine.mmu.nested else None
        flipped = [page] if u.attribute else []
        flipped += [l2.table.walk(event.addr, 0, mark=False).gfn] if u.meant and l2 else []
        for gfn in flipped:
            machine.set_attributes(gfn << PAGE_SHIFT, PAGE_SIZE, not machine.private(gfn))
        if u.entry and l2:
            l2.shadow.remove(page)
        elif u.entry:
            machine.drop(page, page + 1)
        if u.invalidated is not None:
            given = given._replace(invalidated=u.invalidated)
        return event._replace(info=event.info ^ u.cpu), given._replace(pf_flip=u.pf)

    def fields(self, row: FaultRow, taken: Taken, before: int, where: str) -> None:
        """Compare, and keep what was compared."""
        self.met[where] = row, taken
        super().fields(row, taken, before, where)


def candidates(row: FaultRow, taken: Taken) -> Iterator[Unseen]:
    """Yield the unseen inputs that a differing fault suggests, the likeliest first."""
    reported = taken.event.info if taken.event else None
    flips = []
    if taken.source and row.trace_error_code is not None and taken.source.trace.called:
        flip = row.trace_error_code ^ taken.source.trace.error_code
        if flip and reported is not None:
            yield Unseen(f"the CPU reported {reported ^ flip:#x}, not {reported:#x}", cpu=flip)
    for recorded, told in (
        (row.pf_err, taken.error_code),
        (row.in_error_code, taken.handled.fault.error_code if taken.handled.called else taken.error_code),
    ):
        if recorded is not None and recorded != told and recorded ^ told not in flips:
            flips.append(recorded ^ told)
    for flip in dict.fromkeys([*flips, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, PFERR_IMPLICIT_ACCESS]):
        code = taken.error_code
        yield Unseen(f"kvm_mmu_page_fault() was entered with code {code ^ flip:#x}, not {code:#x}", pf=flip)
    if row.nested:
        yield Unseen("L1's page was declared the other way, private or shared", meant=True)
        yield Unseen("L2's address was declared the other way, private or shared", attribute=True)
    else:
        yield Unseen("the page was declared the other way, private or shared", attribute=True)
    yield Unseen("KVM's entry for the page had gone", entry=True)
    for dropped in (True, False):
        how = "were" if dropped else "were not"
        yield Unseen(f"the host's mappings {how} dropped during the fault", invalidated=dropped)


def causes(recording: Recording, revision: Revision, rows: Rows) -> list[Cause]:
    """Look for one unseen input for each differing fault, in order, at most MOST_FAULTS of a scenario's.

    `revision`: the one that the recording's kernel is replayed with, `rows`: what `walk(recording)` yields.
    """
    found: list[Cause] = []
    for scenario in recording.scenarios:
        supposed: dict[str, Unseen] = {}

        def again(unseen: dict[str, Unseen], scenario: Scenario = scenario) -> Supposing:
            play = Supposing(recording, revision, rows, unseen)
            play.scenario(scenario)
            return play

        tried: set[str] = set()
        in_vain = 0
        while len(tried) < MOST_FAULTS and in_vain < MOST_IN_VAIN:
            play = again(supposed)
            differences = play.report.differences
            where = next((d.fault for d in differences if d.fault in play.met and d.fault not in tried), None)
            if where is None:
                break
            tried.add(where)
            in_vain += 1
            here = sum(d.fault == where for d in differences)
            for unseen in candidates(*play.met[where]):
                left = again({**supposed, where: unseen}).report.differences
                if len(left) <= len(differences) - here and all(d.fault != where for d in left):
                    in_vain = 0
                    supposed[where] = unseen
                    found.append(Cause(where, unseen, here, len(differences) - here - len(left)))
                    break
    return found
