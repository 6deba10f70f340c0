# SPDX-License-Identifier: GPL-2.0-only
"""From a filled struct kvm_page_fault to a page frame: kvm_faultin_pfn(), what it calls, and what comes before it.

Here is_private is read: the guest's idea of the page is held against user space's.  If they agree, a private
page comes from guest_memfd, a shared one from the host's page tables; if not, user space is told and may
convert the page.  As posted; from 6.10 the same questions are asked in another order, and two more steps read
is_private: kvm_handle_noslot_fault() (6.10) and page_fault_can_be_fast() (6.11).
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import U64_MASK
from kvm_pf.fault import INITIAL_HVA, kvm_mmu_prepare_memory_fault_exit
from kvm_pf.mmio import vcpu_cache_mmio_info
from kvm_pf.state import (
    EFAULT,
    EINTR,
    KVM_HVA_ERR_BAD,
    KVM_MAX_HUGEPAGE_LEVEL,
    KVM_PFN_ERR_FAULT,
    NO_LOOKUP,
    NO_MEMORY_FAULT,
    PAGE_SHIFT,
    PAGE_SIZE,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    RET_PF_CONTINUE,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    WARN_NAMES,
    Fault,
    Lookups,
    MemoryFault,
    MmioCache,
    Vcpu,
    Vm,
)

# Frame numbers that are none.  Source: Linux `include/linux/kvm_host.h`, KVM_PFN_* (v6.8).
KVM_PFN_ERR_MASK = KVM_PFN_ERR_FAULT
KVM_PFN_ERR_HWPOISON = KVM_PFN_ERR_MASK + 1
KVM_PFN_ERR_RO_FAULT = KVM_PFN_ERR_MASK + 2
KVM_PFN_ERR_SIGPENDING = KVM_PFN_ERR_MASK + 3
KVM_PFN_NOSLOT = 1 << 63
KVM_HVA_ERR_RO_BAD = KVM_HVA_ERR_BAD + PAGE_SIZE

# Slots.  Source: Linux `include/uapi/linux/kvm.h`, `include/linux/kvm_host.h`,
# `arch/x86/include/asm/kvm_host.h` (v6.8).
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2
KVM_MEMSLOT_INVALID = 1 << 16
KVM_MEMSLOT_GMEM_ONLY = 1 << 17  # in 7.3, of the revisions here
KVM_USER_MEM_SLOTS = 0x7FFF - 3  # the last three are KVM's own
TSS_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS
APIC_ACCESS_PAGE_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS + 1
IDENTITY_PAGETABLE_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS + 2

ACC_ALL = 7
"""All access rights that a guest's page tables can give.  Source: Linux `arch/x86/kvm/mmu/spte.h` (v6.8)."""

# How many pages a large page has, as a power of two.
ORDER_2M = 9
ORDER_1G = 18

FAULT_HAS_PAGE = 0
"""Whether struct kvm_page_fault remembers the page itself (1) or only its frame number (0)."""

WARN_NOSLOT = 1 << 8
FAULTIN_WARN_NAMES = (*WARN_NAMES, "noslot")
"""Names of the WARN_* bits, lowest first: a fault's and this module's own."""

# What the host's page tables can answer.
GUP_OK = 0
GUP_FAULT = 1
GUP_SIGPENDING = 2
GUP_HWPOISON = 3
GUP_RO_FAULT = 4
GUP_NOSLOT = 5

# How a host look-up is made (in 7.3, of the revisions here), three bits for the first and three for the second.
GUP_WRITE = 1 << 0
GUP_NOWAIT = 1 << 1
GUP_INTERRUPTIBLE = 1 << 2
GUP_SECOND_SHIFT = 3


class Slot(NamedTuple):
    """The memory slot of the fault's gfn, if it has one."""

    id: int
    flags: int  # KVM_MEM_*, KVM_MEMSLOT_*


class Invalidation(NamedTuple):
    """The host taking pages away, or user space changing attributes, at one moment."""

    covers_gfn: bool  # one is in progress, and the fault's gfn is in its range
    seq: int  # kvm->mmu_invalidate_seq: how many have ended, unsigned long


class Memory(NamedTuple):
    """The guest's memory around a fault: its slot, and what functions outside the fault path answer."""

    slot: Slot
    maxphyaddr: int  # width of the host's physical addresses in bits; 52 without nested paging
    invalidation: Invalidation  # when the fault-in begins
    late_invalidation: Invalidation  # when the page has been looked up
    apicv_active: bool  # kvm_apicv_activated()
    gmem_ret: int  # kvm_gmem_get_pfn(): 0 or a negative errno
    gmem_pfn: int  # the frame that guest_memfd has for this gfn
    gmem_order: int  # the size of the page it is part of, log2 of 4K pages
    vendor_max_level: int  # private_max_mapping_level(); 0: no opinion (6.12 only)
    gup_result: int  # GUP_*
    gup_async: bool  # the host must read the page from disk first
    host_pfn: int  # the frame that the host's page tables have for this gfn
    hva: int  # the gfn's address in user space, u64
    can_async_pf: bool  # kvm_can_do_async_pf(): the guest can do something else meanwhile
    apf_repeat: bool  # the guest faulted here before, and the page is still being read
    apf_setup_ok: bool  # kvm_arch_setup_async_pf()


class Found(NamedTuple):
    """The part of struct kvm_page_fault that the fault-in fills."""

    slot: bool
    mmu_seq: int
    pfn: int
    hva: int
    refcounted_page: bool
    map_writable: bool
    max_level: int


class Calls(NamedTuple):
    """Calls of functions outside the fault path."""

    gmem: int = 0  # guest_memfd look-ups
    gup: int = 0  # host look-ups
    gup_flags: int = 0  # how they were made
    apf_setup: int = 0  # asynchronous page faults begun
    apf_halt: int = 0  # requests to halt the vCPU until the page is there
    released: int = 0  # frames found and given back
    signal_exit: int = 0  # exits to user space because of a signal
    hwpoison_signal: int = 0  # SIGBUS to user space


NO_CALLS = Calls()
GMEM_CALL = Calls(gmem=1)
GUP_CALL = Calls(gup=1)
APF_SETUP_CALL = Calls(apf_setup=1)
APF_HALT_CALL = Calls(apf_halt=1)
RELEASE_CALL = Calls(released=1)
SIGNAL_EXIT_CALL = Calls(signal_exit=1)
HWPOISON_SIGNAL_CALL = Calls(hwpoison_signal=1)


class Faultin(NamedTuple):
    """Everything that kvm_faultin_pfn() returned, called and changed."""

    ret: int  # RET_PF_CONTINUE: go on and map; another RET_PF_*: done; negative: error to user space
    exit: MemoryFault
    found: Found
    calls: Calls
    lookups: Lookups  # of memory attributes
    cache: MmioCache
    warns: int  # WARN_* bits
    vm_bugged: bool


def fast_path_compares(vm: Vm, fault: Fault) -> tuple[bool, Lookups]:
    """Say whether the fast path refuses a fault whose idea of the page is not user space's: it does not ask.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, page_fault_can_be_fast() (v6.8).
    """
    return False, NO_LOOKUP


def page_fault_can_be_fast(vm: Vm, fault: Fault, accessed_dirty: bool) -> tuple[bool, Lookups]:
    """Say whether fast_page_fault() may mend an entry without a lock, and count the look-ups of the attribute.

    `accessed_dirty`: KVM's entries have accessed and dirty bits.  Such a fault is never held against the
    attributes by kvm_faultin_pfn(), for it does not get there.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, page_fault_can_be_fast() (v6.8).
    """
    if fault.rsvd:
        return False, NO_LOOKUP
    refused, lookups = fast_path_compares(vm, fault)
    if refused:
        return False, lookups
    if not fault.present:
        return not accessed_dirty, lookups
    return fault.write, lookups


def walked_is_private(vm: Vm, fault: Fault) -> tuple[bool, Lookups]:
    """Say whether a fault is to private memory once the guest's page tables were walked: as it was said before.

    Only the walk finds the page, `fault.gfn`, which `vm` describes.  For a guest of the guest (L2) with a nested
    page table of its own, the look-up was made with L2's address, and nobody asks again.

    Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(page_fault) (v6.8).
    """
    return fault.is_private, NO_LOOKUP


def begin(vcpu: Vcpu, fault: Fault, mmu_seq: int) -> Faultin:
    """Start with what the fault brings, and with the invalidation count against which it will be held.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    found = Found(
        slot=fault.slot,
        mmu_seq=mmu_seq,
        pfn=fault.pfn,
        hva=fault.hva,
        refcounted_page=fault.refcounted_page,
        map_writable=fault.map_writable,
        max_level=fault.max_level,
    )
    return Faultin(
        ret=RET_PF_CONTINUE,
        exit=NO_MEMORY_FAULT,
        found=found,
        calls=NO_CALLS,
        lookups=NO_LOOKUP,
        cache=vcpu.cache,
        warns=0,
        vm_bugged=False,
    )


def with_result(before: Faultin, ret: int, found: Found, calls: Calls) -> Faultin:
    """Go on from `before`: with a result, with what was found, and with more calls made."""
    return Faultin(
        ret=ret,
        exit=before.exit,
        found=found,
        calls=add_calls(before.calls, calls),
        lookups=before.lookups,
        cache=before.cache,
        warns=before.warns,
        vm_bugged=before.vm_bugged,
    )


def add_calls(a: Calls, b: Calls) -> Calls:
    """Add up calls."""
    return Calls(
        gmem=a.gmem + b.gmem,
        gup=a.gup + b.gup,
        gup_flags=a.gup_flags | b.gup_flags,
        apf_setup=a.apf_setup + b.apf_setup,
        apf_halt=a.apf_halt + b.apf_halt,
        released=a.released + b.released,
        signal_exit=a.signal_exit + b.signal_exit,
        hwpoison_signal=a.hwpoison_signal + b.hwpoison_signal,
    )


def answer(before: Faultin, ret: int) -> Faultin:
    """Go on from `before` with nothing but a result."""
    return with_result(before, ret, before.found, NO_CALLS)


def memory_fault(before: Faultin, fault: Fault, ret: int) -> Faultin:
    """Prepare a memory-fault exit and return the error that goes with it.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_prepare_memory_fault_exit(), blob 7807bdcd87e8.
    """
    exit_ = kvm_mmu_prepare_memory_fault_exit(fault.gfn, fault.is_private)
    return Faultin(
        ret=ret,
        exit=exit_,
        found=before.found,
        calls=before.calls,
        lookups=before.lookups,
        cache=before.cache,
        warns=before.warns,
        vm_bugged=before.vm_bugged,
    )


def warned(before: Faultin, warn: int) -> Faultin:
    """Go on from `before` with one more warning."""
    return Faultin(
        ret=before.ret,
        exit=before.exit,
        found=before.found,
        calls=before.calls,
        lookups=before.lookups,
        cache=before.cache,
        warns=before.warns | warn,
        vm_bugged=before.vm_bugged,
    )


def mismatch(vcpu: Vcpu, fault: Fault, before: Faultin) -> Faultin:
    """Refuse a fault whose idea of the page is not user space's: it may convert the page and try again.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    private, lookups = kvm_mem_is_private(vcpu.vm, fault.gfn)
    looked_up = Faultin(
        ret=before.ret,
        exit=before.exit,
        found=before.found,
        calls=before.calls,
        lookups=lookups,
        cache=before.cache,
        warns=before.warns,
        vm_bugged=before.vm_bugged,
    )
    if fault.is_private != private:
        return memory_fault(looked_up, fault, -EFAULT)
    return looked_up


def mmu_invalidate_retry_gfn_unsafe(invalidation: Invalidation, mmu_seq: int) -> bool:
    """Say whether the fault's page is being taken away, or anything was since the snapshot.

    Source: Linux `include/linux/kvm_host.h`, mmu_invalidate_retry_gfn_unsafe() (v6.9).
    """
    return invalidation.covers_gfn or invalidation.seq != mmu_seq


def kvm_is_visible_memslot(slot: Slot) -> bool:
    """Say whether user space made the slot, and it is not being deleted.

    Source: Linux `include/linux/kvm_host.h`, kvm_is_visible_memslot() (v6.8).
    """
    return slot.id < KVM_USER_MEM_SLOTS and slot.flags & KVM_MEMSLOT_INVALID == 0


def deleted_slot(prefetch: bool) -> int:
    """Answer a fault on a slot that is being deleted or moved: try again.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    return RET_PF_RETRY


def kvm_memslot_flush_zap_all(vm: Vm, quirk: bool) -> bool:
    """Say whether a slot that is deleted or moved takes all of the VM's entries with it, not its own alone: always.

    `quirk`: KVM_X86_QUIRK_SLOT_ZAP_ALL is on, as it is unless user space turns it off.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_flush_shadow_memslot() (v6.8).
    """
    return True


def is_error_pfn(pfn: int) -> bool:
    """Source: Linux `include/linux/kvm_host.h`, is_error_pfn() (v6.8)."""
    return pfn & KVM_PFN_ERR_MASK != 0


def kvm_max_level_for_order(order: int) -> int:
    """Return the largest mapping level for a page of 2^`order` small pages.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_max_level_for_order(), blob 7807bdcd87e8.
    """
    if order >= ORDER_1G:
        return KVM_MAX_HUGEPAGE_LEVEL
    if order >= ORDER_2M:
        return PG_LEVEL_2M
    return PG_LEVEL_4K


def kvm_max_private_mapping_level(memory: Memory, max_level: int) -> int:
    """Return the level for a page of guest_memfd: the smaller of the page's and the fault's.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn_private(), blob 7807bdcd87e8.
    """
    return min(kvm_max_level_for_order(memory.gmem_order), max_level)


def from_gmem(fault: Fault, slot: Slot) -> bool:
    """Say whether the page comes from guest_memfd: if the fault is private.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    return fault.is_private


def kvm_faultin_pfn_private(fault: Fault, memory: Memory, before: Faultin) -> Faultin:
    """Take the frame from guest_memfd.  Every failure is also a memory-fault exit.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn_private(), blob 7807bdcd87e8.
    """
    if not before.found.slot or memory.slot.flags & KVM_MEM_GUEST_MEMFD == 0:
        return memory_fault(before, fault, -EFAULT)
    asked = with_result(before, before.ret, before.found, GMEM_CALL)
    if memory.gmem_ret != 0:
        return memory_fault(asked, fault, memory.gmem_ret)
    found = Found(
        slot=True,
        mmu_seq=before.found.mmu_seq,
        pfn=memory.gmem_pfn,
        hva=before.found.hva,
        refcounted_page=FAULT_HAS_PAGE != 0,
        map_writable=memory.slot.flags & KVM_MEM_READONLY == 0,
        max_level=kvm_max_private_mapping_level(memory, fault.max_level),
    )
    return with_result(asked, RET_PF_CONTINUE, found, NO_CALLS)


def outside_answers_pfn(gup_result: int, host_pfn: int) -> int:
    """Answer for the host's page tables: with a frame number or an error."""
    if gup_result == GUP_FAULT:
        return KVM_PFN_ERR_FAULT
    if gup_result == GUP_SIGPENDING:
        return KVM_PFN_ERR_SIGPENDING
    if gup_result == GUP_HWPOISON:
        return KVM_PFN_ERR_HWPOISON
    if gup_result == GUP_RO_FAULT:
        return KVM_PFN_ERR_RO_FAULT
    if gup_result == GUP_NOSLOT:
        return KVM_PFN_NOSLOT
    return host_pfn


def outside_answers_lookup(memory: Memory, found: Found, may_wait: bool) -> tuple[Found, bool]:
    """Answer for __gfn_to_pfn_memslot(): pfn, hva, map_writable, and whether the page must be read first.

    `memory` says what the host has.  An error leaves map_writable alone, unless the slot forbids writing.

    Source: Linux `virt/kvm/kvm_main.c`, __gfn_to_pfn_memslot(), hva_to_pfn() (v6.8).
    """
    pfn = outside_answers_pfn(memory.gup_result, memory.host_pfn)
    hva = memory.hva
    writable = found.map_writable and memory.slot.flags & KVM_MEM_READONLY == 0
    needs_io = False
    if not found.slot or memory.slot.flags & KVM_MEMSLOT_INVALID != 0:
        pfn = KVM_PFN_NOSLOT
        hva = KVM_HVA_ERR_BAD
        writable = False
    elif memory.gup_result == GUP_RO_FAULT:
        hva = KVM_HVA_ERR_RO_BAD
        writable = False
    elif memory.gup_async and not may_wait:
        pfn = KVM_PFN_ERR_FAULT
        needs_io = True
    elif memory.gup_result == GUP_OK:
        writable = memory.slot.flags & KVM_MEM_READONLY == 0
    return Found(
        slot=found.slot,
        mmu_seq=found.mmu_seq,
        pfn=pfn,
        hva=hva & U64_MASK,
        refcounted_page=found.refcounted_page,
        map_writable=writable,
        max_level=found.max_level,
    ), needs_io


def gfn_to_pfn(fault: Fault, memory: Memory, before: Faultin, may_wait: bool) -> tuple[Faultin, bool]:
    """Look the frame up in the host's page tables; say whether it must be read first, which needs a wait.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    found, needs_io = outside_answers_lookup(memory, before.found, may_wait)
    return with_result(before, RET_PF_CONTINUE, found, GUP_CALL), needs_io


def faultin_shared(fault: Fault, memory: Memory, before: Faultin) -> Faultin:
    """Take the frame from the host: without waiting, or while the guest does something else, or after a wait.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    looked, needs_io = gfn_to_pfn(fault, memory, before, False)
    if not needs_io:
        return looked
    if not fault.prefetch and memory.can_async_pf:
        if memory.apf_repeat:
            return with_result(looked, RET_PF_RETRY, looked.found, APF_HALT_CALL)
        looked = with_result(looked, RET_PF_RETRY, looked.found, APF_SETUP_CALL)
        if memory.apf_setup_ok:
            return looked
    looked, needs_io = gfn_to_pfn(fault, memory, looked, True)
    return looked


def no_slot(found: Found) -> Found:
    """Forget the slot: nothing is behind this gfn but MMIO."""
    return Found(
        slot=False,
        mmu_seq=found.mmu_seq,
        pfn=KVM_PFN_NOSLOT,
        hva=INITIAL_HVA,
        refcounted_page=found.refcounted_page,
        map_writable=False,
        max_level=found.max_level,
    )


def faultin_pfn(vcpu: Vcpu, fault: Fault, memory: Memory, before: Faultin) -> Faultin:
    """Look at the slot, then compare private and shared, then take the frame: __kvm_faultin_pfn().

    KVM's own slots do not exist for an L2 guest; a fault of L2 there, like one of L2 on a gfn without a slot,
    escapes the comparison.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    slot = memory.slot
    if fault.slot and slot.flags & KVM_MEMSLOT_INVALID != 0:
        return answer(before, deleted_slot(fault.prefetch))
    if not (fault.slot and kvm_is_visible_memslot(slot)):
        if vcpu.mmu.guest_mode:
            return with_result(before, RET_PF_CONTINUE, no_slot(before.found), NO_CALLS)
        if fault.slot and slot.id == APIC_ACCESS_PAGE_PRIVATE_MEMSLOT and not memory.apicv_active:
            return answer(before, RET_PF_EMULATE)
    compared = mismatch(vcpu, fault, before)
    if compared.ret != RET_PF_CONTINUE:
        return compared
    if from_gmem(fault, slot):
        return kvm_faultin_pfn_private(fault, memory, compared)
    return faultin_shared(fault, memory, compared)


def kvm_handle_error_pfn(before: Faultin) -> Faultin:
    """Turn an error in place of a frame into a result.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_error_pfn(), blob 7807bdcd87e8.
    """
    if before.found.pfn == KVM_PFN_ERR_SIGPENDING:
        return with_result(before, -EINTR, before.found, SIGNAL_EXIT_CALL)
    if before.found.pfn == KVM_PFN_ERR_RO_FAULT:
        return answer(before, RET_PF_EMULATE)
    if before.found.pfn == KVM_PFN_ERR_HWPOISON:
        return with_result(before, RET_PF_RETRY, before.found, HWPOISON_SIGNAL_CALL)
    return answer(before, -EFAULT)


def kvm_mmu_max_gfn(maxphyaddr: int) -> int:
    """Return the highest gfn that an MMIO SPTE can hold.

    Source: Linux `arch/x86/kvm/mmu.h`, kvm_mmu_max_gfn() (v6.8).
    """
    return (1 << maxphyaddr - PAGE_SHIFT) - 1


def as_mmio(vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin, found: Found) -> Faultin:
    """Remember the gfn as MMIO; emulate at once if no MMIO SPTE can be made.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_noslot_fault(), blob 7807bdcd87e8.
    """
    gva = 0 if fault.is_tdp else fault.addr
    rights = access & vcpu.mmio_format.access_mask
    cache = vcpu_cache_mmio_info(vcpu.cache, vcpu.vm.gen, vcpu.mmu.nested, gva, fault.gfn, rights)
    ret = RET_PF_CONTINUE
    if not vcpu.mmio_format.caching or fault.gfn & ~kvm_mmu_max_gfn(memory.maxphyaddr) != 0:
        ret = RET_PF_EMULATE
    return Faultin(
        ret=ret,
        exit=before.exit,
        found=found,
        calls=before.calls,
        lookups=before.lookups,
        cache=cache,
        warns=before.warns,
        vm_bugged=before.vm_bugged,
    )


def kvm_handle_noslot_fault(
    vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin
) -> Faultin:
    """Handle a fault on a gfn without a slot: it is MMIO, private or not.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_noslot_fault(), blob 7807bdcd87e8.
    """
    return as_mmio(vcpu, fault, access, memory, before, before.found)


def recheck_invalidation(memory: Memory, before: Faultin) -> Faultin:
    """Give the frame back if the page was taken away during the look-up.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    if mmu_invalidate_retry_gfn_unsafe(memory.late_invalidation, before.found.mmu_seq):
        return with_result(before, RET_PF_RETRY, before.found, RELEASE_CALL)
    return before


def kvm_faultin_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory) -> Faultin:
    """Find the frame behind a filled fault.  `access`: what the guest's own page tables allow (ACC_* bits).

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn(), blob 7807bdcd87e8.
    """
    start = begin(vcpu, fault, memory.invalidation.seq)
    if fault.slot and mmu_invalidate_retry_gfn_unsafe(memory.invalidation, start.found.mmu_seq):
        return answer(start, RET_PF_RETRY)
    looked = faultin_pfn(vcpu, fault, memory, start)
    if looked.ret != RET_PF_CONTINUE:
        return looked
    if is_error_pfn(looked.found.pfn):
        return kvm_handle_error_pfn(looked)
    if not looked.found.slot:
        return kvm_handle_noslot_fault(vcpu, fault, access, memory, looked)
    return recheck_invalidation(memory, looked)


def handle_abnormal_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin) -> Faultin:
    """Look at what kvm_faultin_pfn() left to its caller: nothing.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, direct_page_fault() (v6.8).
    """
    return before
