# SPDX-License-Identifier: GPL-2.0-only
"""The other way, second form: borrow AMD's encryption bit, for VMs with private memory only."""

from __future__ import annotations

from kvm_pf.bits import PFERR_GUEST_ENC_MASK
from kvm_pf.state import (
    KVM_X86_SNP_VM,
    KVM_X86_SW_PROTECTED_VM,
    KVM_X86_TDX_VM,
    NO_LOOKUP,
    Lookups,
    Vm,
)


def kvm_arch_has_private_mem(vm: Vm) -> bool:
    """Say whether the VM's kind uses private memory, as the later kernels' has_private_mem does.

    Source: mail <20240227232100.478238-16-pbonzini@redhat.com>, 2024-02-27.
    """
    return vm.cfg_private_mem and (
        vm.vm_type == KVM_X86_SW_PROTECTED_VM or vm.vm_type == KVM_X86_SNP_VM or vm.vm_type == KVM_X86_TDX_VM
    )


def is_private(vm: Vm, cr2_or_gpa: int, err: int) -> tuple[bool, Lookups]:
    """Say whether the fault is to private memory: the encryption bit says so, if the VM has private memory.

    Source: mail <20240227232100.478238-16-pbonzini@redhat.com>, 2024-02-27, kvm_mmu_do_page_fault().
    """
    return kvm_arch_has_private_mem(vm) and err & PFERR_GUEST_ENC_MASK != 0, NO_LOOKUP


def page_ready_code(error_code: int) -> tuple[int, int]:
    """Choose the code (u64) to hand in when the page is ready: 0.

    Another patch of the proposal's series hands on the fault's own code; it is not part of this revision.

    Source: mail <20240227232100.478238-16-pbonzini@redhat.com>, 2024-02-27, which leaves this as it was.
    """
    return 0, 0
