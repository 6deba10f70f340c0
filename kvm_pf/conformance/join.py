# SPDX-License-Identifier: GPL-2.0-only
"""Join a recording's events, user space's side and the VM's state into one row per fault.

What makes a row
----------------
A row begins at a `kvm_exit` for a nested page fault, an EPT violation or misconfiguration or a #PF, and ends
at the next `kvm_entry` or `kvm_userspace_exit` of the same task.  It needs nothing in between: an exit that
fast MMIO or async #PF answered is a row without a call of kvm_mmu_page_fault().  A trace without exits begins
a row at the first stage that it shows.  A handler called on its own (pre-fault, async page ready) is a row
that ends when the handler returns.

    source      begins with                               `cpu_code`, `cpu_address` of the row
    npf         kvm_exit npf                              EXITINFO1, EXITINFO2
    ept         kvm_exit EPT_VIOLATION                    exit qualification, none printed
    miscfg      kvm_exit EPT_MISCONFIG                    none, none printed
    pf          kvm_exit PF excp (AMD)                    EXITINFO1, EXITINFO2
                kvm_exit EXCEPTION_NMI, vector 14 (Intel) exception error code, exit qualification
    prefault    the handler, in a step whose op is `prefault`
    async       the handler with prefetch set, elsewhere (async page ready)
    call        kvm_mmu_page_fault() or the handler with nothing before it
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.fault_rows import FaultRow, cell, columns
from kvm_pf.conformance.ftrace import TraceEvent
from kvm_pf.conformance.recordings import (
    L2_BLOCKS,
    Recording,
    Scenario,
    Step,
    ends_step,
    exit_source,
    runs_of,
)
from kvm_pf.conformance.vm_state import VmState

__all__ = ("faults", "walk")

_SAME = {
    "npf": "entry", "eptv": "entry", "eptm": "entry", "khpf": "khpf",
    "npf_ret": "entry_ret", "eptv_ret": "entry_ret", "eptm_ret": "entry_ret", "khpf_ret": "entry_ret",
    "tdp": "handler", "p64": "handler", "pept": "handler",
    "tdp_ret": "handler_ret", "p64_ret": "handler_ret", "pept_ret": "handler_ret",
    "pre_npf": "pre_cpu", "pre_ept": "pre_cpu",
}  # fmt: skip
"""Events that one column reads, whichever the kernel shows."""

_HANDLERS = {"tdp": "kvm_tdp_page_fault", "p64": "paging64_page_fault", "pept": "ept_page_fault"}
_FIELDS = {"err": "error_code", "nxw": "nx_huge_page_workaround_enabled", "hpd": "huge_page_disallowed",
           "wfsp": "write_fault_to_shadow_pgtable"}  # fmt: skip
"""Short names of struct kvm_page_fault's fields in the handlers' probes."""

_EXIT, _ENTRY, _TRACED, _CALLED, _HANDLED, _RETURNED = range(6)
_STAGES = {"entry": _ENTRY, "khpf": _ENTRY, "kvm_page_fault": _TRACED, "pf": _CALLED, "handler": _HANDLED}
"""How far a fault has come: an event of an earlier or the same stage belongs to the next fault."""

_KVM_PFN_NOSLOT = 1 << 63
_INJECTIONS = ("pre_npf", "pre_ept", "pre_pf")
_BEGINS = {"npf": "npf", "eptv": "ept", "eptm": "miscfg", "khpf": "pf"}
"""Source of a fault in a trace without exits, by the probe that it begins with."""


@dataclass
class _Fault:
    """A fault while its lines are collected: `first` holds the event that each column reads."""

    step: Step | None
    run: int
    state: VmState
    alone: bool
    party: int | None = None
    stage: int = _EXIT
    events: list[TraceEvent] = field(default_factory=list)
    first: dict[str, TraceEvent] = field(default_factory=dict)
    user_exit: TraceEvent | None = None
    complete: bool = False
    in_handler: bool = False
    invalidated: bool = False
    emul_in_pf: bool | None = None
    set_count: int = 0
    set_ahead: list[int] = field(default_factory=list)
    guest_mode: bool = False
    nested: bool = False  # L2 has a nested page table of L1's

    def add(self, name: str, event: TraceEvent) -> None:
        """Take an event in, under the name that the columns use."""
        self.events.append(event)
        match name:
            case "handler" | "handler_ret":
                self.in_handler = name == "handler"
                fields = {_FIELDS.get(key, key): value for key, value in event.fields.items()}
                event = event._replace(fields=fields)
            case "kvm_mmu_pagetable_walk" if self.in_handler:
                name = "walk"
            case "kvm_unmap_hva_range" if self.in_handler:
                self.invalidated = True
            case "kvm_mmu_walker_error" if self.in_handler:
                name = "walk_error"
            case "kvm_nested_vmexit_inject" if self.in_handler:
                name = "l1_inject"
            case "kvm_nested_vmexit" if self.stage == _EXIT:
                self.guest_mode = True
            case "kvm_mmu_set_spte":
                self.set_count += 1
                if self.set_count > 1 and isinstance(gfn := event.fields.get("gfn"), int):
                    self.set_ahead.append(gfn)
            case "kvm_tdp_mmu_spte_changed":
                self.first[name] = event  # the last one is the leaf
            case "emul" if self.emul_in_pf is None:
                self.emul_in_pf = self.stage in (_CALLED, _HANDLED) and not self.alone
            case "pf_ret":
                self.stage = _RETURNED
        self.first.setdefault(name, event)

    def get(self, name: str, key: str) -> int | None:
        """Return an integer field of an event of this fault, or None."""
        event = self.first.get(name)
        value = event.fields.get(key) if event else None
        return value if isinstance(value, int) else None

    @property
    def prefaulting(self) -> bool:
        """Whether user space asked for this fault."""
        return self.alone and self.step is not None and self.step.op.split()[0] == "prefault"

    @property
    def source(self) -> str:
        """Where the fault came from, as in the module's table."""
        event = self.events[0]
        if event.name == "kvm_exit":
            return str(exit_source(event))
        if self.prefaulting:
            return "prefault"
        if self.alone:
            return "async" if self.get("handler", "prefetch") else "call"
        return _BEGINS.get(event.name, "call")

    @property
    def vcpu(self) -> int | None:
        """The number of the vCPU, where kvm_exit names it."""
        return self.get("kvm_exit", "vcpu")

    def cpu(self) -> tuple[int | None, int | None]:
        """Return code and address as the CPU reported them."""
        info1, info2 = self.get("kvm_exit", "info1"), self.get("kvm_exit", "info2")
        event = self.first.get("kvm_exit")
        match event and event.fields.get("reason"):
            case "npf" | "EXIT_NPF" | "PF excp" | "EXIT_EXCP_PF":
                return info1, info2
            case "EPT_VIOLATION":
                return info1, None
            case "EXCEPTION_NMI":
                return self.get("kvm_exit", "error_code"), info1
        return None, None

    def address(self) -> int | None:
        """Return the address that was handled, from the innermost place that shows it."""
        values = (
            self.get("pf", "gpa"), self.get("kvm_page_fault", "address"), self.get("kvm_fast_mmio", "gpa"),
            self.get("handler", "addr"), self.get("khpf", "addr"), self.cpu()[1],
        )  # fmt: skip
        return next((value for value in values if value is not None), None)

    def gfn(self, mode: str | None) -> int | None:
        """Return the guest page, if the trace shows it."""
        if self.guest_mode and self.nested:
            return self.get("handler_ret", "gfn") or self.get("handle_mmio_page_fault", "gfn")
        if mode != "shadow":
            address = self.address()
            return None if address is None else address >> 12
        if "faultin_ret" in self.first:  # the guest's tables were walked
            return self.get("handler_ret", "gfn")
        return self.get("handle_mmio_page_fault", "gfn")

    def l2_page(self) -> int | None:
        """Return the page of L2's that the fault is about; None: L2 was not running."""
        address = self.address()
        return address >> 12 if self.guest_mode and address is not None else None

    def kept(self) -> tuple[int, int] | None:
        """Return gva and gfn if the vCPU kept them as those of an MMIO page while the handler ran."""
        noslot_ret, pfn = self.get("noslot_ret", "ret"), self.get("kvm_mmu_spte_requested", "pfn")
        addr, gfn = self.get("handler", "addr"), self.get("handler_ret", "gfn")
        if gfn is None:
            gfn = self.get("kvm_mmu_spte_requested", "gfn")
        kept = pfn == _KVM_PFN_NOSLOT if noslot_ret is None else noslot_ret >= 0
        if not kept or addr is None or gfn is None:
            return None
        return 0 if self.get("handler", "is_tdp") else addr & ~0xFFF, gfn


def _collect(scenario: Scenario) -> list[_Fault]:
    """Cut a trace into faults, following the VM's state and the KVM_RUNs."""
    found: list[_Fault] = []
    open_: dict[int, list[_Fault]] = {}
    state, step, steps = VmState(), None, iter(scenario.steps)
    runs: Counter[int] = Counter()
    nested: dict[int, bool] = {}
    parties: dict[int, int] = {}

    def begin(event: TraceEvent, alone: bool) -> None:
        run, party = runs[event.pid], parties.get(event.pid)
        fault = _Fault(step, run, state.copy(), alone, party, nested=nested.get(event.pid, False))
        found.append(fault)
        open_[event.pid] = [*open_.get(event.pid, []), fault] if alone else [fault]

    for event in scenario.trace:
        name = _SAME.get(event.name, event.name)
        stack = open_.get(event.pid, [])
        if name == "tracing_mark_write" and not ends_step(event):
            parties[event.pid] = int(event.fields["party"])
            state.act(str(event.fields["act"]), f"{scenario.trace.path}:{event.line}")
            continue
        if name == "tracing_mark_write":
            for each in (open_, runs, parties):
                each.clear()
            step = next(steps) if "step" in event.fields else None
            state = state.after(step, f"{scenario.trace.path}:{event.line}") if step else state
            continue
        if name in ("kvm_entry", "kvm_userspace_exit"):
            if stack and not stack[0].alone:
                stack[0].complete = True
                stack[0].user_exit = event if name == "kvm_userspace_exit" else None
            open_.pop(event.pid, None)
            runs[event.pid] += name == "kvm_userspace_exit"
            continue
        if name == "kvm_nested_vmenter":
            nested[event.pid] = event.fields.get("nested") == "y"
        if name == "kvm_exit":
            open_.pop(event.pid, None)
            if exit_source(event):
                begin(event, alone=False)
        elif name in _STAGES:
            if not stack or _STAGES[name] <= stack[-1].stage:
                begin(event, alone=name == "handler")
            open_[event.pid][-1].stage = _STAGES[name]
        if stack := open_.get(event.pid, []):
            fault = stack[-1]
            fault.add(name, event)
            if name == "handler_ret":
                if kept := fault.kept():
                    state.cached[fault.vcpu or 0] = (*kept, state.updates)
                if fault.alone:
                    fault.complete = True
                    stack.pop()
            elif name == "handle_mmio_page_fault" and event.fields:
                cached = fault.get(name, "addr") or 0, fault.get(name, "gfn") or 0, state.updates
                state.cached[fault.vcpu or 0] = cached
        state.see(event, stack[-1].l2_page() if stack else None, bool(stack) and stack[-1].nested)
    return found


_LETTERS = {"P": 0, "W": 1, "U": 2, "RSVD": 3, "F": 4, "PK": 5, "SS": 6, "SGX": 15}


def _letters(text: str, where: str) -> int:
    """Put the letters of fast_page_fault's error_code back into bits."""
    code = 0
    for part in filter(None, text.split("|")):
        try:
            code |= 1 << _LETTERS[part] if part in _LETTERS else int(part, 16)
        except ValueError:
            raise InputError(f"{where} has {part!r}; {', '.join(_LETTERS)} or a number are known") from None
    return code


@functools.cache
def _read_from() -> dict[str, list[tuple[str, str]]]:
    """Return the columns that are read from each event, each with its field."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, column in columns().items():
        event_name, _, key = column.source.partition(".")
        found[event_name].append((name, key))
    return dict(found)


def _row(recording: Recording, scenario: Scenario, number: int, fault: _Fault, last: bool) -> FaultRow:
    """Join a fault's lines, user space's side and the state that it met."""
    table, path = columns(), scenario.trace.path
    cells: dict[str, Any] = {}
    for event_name, event in fault.first.items():
        for name, key in _read_from().get(event_name, ()):
            if (value := event.fields.get(key)) is not None:
                cells[name] = cell(table[name], value, f"{path}:{event.line}: {key} of {event.name}")
    cells["cpu_code"], cells["cpu_address"] = fault.cpu()
    if changes := [event.name.removeprefix("pre_") for event in fault.events if event.name in _INJECTIONS]:
        cells["inject_at"] = "+".join(changes)
    if handler := next((event for event in fault.events if event.name in _HANDLERS), None):
        cells["handler"] = _HANDLERS[handler.name]
    if fast := fault.first.get("fast_page_fault"):
        where = f"{path}:{fast.line}: error_code of fast_page_fault"
        cells["fast_error_code"] = _letters(str(fast.fields.get("error_code", "")), where)
    if fault.emul_in_pf is not None:
        cells["emul_in_pf"] = fault.emul_in_pf
    if "kvm_emulate_insn" in fault.first:
        cells["emul_failed"] = any(event.fields.get("failed") for event in fault.events)
    if fault.set_ahead and cells.get("walk_addr") is not None:
        cells["prefetched"] = " ".join(map(hex, fault.set_ahead))
    if fault.user_exit:
        cells["user_exit"] = fault.user_exit.fields.get("reason")
        cells["user_exit_number"] = fault.user_exit.fields.get("number")

    run = None if fault.prefaulting or fault.step is None else fault.run
    result = (fault.step.result if fault.step else None) or {}
    if fault.step and fault.step.op.split()[0] == "par":  # before its mark, a vCPU only comes to a halt
        run, result = None if fault.party is None else 0, result.get(f"vcpu{fault.party}") or {}
    elif run is not None:
        runs = runs_of(result)
        block = next((name for name in L2_BLOCKS if name in result), None)
        if last and block and run == len(runs) - 1:
            shown = (result[block].get(key) for key in L2_BLOCKS[block])
            cells |= dict(zip(("l2_exit", "l2_exit_info1", "l2_exit_info2"), shown, strict=True))
        result = runs[run][1] if run < len(runs) else {}
    if run is not None:
        cells |= {"run": run, "last_of_run": last}
    told = {"rc": "rc", "errno": "errno", "exit": "exit", "exit_name": "name", "run_guest_mode": "guest_mode"}
    sides = {name: result.get(key) for name, key in told.items()}
    if last:
        sides["suberror"] = result.get("suberror")
        sides |= {f"memory_fault_{key}": value for key, value in result.get("memory_fault", {}).items()}
        sides |= {f"exit_mmio_{key}": value for key, value in result.get("mmio", {}).items()}
        for name in table if "stats" in result else ():
            if name.startswith("stat_"):
                sides[name] = result["stats"].get(name.removeprefix("stat_"), 0)
    cells |= {name: value for name, value in sides.items() if name in table}

    state, gfn = fault.state, fault.gfn(recording.mode)
    if state.vm:
        cells |= {"state_vm": state.vm, "state_updates": state.updates, "state_generation": state.generation}
        if gfn is not None:
            slot, page = state.slot(gfn), fault.l2_page()
            spte = state.spte(gfn) if page is None else state.spte(page, l2=True)
            cells |= {
                "state_gfn": gfn, "state_private": state.private(gfn), "state_host": state.host_page(gfn),
                "state_slot": slot and slot.id, "state_slot_flags": slot and (",".join(slot.flags) or "-"),
                "state_spte": spte and spte[0], "state_spte_level": spte and spte[1],
                "state_mmio_gen": state.mmio_gens.get(gfn),
            }  # fmt: skip
        if (fault.vcpu or 0) in state.cached:
            gva, cached_gfn, then = state.cached[fault.vcpu or 0]
            cells |= {"state_cached_gva": gva, "state_cached_gfn": cached_gfn}
            cells["state_cached_age"] = state.updates - then
    begin, step = fault.events[0], fault.step
    cells |= {
        "recording": recording.name, "kernel": recording.kernel, "vendor": recording.vendor,
        "mode": recording.mode, "scenario": scenario.name, "step": step and step.number,
        "op": step and step.op, "fault": number, "source": fault.source, "first_line": begin.line,
        "last_line": fault.events[-1].line, "pid": begin.pid, "complete": fault.complete,
        "address": fault.address(), "invalidated": fault.invalidated, "set_count": fault.set_count,
        "guest_mode": fault.guest_mode, "nested": fault.guest_mode and fault.nested,
    }  # fmt: skip
    where = f"{path}:{begin.line}: step {step.number if step else '-'}"
    checked = {name: cell(table[name], value, f"{where}: {name}") for name, value in cells.items()}
    return FaultRow(**checked)


def walk(recording: Recording) -> Iterator[tuple[FaultRow, VmState]]:
    """Yield each fault of a recording, in order, with what the VM was when it came.

    Raises InputError if a value does not fit its column or an op lacks a word.
    """
    for scenario in recording.scenarios:
        found = _collect(scenario)
        asked = (fault for fault in found if not fault.prefaulting)
        last = {(id(fault.step), fault.events[0].pid, fault.run): fault for fault in asked}
        lasts = {id(fault) for fault in last.values()}
        for number, fault in enumerate(found):
            yield _row(recording, scenario, number, fault, id(fault) in lasts), fault.state


def faults(recording: Recording) -> list[FaultRow]:
    """Return one row per entry into KVM's page-fault handling, in the order of the traces."""
    return [row for row, _ in walk(recording)]
