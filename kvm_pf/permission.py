# SPDX-License-Identifier: GPL-2.0-only
"""Where bit 48 is read: the SMAP part of permission_fault().

SMAP keeps the guest's kernel from touching user pages, unless it says (RFLAGS.AC) that it means to.  Some
accesses it never asked for: the CPU reads a descriptor table, a task segment.  When KVM's emulator makes such
an access in the CPU's stead, it sets IMPLICIT_ACCESS, and then AC does not count.
"""

from __future__ import annotations

from kvm_pf.bits import (
    PFERR_FETCH_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PK_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
)

PFEC_MASK = (1 << 32) - 1
"""permission_fault() keeps 32 bits of the access word, after it has looked at IMPLICIT_ACCESS."""

USER_CPL = 3


def emulated_access(access: int, cpl: int, implicit: bool) -> int:
    """Make the access word (u64) of an emulated access: an implicit one, or one by the guest at level `cpl`.

    Source: Linux `arch/x86/kvm/x86.c`, emulator_read_std(), emulator_write_std() (v6.8).
    """
    if implicit:
        return access | PFERR_IMPLICIT_ACCESS
    return access | (PFERR_USER_MASK if cpl == USER_CPL else 0)


def permission_pfec(access: int) -> tuple[int, bool]:
    """Cut an access word (u64) to the bits that are looked up; say whether one was there that must not be.

    Source: Linux `arch/x86/kvm/mmu.h`, permission_fault() (v6.8).
    """
    pfec = access & PFEC_MASK
    return pfec, pfec & (PFERR_PK_MASK | PFERR_RSVD_MASK) != 0


def smap_applies(access: int, cpl: int, rflags_ac: bool, cr4_smap: bool, page_user: bool) -> bool:
    """Say whether SMAP forbids an access: the kernel's, for data, to a user page, without leave.

    `access` (u64) has IMPLICIT_ACCESS or not; if not, `cpl` (0 to 3) says whose the access is.  An implicit
    access is the kernel's at any level, and AC gives no leave for it.  A word that has the user bit already
    is a user access, implicit or not.

    Source: Linux `arch/x86/kvm/mmu.h`, permission_fault(), `arch/x86/kvm/mmu/mmu.c`,
    update_permission_bitmask() (v6.8); commit `4f4aa80e3b88` ("KVM: X86: Handle implicit supervisor access
    with SMAP") (v5.18).
    """
    implicit = access & PFERR_IMPLICIT_ACCESS != 0
    pfec, _ = permission_pfec(emulated_access(access, cpl, implicit))
    leave = rflags_ac != 0 and not implicit
    subject = pfec & (PFERR_USER_MASK | PFERR_FETCH_MASK | PFERR_RSVD_MASK) == 0
    return cr4_smap != 0 and page_user != 0 and subject and not leave
