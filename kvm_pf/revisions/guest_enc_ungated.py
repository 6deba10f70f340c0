# SPDX-License-Identifier: GPL-2.0-only
"""The other way, first form: borrow AMD's encryption bit for every VM (TDX v19, 013/130)."""

from __future__ import annotations

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_GUEST_ENC_MASK
from kvm_pf.state import KVM_X86_SW_PROTECTED_VM, NO_LOOKUP, Lookups, Vm, gpa_to_gfn


def mark_private(vm: Vm, cr2_or_gpa: int, error_code: int) -> tuple[int, Lookups]:
    """Set the encryption bit if a software-protected VM declared the page private, reserved fault or not.

    Source: mail <c560cdadb7d0dc88b831cf1a5382cf6f166ff022.1708933498.git.isaku.yamahata@intel.com>,
    2024-02-26, kvm_mmu_page_fault().
    """
    lookups = NO_LOOKUP
    if vm.vm_type == KVM_X86_SW_PROTECTED_VM:
        private, lookups = kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
        if private:
            error_code |= PFERR_GUEST_ENC_MASK
    return error_code, lookups


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say whether the fault is to private memory: the encryption bit says so.

    Source: mail <c560cdadb7d0dc88b831cf1a5382cf6f166ff022.1708933498.git.isaku.yamahata@intel.com>,
    2024-02-26, kvm_mmu_do_page_fault().
    """
    return err & PFERR_GUEST_ENC_MASK != 0, NO_LOOKUP


def page_ready_code(error_code: int) -> tuple[int, int]:
    """Choose the code (u64) to hand in when the page is ready: of the fault's own, the encryption bit is kept.

    Source: mail <c560cdadb7d0dc88b831cf1a5382cf6f166ff022.1708933498.git.isaku.yamahata@intel.com>,
    2024-02-26, kvm_arch_setup_async_pf(), kvm_arch_async_page_ready().
    """
    return error_code & PFERR_GUEST_ENC_MASK, 0
