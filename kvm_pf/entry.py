# SPDX-License-Identifier: GPL-2.0-only
"""The first half of kvm_mmu_page_fault(): from the error code to the way that the fault takes.

Sanitise, test the root, mark private, split off reserved faults, in that order.  As posted; what other
revisions do differently stands in `kvm_pf.revisions`.
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, PFERR_SYNTHETIC_MASK
from kvm_pf.state import (
    KVM_X86_SW_PROTECTED_VM,
    NO_LOOKUP,
    WARN_BAD_ROOT,
    WARN_SYNTHETIC,
    Lookups,
    Mmu,
    Vm,
    gpa_to_gfn,
)

TO_RETRY = 0  # no valid root: back to the guest, try again
TO_MMIO = 1  # a reserved fault: ask the MMIO path
TO_FAULT = 2  # an ordinary fault: fill a struct kvm_page_fault and handle it
REFUSED = 3  # an error to user space

ROUTES = ("retry", "mmio", "fault", "refused")


class Route(NamedTuple):
    """The way a fault takes, and what was found out on the way to that decision."""

    to: int  # TO_RETRY, TO_MMIO, TO_FAULT, REFUSED
    error_code: int  # u64, sanitised and marked
    warns: int  # WARN_* bits
    lookups: Lookups


def sanitize(error_code: int) -> tuple[int, int]:
    """Drop the bits that only KVM may set, and warn if any was there.

    A CPU that reports one of them is a surprise worth a warning, not worth the guest's life, and KVM cannot
    be relying on a bit it knows nothing about.  Both go, whichever was set, every time.  A caller inside KVM
    that sets bit 49 meets the same fate.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2, kvm_mmu_page_fault().
    """
    if error_code & PFERR_SYNTHETIC_MASK != 0:
        return error_code & ~PFERR_SYNTHETIC_MASK, WARN_SYNTHETIC
    return error_code, 0


def root_is_valid(mmu: Mmu) -> bool:
    """Say whether the vCPU has a page table to fault into at all.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2 (context), kvm_mmu_page_fault().
    """
    return mmu.root_valid


def mark_private(vm: Vm, cr2_or_gpa: int, error_code: int) -> tuple[int, Lookups]:
    """Set bit 49 if a software-protected VM declared the page private; return the code and the look-ups made.

    Such a VM has no hardware to say whether an access was private: the attribute is the truth, so the look-up
    is the whole check.  A reserved fault skips it, because emulated MMIO is always shared.  The address of an
    L2 guest's fault, if L1 has nested paging of its own, is an L2 GPA, and is looked up all the same.  (Never a
    virtual address: such a VM needs two-dimensional paging.)

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2, kvm_mmu_page_fault(); Linux
    `arch/x86/kvm/x86.c`, commit `a1176ef5c92a` ("KVM: x86/mmu: Restrict KVM_SW_PROTECTED_VM to the TDP MMU") (v6.8).
    """
    lookups = NO_LOOKUP
    if vm.cfg_sw_protected and error_code & PFERR_RSVD_MASK == 0 and vm.vm_type == KVM_X86_SW_PROTECTED_VM:
        private, lookups = kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
        if private:
            error_code |= PFERR_PRIVATE_ACCESS
    return error_code, lookups


def reserved_fault(error_code: int) -> tuple[int, int]:
    """Choose the way of a reserved fault: always the MMIO path.  Return the way and the warnings.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2 (context), kvm_mmu_page_fault().
    """
    return TO_MMIO, 0


def route(mmu: Mmu, vm: Vm, cr2_or_gpa: int, error_code: int) -> Route:
    """Decide the way of a fault from its address (u64) and error code (u64).

    The order is the kernel's: a fault without a root is sent back before any look-up is made, and after the
    sanitiser has warned.

    Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 2, kvm_mmu_page_fault().
    """
    error_code, warns = sanitize(error_code)
    if not root_is_valid(mmu):
        return Route(to=TO_RETRY, error_code=error_code, warns=warns | WARN_BAD_ROOT, lookups=NO_LOOKUP)
    error_code, lookups = mark_private(vm, cr2_or_gpa, error_code)
    if error_code & PFERR_RSVD_MASK == 0:
        return Route(to=TO_FAULT, error_code=error_code, warns=warns, lookups=lookups)
    to, refusal = reserved_fault(error_code)
    return Route(to=to, error_code=error_code, warns=warns | refusal, lookups=lookups)
