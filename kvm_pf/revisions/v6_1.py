# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.1 (Debian 6.1.176): before private memory; error codes cut to 32 bits."""

from __future__ import annotations

from kvm_pf.state import NO_LOOKUP, Lookups, Vm

U32_MASK = (1 << 32) - 1


def passed_on(error_code: int) -> int:
    """The part of the error code that kvm_mmu_do_page_fault() gets: the low 32 bits.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault() (v6.1).
    """
    return error_code & U32_MASK


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say no: this kernel knows no private memory.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault() (v6.1).
    """
    return False, NO_LOOKUP
