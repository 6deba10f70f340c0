# SPDX-License-Identifier: GPL-2.0-only
"""The patch alone as merged: commit `b3d5dc629c32` (first in v6.10-rc1)."""

from __future__ import annotations

from kvm_pf.bits import PFERR_SYNTHETIC_MASK
from kvm_pf.exits import PF_LOWER32_MASK, PF_UPPER32_MASK, WARN_NPF_SYNTHETIC, WARN_PF_UPPER32


def sanitize(error_code: int) -> tuple[int, int]:
    """Take the error code as it is: #NPF and legacy #PF have checked it.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `b3d5dc629c32` ("KVM: x86/mmu: Use synthetic page fault
    error code to indicate private faults") (v6.10).
    """
    return error_code, 0


def warns_of_private_emulation() -> bool:
    """Say whether an emulation request on private memory is also printed to the log: yes, rate limited.

    Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, commit `b3d5dc629c32` (v6.10), blob dfd9ff383663.
    """
    return True


def npf_synthetic(error_code: int) -> tuple[int, int]:
    """Drop the bits that only KVM may set, and warn if #NPF brought any.

    Source: Linux `arch/x86/kvm/svm/svm.c`, commits `dee281e4b435` and `b3d5dc629c32` (v6.10),
    npf_interception().
    """
    if error_code & PFERR_SYNTHETIC_MASK != 0:
        return error_code & ~PFERR_SYNTHETIC_MASK, WARN_NPF_SYNTHETIC
    return error_code, 0


def legacy_pf_code(error_code: int) -> tuple[int, int]:
    """Cut the code to the 32 bits that a #PF has, and warn if there were more.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, commit `7bdbb820fee4` (v6.10), kvm_handle_page_fault().
    """
    if error_code & PF_UPPER32_MASK != 0:
        return error_code & PF_LOWER32_MASK, WARN_PF_UPPER32
    return error_code, 0
