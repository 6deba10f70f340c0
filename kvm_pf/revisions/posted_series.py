# SPDX-License-Identifier: GPL-2.0-only
"""The posted series after this patch: the check moves to the callers, private and reserved do not mix.

What was merged as it was posted is taken from `merged_patch` and `v6_10`, each with the mail that it came in.
"""

from __future__ import annotations

from kvm_pf import state
from kvm_pf.bits import PFERR_PRIVATE_ACCESS
from kvm_pf.entry import TO_FAULT, TO_MMIO
from kvm_pf.revisions import merged_patch, v6_10
from kvm_pf.state import WARN_PRIVATE_RSVD

INITIAL_PFN = state.KVM_PFN_ERR_FAULT
INITIAL_HVA = state.KVM_HVA_ERR_BAD

# Source: mail <20240228024147.41573-8-seanjc@google.com>, kvm_mmu_page_fault(), npf_interception().
sanitize = merged_patch.sanitize
npf_synthetic = merged_patch.npf_synthetic

# Source: mail <20240228024147.41573-7-seanjc@google.com>, kvm_handle_page_fault().
legacy_pf_code = merged_patch.legacy_pf_code

# Source: mail <20240228024147.41573-12-seanjc@google.com>, kvm_handle_noslot_fault().
kvm_handle_noslot_fault = v6_10.kvm_handle_noslot_fault

# Source: mail <20240228024147.41573-14-seanjc@google.com>, __kvm_faultin_pfn().
faultin_pfn = v6_10.faultin_pfn

# The second snapshot of the invalidations that the mails take changes nothing here.
# Source: mails <20240228024147.41573-10-seanjc@google.com> to <20240228024147.41573-17-seanjc@google.com>,
# kvm_faultin_pfn().
kvm_faultin_pfn = v6_10.kvm_faultin_pfn


def reserved_fault(error_code: int) -> tuple[int, int]:
    """Choose the way of a reserved fault: the MMIO path, or the full handler, with a warning, if private.

    Source: mail <20240228024147.41573-9-seanjc@google.com>, kvm_mmu_page_fault().
    """
    if error_code & PFERR_PRIVATE_ACCESS != 0:
        return TO_FAULT, WARN_PRIVATE_RSVD
    return TO_MMIO, 0
