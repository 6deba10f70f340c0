# SPDX-License-Identifier: GPL-2.0-only
"""The posted series after this patch: the check moves to the callers, private and reserved do not mix."""

from __future__ import annotations

from kvm_pf import state
from kvm_pf.bits import PFERR_PRIVATE_ACCESS, PFERR_SYNTHETIC_MASK
from kvm_pf.entry import TO_FAULT, TO_MMIO
from kvm_pf.exits import PF_LOWER32_MASK, PF_UPPER32_MASK, WARN_NPF_SYNTHETIC, WARN_PF_UPPER32
from kvm_pf.faultin import Faultin, Memory
from kvm_pf.revisions.v6_10 import faultin_pfn as faultin_pfn_6_10
from kvm_pf.revisions.v6_10 import kvm_faultin_pfn as kvm_faultin_pfn_6_10
from kvm_pf.revisions.v6_10 import kvm_handle_noslot_fault as kvm_handle_noslot_fault_6_10
from kvm_pf.state import WARN_PRIVATE_RSVD, Fault, Vcpu

INITIAL_PFN = state.KVM_PFN_ERR_FAULT
INITIAL_HVA = state.KVM_HVA_ERR_BAD


def sanitize(error_code: int) -> tuple[int, int]:
    """Take the error code as it is: #NPF and legacy #PF have checked it.

    Source: mail <20240228024147.41573-8-seanjc@google.com>, kvm_mmu_page_fault().
    """
    return error_code, 0


def reserved_fault(error_code: int) -> tuple[int, int]:
    """Choose the way of a reserved fault: the MMIO path, or the full handler, with a warning, if private.

    Source: mail <20240228024147.41573-9-seanjc@google.com>, kvm_mmu_page_fault().
    """
    if error_code & PFERR_PRIVATE_ACCESS != 0:
        return TO_FAULT, WARN_PRIVATE_RSVD
    return TO_MMIO, 0


def npf_synthetic(error_code: int) -> tuple[int, int]:
    """Drop the bits that only KVM may set, and warn if #NPF brought any.

    Source: mail <20240228024147.41573-8-seanjc@google.com>, npf_interception().
    """
    if error_code & PFERR_SYNTHETIC_MASK != 0:
        return error_code & ~PFERR_SYNTHETIC_MASK, WARN_NPF_SYNTHETIC
    return error_code, 0


def legacy_pf_code(error_code: int) -> tuple[int, int]:
    """Cut the code to the 32 bits that a #PF has, and warn if there were more.

    Source: mail <20240228024147.41573-7-seanjc@google.com>, kvm_handle_page_fault().
    """
    if error_code & PF_UPPER32_MASK != 0:
        return error_code & PF_LOWER32_MASK, WARN_PF_UPPER32
    return error_code, 0


def kvm_handle_noslot_fault(
    vcpu: Vcpu, fault: Fault, access: int, memory: Memory, before: Faultin
) -> Faultin:
    """Handle a fault on a gfn without a slot, as 6.10 does.

    Source: mail <20240228024147.41573-12-seanjc@google.com>, kvm_handle_noslot_fault().
    """
    return kvm_handle_noslot_fault_6_10(vcpu, fault, access, memory, before)


def faultin_pfn(vcpu: Vcpu, fault: Fault, memory: Memory, before: Faultin) -> Faultin:
    """Take the frame, as 6.10 does.

    Source: mail <20240228024147.41573-14-seanjc@google.com>, __kvm_faultin_pfn().
    """
    return faultin_pfn_6_10(vcpu, fault, memory, before)


def kvm_faultin_pfn(vcpu: Vcpu, fault: Fault, access: int, memory: Memory) -> Faultin:
    """Find the frame behind a filled fault, as 6.10 does; the second snapshot made here changes nothing here.

    Source: mails <20240228024147.41573-10-seanjc@google.com> to <20240228024147.41573-17-seanjc@google.com>,
    kvm_faultin_pfn().
    """
    return kvm_faultin_pfn_6_10(vcpu, fault, access, memory)
