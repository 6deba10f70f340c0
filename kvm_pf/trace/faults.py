# SPDX-License-Identifier: GPL-2.0-only
"""From events to faults: one row each, with what its code says and how it ended.

A row begins at an exit for a page fault (nested page fault, EPT violation or misconfiguration, #PF) or, where exits
were not recorded, at `kvm_page_fault`; it ends at the next entry, exit or return to user space of the same task.
"""

from __future__ import annotations

import functools
import heapq
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_MASK,
    EPT_VIOLATION_USER_EXEC,
    PFERR_FETCH_MASK,
    PFERR_GUEST_ENC_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SYNTHETIC_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    U64_MASK,
    describe,
)
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line
from kvm_pf.exits import Guest
from kvm_pf.revisions import Revision, get
from kvm_pf.run.meanings import ENCODINGS, TDX_CLEARED, TDX_REVISION, meaning, under_shadow
from kvm_pf.run.places import FAULT_EXITS, fault_exit
from kvm_pf.state import PAGE_SHIFT
from kvm_pf.trace.declared import Declared, Span
from kvm_pf.trace.dumps import Dumps, place
from kvm_pf.trace.lines import Event, number
from kvm_pf.trace.record import Fault

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STAGE = PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK
MEMORY_FAULT_PRIVATE = 1 << 3
"""KVM_MEMORY_EXIT_FLAG_PRIVATE.  Source: Linux `include/uapi/linux/kvm.h` (v6.8)."""

KVM_HC_MAP_GPA_RANGE, MAP_GPA_ENCRYPTED = 12, 1 << 4
"""The hypercall that converts memory.  Source: Linux `include/uapi/linux/kvm_para.h` (v5.16)."""


_LEAF = 1 << 7
"""PT_PAGE_SIZE_MASK: an entry above level 1 that maps memory.  Source: Linux `arch/x86/kvm/mmu/spte.h` (v6.8)."""


def fault_kind(fields: dict[str, Any]) -> str | None:
    """Say which kind of fault an exit is; None for any other exit."""
    reason = str(fields.get("reason", "")).upper().removeprefix("EXIT_")
    kind = fault_exit(int(reason)) if reason.isdecimal() else FAULT_EXITS.get(reason)
    if kind is None and reason == "EXCEPTION_NMI":
        info = fields.get("intr_info", fields.get("int_info", fields.get("info2", 0)))  # the last: up to 5.9
        if info >> 31 & 1 and info & 0xFF == 14 and info >> 8 & 7 == 3:
            return "pf"
    return kind


_MEMORY_FAULT_EXIT = 39
"""KVM_EXIT_MEMORY_FAULT.  Source: Linux `include/uapi/linux/kvm.h` (v6.8)."""


def _user_exit(f: dict[str, Any]) -> str:
    """Name a return to user space.  A memory fault comes with an error, behind which ftrace's text hides the exit."""
    reason = str(f.get("reason", "?"))
    if f.get("exit", reason) in (_MEMORY_FAULT_EXIT, str(_MEMORY_FAULT_EXIT), hex(_MEMORY_FAULT_EXIT)):
        return "KVM_EXIT_MEMORY_FAULT"
    return f"{reason} {f['errno']}" if "errno" in f else reason


LONGEST_WAIT = 3600.0
"""How many seconds a fault that has not ended may go on at the trace's end to be one of the same recording."""


_ASIDE = (
    "kvm_tdp_mmu", "kvm_mmu_s", "fast_page", "mark_mmio", "handle_mmio", "vcpu_match", "check_mmio", "kvm_try_async",
)  # fmt: skip
"""How events begin that tell more of a fault that goes on."""


class Joiner:
    """Join events into faults; what else the trace tells stands in the attributes.

    `events` counts the events by name, `exits` the exits by reason, `user_exits` those to user space by name, `faults`
    the faults that have ended.  `declared` holds the memory that was made private or shared, `sptes` the entries that
    get_mmio_spte() complained about, `counts` bpftrace's maps, `ends` lists exits that user space did not know,
    `warnings` the kernel's warnings about faults, `messages` what it or the VMM says of causes, `failures` what strace
    shows of KVM_RUN, `private` the codes of fast_page_fault with bit 49; of these lists the first KEPT are kept.
    `amd` and `intel` count the evidence for either, `tdp` is True once the trace shows that TDP is in use.
    """

    OPEN = 65536
    WAITING = 8192
    KEPT = 1000

    def __init__(self) -> None:
        self.open: dict[object, Fault] = {}
        self.events: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.user_exits: Counter[str] = Counter()
        self.warnings: list[tuple[int, str]] = []  # line, function
        self.messages: list[tuple[int, str]] = []  # line, one of MESSAGES
        self.failures: list[tuple[int, str, int]] = []  # line, error's name, conversions before it
        self.private: list[tuple[int, int]] = []  # line, code of fast_page_fault with bit 49
        self.declared = Declared()
        self.sptes: list[dict[str, Any]] = []
        self.counts: list[dict[str, Any]] = []
        self.sptes_count = self.counts_count = 0
        self.amd = self.intel = 0  # by exits
        self.amd_codes = self.intel_codes = 0
        self.wide = self.narrow = 0  # kvm_page_fault as kernels from 6.1 on print it, and as those before did
        self.tdp = False
        self.collapses: list[
            tuple[int, int, int]
        ] = []  # line, gfn, level: a large page in the place of a table
        self.ends: list[tuple[int, int]] = []  # line, number of an exit that user space did not know
        self.errors: list[tuple[int, int]] = []  # line, number of an internal error of KVM's
        self.unended: list[
            tuple[int, float]
        ] = []  # line, seconds to the trace's end, of faults that go on there
        self.silent: list[
            tuple[int, float]
        ] = []  # line, seconds to the trace's end, of a TDX guest's private ones
        self.first: float | None = None
        self.last: float | None = None
        self._step: str | None = None
        self._address: int | None = None
        self._walk: Fault | None = None
        self._dumps = Dumps()
        self._entering: set[object] = set()  # tasks whose entries are recorded
        self._waiting: list[tuple[int, int, Fault]] = []
        self.faults = 0
        self._same: dict[object, tuple[object, int]] = {}

    def join(self, events: Iterable[Event]) -> Iterator[Fault]:
        """Yield the faults, each when it has ended, in the order in which they began.

        A fault waits for those that began before it and go on; if WAITING of them wait, the first waits no longer.
        """
        for event in events:
            for row in self.feed(event):
                self._wait(row)
                oldest = next(iter(self.open.values())).line if self.open else row.line
                while self._waiting and (self._waiting[0][0] <= oldest or len(self._waiting) > self.WAITING):
                    yield heapq.heappop(self._waiting)[2]
        yield from self.end()

    def end(self) -> Iterator[Fault]:
        """Yield the faults that go on: the trace has ended."""
        if self.last is not None and (self.exits or self._entering):
            self.silent = [
                (row.line, self.last - row.time)
                for row in self.open.values()
                if row.traced and row.time is not None and row.raw_code is not None
                and protected(row.rip, row.address) == "private"
                and hides_registers(row.source, row.raw_code, row.whole, "private")
            ]  # fmt: skip
        dumped = list(self._dumps.done())
        for row in dumped:
            place(row, self.declared)
        if self.last is not None:
            # Only where the task's entries are recorded does their absence tell; hours apart, it is another trace.
            self.unended = [
                (row.line, self.last - row.time)
                for key, row in self.open.items()
                if row.time is not None and key in self._entering and row.outcome == "not shown"
                and self.last - row.time < LONGEST_WAIT
            ]  # fmt: skip
        for row in [*self.open.values(), *([self._walk] if self._walk else []), *dumped]:
            self._wait(row)
        self.open, self._walk = {}, None
        yield from self.release()

    def release(self) -> Iterator[Fault]:
        """Yield the faults that have ended and wait for others."""
        while self._waiting:
            yield heapq.heappop(self._waiting)[2]

    def _wait(self, row: Fault) -> None:
        """Note how often the very same fault came before, and let it wait for those that began earlier."""
        who = (row.pid if row.pid is not None else row.task, row.vcpu)
        page = None if row.address is None else row.address >> PAGE_SHIFT
        same = (row.rip, page, row.raw_code, row.source)
        before, times = self._same.get(who, (None, 0))
        row.again = times if before == same else 0
        if len(self._same) >= self.OPEN and who not in self._same:
            self._same.clear()
        self._same[who] = same, row.again + 1
        self.declared.met(row.conversion, row.user_exit == "KVM_EXIT_MEMORY_FAULT")
        self.faults += 1
        heapq.heappush(self._waiting, (row.line, self.faults, row))

    def feed(self, event: Event) -> Iterable[Fault]:
        """Take one event; give the faults that it ends."""
        self.events[event.name] += 1
        if (time := event.time) is not None:
            if self.first is None or self.last is None:
                self.first = self.last = time
            elif time > self.last:
                self.last = time
            elif time < self.first:
                self.first = time
        f = event.fields
        key: object = event.pid if event.pid is not None else event.task
        take = _taker(event.name)
        if take is not None:
            return take(self, event, f, key)
        if event.name.startswith(_ASIDE):
            ended = self._fast(event, f, key) if event.name == "fast_page_fault" else []
            self._aside(event, f, self.open.get(key))
            return ended
        return ()

    def _fast(self, event: Event, f: dict[str, Any], key: object) -> list[Fault]:
        """Note the code that the fast path had; begin a fault with it in a trace that shows none otherwise."""
        code = f.get("error_code")
        if code is None:
            return []
        if code & PFERR_PRIVATE_ACCESS and len(self.private) < self.KEPT:
            self.private.append((event.line, code))
        if self.exits or self.events["kvm_page_fault"] or "gva" not in f:
            return []
        ended = self._begin(event, key, raw_code=code, source="fast", address=f["gva"])
        self.open[key].exit_code = None
        return ended

    def _begin(self, event: Event, key: object, **given: Any) -> list[Fault]:
        """Begin a fault; give those that this ends."""
        ended = [self.open.pop(key)] if key in self.open else []
        if len(self.open) >= self.OPEN:
            ended.append(self.open.pop(next(iter(self.open))))
        row = self.open[key] = Fault(
            event.line, event.time, event.cpu, event.task, event.pid, event.fields.get("vcpu"), event.fields.get("rip"),
            step=self._step, **given,
        )  # fmt: skip
        row.exit_code = row.raw_code
        if row.address is not None:
            self._at(row, row.address)
        return ended

    def _at(self, row: Fault, address: int | None) -> None:
        """Note where a fault is, and what that memory was last declared."""
        row.address = address
        if address is not None and row.source != "pf":
            hidden = row.rip == 0  # of a TDX guest, whose conversions are told without the shared bit
            row.declared, row.conversion = self.declared.at(address & ~SHARED if hidden else address)

    def _kvm_exit(self, event: Event, f: dict[str, Any], key: object) -> list[Fault]:
        reason = str(f["reason"])
        self.exits[reason if reason in self.exits or len(self.exits) < self.KEPT else "others"] += 1
        kind = fault_kind(f)
        if kind is None:
            return [self.open.pop(key)] if key in self.open else []
        self.amd += kind == "npf"
        self.intel += kind in ("ept", "misconfig")
        return self._begin(event, key, **self._of_exit(kind, f))

    @staticmethod
    def _of_exit(kind: str, f: dict[str, Any]) -> dict[str, Any]:
        code, address = f.get("info1"), f.get("info2")
        if kind == "ept":
            hidden = f.get("rip") == 0 and code is not None and not code & TDX_CLEARED  # info2 is another's
            if hidden and code is not None and _is_pending(code, address):
                return {"source": "pending", "raw_code": code}
            return {"source": kind, "raw_code": code, "vectoring": None if hidden else address or None}
        if kind == "misconfig":
            return {"source": kind}
        if "EXCEPTION_NMI" in str(f["reason"]):  # Intel: the qualification is the address
            code, address = f.get("error_code", f.get("int_info_err")), code
        return {"source": kind, "raw_code": code, "address": address}

    def _kvm_nested_vmexit(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        kind = fault_kind(f)
        if kind is None:
            return
        row = self.open.get(key)
        if row is None or row.source != kind:
            yield from self._begin(event, key, **self._of_exit(kind, f))
            row = self.open[key]
        row.nested = True
        row.vcpu = f.get("vcpu", row.vcpu)

    def _kvm_nested_vmexit_inject(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None and (kind := fault_kind(f)) is not None:
            row.nested = True
            row.to_l1 = kind == row.source or not row.source
        yield from ()

    def _kvm_page_fault(self, event: Event, f: dict[str, Any], key: object) -> list[Fault]:
        ended: list[Fault] = []
        row = self.open.get(key)
        rip = f.get("rip")
        if row is None or row.traced or (None not in (row.rip, rip) and row.rip != rip):
            ended = self._begin(event, key)
            row = self.open[key]
        row.traced = True
        row.source = row.source.replace("pending", "ept")
        row.vcpu, row.rip = f.get("vcpu", row.vcpu), f.get("rip", row.rip)
        code = f["error_code"]
        self._at(row, f["address"])
        exact = row.raw_code is not None and not event.whole and row.raw_code & 0xFFFFFFFF == code
        if not exact:
            row.raw_code, row.whole = code, event.whole or code >> 32 != 0 or row.source == "pf"
        self.amd_codes += is_amd(code)
        self.intel_codes += is_intel(code) or (event.whole and rip == 0 and may_be_tdx(code))
        self.wide += event.whole and "vcpu" in f and event.name == "kvm_page_fault"
        self.narrow += not event.whole and row.source != "pf"
        return ended

    _script = _kvm_page_fault

    def _ended(self, key: object, event: Event) -> Fault:
        """Take the fault that an event ends, and note how long it took."""
        row = self.open.pop(key)
        if row.time is not None and event.time is not None:
            row.took = event.time - row.time
        return row

    def _kvm_entry(self, event: Event, f: dict[str, Any], key: object) -> Iterable[Fault]:
        if len(self._entering) < self.OPEN:
            self._entering.add(key)
        if key not in self.open:
            return ()
        row = self._ended(key, event)
        row.entered = True
        return (row,)

    def _kvm_userspace_exit(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        name = _user_exit(f)
        self.user_exits[
            name if name in self.user_exits or len(self.user_exits) < self.KEPT else "others"
        ] += 1
        if key in self.open:
            row = self._ended(key, event)
            row.user_exit = name
            yield row

    def _aside(self, event: Event, f: dict[str, Any], row: Fault | None) -> None:
        name = event.name
        if name == "kvm_tdp_mmu_spte_changed":
            self.tdp = True
            old, new, level = f.get("old_spte", 0), f.get("new_spte", 0), f.get("level", 1)
            if (
                level > 1
                and old & 7
                and not old & _LEAF
                and new & 7
                and new & _LEAF
                and len(self.collapses) < self.KEPT
            ):
                self.collapses.append((event.line, f.get("gfn", 0), level))
        if row is None:
            return
        if name in ("mark_mmio_spte", "handle_mmio_page_fault", "vcpu_match_mmio"):
            row.mmio = row.mmio.replace("stale", "") or "yes"
        elif name == "check_mmio_spte":
            row.mmio = row.mmio or ("" if f.get("valid", 1) else "stale")
        elif name == "kvm_try_async_get_page":
            row.waits = True
        elif name == "fast_page_fault":
            row.mapped_now = row.mapped_now or bool(f.get("fixed"))
        elif name in ("kvm_mmu_set_spte", "kvm_mmu_spte_requested"):
            row.mapped_now = row.mapped_now or not row.mmio
        elif name == "kvm_tdp_mmu_spte_changed":
            row.zapped = row.zapped or bool(f.get("old_spte", 0) & 1 and not f.get("new_spte", 1) & 1)

    def _kvm_mmio(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None and f.get("type") in ("read", "write", "unsatisfied-read"):
            row.mmio = str(f["type"])
            if row.address is None:
                self._at(row, f.get("gpa"))
        yield from ()

    def _kvm_fast_mmio(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None:
            row.mmio = "fast"
            self._at(row, f.get("gpa", row.address))
        yield from ()

    def _kvm_emulate_insn(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None:
            row.insn = row.insn or f["insn"]
            row.failed = row.failed or f["failed"]
        yield from ()

    def _kvm_inj_exception(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None and not f["again"]:
            row.exception = f["exception"]
        yield from ()

    def _kvm_mmu_walker_error(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if (row := self.open.get(key)) is not None and f.get("pferr", 0) & PFERR_RSVD_MASK:
            row.mmio = row.mmio or "guest-reserved"
        yield from ()

    def _pf(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        row = self.open.get(key)
        if row is not None and row.handler_code is None:
            row.handler_code = f.get("err")
            if row.address is None:
                self._at(row, f.get("gpa"))
        yield from ()

    def _kvm_hypercall(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if f.get("nr") == KVM_HC_MAP_GPA_RANGE and {"a0", "a1", "a2"} <= f.keys():
            size = f["a1"] << PAGE_SHIFT & U64_MASK
            private = bool(f["a2"] & MAP_GPA_ENCRYPTED)
            self.declared.convert(
                Span(event.line, event.time, f["a0"], size, private, "the guest's hypercall")
            )
        yield from ()

    def _tracing_mark_write(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        self._step = f["text"].removeprefix("tracing_mark_write:").strip()
        words = self._step.split()
        if "attr" in words and len(words) >= words.index("attr") + 4:
            gpa_text, size_text, kind = words[words.index("attr") + 1 :][:3]
            gpa, size = number(gpa_text), number(size_text)
            if kind in ("private", "shared") and gpa is not None and size is not None:
                how = "user space, marked in the trace"
                self.declared.convert(Span(event.line, event.time, gpa, size, kind == "private", how))
        yield from ()

    _print = _bprint = _tracing_mark_write

    def _conversion(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        self.declared.convert(
            Span(event.line, event.time, f["gpa"], f["size"] or 0, f["private"], "user space")
        )
        yield from ()

    def _memory_fault(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        row = Fault(
            event.line, event.time, raw_code=f["flags"], source="memory_fault", size=f["size"],
            user_exit="KVM_EXIT_MEMORY_FAULT",
        )  # fmt: skip
        self._at(row, f["gpa"])
        yield row

    def _dump(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if event.name == "suberror" and len(self.errors) < self.KEPT:
            self.errors.append((event.line, f["number"]))
        for row in self._dumps.take(event.name, event.line, event.time, f):
            place(row, self.declared)
            yield row
        source = "" if self._dumps.row is None else self._dumps.row.source
        if event.name in ("vmcs", "vmcb", "bhyve", "extra") and source:
            self.amd += source == "npf" and not self.amd
            self.intel += source != "npf" and not self.intel

    _suberror = _extra = _vmcs = _vmcs_event = _vmcb = _bhyve = _dump

    def _guest_pf(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        yield Fault(event.line, event.time, raw_code=f["error_code"], source="guest_pf")

    def _mmio_sptes(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        self._address = f["address"]
        yield from ()

    def _spte(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        rsvd = f["rsvd"]
        hit = f["spte"] & rsvd if rsvd is not None else None
        self.sptes_count += 1
        if len(self.sptes) < self.KEPT:
            self.sptes.append(
                {"line": event.line, "time": event.time, "address": self._address, **f, "reserved": hit}
            )
        yield from ()

    def _unknown_exit(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if len(self.ends) < self.KEPT:
            self.ends.append((event.line, f["reason"]))
        yield from ()

    def _warning(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if len(self.warnings) < self.KEPT:
            self.warnings.append((event.line, f["function"]))
        yield from ()

    def _run_failed(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if len(self.failures) < self.KEPT:
            done = len(self.declared.spans) + self.declared.more
            self.failures.append((event.line, f["errno"], done))
        yield from ()

    def _message(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        if len(self.messages) < self.KEPT:
            self.messages.append((event.line, f["text"]))
        yield from ()

    def _count(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        self.counts_count += 1
        if len(self.counts) < self.KEPT:
            self.counts.append({"line": event.line, **f})
        yield from ()

    def _hvf(self, event: Event, f: dict[str, Any], key: object) -> Iterator[Fault]:
        row = self._walk
        if "guest_physical_address" in f:
            if row is not None:
                yield row
            self._walk = row = Fault(
                event.line, event.time, source="hvf", address=f["guest_physical_address"]
            )
            self.intel += 1
        if row is not None and "exit_qualification" in f:
            row.raw_code = f["exit_qualification"]
            self._walk = None
            yield row


@functools.cache
def _taker(name: str) -> Callable[[Joiner, Event, dict[str, Any], object], Iterable[Fault]] | None:
    """Find the Joiner's method that takes the events of a name; None if it has none."""
    return getattr(Joiner, f"_{name}", None)


# --- what a code is, and what it says ---


def _is_pending(qualification: int, extended: int | None) -> bool:
    """Say whether a TDX guest's EPT violation is of a page that it has not accepted, by both qualifications (u64).

    Source: Linux `arch/x86/kvm/vmx/tdx.c`, tdx_is_sept_violation_unexpected_pending(), tdx_get_exit_info() (v6.16).
    """
    pending, permissions = 6, 0xF << 3
    return extended is not None and extended & 0xF == pending and not qualification & permissions


def is_amd(code: int) -> bool:
    """Say whether only AMD's nested page faults have such a code (u64): one with bit 32 or 33."""
    return code & STAGE != 0


def is_intel(code: int) -> bool:
    """Say whether only EPT violations have such a code (u64): a small one with bit 7."""
    return code < 1 << 17 and code & EPT_VIOLATION_GVA_IS_VALID != 0


def may_be_tdx(code: int) -> bool:
    """Say whether a TDX guest's EPT violation can have such a qualification (u64): a read or write, no linear address.

    A TDX guest fetches from private memory only, whose accesses KVM makes writes.

    Source: Linux `arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16).
    """
    accesses = EPT_VIOLATION_ACC_READ | EPT_VIOLATION_ACC_WRITE
    return code < 1 << 17 and code & accesses != 0 and not code & (TDX_CLEARED | EPT_VIOLATION_ACC_INSTR)


SHARED = 1 << 47 | 1 << 51
"""A TDX guest's shared bit, with 4-level and with 5-level EPT.

Source: Linux `arch/x86/kvm/vmx/tdx.c`, TDX_SHARED_BIT_PWL_4, TDX_SHARED_BIT_PWL_5 (Linux 7.3.4).
"""


_PROTECTED = "", "private", "shared"


def _protected(rip: Any, address: Any) -> Any:
    """Give the place in _PROTECTED of a fault, or of each of a column (numpy, u64), by its rip and address."""
    return (rip == 0) * (1 + (address & SHARED != 0))


def protected(rip: int | None, address: int | None) -> str:
    """Say what a TDX guest's access would be to, "private" or "shared"; "" if the guest's rip is shown."""
    return "" if rip is None or address is None else _PROTECTED[_protected(rip, address)]


def hides_registers(source: str, code: int, whole: bool, protected: str) -> bool:
    """Say whether a code (u64) is taken for that of a TDX guest; `protected` is what the function of that name says."""
    return protected != "" and whole and source in ("", "ept") and may_be_tdx(code)


class Sense(NamedTuple):
    """What a code is taken for (`encoding`, `why`) and what follows: the fault path's error code and its parts."""

    encoding: str | None
    why: str
    error_code: int | None
    flags: str | None
    access: str | None
    mapped: bool | None
    private: bool | None
    meaning: str


SOURCES = {
    "npf": ("npf", "the exit's reason is npf"),
    "ept": ("ept", "the exit's reason is EPT_VIOLATION"),
    "misconfig": ("misconfig", "the exit's reason is EPT_MISCONFIG, which has no code"),
    "pf": ("pf", "the exit is an intercepted #PF"),
    "memory_fault": ("memfault", "flags of a memory-fault exit"),
    "guest_pf": ("pf", "Linux in the guest reports its own #PF"),
    "hvf": ("ept", "called an exit qualification"),
    "fast": ("pferr", "error_code of fast_page_fault, past the exit's handler"),
    "pending": (
        "tdx",
        "the exit's reason is EPT_VIOLATION, and its extended qualification (info2) says: pending",
    ),
}
"""By what a code was found in: its encoding, and why."""


def _encoding(
    source: str, code: int | None, whole: bool, vendor: str | None, tdp: bool, protected: str
) -> tuple[str | None, str]:
    """Choose the encoding of a code, and say why.

    Source: what `kvm_page_fault` prints, by vendor: Linux `arch/x86/kvm/vmx/vmx.c`, `arch/x86/kvm/svm/svm.c`,
    `arch/x86/kvm/mmu/mmu.c` (v6.9); the cut to 32 bits ended with commit `bff0adc40c00` ("KVM: x86: Use u64 for
    address and error code in page fault tracepoint") (v6.1).
    """
    if code is not None and hides_registers(source, code, whole, protected):
        why = "rip 0 and bit 7 is clear: a TDX guest, whose registers and linear address are hidden"
        return "tdx", why if source else f"likely: {why}; else a #PF under shadow paging"
    if source:
        return SOURCES[source]
    if code is None:
        return None, "no code was recorded"
    if code & (STAGE | PFERR_SYNTHETIC_MASK):
        return "npf", "bit 32 or 33 is set, which only a nested page fault of AMD has"
    if code < 1 << 17 and code & EPT_VIOLATION_GVA_IS_VALID:
        return "ept", "bit 7 is set, which an exit qualification has and no error code"
    if whole:
        return "pf", "printed whole, with neither bit 7 (EPT) nor bit 32 or 33 (#NPF): shadow paging"
    if vendor == "amd":
        return "npf", "cut to 32 bits; other faults of this trace are AMD's"
    if vendor == "intel":
        return "pf", "bit 7 is clear, which EPT sets; other faults of this trace are Intel's"
    if tdp:
        return "npf", "cut to 32 bits; the TDP MMU is in use and bit 7 is clear, so it is AMD's"
    if code & PFERR_USER_MASK or code == PFERR_WRITE_MASK | PFERR_USER_MASK:
        return "npf", "likely: cut to 32 bits, and nested accesses count as user; else a #PF (shadow paging)"
    return "pf", "likely: a small code without the user bit that nested page faults have (shadow paging)"


def whole_code(code: int) -> int | None:
    """Restore an #NPF code (u64) of which 32 bits were printed; None if it can be either of two.

    A walk of the guest's page tables counts as a write, so only a write can have been either.

    Source: AMD APM vol. 2, section 15.25.6.
    """
    if code >> 32:
        return code
    if code & PFERR_WRITE_MASK and not code & PFERR_FETCH_MASK:
        return None
    return code | PFERR_GUEST_FINAL_MASK


def _access(code: int) -> str:
    if code & STAGE == PFERR_GUEST_PAGE_MASK:
        return "walk"
    return "fetch" if code & PFERR_FETCH_MASK else "write" if code & PFERR_WRITE_MASK else "read"


def _sentence(code: int, encoding: str, is_shadowed: bool = False) -> str:
    said = meaning(code, encoding if code < 1 << ENCODINGS[encoding].bits else "pferr")
    return (under_shadow(said) if is_shadowed else said).sentence


@functools.lru_cache(maxsize=65536)
def sense(
    source: str,
    code: int | None,
    whole: bool,
    vendor: str | None,
    tdp: bool,
    revision: Revision | str = "posted",
    protected: str = "",
    traced: bool = False,
) -> Sense:
    """Say what a fault's code is and says.

    `source` is a Fault's, `code` what was printed (u64), `vendor` "amd", "intel" or None as the rest of the trace
    suggests, `revision` whose exit handler makes the error code, `protected` what the function of that name says,
    `traced` whether `kvm_page_fault` showed the code.

    >>> sense("", 0x683, True, None, False).meaning
    "a walk of the guest's page tables (read and write), on a page that is not mapped"
    """
    encoding, why = _encoding(source, code, whole, vendor, tdp, protected)
    if encoding == "misconfig":
        said = "an access to an entry that EPT calls misconfigured, which is how KVM marks MMIO"
        return Sense(encoding, why, PFERR_RSVD_MASK, "RSVD", None, None, None, said)
    if code is None or encoding is None:
        return Sense(encoding, why, None, None, None, None, None, "no code was recorded")
    if source == "pending":
        said = "an access of a TDX guest to private memory that it has not accepted"
        return Sense(encoding, why, None, None, None, None, True, said)
    if encoding == "memfault":
        return Sense(
            encoding, why, None, None, None, None, code & MEMORY_FAULT_PRIVATE != 0, _sentence(code, encoding)
        )
    if encoding == "ept":
        return _ept(code, why, revision)
    if encoding == "tdx":
        is_private = protected == "private"
        read = _ept(code, why, TDX_REVISION, is_private)
        return read._replace(encoding=encoding, private=is_private, meaning=_tdx_sentence(code, protected))
    error_code = whole_code(code) if encoding == "npf" and not whole else code
    known = code if error_code is None else error_code
    private = None
    if encoding == "pferr" or (encoding == "npf" and (whole or known >> 32)):
        private = _private(known, traced or source in ("", "fast"), revision)
    access = "write or walk" if error_code is None else _access(known)
    mapped = known & PFERR_PRESENT_MASK != 0
    said = _sentence(known, encoding, is_shadowed=encoding == "pf" and source != "guest_pf")
    return Sense(encoding, why, error_code, describe(known), access, mapped, private, said)


def _private(code: int, traced: bool, revision: Revision | str) -> bool | None:
    """Say whether an access was to private memory; None where bit 34, "encrypted", alone does not tell.

    An SNP guest's encrypted access is private, and kernels from 6.11 on add bit 49 before they trace it; without that
    bit it is one of SEV or SEV-ES, which have no private memory.  The exit's own code, and older kernels, do not tell.

    Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception(), commit `1dfe571c12cf` ("KVM: SEV: Add initial SEV-SNP
    support") (v6.11).
    """
    if code & PFERR_PRIVATE_ACCESS:
        return True
    return None if code & PFERR_GUEST_ENC_MASK and not (traced and marks(revision)) else False


@functools.cache
def marks(revision: Revision | str) -> bool:
    """Say whether a kernel adds bit 49 to an SNP guest's encrypted access before it traces it."""
    code = get(revision).step("npf_error_code")(Guest(snp=True), PFERR_GUEST_ENC_MASK)
    return bool(code & PFERR_PRIVATE_ACCESS)


def _ept(code: int, why: str, revision: Revision | str, private: bool = False) -> Sense:
    """Source: Intel SDM vol. 3, table of exit qualifications for EPT violations."""
    mbec = code & EPT_VIOLATION_USER_EXEC != 0  # the bit is 0 without it
    error_code = int(get(revision).step("ept_error_code")(code, mbec, private))
    kinds = (
        (EPT_VIOLATION_ACC_INSTR, "fetch"),
        (EPT_VIOLATION_ACC_WRITE, "write"),
        (EPT_VIOLATION_ACC_READ, "read"),
    )
    access = next((kind for bit, kind in kinds if code & bit), None)
    if code & EPT_VIOLATION_GVA_IS_VALID and not code & EPT_VIOLATION_GVA_TRANSLATED:
        access = "walk"
    mapped = code & EPT_VIOLATION_RWX_MASK != 0
    return Sense("ept", why, error_code, describe(error_code), access, mapped, None, _sentence(code, "ept"))


def _tdx_sentence(code: int, protected: str) -> str:
    """Say what a TDX guest did: of an access to private memory it is not told whether it was a write."""
    page = meaning(code, "ept").page
    if protected == "private":
        return f"an access to private memory of a TDX guest, on a page that is {page}"
    accesses = (EPT_VIOLATION_ACC_READ, "read"), (EPT_VIOLATION_ACC_WRITE, "write")
    access = " and ".join(word for bit, word in accesses if code & bit)
    return f"a {access} of shared memory by a TDX guest, on a page that is {page}"


# --- the table ---

U64 = (
    "rip", "address", "gpa", "gfn", "raw_code", "error_code", "exit_code", "handler_code", "size", "vectoring",
)  # fmt: skip
DTYPES = {
    "line": "Int64", "time": "Float64", "cpu": "Int32", "task": "string", "pid": "Int64", "vcpu": "Int64",
    **dict.fromkeys(U64, "UInt64"), "cut": "boolean", "source": "string", "encoding": "string",
    "encoding_why": "string", "flags": "string", "access": "string", "mapped": "boolean", "private": "boolean",
    "declared": "boolean", "mmio": "boolean", "nested": "boolean", "outcome": "string", "again": "Int64",
    "conversion": "Int64", "took": "Float64", "traced": "boolean",
    "insn": "string", "exception": "string", "zapped": "boolean", "step": "string", "meaning": "string",
}  # fmt: skip
"""The kind of values in each column of a table of faults."""

COLUMNS = (
    "line", "time", "cpu", "task", "pid", "vcpu", "rip", "address", "gpa", "gfn", "raw_code", "cut", "source",
    "encoding", "encoding_why", "error_code", "flags", "access", "mapped", "private", "declared", "mmio", "nested",
    "outcome", "again", "took", "conversion", "exit_code", "traced", "handler_code", "vectoring", "insn", "exception",
    "zapped", "size", "step", "meaning",
)  # fmt: skip
"""The columns of a table of faults, in order."""


@contextmanager
def of_faults(faults: object) -> Iterator[None]:
    """In the block, `faults` is a table of faults.

    Raises InputError if it is none, or has a column twice, or numbers of 64 bits that are none; and for a column that
    the block wants and that is not there.
    """
    import pandas as pd

    if not isinstance(faults, pd.DataFrame):
        raise InputError(
            f"a table of faults, as kvm_pf.trace.read gives it, is wanted, not {type(faults).__name__}"
        )
    if not faults.columns.is_unique:
        raise InputError(f"the table of faults has a column twice: {list(faults)[:99]!r:.200}")
    for name, dtype in faults.dtypes.items():
        if name in U64 and getattr(dtype, "kind", "O") not in "iu":
            raise InputError(
                f"the table of faults, column {name}: {DTYPES[str(name)]} is wanted, not {dtype}"
            )
    try:
        yield
    except KeyError as error:
        raise InputError(f"the table of faults has no column {one_line(error, 200)}") from None


def frame(
    faults: Iterable[Fault], vendor: str | None, tdp: bool, revision: Revision | str = "posted"
) -> pd.DataFrame:
    """Make the table of faults: one row each, the columns of COLUMNS; 64-bit values as UInt64, gaps as NA."""
    rows = list(faults)
    shown = [name for name in COLUMNS if name in _SHOWN]
    values = zip(*map(operator.attrgetter(*shown), rows), strict=True) if rows else [[] for _ in shown]
    columns = dict(zip(shown, map(list, values), strict=True))
    columns["cut"] = [not row.whole for row in rows]
    columns["mmio"] = [row.mmio not in ("", "guest-reserved") for row in rows]
    columns["outcome"] = [row.outcome for row in rows]
    return classified(table(columns, {name: DTYPES[name] for name in columns}), vendor, tdp, revision)


_SHOWN = Fault.__slots__
_SAID = ("encoding", "encoding_why", "error_code", "flags", "access", "mapped", "private", "meaning")


def classified(
    faults: pd.DataFrame,
    vendor: str | None,
    tdp: bool = False,
    revision: Revision | str = "posted",
    as_text: bool = True,
) -> pd.DataFrame:
    """Say what the codes of a table are and say: the table, with every column that follows from a code.

    `faults` has `raw_code` (u64), and may have `source`, `cut`, `traced`, `address`, `mmio` and others, with the dtypes
    of `read`; `vendor`, `tdp` and `revision` as in `sense`.  Each different code is looked at once.  Words are text, or
    categories if `as_text` is False, which takes less memory.  Columns that the table already has for what follows
    from a code are made anew.
    """
    import numpy as np
    import pandas as pd

    array: Any = pd.array
    given: dict[str, Any] = {str(name): faults[name].array for name in faults}
    asked: dict[str, Any] = {
        name: given[name] for name in ("source", "raw_code", "cut", "traced") if name in given
    }
    if (hidden := _hidden(given)) is not None:
        asked["protected"] = hidden
    codes, first = kinds(asked)
    said = []
    for row in zip(*(values.take(first).astype(object) for values in asked.values()), strict=True):
        one = dict(zip(asked, row, strict=True))
        code = None if pd.isna(one["raw_code"]) else one["raw_code"]
        source, cut, hides = one.get("source", ""), one.get("cut", False), one.get("protected", "")
        traced = one.get("traced")
        said.append(
            sense(source, code, not cut, vendor, tdp, revision, hides, not pd.isna(traced) and bool(traced))
        )
    made = spread(said, codes, _SAID, as_text)
    is_gpa = np.array([one.encoding != "pf" for one in said] or [True])[codes]
    if "address" in given:
        address = array(given["address"], dtype="UInt64")
        is_tdx = np.array([one.encoding == "tdx" for one in said] or [False])[codes]
        gpas = np.where(is_tdx, address._data & np.uint64(~SHARED & U64_MASK), address._data)
        made["gpa"] = pd.arrays.IntegerArray(gpas, address._mask | ~is_gpa)
        made["gfn"] = pd.arrays.IntegerArray(gpas >> np.uint64(PAGE_SHIFT), address._mask | ~is_gpa)
    if "declared" in given:
        made["declared"] = pd.Series(given["declared"]).where(is_gpa).array
    is_mmio = np.array([_is_mmio(one) for one in said] or [False])[codes]
    made["mmio"] = pd.array(is_mmio, dtype="boolean")
    if "mmio" in given:
        made["mmio"] = made["mmio"] | array(given["mmio"], dtype="boolean").fillna(False)
    for name, default in (("source", ""), ("cut", False)):
        if name not in given:
            made[name] = array([default], dtype=DTYPES[name]).take(np.zeros(len(faults), dtype=np.int64))
    columns = given | made
    order = [
        *(name for name in columns if name not in COLUMNS),
        *(name for name in COLUMNS if name in columns),
    ]
    return pd.DataFrame({name: columns[name] for name in order}, index=faults.index, copy=False)


def spread(
    said: Sequence[Sense], codes: np.ndarray[Any, Any], names: Iterable[str], as_text: bool
) -> dict[str, Any]:
    """Make columns of what codes are and say: for each row `codes` has the number of what is said of it."""
    import numpy as np
    import pandas as pd

    array: Any = pd.array
    made: dict[str, Any] = {}
    for name in names:
        values = [one.why if name == "encoding_why" else getattr(one, name) for one in said]
        if DTYPES[name] == "string":
            labels = list(dict.fromkeys(value for value in values if value is not None))
            places = np.array([-1 if value is None else labels.index(value) for value in values] or [-1])
            words = pd.Categorical.from_codes(
                places.astype(np.int8 if len(labels) < 127 else np.int32)[codes],
                categories=pd.Index(labels, dtype="str"),
            )
            made[name] = _as_text(words) if as_text else words
        else:
            made[name] = array(values or [None], dtype=DTYPES[name]).take(codes)
    return made


def _hidden(faults: dict[str, Any]) -> Any:
    """Say for each fault of a table's columns what `protected` says; None if every guest's rip is shown."""
    import numpy as np
    import pandas as pd

    if "rip" not in faults or "address" not in faults:
        return None
    array: Any = pd.array
    rip, address = (array(faults[name], dtype="UInt64") for name in ("rip", "address"))
    places = np.where(rip._mask | address._mask, 0, _protected(rip._data, address._data)).astype(np.int8)
    return pd.Categorical.from_codes(places, categories=pd.Index(_PROTECTED)) if places.any() else None


def _as_text(words: Any) -> Any:
    """Make text of categories."""
    import pandas as pd
    import pyarrow as pa

    text = pa.DictionaryArray.from_arrays(
        pa.array(words.codes, mask=words.codes < 0), pa.array(list(words.categories), pa.large_string())
    )
    kind: Any = pd.StringDtype()
    return kind.__from_arrow__(text.cast(pa.large_string()))


def _is_mmio(said: Sense) -> bool:
    """Say whether the code alone says that the access was one to MMIO."""
    if said.encoding == "misconfig":
        return True
    return said.encoding == "npf" and (said.error_code or 0) & PFERR_RSVD_MASK != 0


def table(columns: dict[str, list[Any]], dtypes: dict[str, str]) -> pd.DataFrame:
    """Make a table of lists of values, each of its dtype; None becomes NA, and no 64-bit value passes a float."""
    import pandas as pd

    array: Any = pd.array
    return pd.DataFrame({name: array(values, dtype=dtypes[name]) for name, values in columns.items()})


def kinds(columns: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Number the rows so that those that agree in all columns, gaps too, have one number, in the order of the rows.

    `columns` are arrays of one length, by name.  Returns each row's number, and for each number the place of the
    first row that has it.
    """
    import numpy as np
    import pandas as pd

    total, most = np.zeros(0, dtype=np.int64), 0
    for column in columns.values():
        codes, labels = pd.factorize(column, use_na_sentinel=False)
        if most <= 1:
            total, most = codes, len(labels)
        elif len(labels) > 1:
            total, labels = pd.factorize(total * len(labels) + codes)
            most = len(labels)
    first = np.zeros(most, dtype=np.int64)
    first[total[::-1]] = np.arange(len(total))[::-1]
    return total, first
