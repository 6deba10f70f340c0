# SPDX-License-Identifier: GPL-2.0-only
"""The kernel that the patch was posted against: patches 01-04 of the series applied."""

from __future__ import annotations

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_IMPLICIT_ACCESS
from kvm_pf.state import NO_LOOKUP, WARN_IMPLICIT, Lookups, Vm, gpa_to_gfn


def sanitize(error_code: int) -> tuple[int, int]:
    """Drop bit 48, which only KVM may set, and warn if it was there.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 408969ac1291.
    """
    if error_code & PFERR_IMPLICIT_ACCESS != 0:
        return error_code & ~PFERR_IMPLICIT_ACCESS, WARN_IMPLICIT
    return error_code, 0


def mark_private(vm: Vm, cr2_or_gpa: int, error_code: int) -> tuple[int, Lookups]:
    """Leave the error code alone.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 408969ac1291.
    """
    return error_code, NO_LOOKUP


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say whether the fault is to private memory: the attribute says so, for any VM and any kind of fault.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob 1fab1f2359b5.
    """
    return kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
