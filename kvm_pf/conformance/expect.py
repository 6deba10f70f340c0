# SPDX-License-Identifier: GPL-2.0-only
"""What the recording of a fault should show, by the model: column by column, or why it cannot be said.

`expected` turns a fault that a `Machine` took into the cells that `kvm_pf.trace` reads from a recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvm_pf import exits, faultin
from kvm_pf.bits import PFERR_RSVD_MASK
from kvm_pf.conformance.fault_rows import columns
from kvm_pf.exits import PF_LOWER32_MASK
from kvm_pf.guest.machine import (
    EXIT_REASON_EPT_MISCONFIG,
    EXIT_REASON_EPT_VIOLATION,
    SVM_EXIT_NPF,
    Machine,
    Taken,
)
from kvm_pf.guest.memory import BASE_SLOT_SIZE, Handler
from kvm_pf.state import KVM_HVA_ERR_BAD, KVM_X86_SW_PROTECTED_VM, PAGE_SHIFT, PG_LEVEL_4K, Lookups


class Why(NamedTuple):
    """In place of an expected value: why there is none."""

    reason: str


HOST = Why("the host's memory decides")
HOST_SIZE = Why("the size of the host's page, an input")
ENTRY = Why("a frame number of the host decides")
POINTER = Why("a kernel address")
EMULATOR = Why("the emulator's work")
DECODED = Why("an input that the model is not given")
GUEST_TABLES = Why("bits of the guest's own tables decide")
LATER = Why("it comes after the fault")
OTHER_KERNEL = Why("that kernel is not known")
STALE = Why("what was there before")

L1_REASONS = {
    SVM_EXIT_NPF: "npf", EXIT_REASON_EPT_VIOLATION: "EPT_VIOLATION", EXIT_REASON_EPT_MISCONFIG: "EPT_MISCONFIG",
}  # fmt: skip
"""Exits that are injected to L1, in the words of kvm_nested_vmexit_inject."""

INPUTS = frozenset(
    "guest_mode nested recording kernel vendor mode scenario step op fault source first_line last_line pid vcpu "
    "complete address "
    "exit_reason exit_rip info1 info2 intr_info intr_error_code cpu_code cpu_address inject_at invalidated "
    "emul_ret run last_of_run".split()
) | {name for name in columns() if name.startswith("state_")}
"""Columns that say what came to KVM, or where the row stands."""

RUN_FIELDS = tuple(
    "rc errno exit memory_fault_gpa memory_fault_size memory_fault_flags run_guest_mode l2_exit l2_exit_info1 "
    "l2_exit_info2".split()
    + [name for name in columns() if name.startswith("stat_")]
)
"""Columns of a whole KVM_RUN, compared once for each."""

NOT_COMPARED: Mapping[str, Why] = {
    "fast_sptep": POINTER, "mark_sptep": POINTER, "fast_old": ENTRY, "fast_new": ENTRY, "set_gfn": ENTRY,
    "set_spte": ENTRY, "set_access": ENTRY, "set_level": ENTRY, "set_count": ENTRY, "emul_insn": EMULATOR,
    "emul_failed": EMULATOR, "emul_mmio": EMULATOR, "exception": LATER, "exit_name": LATER, "suberror": EMULATOR,
    "exit_mmio_gpa": EMULATOR, "exit_mmio_len": EMULATOR, "exit_mmio_is_write": EMULATOR,
    "exit_mmio_data": EMULATOR,
}  # fmt: skip
"""Columns for which the model has no value."""

COMPARED = tuple(
    name for name in columns() if name not in INPUTS and name not in NOT_COMPARED and name not in RUN_FIELDS
)
"""Columns of a fault that are compared one by one."""

TRACEPOINTS = (
    "mmio_", "check_", "mark_", "requested_gfn", "requested_pfn", "requested_level", "fast_gva", "fast_error",
    "fast_spurious", "fast_fixed", "fast_mmio", "trace_",
)  # fmt: skip
"""Columns of KVM's own tracepoints: where one is recorded, all are."""

SITES: Mapping[str, tuple[str, ...]] = {
    "npf_synthetic": ("npf_interception",),
    "pf_upper32": ("kvm_handle_page_fault",),
    "other": ("kvm_handle_page_fault",),
    "rsvd_spte": ("handle_mmio_page_fault", "kvm_mmu_page_fault"),
    "wp_mmio_hit": ("kvm_mmu_write_protect_fault", "kvm_mmu_page_fault"),
    "async_private": ("kvm_arch_async_page_ready",),
    "prefault": ("kvm_tdp_map_page", "kvm_arch_vcpu_pre_fault_memory"),
    "noslot": ("kvm_faultin_pfn", "kvm_mmu_faultin_pfn"),
}
"""The functions that a WARN can be reported in: its own, or what that is inlined into; else kvm_mmu_page_fault()."""


def _word(attributes: int) -> int:
    """Write memory attributes as the xarray holds them: a value with its lowest bit set; nothing for none.

    Source: Linux `include/linux/xarray.h`, xa_mk_value() (v6.12).
    """
    return attributes << 1 | 1 if attributes else 0


def _looked_up(name: str, lookups: Lookups, found: int) -> dict[str, object]:
    """The columns of a look-up of memory attributes, if it was made; `found`: the attributes at that moment."""
    if lookups.count == 0:
        return {}
    return {f"{name}look_gfn": lookups.gfn, f"{name}look_word": _word(found)}


def _frame(found: faultin.Found) -> object:
    """A frame number, if it is an error or none at all."""
    return found.pfn if found.pfn & (faultin.KVM_PFN_ERR_MASK | faultin.KVM_PFN_NOSLOT) else ENTRY


def _from_source(taken: Taken, decodes: bool) -> dict[str, object]:
    """What the exit's handler traced, handed on and returned."""
    source, event = taken.source, taken.event
    if source is None or event is None:
        return {}
    want: dict[str, object] = {"entry_ret": taken.ret}
    if event.kind == exits.KIND_PF:
        want |= {"khpf_err": event.info, "khpf_addr": event.addr}
    if source.fast_mmio:
        want["fast_mmio_gpa"] = event.addr
    if source.trace.called:
        want |= {"trace_address": source.trace.addr, "trace_error_code": source.trace.error_code}
    if source.mmu.called:
        want |= {"pf_gpa": taken.addr, "pf_err": taken.error_code}
        want |= {"pf_insn": DECODED, "pf_insn_len": DECODED} if decodes else {"pf_insn": 0, "pf_insn_len": 0}
    if taken.ret < 0:
        want |= {"user_exit": "error", "user_exit_number": -taken.ret}
    if taken.ret == 0:
        want |= {"user_exit": EMULATOR, "user_exit_number": EMULATOR}
    return want


def _from_path(taken: Taken, checked: int, machine: Machine) -> dict[str, object]:
    """What kvm_mmu_page_fault() and kvm_mmu_do_page_fault() looked up, traced, called and returned."""
    want: dict[str, object] = {}
    if taken.outcome:
        want |= _looked_up("", taken.outcome.lookups, taken.found)
        m, emulation = taken.outcome.mmio, taken.outcome.emulation
        want["pf_ret"] = taken.outcome.ret
        if m.traced:
            want |= {"mmio_addr": m.addr, "mmio_gfn": m.gfn, "mmio_access": m.access}
        if m.checked:
            want |= {"check_spte": checked, "check_kvm_gen": m.kvm_gen, "check_spte_gen": m.spte_gen}
            want["check_valid"] = m.kvm_gen == m.spte_gen
        if emulation.called:
            want |= {"emul_in_pf": True, "emul_gpa": emulation.addr, "emul_type": emulation.emulation_type}
    if taken.handled.called:
        fault = taken.handled.fault
        want |= {f"in_{name}": value for name, value in fault._asdict().items()}
        shadow = "ept_page_fault" if machine.hardware == "ept" else "paging64_page_fault"
        want["handler"] = "kvm_tdp_page_fault" if fault.is_tdp else shadow
    return want


def _from_handler(h: Handler, machine: Machine) -> dict[str, object]:
    """What the page-fault handler traced, called and left."""
    fault, step = h.fault, machine.constant
    direct, access = machine.mmu.direct, step("ACC_ALL")
    want: dict[str, object] = {"fast_ret": h.fast, "handler_ret": h.ret if h.decided else ENTRY}
    if h.fast_traced:
        want |= {"fast_gva": fault.addr, "fast_error_code": fault.error_code}
        want |= {f"fast_{x.lower()}": h.fast == step(f"RET_PF_{x}") for x in ("SPURIOUS", "FIXED")}
    if h.walked:
        want |= {"walk_addr": fault.addr, "walk_pferr": fault.error_code & ~PFERR_RSVD_MASK & PF_LOWER32_MASK}
        want |= {"walk_error": GUEST_TABLES, "prefetched": GUEST_TABLES}
    if h.walk:
        want["walk_error"] = h.walk.error_code if h.refused else None
        want["prefetched"] = " ".join(map(hex, h.prefetched)) or None
        lookups = _looked_up("walk_", h.walk_lookups, h.walk_found)
        sw_protected = machine.vm_type == KVM_X86_SW_PROTECTED_VM
        want |= lookups if sw_protected else dict.fromkeys(lookups, OTHER_KERNEL)
    want |= _looked_up("fast_", h.fast_lookups, h.fast_found)
    left = fault._asdict()
    if h.faultin and h.finished:
        found = h.finished.found
        want["faultin_ret"] = h.faultin.ret
        want |= _looked_up("faultin_", h.faultin.lookups, h.faultin_found)
        if h.noslot:
            want |= {"noslot_addr": fault.addr, "noslot_err": fault.error_code, "noslot_ret": h.finished.ret}
        if h.finished.calls.gmem:
            want |= {"gmem_gfn": fault.gfn, "gmem_ret": h.gmem_ret}
        looked_up = found.slot and not fault.is_private and h.finished.calls.gup > 0
        left["mmu_seq"] = found.mmu_seq
        left |= {"max_level": found.max_level, "pfn": _frame(found), "hva": HOST if looked_up else found.hva}
        told = not (h.gup_failed or (looked_up and fault.gfn < BASE_SLOT_SIZE >> PAGE_SHIFT))
        left["map_writable"] = found.map_writable if told else HOST
        if h.host_sized:
            left["req_level"] = HOST_SIZE
        if h.mapped:
            split = fault.exec and fault.nx_huge_page_workaround_enabled
            want |= {"requested_gfn": fault.gfn, "requested_pfn": _frame(found)}
            want["requested_level"] = PG_LEVEL_4K if split else fault.req_level
            want["requested_access"] = access if direct else GUEST_TABLES
    want |= {f"out_{name}": value for name, value in left.items() if f"out_{name}" in COMPARED}
    if h.mmio_spte is None or h.walk:  # of L1's entries: its tables are write-protected
        want |= {f"changed_{name}": ENTRY for name in ("gfn", "level", "old", "new")}
    if h.mmio_spte is None:
        return want
    want |= {"mark_gfn": fault.gfn, "mark_gen": machine.mmio_spte_generation(h.mmio_spte)}
    want["mark_access"] = h.mmio_spte & access if direct or h.walk else GUEST_TABLES
    if direct and machine.options.tdp_mmu and h.mmio_spte != h.spte_before:
        change = {"gfn": fault.gfn, "level": PG_LEVEL_4K, "old": h.spte_before, "new": h.mmio_spte}
        want |= {f"changed_{name}": value for name, value in change.items()}
    return want


def expected(taken: Taken, machine: Machine, walked: int, decodes: bool) -> dict[str, object]:
    """Return the cells of a fault that are not empty: values, or a `Why` where the model has none.

    `walked`: the entry that the fault met.  `decodes`: the CPU may hand over instruction bytes.
    """
    want = _from_source(taken, decodes) | _from_path(taken, walked, machine)
    if taken.l1_exit:
        want |= {"l1_reason": L1_REASONS[taken.l1_exit.code], "l1_info1": taken.l1_exit.info1}
        want["l1_info2"] = (
            taken.l1_exit.info2 if taken.l1_exit.code == SVM_EXIT_NPF else 0
        )  # IDT vectoring: none
    if taken.handler:
        want |= _from_handler(taken.handler, machine)
    if not machine.options.page_offset:
        want |= {name: HOST for name in ("in_hva", "out_hva") if want.get(name) == KVM_HVA_ERR_BAD}
    return want
