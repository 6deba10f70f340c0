# SPDX-License-Identifier: GPL-2.0-only
"""kvm_mmu_page_fault() whole: the way, the struct kvm_page_fault, and what each result leads to."""

from __future__ import annotations

from typing import NamedTuple

from kvm_pf.bits import (
    PFERR_FETCH_MASK,
    PFERR_NESTED_GUEST_PAGE,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.entry import REFUSED, TO_MMIO, TO_RETRY, Route, route
from kvm_pf.mmio import handle_mmio_page_fault, mmio_info_in_cache
from kvm_pf.state import (
    EFAULT,
    EIO,
    EMULTYPE_ALLOW_RETRY_PF,
    EMULTYPE_PF,
    EMULTYPE_WRITE_PF_TO_SP,
    KVM_EXIT_MEMORY_FAULT,
    KVM_MAX_HUGEPAGE_LEVEL,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    NO_EMULATION,
    NO_LOOKUP,
    NO_MEMORY_FAULT,
    NO_STATS,
    NO_UNPROTECT,
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_LEVEL_4K,
    RESUME_GUEST,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_INVALID,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    WARN_KVM_BUG,
    Emulation,
    Fault,
    Handled,
    Lookups,
    MemoryFault,
    Mmio,
    MmioCache,
    Outcome,
    Stats,
    Unprotect,
    Vcpu,
    Vm,
    gpa_to_gfn,
)

INITIAL_PFN = 0
INITIAL_HVA = 0
"""What pfn and hva hold before the fault-in.  Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 3."""


def handler_error_code(error_code: int) -> int:
    """The part of the error code that kvm_mmu_do_page_fault() gets: all 64 bits, since patch 04 of the series.

    Source: mail <20240228024147.41573-5-seanjc@google.com>, kvm_mmu_page_fault().
    """
    return error_code


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say whether the fault is to private memory: bit 49 says so; no look-up is made.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 3, kvm_mmu_do_page_fault().
    """
    return err & PFERR_PRIVATE_ACCESS != 0, NO_LOOKUP


def is_nx_huge_page_enabled(vm: Vm) -> bool:
    """Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, is_nx_huge_page_enabled() (v6.8)."""
    return vm.nx_huge_pages and not vm.disable_nx_huge_pages


def fault_gfn(vm: Vm, addr: int) -> int:
    """The gfn of a direct fault.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob d7c10d338f14.
    """
    return gpa_to_gfn(addr)


def new_fault(vcpu: Vcpu, cr2_or_gpa: int, err: int, prefetch: bool, private: bool) -> Fault:
    """Fill a struct kvm_page_fault from the address (u64) and the error code (u64).

    An indirect MMU has yet to walk the guest's tables: its gfn is 0 and its slot unknown.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob d7c10d338f14.
    """
    gfn = fault_gfn(vcpu.vm, cr2_or_gpa) if vcpu.mmu.direct else 0
    slot = vcpu.mmu.direct and vcpu.environment.memslot
    return Fault(
        addr=cr2_or_gpa,
        error_code=err,
        prefetch=prefetch,
        exec=err & PFERR_FETCH_MASK != 0,
        write=err & PFERR_WRITE_MASK != 0,
        present=err & PFERR_PRESENT_MASK != 0,
        rsvd=err & PFERR_RSVD_MASK != 0,
        user=err & PFERR_USER_MASK != 0,
        is_tdp=vcpu.mmu.is_tdp,
        is_private=private,
        nx_huge_page_workaround_enabled=is_nx_huge_page_enabled(vcpu.vm),
        huge_page_disallowed=False,
        max_level=KVM_MAX_HUGEPAGE_LEVEL,
        req_level=PG_LEVEL_4K,
        goal_level=PG_LEVEL_4K,
        gfn=gfn,
        slot=slot,
        mmu_seq=0,
        pfn=INITIAL_PFN,
        hva=INITIAL_HVA,
        refcounted_page=False,
        map_writable=False,
        write_fault_to_shadow_pgtable=False,
    )


def page_fault(vcpu: Vcpu, fault: Fault) -> tuple[int, bool]:
    """Call the MMU's page-fault handler: its result, and whether the write hit a page table that it shadows.

    The handler's own work is not followed; its answer is given.  `kvm_pf.faultin` has the part
    that reads is_private.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob d7c10d338f14.
    """
    return vcpu.environment.pf_ret, vcpu.environment.pf_wpf


def left_private(fault: Fault) -> bool:
    """Say whether the handler leaves a fault private: if it was, for nobody changes the field.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, struct kvm_page_fault, is_private is constant (v6.8).
    """
    return fault.is_private


def kvm_mmu_prepare_memory_fault_exit(gfn: int, private: bool) -> MemoryFault:
    """Tell user space which page could not be mapped, and which kind of memory the guest wanted.

    Source: Linux `include/linux/kvm_host.h`, kvm_prepare_memory_fault_exit() (v6.8).
    """
    flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0
    return MemoryFault(exit_reason=KVM_EXIT_MEMORY_FAULT, gpa=gfn << PAGE_SHIFT, size=PAGE_SIZE, flags=flags)


def warns_of_private_emulation() -> bool:
    """Say whether an emulation request on private memory is also printed to the log: not yet.

    Source: mail <20240228024147.41573-2-seanjc@google.com>, kvm_mmu_do_page_fault().
    """
    return False


def count_handled(r: int, prefetch: bool) -> Stats:
    """What kvm_mmu_do_page_fault() counts after the handler answered `r`.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob d7c10d338f14.
    """
    taken = 0 if prefetch else 1
    if r == RET_PF_FIXED:
        return Stats(taken=taken, fixed=1, emulate=0, spurious=0)
    if not prefetch and r == RET_PF_EMULATE:
        return Stats(taken=taken, fixed=0, emulate=1, spurious=0)
    if not prefetch and r == RET_PF_SPURIOUS:
        return Stats(taken=taken, fixed=0, emulate=0, spurious=1)
    return Stats(taken=taken, fixed=0, emulate=0, spurious=0)


def kvm_mmu_do_page_fault(vcpu: Vcpu, cr2_or_gpa: int, err: int, prefetch: bool) -> Handled:
    """Fill the fault, call the handler, and refuse to emulate an access to private memory.

    KVM cannot emulate what it cannot read: EMULATE on a private fault becomes a memory-fault exit and -EFAULT,
    before anything else is done with the answer.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob d7c10d338f14;
    mail <20240228024147.41573-2-seanjc@google.com> (the refusal).
    """
    private, lookups = is_private(vcpu.vm, cr2_or_gpa, err)
    fault = new_fault(vcpu, cr2_or_gpa, err, prefetch, private)
    r, write_fault_to_shadow_pgtable = page_fault(vcpu, fault)
    if r == RET_PF_EMULATE and left_private(fault):
        exit_ = kvm_mmu_prepare_memory_fault_exit(fault.gfn, fault.is_private)
        counted = count_handled(-EFAULT, prefetch)
        return Handled(
            called=True,
            ret=-EFAULT,
            fault=fault,
            emulation_type=0,
            lookups=lookups,
            pr_warn=warns_of_private_emulation(),
            exit=exit_,
            stats=counted,
        )
    emulation_type = EMULTYPE_WRITE_PF_TO_SP if write_fault_to_shadow_pgtable else 0
    counted = count_handled(r, prefetch)
    return Handled(
        called=True,
        ret=r,
        fault=fault,
        emulation_type=emulation_type,
        lookups=lookups,
        pr_warn=False,
        exit=NO_MEMORY_FAULT,
        stats=counted,
    )


class After(NamedTuple):
    """What follows the handler's answer."""

    ret: int
    warns: int
    unprotect: Unprotect
    emulation: Emulation
    stats: Stats


def emulate(vcpu: Vcpu, cr2_or_gpa: int, emulation_type: int, insn_len: int) -> Emulation:
    """Hand the instruction to the emulator.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 7807bdcd87e8.
    """
    return Emulation(called=True, emulation_type=emulation_type, addr=cr2_or_gpa, insn_len=insn_len)


def after_fault(
    vcpu: Vcpu, cr2_or_gpa: int, error_code: int, r: int, emulation_type: int, insn_len: int
) -> After:
    """Turn the handler's answer into kvm_mmu_page_fault()'s: resume, unprotect and resume, or emulate.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 7807bdcd87e8.
    """
    if r < 0:
        return After(ret=r, warns=0, unprotect=NO_UNPROTECT, emulation=NO_EMULATION, stats=NO_STATS)
    if r != RET_PF_EMULATE:
        return After(
            ret=RESUME_GUEST, warns=0, unprotect=NO_UNPROTECT, emulation=NO_EMULATION, stats=NO_STATS
        )
    if vcpu.mmu.direct and error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        unprotect = Unprotect(True, gpa_to_gfn(cr2_or_gpa))
        return After(ret=RESUME_GUEST, warns=0, unprotect=unprotect, emulation=NO_EMULATION, stats=NO_STATS)
    if not mmio_info_in_cache(vcpu, cr2_or_gpa) and not vcpu.mmu.guest_mode:
        emulation_type |= EMULTYPE_ALLOW_RETRY_PF
    emulation = emulate(vcpu, cr2_or_gpa, emulation_type, insn_len)
    return After(
        ret=vcpu.environment.emu_ret, warns=0, unprotect=NO_UNPROTECT, emulation=emulation, stats=NO_STATS
    )


NO_FAULT = Handled(
    called=False,
    ret=RET_PF_INVALID,
    fault=Fault(
        addr=0, error_code=0, prefetch=False, exec=False, write=False, present=False, rsvd=False, user=False,
        is_tdp=False, is_private=False, nx_huge_page_workaround_enabled=False, huge_page_disallowed=False,
        max_level=0, req_level=0, goal_level=0, gfn=0, slot=False, mmu_seq=0, pfn=0, hva=0,
        refcounted_page=False, map_writable=False, write_fault_to_shadow_pgtable=False,
    ),
    emulation_type=0,
    lookups=NO_LOOKUP,
    pr_warn=False,
    exit=NO_MEMORY_FAULT,
    stats=NO_STATS,
)  # fmt: skip


def no_mmio(cache: MmioCache) -> Mmio:
    """The MMIO path not taken; like the kernel's `r`, its result starts as RET_PF_INVALID."""
    return Mmio(
        called=False,
        ret=RET_PF_INVALID,
        warns=0,
        checked=False,
        kvm_gen=0,
        spte_gen=0,
        traced=False,
        addr=0,
        gfn=0,
        access=0,
        cache=cache,
    )


def first_of(a: Lookups, b: Lookups) -> Lookups:
    """Add up look-ups; the gfn is the first one's."""
    return Lookups(a.count + b.count, a.gfn if a.count != 0 else b.gfn)


def add(a: Stats, b: Stats) -> Stats:
    """Add up statistics."""
    return Stats(
        taken=a.taken + b.taken,
        fixed=a.fixed + b.fixed,
        emulate=a.emulate + b.emulate,
        spurious=a.spurious + b.spurious,
    )


def outcome(way: Route, ret: int, mmio: Mmio, handled: Handled, emulation: Emulation) -> Outcome:
    """The outcome of a fault that never reached a handler."""
    warns = way.warns | mmio.warns
    return Outcome(
        ret=ret,
        warns=warns,
        vm_bugged=False,
        mmio=mmio,
        handled=handled,
        lookups=way.lookups,
        unprotect=NO_UNPROTECT,
        emulation=emulation,
        stats=NO_STATS,
    )


def bugged(way: Route, mmio: Mmio, handled: Handled) -> Outcome:
    """The outcome of a handler that answered RET_PF_INVALID: a bug in KVM, and the end of the VM.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 7807bdcd87e8.
    """
    lookups = first_of(way.lookups, handled.lookups)
    warns = way.warns | mmio.warns | WARN_KVM_BUG
    return Outcome(
        ret=-EIO,
        warns=warns,
        vm_bugged=True,
        mmio=mmio,
        handled=handled,
        lookups=lookups,
        unprotect=NO_UNPROTECT,
        emulation=NO_EMULATION,
        stats=handled.stats,
    )


def kvm_mmu_page_fault(vcpu: Vcpu, cr2_or_gpa: int, error_code: int, insn_len: int) -> Outcome:
    """Handle a page fault at `cr2_or_gpa` (u64) with `error_code` (u64): everything that follows, as values.

    The result's `ret`: negative, an error to user space; 0, an exit to user space; positive, resume the guest.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 7807bdcd87e8.
    """
    way = route(vcpu.mmu, vcpu.vm, cr2_or_gpa, error_code)
    if way.to == TO_RETRY:
        return outcome(way, RET_PF_RETRY, no_mmio(vcpu.cache), NO_FAULT, NO_EMULATION)
    if way.to == REFUSED:
        return outcome(way, -EFAULT, no_mmio(vcpu.cache), NO_FAULT, NO_EMULATION)
    mmio = no_mmio(vcpu.cache)
    if way.to == TO_MMIO:
        mmio = handle_mmio_page_fault(vcpu, cr2_or_gpa)
    if mmio.ret == RET_PF_EMULATE:
        emulation = emulate(vcpu, cr2_or_gpa, EMULTYPE_PF, insn_len)
        return outcome(way, vcpu.environment.emu_ret, mmio, NO_FAULT, emulation)
    r = mmio.ret
    handled = NO_FAULT
    if r == RET_PF_INVALID:
        handled = kvm_mmu_do_page_fault(vcpu, cr2_or_gpa, handler_error_code(way.error_code), False)
        r = handled.ret
    if r == RET_PF_INVALID:
        return bugged(way, mmio, handled)
    after = after_fault(vcpu, cr2_or_gpa, way.error_code, r, EMULTYPE_PF | handled.emulation_type, insn_len)
    return Outcome(
        ret=after.ret,
        warns=way.warns | mmio.warns | after.warns,
        vm_bugged=False,
        mmio=mmio,
        handled=handled,
        lookups=first_of(way.lookups, handled.lookups),
        unprotect=after.unprotect,
        emulation=after.emulation,
        stats=add(handled.stats, after.stats),
    )
