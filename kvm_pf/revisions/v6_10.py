# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.10: the merged series."""

from __future__ import annotations

from kvm_pf import state
from kvm_pf.bits import PFERR_PRIVATE_ACCESS
from kvm_pf.entry import REFUSED, TO_MMIO
from kvm_pf.exits import WARN_ASYNC_PRIVATE
from kvm_pf.faultin import (
    APIC_ACCESS_PAGE_PRIVATE_MEMSLOT,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_NOSLOT,
    WARN_NOSLOT,
    Faultin,
    Memory,
    answer,
    as_mmio,
    begin,
    deleted_slot,
    faultin_shared,
    from_gmem,
    is_error_pfn,
    kvm_faultin_pfn_private,
    kvm_handle_error_pfn,
    memory_fault,
    mismatch,
    mmu_invalidate_retry_gfn_unsafe,
    no_slot,
    recheck_invalidation,
    warned,
)
from kvm_pf.state import EFAULT, RET_PF_CONTINUE, RET_PF_EMULATE, RET_PF_RETRY, WARN_PRIVATE_RSVD, Fault, Vcpu

INITIAL_PFN = state.KVM_PFN_ERR_FAULT
INITIAL_HVA = state.KVM_HVA_ERR_BAD

# Source: Linux `arch/x86/kvm/mmu/spte.h`, SHADOW_NONPRESENT_VALUE (v6.10).
SPTE_NONPRESENT = 1 << 63


def reserved_fault(error_code: int) -> tuple[int, int]:
    """Choose the way of a reserved fault: the MMIO path, or an error, with a warning, if private.

    The error comes without an exit reason: user space cannot mend this.  To go on would not be safe, for write
    tracking is skipped for a fault with the reserved bit.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `07702e5a6d6d` (v6.10), kvm_mmu_page_fault(); mail
    <ZeEOC0mo8C4GL708@google.com>, 2024-02-29.
    """
    if error_code & PFERR_PRIVATE_ACCESS != 0:
        return REFUSED, WARN_PRIVATE_RSVD
    return TO_MMIO, 0


def page_ready_code(error_code: int) -> tuple[int, int]:
    """Choose the code (u64) to hand in when the page is ready: the fault's own; warn if that was private.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `cd389f507003` (v6.10), kvm_arch_async_page_ready().
    """
    return error_code, WARN_ASYNC_PRIVATE if error_code & PFERR_PRIVATE_ACCESS != 0 else 0


def kvm_handle_noslot_fault(
    vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin
) -> Faultin:
    """Handle a fault on a gfn without a slot: MMIO, unless it is private, for MMIO never is.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_noslot_fault() (v6.10).
    """
    if fault.is_private:
        return memory_fault(before, fault, -EFAULT)
    return as_mmio(vcpu, fault, access, memory, before, no_slot(before.found))


def faultin_pfn(vcpu: Vcpu, fault: Fault, memory: Memory, before: Faultin) -> Faultin:
    """Take the frame: __kvm_faultin_pfn(), which has nothing left to check.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn() (v6.10).
    """
    if from_gmem(fault, memory.slot):
        return kvm_faultin_pfn_private(fault, memory, before)
    return faultin_shared(fault, memory, before)


def kvm_faultin_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory) -> Faultin:
    """Find the frame behind a filled fault: private against shared first, then the slot, then the frame.

    No fault that gets here escapes the comparison, whatever its slot and whoever runs.  Not all get here:
    fast_page_fault() comes first, and compares from 6.11 on.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commits from `44f42ef37deb` on (v6.10), kvm_faultin_pfn().
    """
    start = mismatch(vcpu, fault, begin(vcpu, fault, memory.invalidation.seq))
    if start.ret != RET_PF_CONTINUE:
        return start
    if not fault.slot:
        return kvm_handle_noslot_fault(vcpu, fault, access, memory, start)
    if memory.slot.flags & KVM_MEMSLOT_INVALID != 0:
        return answer(start, deleted_slot(fault.prefetch))
    if memory.slot.id == APIC_ACCESS_PAGE_PRIVATE_MEMSLOT:
        if vcpu.mmu.guest_mode:
            return kvm_handle_noslot_fault(vcpu, fault, access, memory, start)
        if not memory.apicv_active:
            return answer(start, RET_PF_EMULATE)
    if mmu_invalidate_retry_gfn_unsafe(memory.invalidation, start.found.mmu_seq):
        return answer(start, RET_PF_RETRY)
    looked = faultin_pfn(vcpu, fault, memory, start)
    if looked.ret != RET_PF_CONTINUE:
        return looked
    if is_error_pfn(looked.found.pfn):
        return kvm_handle_error_pfn(looked)
    if not looked.found.slot or looked.found.pfn == KVM_PFN_NOSLOT:
        return kvm_handle_noslot_fault(vcpu, fault, access, memory, warned(looked, WARN_NOSLOT))
    return recheck_invalidation(memory, looked)
