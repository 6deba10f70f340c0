# SPDX-License-Identifier: GPL-2.0-only
"""Replay recordings of a running KVM: every recorded fault through the model, value beside value.

A `Machine` carries out what user space did and takes each fault as the CPU reported it (after the change that
was made on purpose, where one was).  What KVM then traced, returned, counted and warned of is compared with what
the model says.  Nothing that is compared is also an input to it.  Given from the recording, and counted as
given, are answers from outside the path: the emulator's, whether the host dropped mappings during a fault, how
large its pages are, and KVM's page-table entries as earlier events told them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kvm_pf import exits
from kvm_pf.bits import EPT_VIOLATION_PROT_MASK, PFERR_PRESENT_MASK, PFERR_RSVD_MASK, PFERR_WRITE_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.common.files import as_path
from kvm_pf.common.text import one_line, write_number
from kvm_pf.common.typed import typed
from kvm_pf.conformance.expect import (
    COMPARED,
    EMULATOR,
    HOST_SIZE,
    LATER,
    NOT_COMPARED,
    RUN_FIELDS,
    SITES,
    STALE,
    TRACEPOINTS,
    Why,
    expected,
)
from kvm_pf.conformance.fault_rows import FaultRow
from kvm_pf.conformance.ftrace import LIMIT, TraceEvent
from kvm_pf.conformance.join import walk
from kvm_pf.conformance.parties import Together
from kvm_pf.conformance.placement import kernel_of
from kvm_pf.conformance.recordings import (
    L2_BLOCKS,
    Recording,
    Scenario,
    Step,
    number,
    read_recording,
    runs_of,
)
from kvm_pf.conformance.vm_state import VmState
from kvm_pf.guest.machine import (
    EXIT_REASON_HLT,
    SVM_EXIT_ERR,
    SVM_EXIT_HLT,
    L1Exit,
    Machine,
    Taken,
)
from kvm_pf.guest.memory import BASE_SLOT_SIZE, Given, Options
from kvm_pf.revisions import Revision, get
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK, SPTE_WRITE
from kvm_pf.state import KVM_HVA_ERR_BAD, PAGE_OFFSET_MASK, PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K

__all__ = ("Replay", "ReplayDifference", "ReplayReport", "Why", "replay")

# --- the report ---


class ReplayDifference(NamedTuple):
    """One value on which the kernel and the model differ; `fault` says where it stands."""

    fault: str
    field: str
    recorded: object
    model: object

    def __str__(self) -> str:
        return f"{one_line(self.fault, 200)}: {self.field}: kernel {_shown(self.recorded)}, model {_shown(self.model)}"


def _shown(value: object) -> str:
    if type(value) is int:
        return write_number(value)
    return "-" if value is None else one_line(value, 200)


@dataclass
class ReplayReport:
    """What replaying one directory showed."""

    name: str
    kernel: str | None
    revision: str
    remark: str = ""
    faults: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    not_compared: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    given: Counter[str] = field(default_factory=Counter)
    chance: Counter[str] = field(default_factory=Counter)
    """What the order of the events does not decide, as it was settled by the kernel's own answers."""
    differences: list[ReplayDifference] = field(default_factory=list)
    damage: tuple[str, ...] = ()  # what shows that the recording is not whole
    causes: list[str] = field(default_factory=list)
    """For differing faults: the one input, not shown by the recording, that would explain all their differences."""

    @property
    def differing(self) -> int:
        """How many faults, system calls and warnings differ in at least one value."""
        return len({difference.fault for difference in self.differences})

    def __str__(self) -> str:
        remark = f" ({self.remark})" if self.remark else ""
        kernel = "a kernel that nothing names" if self.kernel is None else one_line(self.kernel, 200)
        which = f"{one_line(self.name, 200)}: {kernel} as {self.revision}{remark}"
        lines = [
            f"{which}: {self.faults} faults, "
            f"{len(self.compared)} fields, {self.compared.total()} values compared, "
            f"{len(self.differences)} differences in {self.differing} places"
        ]
        lines += [f"  damaged: {one_line(what, 300)}" for what in self.damage]
        lines += [f"  {difference}" for difference in self.differences[:10]]
        if self.differences[10:]:
            by_field = Counter(difference.field for difference in self.differences)
            lines.append("  by field: " + ", ".join(f"{name} {n}" for name, n in by_field.most_common()))
        lines += [f"  {one_line(cause, 400)}" for cause in self.causes]
        lines.append("  given: " + (", ".join(f"{what} {n}" for what, n in self.given.items()) or "nothing"))
        if self.chance:
            lines.append("  left to chance: " + ", ".join(f"{what} {n}" for what, n in self.chance.items()))
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for name, reasons in self.not_compared.items():
            for reason, n in reasons.items():
                by_reason[reason].append(f"{name} {n}")
        lines += [f"  not compared, {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
        return "\n".join(lines)


# --- the machine that a recording asks for ---


def _yes(recording: Recording, name: str, default: bool) -> bool:
    return recording.parameters.get(name, "Y" if default else "N")[:1] in ("Y", "y", "1", "f")  # f: force


def _page_offset(rows: list[FaultRow]) -> int:
    """Where the host maps its memory: one of the two usual places, if the pointers seen lie there; else 0."""
    seen = [p for row in rows for p in (row.in_slot, row.mark_sptep) if p and p >> 63]  # others are hashed
    for start in (KVM_HVA_ERR_BAD, 0xFF11000000000000):
        if seen and all(start <= pointer < start + (1 << 36) for pointer in seen):
            return start
    return 0


_ADDRESS = 0x7FFFFFFFFF000
"""Bits 50:12: in an MMIO entry the address, and the bits that L1TF keeps set, which the first one made shows."""


def _options(recording: Recording, scenario: Scenario, rows: list[FaultRow], revision: Revision) -> Options:
    """Tell how the recorded boot was set up."""
    caps = {name: number(value, f"{scenario.name}: {name}") for name, value in scenario.caps.items()}
    known = not revision.has("no-attributes")
    grown = [
        (row.mark_gen or row.check_kvm_gen, row.state_updates) for row in rows if row.state_vm == "default"
    ]
    spaces = next((gen // updates for gen, updates in grown if gen and updates), 1)
    ept = any(row.source in ("ept", "miscfg") for row in rows)
    made = [(row.changed_new, row.mark_gfn) for row in rows if row.changed_gfn == row.mark_gfn]
    made += [
        (row.check_spte, row.mmio_gfn) for row in rows
    ]  # without the TDP MMU: the first that is met again
    spte, gfn = next(((spte, gfn) for spte, gfn in made if spte is not None and gfn is not None), (0, 0))
    kept = spte & _ADDRESS & ~(gfn << PAGE_SHIFT)
    return Options(
        sw_protected=known and caps.get("vm_types", 2) & 2 != 0,
        private_mem=known and caps.get("memory_attributes", 8) & 8 != 0,
        address_spaces=min(max(spaces, 1), 2),
        mmio_caching=_yes(recording, "kvm.mmio_caching", True),
        nx_huge_pages=_yes(recording, "kvm.nx_huge_pages", False),
        tdp_mmu=_yes(recording, "kvm.tdp_mmu", True),
        accessed_dirty=not ept or _yes(recording, "kvm_intel.eptad", True),
        pml=ept and _yes(recording, "kvm_intel.pml", True) and _yes(recording, "kvm_intel.eptad", True),
        mbec=ept and _yes(recording, "kvm_intel.mbec", False),
        nrips=_yes(recording, "kvm_amd.nrips", True),
        l1tf_mask=kept,
        page_offset=_page_offset(rows),
    )


_BASE = (0, 0, BASE_SLOT_SIZE >> PAGE_SHIFT)


def _addresses(rows: Rows) -> dict[tuple[int, int, int], int | None]:
    """Tell where user space keeps each slot (id, first gfn, pages), by the faults in it; None: in several places."""
    found: dict[tuple[int, int, int], int | None] = {}
    for row, state in rows:
        if row.out_hva and row.out_hva < 1 << 47 and row.state_gfn is not None:
            slot = state.slot(row.state_gfn)
            key = (slot.id, slot.gpa >> PAGE_SHIFT, slot.size >> PAGE_SHIFT) if slot else _BASE
            start = row.out_hva - (row.state_gfn - key[1] << PAGE_SHIFT)
            found[key] = start if found.get(key, start) == start else None
    return found


# --- the replay ---

_KINDS = {
    "npf": exits.KIND_NPF,
    "ept": exits.KIND_EPT,
    "miscfg": exits.KIND_MISCFG,
    "pf": exits.KIND_PF,
}
_RUNS = ("r", "w", "x", "i", "e", "s")
_L2_RUNS = ("l2r", "l2w", "l2x", "l2i", "run")
_CALLS = ("vm", "slot", "attr")
_HOST_OPS = ("mprotro", "mprotrw", "unmap", "zap", "poke")
"""What the host's MMU notifier tells KVM of."""
_MAPPED_BEFORE = ("vm", "slot")
"""What user space maps memory for before it calls KVM: the host's events come first."""
LOST = Why("events were lost")
L2_COLUMNS = ("l2_exit", "l2_exit_info1", "l2_exit_info2")
_EPTP_AD = 1 << 6
"""The bit of an EPT pointer that says that entries have accessed and dirty bits.  Source: Intel SDM vol. 3."""
_VALID = 1 << 31
"""The bit of (VM exit or vectoring) interruption information that says that there is some."""


def _reported(row: FaultRow) -> tuple[int | None, int | None, tuple[str, ...]]:
    """The code and the address that the CPU reported, and the columns other than the exit's read for them."""
    if row.source == "miscfg":
        column = "pf_gpa" if row.fast_mmio_gpa is None else "fast_mmio_gpa"
        return 0, getattr(row, column), (column,)
    names = ("khpf_err", "khpf_addr") if row.source == "pf" else ("trace_error_code", "trace_address")
    exit_ = (row.cpu_code, row.cpu_address)
    code, addr = (
        getattr(row, name) if value is None else value for name, value in zip(names, exit_, strict=True)
    )
    return code, addr, tuple(name for name, value in zip(names, exit_, strict=True) if value is None)


def _host_level(row: FaultRow) -> tuple[int | None, str]:
    """The level that the host's page let KVM ask for, and the column that tells it.

    Where the handler's argument was not traced as it was left, the level of the mapping that was asked for.
    """
    column = "requested_level" if row.out_req_level is None else "out_req_level"
    return getattr(row, column), column


Rows = list[tuple[FaultRow, VmState]]


class Replay:
    """One recording on its way through the model: override `fields` and `cell` to look on, `before` to suppose.

    `rows` is what `walk(recording)` yields, for whoever replays it more than once.
    """

    def __init__(self, recording: Recording, revision: Revision, report: ReplayReport, rows: Rows) -> None:
        self.recording, self.revision, self.report, self.rows = recording, revision, report, rows
        faults = [row for row, _ in rows]
        self.live = {name for name in COMPARED if any(getattr(row, name) is not None for row in faults)}
        if any(name.startswith(TRACEPOINTS) for name in self.live):
            self.live |= {name for name in COMPARED if name.startswith(TRACEPOINTS)}
        found = {row.source for row in faults}
        told = "ept" if found & {"ept", "miscfg"} else "shadow" if "pf" in found else "npt"
        self.machine = Machine("default", recording.mode or told, revision)
        self.warned = self.machine.warned
        self.printed: list[tuple[str, int, str]] = []
        self.put_off: dict[int, int] = {}
        self.armed: list[tuple[str, int, int, int]] = []
        self.store: list[str] = []

    def note(self, name: str, why: Why, count: int = 1) -> None:
        """Count values that are not compared."""
        self.report.not_compared[name][why.reason] += count

    def compare(self, where: str, name: str, recorded: object, want: object) -> None:
        """Hold a recorded value against the model's."""
        if isinstance(want, Why):
            if recorded is not None:
                self.note(name, want)
            return
        self.report.compared[name] += 1
        if recorded != want:
            self.report.differences.append(ReplayDifference(where, name, recorded, want))

    def scenario(self, scenario: Scenario) -> None:
        """Replay one scenario, step by step."""
        mine = [(row, state) for row, state in self.rows if row.scenario == scenario.name]
        options = _options(self.recording, scenario, [row for row, _ in self.rows], self.revision)
        if self.machine.options != options:
            self.machine = Machine("default", self.machine.hardware, self.revision, **options._asdict())
            self.machine.warned = self.warned
        self.machine.reset("default")
        self.armed = []
        self.trace, self.passed, self.counts = scenario.trace, 0, True
        self.addresses = _addresses(mine)
        self.whole = not (scenario.trace.lost or scenario.trace.missing)
        by_step: defaultdict[int | None, Rows] = defaultdict(list)
        for row, state in mine:
            by_step[row.step].append((row, state))
        for row, _ in by_step[None]:
            self.note(row.source, Why("no step says what user space did"))
        for step in scenario.steps:
            verb, where = step.op.partition(" ")[0], f"{scenario.name}, step {step.number} ({step.op})"
            if verb in _L2_RUNS and (verb != "run" or runs_of(step.result)):
                self.l2(step, by_step[step.number], where)
            elif verb in ("l2map", "l2unmap"):
                self.stores(step, by_step[step.number], where)
            elif verb in _RUNS:
                self.machine.leave_l2()
                self.runs(step, by_step[step.number], where)
            elif verb == "par":
                Together(self, step, by_step[step.number], where).run()
            elif verb == "prefault":
                self.prefault(step, by_step[step.number], where)
            elif verb == "sh":
                self.arm(step, where)
            else:
                self.call(step, where)
            self.pass_events(step.events[-1].line if step.events else 0)

    # --- invalidations ---

    def unmapped(self, event: TraceEvent) -> list[tuple[int, int]]:
        """Return the gfns that lie at the addresses which the host takes away.

        Where user space keeps a slot is known from the faults in it.  If an address may be that of a slot of which
        that is not known, the count of invalidations is not known either, until a fault shows it.
        """
        first, end = event.fields.get("start"), event.fields.get("end")
        if not (isinstance(first, int) and isinstance(end, int)):
            return []
        found, unknown = [], False
        for slot in self.machine.slots:
            hva = self.addresses.get((slot.id, slot.base_gfn, slot.npages))
            if hva is None:
                unknown = True
                continue
            low, high = max(first, hva), min(end, hva + (slot.npages << PAGE_SHIFT))
            if low < high:
                page = slot.base_gfn + (low - hva >> PAGE_SHIFT)
                found.append((page, slot.base_gfn + (high - hva + PAGE_OFFSET_MASK >> PAGE_SHIFT)))
        self.counts &= bool(found) or not unknown
        return found

    def pass_events(self, line: int, count: bool = True) -> None:
        """Go on to a line of the trace, and count the host's invalidations on the way."""
        while self.passed < len(self.trace) and self.trace[self.passed].line <= line:
            event = self.trace[self.passed]
            self.passed += 1
            if count and event.name == "kvm_unmap_hva_range" and self.unmapped(event):
                self.machine.invalidations.mmu_invalidate_seq += 1

    def note_count(self, row: FaultRow) -> None:
        """Take the count of invalidations from a fault, if it is not known."""
        self.noted = not self.counts
        if self.noted and row.out_mmu_seq is not None and row.faultin_ret is not None:
            self.machine.invalidations.mmu_invalidate_seq = row.out_mmu_seq
            self.counts = True
            self.report.given["count of invalidations"] += 1

    @contextmanager
    def reached(self, row: FaultRow) -> Iterator[None]:
        """Come to a fault, and leave it: with the host's invalidations before it, and while it was handled."""
        self.pass_events(row.first_line)
        self.note_count(row)
        before = self.machine.invalidations.mmu_invalidate_seq
        yield
        self.machine.invalidations.mmu_invalidate_seq = before
        self.pass_events(row.last_line)

    def arm(self, step: Step, where: str) -> None:
        """Remember a change of error codes that was armed: sh inj AT SET CLEAR GPA COUNT."""
        match step.op.split():
            case ["sh", "inj", at, *words] if len(words) == 4:
                set_, clear, addr, _ = (number(word, where) for word in words)
                self.armed.append((at, set_, clear, addr))

    def injected(self, row: FaultRow, places: tuple[str, ...], addr: int) -> tuple[int, int]:
        """Return the bits to set and to clear, if the row says that the code was changed at one of `places`."""
        if not set(places) & set((row.inject_at or "").split("+")):
            return 0, 0
        page = addr >> PAGE_SHIFT
        armed = (x[1:3] for x in reversed(self.armed) if x[0] in places and x[3] >> PAGE_SHIFT == page)
        return next(armed, (0, 0))

    def call(self, step: Step, where: str) -> None:
        """Carry out an operation of user space, and compare its result if it is a system call of KVM's."""
        verb, told = step.op.partition(" ")[0], step.result or {}
        if verb in _MAPPED_BEFORE and step.events:
            self.pass_events(step.events[-1].line)
        count = self.machine.invalidations.mmu_invalidate_seq
        try:
            ret = self.machine.run(step.op)
            if verb in _HOST_OPS:  # counted where the trace shows them
                self.machine.invalidations.mmu_invalidate_seq = count
        except InputError:
            self.note(verb, Why("an operation that is not followed"))
            return
        if verb in _CALLS and isinstance(ret, int):
            self.returned(where, verb, told, ret)

    def returned(self, where: str, verb: str, told: Mapping[str, Any], ret: int) -> None:
        """Compare the result of a system call: `ret` is 0 or more, or a negative errno."""
        for name, want in (("rc", -1 if ret < 0 else 0), ("errno", max(-ret, 0))):
            if name in told:
                self.compare(where, f"{verb}_{name}", told[name], want)

    def runs(self, step: Step, rows: Rows, where: str) -> None:
        """Take the faults of a step and compare each KVM_RUN's result and statistics."""
        taken = self.taken(rows, where)
        for n, (name, told) in enumerate(runs_of(step.result)):
            self.run(f"{where}, {name}", told, taken[n])
        match step.op.split():
            case ["w", gpa, value] if self.machine.l2 and (not taken[0] or taken[0][-1].ret >= 0):
                last = taken[0][-1] if taken[0] else None
                self.machine.l1_wrote(number(gpa, where), number(value, where), last)

    def taken(self, rows: Rows, where: str) -> defaultdict[int, list[Taken]]:
        """Take faults, and return them by their KVM_RUN."""
        taken: defaultdict[int, list[Taken]] = defaultdict(list)
        for row, state in rows:
            if fault := self.fault(row, state, f"{where}, line {row.first_line}"):
                taken[row.run or 0].append(fault)
        return taken

    def l2(self, step: Step, rows: Rows, where: str) -> None:
        """Let L1 run L2, or L2 go on; compare, besides, what L1 sees of how L2 ended."""
        machine, words, runs = self.machine, step.op.split(), runs_of(step.result)
        if machine.l2 is None:
            raise InputError(f"{where}: L1 is no hypervisor yet; nest comes first")
        refused = False
        if words[0] != "run":
            machine.leave_l2()
            self.l2_format(step)
            refused = not machine.enter_l2()
            self.store = words[1 : 3 if words[0] == "l2w" else 2] if words[0] in ("l2w", "l2i") else []
        taken = self.taken(rows, where)
        for n, (name, told) in enumerate(runs):
            self.run(f"{where}, {name}", told, taken[n])
        last = next((taken[n][-1] for n in reversed(range(max(len(runs), 1))) if taken[n]), None)
        ended = last.l1_exit if last else None
        if refused:
            ended = L1Exit(SVM_EXIT_ERR, 0, 0)
        if last is None or last.ret >= 0:
            machine.leave_l2()
            if self.store and not ended:
                value = number(self.store[1], where) if self.store[1:] else None
                machine.l2_wrote(number(self.store[0], where), value, last)
            self.l2_exit(step, where, ended)

    def l2_format(self, step: Step) -> None:
        """See whether L1's nested page table has accessed and dirty bits: Intel's need not."""
        for event in step.events:
            if event.name == "kvm_nested_vmenter" and event.fields.get("table") == "ept" and self.machine.l2:
                self.machine.l2.table.accessed_dirty = bool(int(event.fields.get("cr3", 0)) & _EPTP_AD)

    def l2_exit(self, step: Step, where: str, ended: L1Exit | None) -> None:
        """Compare what L1's control block says after L2's exit."""
        for block, names in L2_BLOCKS.items():
            if block not in (step.result or {}):
                continue
            intel = block == "vmcs12"
            done = L1Exit(EXIT_REASON_HLT, 0, None) if intel else L1Exit(SVM_EXIT_HLT, 0, 0)
            known = ended.code != SVM_EXIT_ERR if ended else True
            for column, name, want in zip(L2_COLUMNS, names, ended or done, strict=True):
                value = number((step.result or {})[block].get(name), f"{where}, {block}: {name}")
                value = (
                    value & 0xFFFFFFFF if column == "l2_exit" else value
                )  # AMD's upper half is not always set
                stale = want is None or (intel and not known)
                self.compare(where, column, value, STALE if stale else want)

    def stores(self, step: Step, rows: Rows, where: str) -> None:
        """Let L1 change its nested page table: each store is a KVM_RUN of its own."""
        machine, words = self.machine, step.op.split()
        machine.leave_l2()
        clear = words[0] == "l2unmap"
        if len(words) < (2 if clear else 3):
            raise InputError(f"{where}: lacks an address")
        page, gpa = number(words[1], where), 0 if clear else number(words[2], where)
        rights = next(iter(words[2 if clear else 3 :]), "")
        taken = self.taken(rows, where)
        for n, (at, value) in enumerate(machine.l2_stores(page, gpa, rights, clear)):
            machine.l1_wrote(at, value, taken[n][-1] if taken[n] else None)
        for n, (name, told) in enumerate(runs_of(step.result)):
            self.run(f"{where}, {name}", told, taken[n])

    def run(self, where: str, told: Mapping[str, Any], faults: list[Taken]) -> None:
        """Compare the result of one KVM_RUN and what it counted."""
        counted: Counter[str] = sum((fault.stats for fault in faults), Counter())
        want: dict[str, object] = dict.fromkeys(("rc", "errno", "exit"), LATER)
        if faults and faults[-1].ret <= 0:
            ret, exit_ = faults[-1].ret, faults[-1].exit
            want = {"rc": -1 if ret < 0 else 0, "errno": -ret}
            want["exit"] = exit_.exit_reason if ret < 0 else EMULATOR
            if exit_.exit_reason:
                want |= {f"memory_fault_{name}": getattr(exit_, name) for name in ("gpa", "size", "flags")}
        if "guest_mode" in told:
            in_l2 = bool(faults) and faults[-1].ret <= 0 and faults[-1].guest_mode
            want["run_guest_mode"] = int(in_l2)
        recorded = {"run_guest_mode" if name == "guest_mode" else name: value for name, value in told.items()}
        exit_parts = told.get("memory_fault", {}).items()
        recorded |= {f"memory_fault_{name}": number(value, where) for name, value in exit_parts}
        for name in RUN_FIELDS:
            if not name.startswith("stat_") and (name in recorded or name in want):
                self.compare(where, name, recorded.get(name), want.get(name) if self.whole else LOST)
        if "stats" in told:
            self.counted(where, told["stats"], counted)

    def counted(self, where: str, told: Mapping[str, Any], counted: Counter[str]) -> None:
        """Compare the statistics of a KVM_RUN, or of several; those that did not grow are not told."""
        for name in (name for name in RUN_FIELDS if name.startswith("stat_")):
            stat = name.removeprefix("stat_")
            self.compare(where, name, told.get(stat, 0), counted[stat] if self.whole else LOST)

    def prefault(self, step: Step, rows: Rows, where: str) -> None:
        """Map pages ahead, page by page, and compare the system call's result."""
        self.machine.look_as(l2=self.machine.l2 is not None and self.machine.l2.running)
        words = step.op.split()[1:]
        if len(words) != 2:
            raise InputError(f"{where}: an address and a size are wanted")
        gpa, size = (number(word, where) for word in words)
        left, ret = size, 0
        for row, state in rows:
            with self.reached(row):
                self.sync(row, state, gpa + size - left)
                taken = self.machine.pre_fault(gpa + size - left, left, self.given(row))
            self.fields(row, taken, self.machine.nonpresent, f"{where}, line {row.first_line}")
            ret = taken.ret
            left -= max(ret, 0)
        if not rows:
            ret = self.machine.pre_fault(gpa, size).ret
            left -= max(ret, 0)
        told = step.result or {}
        self.returned(where, "prefault", told, ret if left == size else 0)
        if "left" in told:
            self.compare(where, "prefault_left", number(told["left"], where), left)

    def fault(self, row: FaultRow, state: VmState, where: str) -> Taken | None:
        """Take one recorded fault and compare it."""
        self.machine.cpu = row.vcpu or 0
        if row.source == "async" and row.in_addr is not None:
            with self.reached(row):
                self.sync(row, state, row.in_addr)
                given = self.given(row)
                taken = self.machine.page_ready(row.in_addr, self.put_off.get(row.in_addr, 0), given)
            self.fields(row, taken, self.machine.nonpresent, where)
            return taken
        self.machine.look_as(l2=row.guest_mode)
        event = self.event(row)
        if event is None:
            self.unseen_code(row)
            return None
        with self.reached(row):
            self.sync(row, state, event.addr)
            before, _ = self.machine.entry(self.machine.page(event.addr))
            taken = self.machine.take(*self.before(where, event, self.given(row)))
        self.took(row, taken, before, where)
        return taken

    def unseen_code(self, row: FaultRow) -> None:
        """Note a fault that cannot be taken."""
        self.note(row.source, Why("the trace does not show what the CPU reported"))

    def took(self, row: FaultRow, taken: Taken, before: int, where: str) -> None:
        """Remember what a fault leaves for later ones, and compare it.  `before`: the entry that it met."""
        self.printed += [(name, row.pid, where) for name in taken.printed]
        if taken.event:
            self.put_off[taken.event.addr] = taken.error_code
        self.fields(row, taken, before, where)

    def before(self, where: str, event: exits.Event, given: Given) -> tuple[exits.Event, Given]:
        """Return what the fault at `where` is taken with; to be overridden by who supposes something else."""
        return event, given

    def event(self, row: FaultRow) -> exits.Event | None:
        """The exit as the CPU reported it, with the change that was made on purpose."""
        kind = _KINDS.get(row.source)
        code, addr, _ = _reported(row)
        if kind is None or code is None or addr is None:
            return None
        set_, clear = self.injected(row, ("npf", "ept"), addr)
        vectoring = row.intr_info if kind == exits.KIND_NPF else row.info2 if kind != exits.KIND_PF else 0
        guest = self.machine.guest._replace(
            guest_mode=row.guest_mode,
            fast_mmio=self.machine.ioeventfds.get(addr) == 0,
            vectoring=(vectoring or 0) & _VALID != 0,
            next_rip_known=row.fast_mmio_gpa is not None,  # SVM only
        )
        return exits.Event(
            kind, (code | set_) & ~clear, addr, bool(row.pf_insn), row.pf_insn_len or 0, guest=guest
        )

    def given(self, row: FaultRow, followed: bool = False) -> Given:
        """What the recording answers for the world outside the path; `followed`: but for invalidations."""
        set_, clear = self.injected(row, ("pf",), row.address or 0)
        emu_ret = row.emul_ret if row.emul_in_pf else None
        self.report.given.update({"emulator's answer"} if emu_ret is not None else ())
        dropped = row.invalidated and not followed
        self.report.given.update({"host mappings dropped"} if dropped else ())
        return Given(
            pf_set=set_,
            pf_clear=clear,
            emu_ret=emu_ret,
            invalidated=dropped,
            handler_ret=row.handler_ret,
            level=_host_level(row)[0],
        )

    def sync(self, row: FaultRow, state: VmState, addr: int) -> None:
        """Set the entry for an address to what earlier events and, without the TDP MMU, the CPU tell of it.

        The TDP MMU traces every change.  Other page tables lose entries without a word, but the CPU reports
        whether it found one.
        """
        machine = self.machine
        gfn = machine.page(addr)
        if machine.mmu.nested:
            self.sync_nested(row, gfn)
            return
        spte, level = state.spte(gfn, l2=row.guest_mode) or (None, PG_LEVEL_4K)
        traced = machine.mmu.direct and machine.options.tdp_mmu
        if spte is not None and level <= PG_LEVEL_2M:
            machine.put(gfn, spte, level)
            self.report.given["page-table entry"] += 1
        elif traced:
            machine.put(gfn, machine.nonpresent)
        if traced or row.cpu_code is None:
            return
        found = EPT_VIOLATION_PROT_MASK if row.source == "ept" else PFERR_PRESENT_MASK | PFERR_RSVD_MASK
        spte, level = machine.entry(gfn)
        if row.source != "miscfg" and not row.cpu_code & found:
            machine.put(gfn, machine.nonpresent)
        elif row.source != "miscfg" and row.cpu_code & PFERR_WRITE_MASK and not machine.is_mmio(spte):
            machine.put(gfn, spte & ~SPTE_WRITE, level)  # write-protected since

    def sync_nested(self, row: FaultRow, page: int) -> None:
        """Correct what the machine keeps for a page of L2's by what the CPU reported of it.

        An entry without any right looks to the CPU as if there were none.
        """
        assert (self.machine.l2 and row.cpu_code is not None) or row.source == "miscfg"
        if row.source == "miscfg" or row.cpu_code is None:
            return
        found = EPT_VIOLATION_PROT_MASK if row.source == "ept" else PFERR_PRESENT_MASK | PFERR_RSVD_MASK
        spte, _ = self.machine.entry(page)
        shadow = self.machine.l2.shadow if self.machine.l2 else None
        tracked = spte & SPTE_MMU_PRESENT_MASK and not any(self.machine.allows(spte, kind) for kind in "rwx")
        if shadow and not row.cpu_code & found and spte != self.machine.nonpresent and not tracked:
            shadow.remove(page)
            self.report.given["page-table entry"] += 1

    def fields(self, row: FaultRow, taken: Taken, before: int, where: str) -> None:
        """Compare every column of a row."""
        machine = self.machine
        want = expected(taken, machine, before, self.recording.vendor == "amd")
        if taken.handler and taken.handler.host_sized:
            self.report.given["size of the host's page"] += 1
        if taken.handler and not taken.handler.decided:
            self.report.given["handler's result"] += 1
        want |= dict.fromkeys(_reported(row)[2], Why("the exit does not show it: it was the input"))
        if taken.handler and taken.handler.host_sized and _host_level(row)[1] == "requested_level":
            want["requested_level"] = HOST_SIZE
        if self.noted:
            want["out_mmu_seq"] = Why("the count of invalidations, an input")
        changed = set((row.inject_at or "").split("+"))
        if taken.event and changed & {"npf", "ept"}:
            want |= {"inject_cpu_from": row.cpu_code, "inject_cpu_to": taken.event.info}
        if taken.source and "pf" in changed:
            want |= {"inject_pf_from": taken.source.mmu.error_code, "inject_pf_to": taken.error_code}
        for name in COMPARED:
            self.cell(row, name, want.get(name), where)
        for name, why in NOT_COMPARED.items():
            if getattr(row, name) not in (None, 0) and not (name.startswith("exit") and not row.last_of_run):
                self.note(name, why)
        traced = machine.mmu.nested or (machine.mmu.direct and machine.options.tdp_mmu)
        if not traced and row.mark_gfn is not None:
            access, gen = row.mark_access or 0, row.mark_gen or 0
            machine.put(row.mark_gfn, machine.make_mmio_spte(machine.format, gen, row.mark_gfn, access))

    def cell(self, row: FaultRow, name: str, want: object, where: str) -> None:
        """Compare one cell; None: not reached."""
        recorded = getattr(row, name)
        if name == "in_slot" and recorded is not None:
            recorded = recorded != 0
        if name.startswith("emul_") and not row.emul_in_pf:
            recorded = None
        if recorded is None and (want is None or isinstance(want, Why)):
            return
        if recorded is None and name not in self.live:
            want = Why("not recorded in this boot")
            self.note(name, want)
        elif recorded is None and not (row.complete and self.whole):
            self.note(name, Why("the trace does not show all of the fault"))
        else:
            self.compare(where, name, recorded, want)

    def warnings(self, told: bool) -> None:
        """Compare the WARNs of the kernel log with those that the model printed: each once, in order."""
        sites = {site for name in SITES for site in SITES[name]} | {"kvm_mmu_page_fault"}
        recorded = [warn for warn in self.recording.warnings if warn.function in sites]
        if not told:
            self.note("warning", Why("there is no kernel log"), len(self.printed))
            return
        for n in range(max(len(recorded), len(self.printed))):
            warn = recorded[n] if n < len(recorded) else None
            kernel = warn and f"{warn.function}, task {warn.pid}"
            if n >= len(self.printed):
                self.compare(f"kernel log, WARN {n}", "warning", kernel, None)
                continue
            name, pid, where = self.printed[n]
            known = SITES.get(name, ("kvm_mmu_page_fault",))
            same = warn and warn.function in known and warn.pid in (pid, None)
            self.compare(where, "warning", kernel, kernel if same else f"{known[0]} ({name}), task {pid}")
        if others := len(self.recording.warnings) - len(recorded):
            self.note("warning", Why("outside the path"), others)


@typed()
def replay(
    directory: str | Path, revision: str | Revision | None = None, *, limit: int = LIMIT
) -> ReplayReport:
    """Replay a directory of recordings, raw or as carried in data/, and return what differs.

    `revision` instead of the one that the kernel's release says.  A recording that was cut, or that lacks a file, is
    replayed as far as it goes, and the report says so under `damage`.  Raises InputError for a directory that
    cannot be read or holds more than `limit` bytes, unpacked, or whose kernel stands for no revision.
    """
    directory = as_path(directory, "a folder of recordings")
    recording = read_recording(directory, limit)
    chosen, remark = kernel_of(recording) if revision is None else (get(revision), "by request")
    report = ReplayReport(recording.name, recording.kernel, chosen.name, remark, damage=recording.damage)
    rows = list(walk(recording))
    play = Replay(recording, chosen, report, rows)
    report.faults = len(rows)
    for scenario in recording.scenarios:
        play.scenario(scenario)
    logs = [path for name in ("dmesg.txt", "console.log") for path in directory.glob(f"{name}*")]
    play.warnings(told=bool(logs))
    if report.differences and revision is None:
        from kvm_pf.conformance.unseen import causes  # which replays, too

        report.causes = [str(cause) for cause in causes(recording, chosen, rows)]
    return report
