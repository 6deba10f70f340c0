# SPDX-License-Identifier: GPL-2.0-only
"""The ways into the path, and the tables of their inputs and outputs.

Plain functions turn a row's inputs into the state that the path meets; they are linked and compiled with the path.
Beside them stand the table's columns: what goes in, with defaults, and where each output is found in the outcome.
ENTRY_POINTS, at the end, is the one list of them: whoever runs a row, compiled, watched or proved, calls its `row`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from kvm_pf.bits import U64_MASK
from kvm_pf.exits import (
    KIND_NPF,
    SEV_ES,
    SEV_SNP,
    SOURCE_WARN_NAMES,
    AsyncPf,
    Event,
    Guest,
    PreFault,
    Retry,
    kvm_arch_async_page_ready,
    kvm_arch_vcpu_pre_fault_memory,
    source,
)
from kvm_pf.fault import INITIAL_HVA, INITIAL_PFN, kvm_mmu_page_fault
from kvm_pf.faultin import (
    APIC_ACCESS_PAGE_PRIVATE_MEMSLOT,
    FAULTIN_WARN_NAMES,
    IDENTITY_PAGETABLE_PRIVATE_MEMSLOT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_GMEM_ONLY,
    KVM_MEMSLOT_INVALID,
    TSS_PRIVATE_MEMSLOT,
    Invalidation,
    Memory,
    Slot,
    kvm_faultin_pfn,
)
from kvm_pf.mmio import MMIO_EPT, MMIO_NPT, mmio_format
from kvm_pf.state import (
    PAGE_SHIFT,
    PG_LEVEL_4K,
    RET_PF_CONTINUE,
    WARN_NAMES,
    Environment,
    Fault,
    MmioCache,
    Mmu,
    Vcpu,
    Vm,
    Walk,
)


class Input(NamedTuple):
    """An input column.

    `kind`: u64 (unsigned 64-bit), int (signed, within `span`), bool (0 or 1), or label (one of `labels`, which
    the path gets as its place in that tuple).  `default` stands for an absent column.
    """

    column: str
    kind: str
    default: int | str
    means: str
    labels: tuple[str, ...] = ()
    span: tuple[int, int] = (-4095, 4095)


class Output(NamedTuple):
    """An output column: where in the outcome it stands, and the flag that says whether it was reached at all.

    `path` is an attribute path on the outcome, or a call of one of the path's functions on input columns.
    `kind`: u64, int (16 bits), long (64 bits, signed), bool, warns (bits, shown as names joined by "|") or label (one
    of `labels`).
    `revisions`: the column exists "always", "before 7.3" (not in v7_3) or "from 7.3".
    """

    column: str
    path: str
    kind: str
    reached: str = ""
    labels: tuple[str, ...] = ()
    revisions: str = "always"


def case_vcpu(
    root_valid: bool,
    direct: bool,
    is_tdp: bool,
    guest_mode: bool,
    nested: bool,
    cfg_sw_protected: bool,
    cfg_private_mem: bool,
    vm_type: int,
    attrs: int,
    nx_huge_pages: bool,
    nx_disabled: bool,
    memslot: bool,
    gen: int,
    mmio_gva: int,
    mmio_gfn: int,
    mmio_gen: int,
    mmio_access: int,
    mmio_cfg: int,
    walk_root: int,
    walk_leaf: int,
    spte5: int,
    spte4: int,
    spte3: int,
    spte2: int,
    spte1: int,
    pf_ret: int,
    pf_wpf: bool,
    emu_ret: int,
    retry_match: bool,
    reinject: bool,
    unprot_ret: bool,
    direct_bits: int,
) -> Vcpu:
    """The state that a row of a cases table describes; names and widths as in the table."""
    return Vcpu(
        mmu=Mmu(root_valid=root_valid, direct=direct, is_tdp=is_tdp, guest_mode=guest_mode, nested=nested),
        vm=Vm(
            cfg_sw_protected=cfg_sw_protected,
            cfg_private_mem=cfg_private_mem,
            vm_type=vm_type,
            attrs=attrs,
            nx_huge_pages=nx_huge_pages,
            disable_nx_huge_pages=nx_disabled,
            direct_bits=direct_bits,
            gen=gen,
        ),
        mmio_format=mmio_format(mmio_cfg, True),
        walk=Walk(
            root=walk_root, leaf=walk_leaf, spte5=spte5, spte4=spte4, spte3=spte3, spte2=spte2, spte1=spte1
        ),
        cache=MmioCache(gva=mmio_gva, gfn=mmio_gfn, gen=mmio_gen, access=mmio_access),
        environment=Environment(
            memslot=memslot,
            pf_ret=pf_ret,
            pf_wpf=pf_wpf,
            emu_ret=emu_ret,
            retry_match=retry_match,
            reinject=reinject,
            unprot_ret=unprot_ret,
        ),
    )


CASE_INPUTS = (
    Input("error_code", "u64", 0, "the error code that kvm_mmu_page_fault() gets"),
    Input("cr2_or_gpa", "u64", 0x100000000, "the address that it gets"),
    Input("root_valid", "bool", 1, "0: mmu->root.hpa is INVALID_PAGE"),
    Input("direct", "bool", 1, "root_role.direct"),
    Input("is_tdp", "bool", 1, "the MMU's handler is kvm_tdp_page_fault"),
    Input("guest_mode", "bool", 0, "the vCPU runs L2"),
    Input("nested", "bool", 0, "mmu_is_nested()"),
    Input("cfg_sw_protected", "bool", 1, "CONFIG_KVM_SW_PROTECTED_VM"),
    Input("cfg_private_mem", "bool", 1, "CONFIG_KVM_PRIVATE_MEM and GENERIC_MEMORY_ATTRIBUTES"),
    Input("vm_type", "int", 0, "KVM_X86_*_VM, 0 to 5", span=(0, 5)),
    Input("attrs", "u64", 0, "memory attributes of the faulting gfn; bit 3: private"),
    Input("nx_huge_pages", "bool", 0, "module parameter"),
    Input("nx_disabled", "bool", 0, "kvm->arch.disable_nx_huge_pages"),
    Input("memslot", "bool", 1, "the gfn has a memslot"),
    Input("gen", "u64", 0x15, "memslots generation; bit 63: update in progress"),
    Input("mmio_gva", "u64", 0, "vCPU MMIO cache: page of the virtual address"),
    Input("mmio_gfn", "u64", 0, "vCPU MMIO cache: gfn"),
    Input("mmio_gen", "u64", 0, "vCPU MMIO cache: generation"),
    Input("mmio_access", "u64", 0, "vCPU MMIO cache: access rights"),
    Input("mmio_cfg", "int", MMIO_EPT, "MMIO SPTE format: 0 EPT, 1 EPT with L1TF mask, 2 NPT, 3 TDX", span=(0, 3)),
    Input("walk_root", "int", 4, "level of the walk's root: 4 or 5", span=(4, 5)),
    Input("walk_leaf", "int", -1, "level of the lowest SPTE seen; -1: none", span=(-1, 5)),
    Input("spte5", "u64", 0, "SPTE of level 5"),
    Input("spte4", "u64", 0, "SPTE of level 4"),
    Input("spte3", "u64", 0, "SPTE of level 3"),
    Input("spte2", "u64", 0, "SPTE of level 2"),
    Input("spte1", "u64", 0, "SPTE of level 1"),
    Input("pf_ret", "int", "FIXED", "the handler's answer: a RET_PF_* or a negative errno", span=(-4095, 6)),
    Input("pf_wpf", "bool", 0, "the handler found a write to a page table that it shadows"),
    Input("insn_len", "int", 0, "length of the instruction's bytes, if the CPU gave them", span=(0, 15)),
    Input("emu_ret", "int", 1, "the emulator's answer"),
    Input("retry_match", "bool", 0, "same RIP and address as at the last unprotect (from 6.12)"),
    Input("reinject", "bool", 0, "an event waits to be reinjected (from 6.12)"),
    Input("unprot_ret", "bool", 0, "unprotecting succeeds (from 6.12)"),
    Input("direct_bits", "u64", 0, "kvm->arch.gfn_direct_bits (from 7.3)"),
)  # fmt: skip

VM_TYPES = ("default", "sw-protected", "sev", "sev-es", "snp", "tdx")
"""Kinds of VM in the order of their numbers (KVM_X86_*_VM)."""

MODE_COLUMNS = ("direct", "is_tdp", "guest_mode", "nested")
MODES: dict[str, tuple[int, int, int, int]] = {
    "tdp": (1, 1, 0, 0),
    "nonpaging": (1, 0, 0, 0),
    "shadow": (0, 0, 0, 0),
    "l2_ntdp": (0, 0, 1, 1),
    "l2_tdp": (1, 1, 1, 0),
    "l2_shadow": (0, 0, 1, 0),
}
"""The paging modes that exist, as values of MODE_COLUMNS."""

_FAULT = "handled.called"
_EXIT = "handled.exit.exit_reason"

CASE_OUTPUTS = (
    Output("tdx_private_gpa", "vt_is_tdx_private_gpa(direct_bits, cr2_or_gpa)", "bool", revisions="from 7.3"),
    Output("ret", "ret", "int"),
    Output("warns", "warns", "warns", labels=WARN_NAMES),
    Output("vm_bugged", "vm_bugged", "bool"),
    Output("pr_warn", "handled.pr_warn", "bool"),
    Output("mmio_called", "mmio.called", "bool"),
    Output("mmio_ret", "mmio.ret", "int", "mmio.called"),
    Output("chk_kvm_gen", "mmio.kvm_gen", "u64", "mmio.checked"),
    Output("chk_spte_gen", "mmio.spte_gen", "u64", "mmio.checked"),
    Output("tr_addr", "mmio.addr", "u64", "mmio.traced"),
    Output("tr_gfn", "mmio.gfn", "u64", "mmio.traced"),
    Output("tr_access", "mmio.access", "int", "mmio.traced"),
    Output("pf_called", "handled.called", "bool"),
    Output("f_addr", "handled.fault.addr", "u64", _FAULT),
    Output("f_error_code", "handled.fault.error_code", "u64", _FAULT),
    Output("f_prefetch", "handled.fault.prefetch", "bool", _FAULT),
    Output("f_exec", "handled.fault.exec", "bool", _FAULT),
    Output("f_write", "handled.fault.write", "bool", _FAULT),
    Output("f_present", "handled.fault.present", "bool", _FAULT),
    Output("f_rsvd", "handled.fault.rsvd", "bool", _FAULT),
    Output("f_user", "handled.fault.user", "bool", _FAULT),
    Output("f_is_tdp", "handled.fault.is_tdp", "bool", _FAULT),
    Output("f_is_private", "handled.fault.is_private", "bool", _FAULT),
    Output("f_nx_workaround", "handled.fault.nx_huge_page_workaround_enabled", "bool", _FAULT),
    Output("f_huge_disallowed", "handled.fault.huge_page_disallowed", "bool", _FAULT),
    Output("f_max_level", "handled.fault.max_level", "int", _FAULT),
    Output("f_req_level", "handled.fault.req_level", "int", _FAULT),
    Output("f_goal_level", "handled.fault.goal_level", "int", _FAULT),
    Output("f_gfn", "handled.fault.gfn", "u64", _FAULT),
    Output("f_slot", "handled.fault.slot", "bool", _FAULT),
    Output("f_mmu_seq", "handled.fault.mmu_seq", "u64", _FAULT),
    Output("f_pfn", "handled.fault.pfn", "u64", _FAULT),
    Output("f_hva", "handled.fault.hva", "u64", _FAULT, revisions="before 7.3"),
    Output("f_refcounted_page", "handled.fault.refcounted_page", "bool", _FAULT, revisions="from 7.3"),
    Output("f_map_writable", "handled.fault.map_writable", "bool", _FAULT),
    Output("f_write_to_sp", "handled.fault.write_fault_to_shadow_pgtable", "bool", _FAULT),
    Output("attr_lookups", "lookups.count", "int"),
    Output("attr_gfn", "lookups.gfn", "u64", "lookups.count"),
    Output("unprot_called", "unprotect.called", "bool"),
    Output("unprot_arg", "unprotect.arg", "u64", "unprotect.called"),
    Output("emu_called", "emulation.called", "bool"),
    Output("emu_type", "emulation.emulation_type", "u64", "emulation.called"),
    Output("emu_addr", "emulation.addr", "u64", "emulation.called"),
    Output("emu_insn_len", "emulation.insn_len", "int", "emulation.called"),
    Output("st_taken", "stats.taken", "int"),
    Output("st_fixed", "stats.fixed", "int"),
    Output("st_emulate", "stats.emulate", "int"),
    Output("st_spurious", "stats.spurious", "int"),
    Output("exit_reason", "handled.exit.exit_reason", "int"),
    Output("mf_gpa", "handled.exit.gpa", "u64", _EXIT),
    Output("mf_size", "handled.exit.size", "u64", _EXIT),
    Output("mf_flags", "handled.exit.flags", "u64", _EXIT),
    Output("a_mmio_gva", "mmio.cache.gva", "u64"),
    Output("a_mmio_gfn", "mmio.cache.gfn", "u64"),
    Output("a_mmio_gen", "mmio.cache.gen", "u64"),
    Output("a_mmio_access", "mmio.cache.access", "u64"),
)


KINDS = ("ept", "miscfg", "npf", "pf", "tdx")
"""Names of KIND_*; the last from 7.3."""
SEV_KINDS = ("none", "sev", "sev_es", "snp")
"""Names of SEV_*."""
BREAK_KINDS = ("none", "events", "signal", "vm_dead", "slot_invalid", "no_slot")
"""Names of BREAK_*."""


def source_event(
    kind: int,
    info: int,
    addr: int,
    snp_guest: bool,
    decode_assists: bool,
    insn_len: int,
    guest_mode: bool,
    aux_flag: bool,
    apf_flags: int,
    mmu_ret: int,
    direct_bits: int,
    mbec: bool,
    sev_kind: int,
    nrips: bool,
    next_rip_known: bool,
    gmet: bool,
    cpl: int,
    vectoring: bool,
    tdx_pending: bool,
    retries: int,
    break_kind: int,
    break_after: int,
) -> Event:
    """Describe the exit of a row of a sources table; names and widths as in the table, labels as codes.

    `aux_flag` answers the one question that the kind's handler asks: does the bus take the write, or does an
    event wait?  SVM hands on instruction bytes if the CPU decodes; with a legacy #PF, if there are any.
    """
    guest = Guest(
        guest_mode=guest_mode,
        fast_mmio=aux_flag,
        event_pending=aux_flag,
        vectoring=vectoring,
        sev_es=sev_kind >= SEV_ES or snp_guest,
        snp=sev_kind == SEV_SNP or snp_guest,
        nrips=nrips,
        next_rip_known=next_rip_known,
        gmet=gmet,
        cpl=cpl,
        mbec=mbec,
        direct_bits=direct_bits,
    )
    return Event(
        kind=kind,
        info=info,
        addr=addr,
        insn=decode_assists if kind == KIND_NPF else insn_len > 0,
        insn_len=insn_len,
        apf_flags=apf_flags,
        tdx_pending=tdx_pending,
        guest=guest,
        mmu_ret=mmu_ret,
        retry=Retry(retries=retries, break_kind=break_kind, break_after=break_after),
    )


SOURCE_INPUTS = (
    Input("kind", "label", "npf", "the exit", KINDS),
    Input("info", "u64", 0, "exit qualification (ept, tdx), EXITINFO1 (npf) or #PF error code (pf)"),
    Input("addr", "u64", 0x100000000, "guest-physical address; pf: virtual address"),
    Input("snp_guest", "bool", 0, "npf: an SNP guest (from 6.12)"),
    Input("decode_assists", "bool", 0, "npf: the CPU gives instruction bytes"),
    Input("insn_len", "int", 0, "npf, pf: length of the instruction's bytes", span=(0, 15)),
    Input("guest_mode", "bool", 0, "the vCPU runs L2"),
    Input("aux_flag", "bool", 0, "miscfg, npf: the fast-MMIO bus takes it; pf: an event waits (up to 6.10)"),
    Input("apf_flags", "int", 0, "pf: host_apf_flags, 0 none, bit 0: page not present"),
    Input("mmu_ret", "int", 1, "kvm_mmu_page_fault()'s answer"),
    Input("direct_bits", "u64", 0, "kvm->arch.gfn_direct_bits (from 7.3)"),
    Input("mbec", "bool", 0, "ept, tdx: mode-based execute control (from 7.3)"),
    Input("sev_kind", "label", "none", "npf: the kind of encrypted guest (from 7.3)", SEV_KINDS),
    Input("nrips", "bool", 0, "npf: the CPU tells the next RIP (from 7.3)"),
    Input("next_rip_known", "bool", 0, "npf: and did so this time (from 7.3)"),
    Input("gmet", "bool", 0, "npf: guest-mode execute trap (from 7.3)"),
    Input("cpl", "int", 0, "npf: privilege level, 0 to 3 (from 7.3)", span=(0, 3)),
    Input("vectoring", "bool", 0, "an event was being delivered (from 7.3)"),
    Input("tdx_pending", "bool", 0, "tdx: the page is pending (from 7.3)"),
    Input("retries", "int", 0, "the MMU says RETRY that many times first (from 7.3)", span=(0, 4095)),
    Input("break_kind", "label", "none", "tdx: what comes to be true while retrying (from 7.3)", BREAK_KINDS),
    Input("break_after", "int", 0, "tdx: after that many calls (from 7.3)", span=(0, 4095)),
)  # fmt: skip

SOURCE_OUTPUTS = (
    Output("ret", "ret", "int"),
    Output("warns", "warns", "warns", labels=SOURCE_WARN_NAMES),
    Output("traced", "trace.called", "bool"),
    Output("trace_addr", "trace.addr", "u64", "trace.called"),
    Output("trace_error_code", "trace.error_code", "u64", "trace.called"),
    Output("mmu_called", "mmu.called", "bool"),
    Output("mmu_addr", "mmu.addr", "u64", "mmu.called"),
    Output("mmu_error_code", "mmu.error_code", "u64", "mmu.called"),
    Output("mmu_insn_len", "mmu.insn_len", "int", "mmu.called"),
    Output("mmu_insn_nonnull", "mmu.insn", "bool", "mmu.called"),
    Output("rmp_called", "rmp.called", "bool"),
    Output("rmp_error_code", "rmp.error_code", "u64", "rmp.called"),
    Output("skip_insn", "fast_mmio", "bool"),
    Output("fast_mmio", "fast_mmio", "bool"),
    Output("unprotect_virt", "unprotect_virt", "bool", revisions="before 7.3"),
    Output("apf_wait", "apf_wait", "bool"),
    Output("mmu_calls", "mmu.calls", "int", revisions="from 7.3"),
    Output("vm_dead", "vm_dead", "bool", revisions="from 7.3"),
    Output("vm_bugged", "vm_bugged", "bool", revisions="from 7.3"),
)


# The fault-in tables.

SLOT_NONE = 0
SLOT_USER_GMEM = 2
SLOT_USER_RO = 3
SLOT_USER_GMEM_RO = 4
SLOT_INVALID = 5
SLOT_APIC = 6
SLOT_TSS = 7
SLOT_IDENT = 8
SLOT_GMEM_ONLY = 9
SLOT_GMEM_ONLY_INVALID = 10
SLOT_KINDS = (
    "none", "user", "user_gmem", "user_ro", "user_gmem_ro", "invalid", "apic", "tss", "ident", "gmem_only",
    "gmem_only_invalid",
)  # fmt: skip
"""Names of the SLOT_* codes."""

INVALIDATION_COVERS_GFN = 2
INVALIDATIONS = ("none", "other_gfn", "covers_gfn")
"""Names of the INVALIDATION_* codes."""

GUP_RESULTS = ("ok", "fault", "sigpending", "hwpoison", "ro_fault", "noslot")
"""Names of the GUP_* codes."""

_ONE_LOOKUP = ("", "W", "N", "WN", "I", "WI", "NI", "WNI")
GUP_FLAGS = tuple(f"{first}|{second}" if second else first for second in _ONE_LOOKUP for first in _ONE_LOOKUP)
"""Names of all codes of Calls.gup_flags: W write, N no wait, I interruptible; first look-up | second."""

# What the tables' host and guest_memfd answer, and how they are built.
FAULTIN_MAXPHYADDR = 46
FAULTIN_MMU_SEQ = 7
FAULTIN_HVA = 0x7F0000000000
FAULTIN_HOST_PFN = 0x9000000
FAULTIN_GMEM_PFN = 0x5000000
FAULTIN_PFN_MASK = 0x3FFFF


def faultin_slot(slot_kind: int) -> Slot:
    """Return the slot that a SLOT_* code stands for."""
    number = 0
    if slot_kind == SLOT_APIC:
        number = APIC_ACCESS_PAGE_PRIVATE_MEMSLOT
    elif slot_kind == SLOT_TSS:
        number = TSS_PRIVATE_MEMSLOT
    elif slot_kind == SLOT_IDENT:
        number = IDENTITY_PAGETABLE_PRIVATE_MEMSLOT
    gmem_only = slot_kind in (SLOT_GMEM_ONLY, SLOT_GMEM_ONLY_INVALID)
    flags = 0
    if gmem_only:
        flags |= KVM_MEMSLOT_GMEM_ONLY
    if gmem_only or slot_kind in (SLOT_USER_GMEM, SLOT_USER_GMEM_RO):
        flags |= KVM_MEM_GUEST_MEMFD
    if slot_kind in (SLOT_USER_RO, SLOT_USER_GMEM_RO):
        flags |= KVM_MEM_READONLY
    if slot_kind in (SLOT_INVALID, SLOT_GMEM_ONLY_INVALID):
        flags |= KVM_MEMSLOT_INVALID
    return Slot(number, flags)


def faultin_vcpu(
    attrs: int,
    cfg_private_mem: bool,
    slot_kind: int,
    guest_mode: bool,
    nested: bool,
    is_tdp: bool,
    mmio_caching: bool,
    direct_bits: int,
    gen: int,
) -> Vcpu:
    """The vCPU of a row of a fault-in table; names and widths as in the table, labels as codes."""
    return Vcpu(
        mmu=Mmu(root_valid=True, direct=is_tdp, is_tdp=is_tdp, guest_mode=guest_mode, nested=nested),
        vm=Vm(
            cfg_sw_protected=False,
            cfg_private_mem=cfg_private_mem,
            vm_type=0,
            attrs=attrs,
            nx_huge_pages=False,
            disable_nx_huge_pages=False,
            direct_bits=direct_bits,
            gen=gen,
        ),
        mmio_format=mmio_format(MMIO_NPT, mmio_caching),
        walk=Walk(root=4, leaf=-1, spte5=0, spte4=0, spte3=0, spte2=0, spte1=0),
        cache=MmioCache(gva=0, gfn=0, gen=0, access=0),
        environment=Environment(
            memslot=slot_kind != SLOT_NONE,
            pf_ret=RET_PF_CONTINUE,
            pf_wpf=False,
            emu_ret=0,
            retry_match=False,
            reinject=False,
            unprot_ret=False,
        ),
    )


def faultin_fault(
    addr: int,
    gfn: int,
    is_private: bool,
    slot_kind: int,
    is_tdp: bool,
    prefetch: bool,
    write: bool,
    exec: bool,
    max_level: int,
) -> Fault:
    """The fault of a row of a fault-in table; names and widths as in the table, labels as codes."""
    return Fault(
        addr=addr,
        error_code=0,
        prefetch=prefetch,
        exec=exec,
        write=write,
        present=False,
        rsvd=False,
        user=False,
        is_tdp=is_tdp,
        is_private=is_private,
        nx_huge_page_workaround_enabled=False,
        huge_page_disallowed=False,
        max_level=max_level,
        req_level=PG_LEVEL_4K,
        goal_level=PG_LEVEL_4K,
        gfn=gfn,
        slot=slot_kind != SLOT_NONE,
        mmu_seq=0,
        pfn=INITIAL_PFN,
        hva=INITIAL_HVA,
        refcounted_page=False,
        map_writable=False,
        write_fault_to_shadow_pgtable=False,
    )


def faultin_memory(
    gfn: int,
    slot_kind: int,
    apicv_active: bool,
    invalidation: int,
    gmem_ret: int,
    gmem_order: int,
    gup_result: int,
    gup_async: bool,
    can_async_pf: bool,
    apf_repeat: bool,
    apf_setup_ok: bool,
    vendor_max_level: int,
    late_invalidation: int,
) -> Memory:
    """The memory behind the gfn of a row of a fault-in table; names and widths as in the table, labels as codes."""
    covered = invalidation == INVALIDATION_COVERS_GFN
    covered_later = covered or late_invalidation == INVALIDATION_COVERS_GFN
    return Memory(
        slot=faultin_slot(slot_kind),
        maxphyaddr=FAULTIN_MAXPHYADDR,
        invalidation=Invalidation(covered, FAULTIN_MMU_SEQ),
        late_invalidation=Invalidation(covered_later, FAULTIN_MMU_SEQ),
        apicv_active=apicv_active,
        gmem_ret=gmem_ret,
        gmem_pfn=FAULTIN_GMEM_PFN | gfn & FAULTIN_PFN_MASK,
        gmem_order=gmem_order,
        vendor_max_level=vendor_max_level,
        gup_result=gup_result,
        gup_async=gup_async,
        host_pfn=FAULTIN_HOST_PFN | gfn & FAULTIN_PFN_MASK,
        hva=FAULTIN_HVA + (gfn << PAGE_SHIFT) & U64_MASK,
        can_async_pf=can_async_pf,
        apf_repeat=apf_repeat,
        apf_setup_ok=apf_setup_ok,
    )


FAULTIN_INPUTS = (
    Input("addr", "u64", 0x100000000, "the fault's address"),
    Input("gfn", "u64", 0x100000, "its frame number; without the column, that of addr"),
    Input("attrs", "u64", 0, "memory attributes of the gfn; bit 3: private"),
    Input("is_private", "bool", 0, "the fault is to private memory"),
    Input("cfg_private_mem", "bool", 1, "CONFIG_KVM_PRIVATE_MEM and GENERIC_MEMORY_ATTRIBUTES"),
    Input("slot_kind", "label", "user", "the gfn's memslot", SLOT_KINDS),
    Input("guest_mode", "bool", 0, "the vCPU runs L2"),
    Input("nested", "bool", 0, "mmu_is_nested()"),
    Input("is_tdp", "bool", 1, "the MMU's handler is kvm_tdp_page_fault"),
    Input("apicv_active", "bool", 1, "kvm_apicv_activated()"),
    Input("invalidation", "label", "none", "an invalidation going on before", INVALIDATIONS),
    Input("gmem_ret", "int", 0, "guest_memfd's answer: 0 or a negative errno", span=(-4095, 0)),
    Input("gmem_order", "int", 0, "the size of guest_memfd's page, log2 of 4K pages", span=(0, 52)),
    Input("gup_result", "label", "ok", "what the host's page tables have", GUP_RESULTS),
    Input("gup_async", "bool", 0, "the host must read the page from disk first"),
    Input("prefetch", "bool", 0, "the fault is not a guest's access of now"),
    Input("can_async_pf", "bool", 0, "kvm_can_do_async_pf()"),
    Input("apf_repeat", "bool", 0, "an async page fault on this gfn is under way"),
    Input("apf_setup_ok", "bool", 0, "an async page fault can be set up"),
    Input("write", "bool", 0, "the access is a write"),
    Input("exec", "bool", 0, "the access is an instruction fetch"),
    Input("max_level", "int", 3, "the fault's largest mapping level: 1 (4K) to 3 (1G)", span=(1, 3)),
    Input("mmio_caching", "bool", 1, "enable_mmio_caching"),
    Input("access", "int", "ACC_ALL", "what the guest's page tables allow, up to ACC_ALL", span=(0, 15)),
    Input("vendor_max_level", "int", 0, "private_max_mapping_level(); 0: no opinion (6.12)", span=(0, 3)),
    Input("late_invalidation", "label", "none", "one that begins in the look-up (7.3)", INVALIDATIONS),
    Input("direct_bits", "u64", 0, "kvm->arch.gfn_direct_bits (from 7.3)"),
    Input("gen", "u64", 0x15, "memslots generation; bit 63: update in progress"),
)  # fmt: skip

_FAULTIN_EXIT = "exit.exit_reason"

FAULTIN_OUTPUTS = (
    Output("ret", "ret", "int"),
    Output("warns", "warns", "warns", labels=FAULTIN_WARN_NAMES),
    Output("vm_bugged", "vm_bugged", "bool", revisions="from 7.3"),
    Output("o_slot", "found.slot", "bool"),
    Output("o_pfn", "found.pfn", "u64"),
    Output("o_hva", "found.hva", "u64", revisions="before 7.3"),
    Output("o_refcounted_page", "found.refcounted_page", "bool", revisions="from 7.3"),
    Output("o_map_writable", "found.map_writable", "bool"),
    Output("o_max_level", "found.max_level", "int"),
    Output("o_mmu_seq", "found.mmu_seq", "int"),
    Output("gmem_calls", "calls.gmem", "int"),
    Output("gup_calls", "calls.gup", "int"),
    Output("gup_flags", "calls.gup_flags", "label", "calls.gup", GUP_FLAGS, revisions="from 7.3"),
    Output("apf_setup_calls", "calls.apf_setup", "int"),
    Output("apf_halt_req", "calls.apf_halt", "int"),
    Output("released", "calls.released", "int"),
    Output("signal_exit", "calls.signal_exit", "int"),
    Output("hwpoison_signal", "calls.hwpoison_signal", "int"),
    Output("attr_lookups", "lookups.count", "int"),
    Output("exit_reason", "exit.exit_reason", "int"),
    Output("mf_gpa", "exit.gpa", "u64", _FAULTIN_EXIT),
    Output("mf_size", "exit.size", "u64", _FAULTIN_EXIT),
    Output("mf_flags", "exit.flags", "u64", _FAULTIN_EXIT),
    Output("a_mmio_gva", "cache.gva", "u64"),
    Output("a_mmio_gfn", "cache.gfn", "u64"),
    Output("a_mmio_gen", "cache.gen", "u64"),
    Output("a_mmio_access", "cache.access", "u64"),
)


# A page that became ready, and a page mapped ahead: no kernel tables, but curated calls and proofs.


def ready_work(
    cr2_or_gpa: int,
    put_off_code: int,
    direct_map: bool,
    wakeup_all: bool,
    reload_ret: int,
    same_cr3: bool,
) -> AsyncPf:
    """The fault that was put off, of a row of page_ready; names as there."""
    return AsyncPf(
        cr2_or_gpa=cr2_or_gpa,
        error_code=put_off_code,
        direct_map=direct_map,
        wakeup_all=wakeup_all,
        reload_ret=reload_ret,
        same_cr3=same_cr3,
    )


def pre_fault_request(
    cr2_or_gpa: int,
    size: int,
    allowed: bool,
    level: int,
    reload_ret: int,
    retries: int,
    break_kind: int,
    break_after: int,
) -> PreFault:
    """The request of a row of pre_fault; names as there."""
    return PreFault(
        gpa=cr2_or_gpa,
        size=size,
        allowed=allowed,
        reload_ret=reload_ret,
        level=level,
        retry=Retry(retries=retries, break_kind=break_kind, break_after=break_after),
    )


_ADDRESS = CASE_INPUTS[1]
_STATE_INPUTS = tuple(i for i in CASE_INPUTS if i.column not in ("error_code", "cr2_or_gpa", "insn_len"))
_RELOAD = Input("reload_ret", "int", 0, "kvm_mmu_reload()'s result")

READY_INPUTS = (
    _ADDRESS,
    *_STATE_INPUTS,
    Input("put_off_code", "u64", 0, "error code of the fault that was put off"),
    Input("direct_map", "bool", 1, "the MMU was direct then"),
    Input("wakeup_all", "bool", 0, "no page: everybody is woken"),
    _RELOAD,
    Input("same_cr3", "bool", 1, "the guest's page-table root is still the same"),
)

AHEAD_INPUTS = (
    _ADDRESS,
    *_STATE_INPUTS,
    Input("size", "u64", 0x1000, "bytes to map ahead"),
    Input("allowed", "bool", 1, "kvm->arch.pre_fault_allowed"),
    Input("level", "int", 1, "level at which the page comes to be mapped", span=(1, 3)),
    _RELOAD,
    *(i for i in SOURCE_INPUTS if i.column in ("retries", "break_kind", "break_after")),
)

_HANDLED = tuple(o for o in CASE_OUTPUTS if o.path.startswith("handled."))

READY_OUTPUTS = (
    Output("ready_warns", "warns", "warns", labels=SOURCE_WARN_NAMES),
    *_HANDLED,
    Output("attr_lookups", "handled.lookups.count", "int"),
    Output("attr_gfn", "handled.lookups.gfn", "u64", "handled.lookups.count"),
    *(
        Output(f"{column}_{name}", f"{path}stats.{name}", "int")
        for column, path in (("st", "handled."), ("ready", ""))
        for name in ("taken", "fixed", "emulate", "spurious")
    ),
)

AHEAD_OUTPUTS = (
    Output("ret", "ret", "long"),
    Output("warns", "warns", "warns", labels=SOURCE_WARN_NAMES),
    Output("calls", "calls", "int"),
    Output("mmu_addr", "addr", "u64", "calls"),
    Output("mmu_error_code", "error_code", "u64", "calls"),
    *_HANDLED,
    Output("attr_lookups", "lookups.count", "int"),
)


# The ways into the path.

CASE_LABELS = {
    "mode": MODE_COLUMNS,
    "pf_ret_name": ("pf_ret",),
    "cache_state": ("mmio_gva", "mmio_gfn", "mmio_gen", "mmio_access"),
    "spte_state": ("walk_leaf", "spte5", "spte4", "spte3", "spte2", "spte1"),
}
"""Columns of the kernel's cases tables that only name other columns' values; `mode` can stand in for its."""


class EntryPoint(NamedTuple):
    """A way into the path: a kernel function, and the table of its inputs and outputs.

    `row` takes the input columns in order, labels as codes, builds the state, and runs the function on it.
    `labels` are columns of the kernel's tables that are not read; none: the kernel has no such tables.
    """

    kind: str
    function: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    row: FunctionType
    labels: tuple[str, ...] = ()


def _state(function: Callable[..., Any]) -> str:
    """Write the call of one of the functions above, whose arguments are columns."""
    code = function.__code__
    return f"{code.co_name}({', '.join(code.co_varnames[: code.co_argcount])})"


def _row(kind: str, inputs: tuple[Input, ...], call: str) -> FunctionType:
    """Write the function of an entry point's row: its arguments are the columns, its body is `call`."""
    made: dict[str, Any] = {}
    text = f"def {kind}_row({', '.join(i.column for i in inputs)}):\n return {call}"
    exec(compile(text, __file__, "exec"), globals(), made)
    row: FunctionType = made[f"{kind}_row"]
    row.__annotations__ = {i.column: bool if i.kind == "bool" else int for i in inputs}
    row.__module__ = __name__
    return row


ENTRY_POINTS = {
    entry.kind: entry
    for entry in (
        EntryPoint(
            "cases",
            kvm_mmu_page_fault.__name__,
            "a fault",
            CASE_INPUTS,
            CASE_OUTPUTS,
            _row(
                "cases",
                CASE_INPUTS,
                f"kvm_mmu_page_fault({_state(case_vcpu)}, cr2_or_gpa, error_code, insn_len)",
            ),
            ("case_id", "part", *CASE_LABELS),
        ),
        EntryPoint(
            "sources",
            source.__name__,
            "an exit",
            SOURCE_INPUTS,
            SOURCE_OUTPUTS,
            _row("sources", SOURCE_INPUTS, f"source({_state(source_event)})"),
            ("case_id",),
        ),
        EntryPoint(
            "page_ready",
            kvm_arch_async_page_ready.__name__,
            "a page that became ready",
            READY_INPUTS,
            READY_OUTPUTS,
            _row(
                "page_ready",
                READY_INPUTS,
                f"kvm_arch_async_page_ready({_state(case_vcpu)}, {_state(ready_work)})",
            ),
        ),
        EntryPoint(
            "pre_fault",
            kvm_arch_vcpu_pre_fault_memory.__name__,
            "a page mapped ahead",
            AHEAD_INPUTS,
            AHEAD_OUTPUTS,
            _row(
                "pre_fault",
                AHEAD_INPUTS,
                f"kvm_arch_vcpu_pre_fault_memory({_state(case_vcpu)}, {_state(pre_fault_request)})",
            ),
        ),
        EntryPoint(
            "faultin",
            kvm_faultin_pfn.__name__,
            "a frame looked for",
            FAULTIN_INPUTS,
            FAULTIN_OUTPUTS,
            _row(
                "faultin",
                FAULTIN_INPUTS,
                f"kvm_faultin_pfn({_state(faultin_vcpu)}, {_state(faultin_fault)}, access, {_state(faultin_memory)})",
            ),
            ("case_id",),
        ),
    )
}
"""The ways into the path by the kind of their tables."""

TABLES = {kind: entry for kind, entry in ENTRY_POINTS.items() if entry.labels}
"""Those of which there are kernel vectors and curated cases."""
