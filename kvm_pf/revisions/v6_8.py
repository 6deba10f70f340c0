# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.8: private memory is new; error codes are cut to 32 bits, and a private fault can be emulated.

What the patch was posted against lacks two patches here, the first and the fourth of its series.
"""

from __future__ import annotations

from kvm_pf.fault import count_handled, is_private, new_fault, page_fault
from kvm_pf.state import EMULTYPE_WRITE_PF_TO_SP, NO_MEMORY_FAULT, Handled, Vcpu

U32_MASK = (1 << 32) - 1


def handler_error_code(error_code: int) -> int:
    """The part of the error code that kvm_mmu_do_page_fault() gets: the low 32 bits.

    Whether the fault is private does not depend on it, for the attribute says so.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), blob 0544700ca50b (v6.8).
    """
    return error_code & U32_MASK


def kvm_mmu_do_page_fault(vcpu: Vcpu, cr2_or_gpa: int, err: int, prefetch: bool) -> Handled:
    """Fill the fault and call the handler; its answer stands, for a private fault as for any other.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault(), blob 0669a8a668ca (v6.8).
    """
    private, lookups = is_private(vcpu.vm, cr2_or_gpa, err)
    fault = new_fault(vcpu, cr2_or_gpa, err, prefetch, private)
    r, write_fault_to_shadow_pgtable = page_fault(vcpu, fault)
    return Handled(
        called=True,
        ret=r,
        fault=fault,
        emulation_type=EMULTYPE_WRITE_PF_TO_SP if write_fault_to_shadow_pgtable else 0,
        lookups=lookups,
        pr_warn=False,
        exit=NO_MEMORY_FAULT,
        stats=count_handled(r, prefetch),
    )
