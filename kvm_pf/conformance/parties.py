# SPDX-License-Identifier: GPL-2.0-only
"""Two parties at once: the order of the recorded events is given, what each party is answered is predicted.

Each fault of a `par` step goes through the machine in steps, and each of these is taken when the trace shows it.
Between them the other vCPU's faults, the host's invalidations and changes of attributes take effect, where their
events stand.  Two things are not traced: when an invalidation ends, and when a system call changes an attribute.
Both are over when the task that makes them shows its next event.  If a fault falls into the time before that, its own
record says on which side it was: this is counted as left to chance, and everything else is compared.

Source: the places of the events in Linux `arch/x86/kvm/mmu/mmu.c`, kvm_tdp_mmu_page_fault(), kvm_faultin_pfn(),
fast_page_fault(), `virt/kvm/kvm_main.c`, kvm_mmu_notifier_invalidate_range_start() (v6.12).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvm_pf.conformance.fault_rows import FaultRow
from kvm_pf.conformance.ftrace import TraceEvent
from kvm_pf.conformance.recordings import Step, number
from kvm_pf.conformance.vm_state import VmState
from kvm_pf.guest.machine import PARTY_OPS, Taken, Underway
from kvm_pf.guest.memory import PLACES
from kvm_pf.state import EFAULT, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kvm_pf.conformance.replay import Replay

BEGUN = "when an invalidation began"
NOTED = "when a fault noted the count of invalidations"
IN_PROGRESS = "how often a fault is answered while an invalidation is in progress"
ENDED = "when an invalidation ended"
CHANGED = "when an attribute changed"
LOST = "which vCPU changes an entry first"

_HELD_BEFORE_FAULTIN = 2
_NO_HVA = 1 << 47
"""User space's addresses are lower; what the field holds before the host is asked is not."""
_OF_AN_INVALIDATION = ("kvm_tdp_mmu_spte_changed", "kvm_mmu_prepare_zap_page")


def stops(events: Iterable[TraceEvent]) -> Iterator[tuple[int, str]]:
    """Yield, for the events of one fault, the lines at which it goes on, and to where (one of PLACES, or "done")."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for event in events:
        name = {"tdp": "handler", "p64": "handler", "tdp_ret": "handler_ret", "p64_ret": "handler_ret"}.get(
            event.name, event.name
        )
        first.setdefault(name, event.line)
        last[name] = event.line
        if event.fields.get("place") == _HELD_BEFORE_FAULTIN:
            last["held"] = event.line
    end = max(last.values())
    if "handler" not in first:
        seen = ("check_mmio_spte", "handle_mmio_page_fault", "pf_ret")
        yield min((first[name] for name in seen if name in first), default=end), "done"
        return
    yield first.get("look_pf", first["handler"]), "fast_page_fault"
    read = first.get("fast_page_fault", first.get("fast_ret"))
    if read is not None:
        yield read, "kvm_faultin_pfn"
    over = first.get("handler_ret", end)
    if "faultin_ret" in first:
        noted = max(last.get("held", 0), first.get("fast_ret", first["handler"]))
        yield noted, "kvm_mem_is_private"
        yield first.get("look_faultin", noted), "__kvm_faultin_pfn"
        yield first["faultin_ret"], "is_page_fault_stale"
        yield first.get("kvm_mmu_spte_requested", over), "kvm_tdp_mmu_map"
    made = [line for name in _MADE if (line := last.get(name)) and line < over]
    yield (min(made) if made and "kvm_mmu_spte_requested" in first else over), "done"


_MADE = ("kvm_tdp_mmu_spte_changed", "kvm_mmu_set_spte", "mark_mmio_spte")
"""What shows that an entry is made; the last change is that of the leaf."""


@dataclass
class _Window:
    """What a task of user space, or of the host, does in between, as far as the trace shows it."""

    pid: int
    gfns: tuple[tuple[int, int], ...]
    act: str = ""  # what the attribute becomes, private or shared; "": an invalidation
    begun: bool = False
    addresses: tuple[int, int] = (0, 0)  # of user space, if it is an invalidation

    def goes_on(self, event: TraceEvent) -> bool:
        """Say whether an event of the same task belongs to it: entries go, or a huge page in it is split."""
        if self.act or event.name in _OF_AN_INVALIDATION:
            return not self.act
        match event.fields:
            case {"start": int(start), "end": int(end)}:
                return self.addresses[0] <= start and end <= self.addresses[1]
        return False

    def holds(self, gfn: int) -> bool:
        """Say whether a gfn is among those that are taken away."""
        return any(start <= gfn < end for start, end in self.gfns)


@dataclass
class _Party:
    """One side: its number, what it does, and the faults it took since it began."""

    number: int
    act: str
    taken: list[Taken] = field(default_factory=list)


class Together:
    """The replay of one `par` step."""

    def __init__(self, play: Replay, step: Step, rows: list[tuple[FaultRow, VmState]], where: str) -> None:
        self.play, self.machine, self.step, self.where = play, play.machine, step, where
        self.windows: list[_Window] = []
        self.parties: dict[int, _Party] = {}
        self.live: VmState | None = None
        self.stats: Counter[str] = Counter()
        self.waited: set[int] = set()
        self.under: dict[int, tuple[Underway, int]] = {}
        self.begin = {row.first_line: (row, state) for row, state in rows}
        self.moments: defaultdict[int, list[tuple[FaultRow, str]]] = defaultdict(list)
        self.own = {
            row.fault: [
                e for e in step.events if e.pid == row.pid and row.first_line <= e.line <= row.last_line
            ]
            for row, _ in rows
        }
        for row, _ in rows:
            for line, to in stops(self.own[row.fault]):
                self.moments[line].append((row, to))

    def run(self) -> None:
        """Take the step's events in order, and compare what they led to."""
        if not self.step.events:
            return
        self.play.pass_events(self.step.events[0].line - 1)
        self.play.pass_events(self.step.events[-1].line, count=False)
        for event in self.step.events:
            self.close(event)
            self.open(event)
            if event.line in self.begin:
                self.start(*self.begin[event.line])
            for row, to in self.moments[event.line]:
                self.go_on(row, to, event.line)
            if self.live:
                self.live.see(event)
        for window in list(self.windows):
            self.end(window)
        told = self.step.result or {}
        for party in self.parties.values():
            name = f"vcpu{party.number}"
            if name in told:
                self.play.run(f"{self.where}, {name}", told[name], party.taken)
        if "stats" in told:
            self.play.counted(self.where, told["stats"], self.stats)

    # --- what user space and the host do ---

    def open(self, event: TraceEvent) -> None:
        """Take in what begins with an event."""
        if event.name == "kvm_unmap_hva_range":
            if gfns := self.play.unmapped(event):
                addresses = int(event.fields["start"]), int(event.fields["end"])
                self.windows.append(_Window(event.pid, tuple(gfns), addresses=addresses))
        elif "party" in event.fields:
            party = _Party(int(event.fields["party"]), str(event.fields["act"]))
            self.parties[event.pid] = party
            act, _, address = party.act.partition(" ")
            if act in PARTY_OPS:
                gfn = number(address, self.where) >> PAGE_SHIFT
                verb, *kind = PARTY_OPS[act]
                if kind:
                    self.windows.append(_Window(event.pid, ((gfn, gfn + 1),), kind[0]))
                else:
                    self.machine.host.change(verb, gfn, gfn + 1)

    def close(self, event: TraceEvent) -> None:
        """Let what a task does be over when it shows its next event; or begun, if that event is a part of it."""
        for window in [window for window in self.windows if window.pid == event.pid]:
            if window.goes_on(event):
                self.begun(window)
            else:
                self.end(window)

    def begun(self, window: _Window) -> None:
        """Let an invalidation be in progress."""
        if not window.begun:
            window.begun = True
            self.machine.invalidations.mmu_invalidate_begin()
            for start, end in window.gfns:
                self.machine.invalidations.mmu_invalidate_range_add(start, end)

    def end(self, window: _Window) -> None:
        """End an invalidation, or change an attribute."""
        self.windows.remove(window)
        if not window.act:
            self.begun(window)
            self.machine.invalidations.mmu_invalidate_end()
            return
        ret = self.machine.set_attributes(window.gfns[0][0] << PAGE_SHIFT, PAGE_SIZE, window.act == "private")
        party = self.parties[window.pid]
        told = (self.step.result or {}).get(f"host{party.number}") or {}
        self.play.returned(self.where, "attr", told, ret)

    # --- the faults ---

    def start(self, row: FaultRow, state: VmState) -> None:
        """Begin a fault."""
        where = f"{self.where}, line {row.first_line}"
        if self.live is None:
            self.live = state.copy()
        event = self.play.event(row)
        if event is None:
            self.play.unseen_code(row)
            return
        event, given = self.play.before(where, event, self.play.given(row, followed=True))
        self.play.sync(row, state, event.addr)
        before, _ = self.machine.entry(self.gfn(event.addr))
        self.under[row.fault] = self.machine.start(event, given, row.vcpu or 0), before

    def gfn(self, addr: int) -> int:
        """The gfn of a fault's address."""
        return (addr if self.machine.mmu.direct else self.machine.translate(addr)[0]) >> PAGE_SHIFT

    def go_on(self, row: FaultRow, to: str, line: int) -> None:
        """Let a fault go on as far as the trace shows at this line."""
        if row.fault not in self.under:
            return
        fault, before = self.under[row.fault]
        if self.live and self.machine.mmu.direct and self.machine.options.tdp_mmu:
            self.play.sync(row, self.live, fault.event.addr)
        order = (*PLACES, "done")
        while order.index(fault.at) < order.index(to):
            if self.settle(row, fault, line):
                self.play.report.chance[NOTED] += 1
                return
            fault.go_on(order[order.index(fault.at) + 1])
        if fault.taken is None:
            return
        del self.under[row.fault]
        self.stats.update(fault.taken.stats)
        if row.pid in self.parties:
            self.parties[row.pid].taken.append(fault.taken)
        self.play.took(row, fault.taken, before, f"{self.where}, line {row.first_line}")

    def settle(self, row: FaultRow, fault: Underway, line: int) -> bool:
        """Where the trace does not order a fault and what happens in between, let the fault's record decide.

        Returns whether the fault must wait for its next event.
        """
        gfn, private = self.gfn(fault.event.addr), self.machine.private
        retry, error = self.machine.constant("RET_PF_RETRY"), row.faultin_ret == -EFAULT
        looked = row.gmem_ret is not None or (row.out_hva or _NO_HVA) < _NO_HVA
        seq, h = self.machine.invalidations, fault.handler
        changes = [window for window in self.windows if window.act and window.holds(gfn)]
        match fault.at:
            case "kvm_mmu_page_fault" if changes and row.in_is_private not in (None, private(gfn)):
                self.settled(CHANGED, changes[0])
            case "kvm_faultin_pfn":
                self.play.note_count(row)
                wanted = row.out_mmu_seq if row.faultin_ret is not None else None
                while wanted is not None and seq.mmu_invalidate_seq < wanted and self.others(row):
                    self.settled(ENDED, self.others(row)[0])
                later = [event.line for event in self.own[row.fault] if event.line > line]
                if (
                    wanted is not None
                    and seq.mmu_invalidate_seq < wanted
                    and later
                    and line not in self.waited
                ):
                    self.waited.add(later[0])
                    self.moments[later[0]].insert(0, (row, "kvm_mem_is_private"))
                    return True
            case "kvm_mem_is_private" if h:
                if changes and (h.fault.is_private != private(gfn)) != (error and not looked):
                    self.settled(CHANGED, changes[0])
                self.check(row, gfn, h.mmu_seq, row.faultin_ret == retry and not looked)
                if seq.seen_by(gfn).covers_gfn:
                    self.play.report.chance[IN_PROGRESS] += 1
            case "__kvm_faultin_pfn" if h:
                self.check(row, gfn, h.mmu_seq, row.faultin_ret == retry and looked)
            case "is_page_fault_stale" if h:
                self.check(row, gfn, h.mmu_seq, row.handler_ret == retry and row.requested_gfn is None)
            case "kvm_tdp_mmu_map" if row.handler_ret == retry and self.contended(row, gfn):
                self.play.report.chance[LOST] += 1
                fault.lose()
        return False

    def others(self, row: FaultRow) -> list[_Window]:
        """Return what other tasks than a fault's own are doing."""
        return [window for window in self.windows if window.pid != row.pid]

    def check(self, row: FaultRow, gfn: int, mmu_seq: int, retried: bool) -> None:
        """Before a check against the count: if the kernel tried again, something has begun or ended by now."""
        seq = self.machine.invalidations
        if not retried or not self.others(row) or seq.mmu_invalidate_retry_gfn(mmu_seq, gfn):
            return
        for window in self.others(row):
            if not window.act and not window.begun and window.holds(gfn):
                self.play.report.chance[BEGUN] += 1
                self.begun(window)
                return
        window = self.others(row)[0]
        self.settled(CHANGED if window.act else ENDED, window)

    def settled(self, what: str, window: _Window) -> None:
        """End a window because a fault's record says that it was over."""
        self.play.report.chance[what] += 1
        self.end(window)

    def contended(self, row: FaultRow, gfn: int) -> bool:
        """Say whether another task changed the entry of a gfn while this fault was about to."""
        asked = max((e.line for e in self.own[row.fault] if e.name == "kvm_mmu_spte_requested"), default=0)
        for e in self.step.events:
            if (
                e.name == "kvm_tdp_mmu_spte_changed"
                and e.pid != row.pid
                and 0 < asked < e.line < row.last_line
            ):
                first, level = e.fields.get("gfn"), e.fields.get("level")
                if (
                    isinstance(first, int)
                    and isinstance(level, int)
                    and (gfn ^ first) >> 9 * (level - 1) == 0
                ):
                    return True
        return False
