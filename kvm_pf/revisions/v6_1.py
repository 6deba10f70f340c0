# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.1 (Debian 6.1.176): before private memory; error codes cut to 32 bits."""

from __future__ import annotations

from kvm_pf.fault import new_fault as new_fault_posted
from kvm_pf.faultin import (
    Faultin,
    Memory,
    begin,
    faultin_pfn,
    is_error_pfn,
    kvm_handle_error_pfn,
    kvm_handle_noslot_fault,
    recheck_invalidation,
)
from kvm_pf.state import NO_LOOKUP, Fault, Lookups, Mmu, Vcpu, Vm

U32_MASK = (1 << 32) - 1


def sanitize(error_code: int) -> tuple[int, int]:
    """Take the error code as it is: nobody looks for bit 48 yet.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault() (v6.1); the look came with v6.6.
    """
    return error_code, 0


def handler_error_code(error_code: int) -> int:
    """The part of the error code that kvm_mmu_do_page_fault() gets: the low 32 bits.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault() (v6.1).
    """
    return error_code & U32_MASK


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say no: this kernel knows no private memory.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault() (v6.1).
    """
    return False, NO_LOOKUP


def new_fault(vcpu: Vcpu, cr2_or_gpa: int, err: int, prefetch: bool, private: bool) -> Fault:
    """Fill a struct kvm_page_fault; gfn and slot are left for the handler, whatever the MMU.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault() (v6.1).
    """
    mmu = Mmu(
        root_valid=vcpu.mmu.root_valid,
        direct=False,
        is_tdp=vcpu.mmu.is_tdp,
        guest_mode=vcpu.mmu.guest_mode,
        nested=vcpu.mmu.nested,
    )
    unknown = Vcpu(
        mmu=mmu,
        vm=vcpu.vm,
        mmio_format=vcpu.mmio_format,
        walk=vcpu.walk,
        cache=vcpu.cache,
        environment=vcpu.environment,
    )
    return new_fault_posted(unknown, cr2_or_gpa, err, prefetch, private)


def kvm_faultin_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory) -> Faultin:
    """Find the frame behind a filled fault; errors and missing slots are left to the caller.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn() (v6.1).
    """
    return faultin_pfn(vcpu, fault, memory, begin(vcpu, fault, memory.invalidation.seq))


def handle_abnormal_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin) -> Faultin:
    """Look at what kvm_faultin_pfn() left to its caller: errors, missing slots, invalidations.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, handle_abnormal_pfn(), is_page_fault_stale() (v6.1).
    """
    if is_error_pfn(before.found.pfn):
        return kvm_handle_error_pfn(before)
    if not before.found.slot:
        return kvm_handle_noslot_fault(vcpu, fault, access, memory, before)
    return recheck_invalidation(memory, before)
