# SPDX-License-Identifier: GPL-2.0-only
"""Page-table entries: which are present, which the CPU refuses, and how those look that map a page."""

from __future__ import annotations

from kvm_pf.state import RET_PF_FIXED, MmioFormat, select

SPTE_MMU_PRESENT_MASK = 1 << 11

# Reserved bits of an EPT entry besides the address bits, by level; a large page (bit 7) has others.
# Source: Linux `arch/x86/kvm/mmu/mmu.c`, __reset_rsvds_bits_mask_ept() (v6.8).
PT_PAGE_SIZE_SHIFT = 7
EPT_RSVD_TABLE = 0xF8  # bits 7:3, levels 5 and 4
EPT_RSVD_SMALL = 0x78  # bits 6:3, an entry of level 3 or 2 that points to a table
EPT_RSVD_1G = 0x3FFFF000  # bits 29:12
EPT_RSVD_2M = 0x1FF000  # bits 20:12
EPT_MT_XWR_MASK = 0x3F
EPT_BAD_MEMTYPE = 0xFF << 2 * 8 | 0xFF << 3 * 8 | 0xFF << 7 * 8
EPT_BAD_W = 0x0404040404040404
EPT_BAD_WX = 0x4040404040404040
EPT_BAD_X = 0x1010101010101010

# How an entry for a page of memory looks.  Source: Linux `arch/x86/kvm/mmu/spte.h` (v6.12); AMD APM vol. 2,
# nested paging; Intel SDM vol. 3, format of an EPT page-table entry.
SPTE_READ, SPTE_WRITE, EPT_SPTE_EXEC, SPTE_LARGE, SPTE_NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
NPT_SPTE_PAGE, EPT_SPTE_PAGE = SPTE_MMU_PRESENT_MASK | 0x5, SPTE_MMU_PRESENT_MASK | 0x71
NPT_SPTE_ACCESSED, EPT_SPTE_ACCESSED = 1 << 5, 1 << 8
NPT_SPTE_MMU_WRITABLE, EPT_SPTE_MMU_WRITABLE = 1 << 10, 1 << 58
SHADOW_ACC_TRACK_SAVED_BITS_MASK = SPTE_READ | EPT_SPTE_EXEC
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = 54
SPTE_NONPRESENT = 0  # from 6.10: bit 63

UNDECIDED = -1
"""The answer depends on what is not known."""


def is_shadow_present_pte(spte: int) -> bool:
    """Source: Linux `arch/x86/kvm/mmu/spte.h`, is_shadow_present_pte() (v6.8)."""
    return spte & SPTE_MMU_PRESENT_MASK != 0


def mt_xwr(spte: int) -> int:
    """The memory type and permissions of an EPT entry, as the table of illegal combinations counts them.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, __is_bad_mt_xwr() (v6.8).
    """
    return spte & EPT_MT_XWR_MASK


def rsvd_bits(mmio: MmioFormat, spte: int, table: int, page: int) -> int:
    """The reserved bits that are set in `spte`; `table` and `page` are EPT's for small and large entries.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, __is_rsvd_bits_set(), `arch/x86/kvm/mmu/mmu.c`,
    __reset_rsvds_bits_mask_ept() (v6.8).
    """
    by_level = select(spte >> PT_PAGE_SIZE_SHIFT & 1, page, table)
    return spte & (mmio.rsvd_high | select(mmio.ept & 1, by_level, 0))


def is_rsvd_spte(mmio: MmioFormat, spte: int, table: int, page: int) -> bool:
    """Say whether the CPU would refuse `spte` for a reserved bit or an illegal memory type.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, is_rsvd_spte() (v6.8).
    """
    return (rsvd_bits(mmio, spte, table, page) | mmio.bad_mt_xwr >> mt_xwr(spte) & 1) != 0


def ept_bad_mt_xwr(mmio_cfg: int) -> int:
    """The illegal memory types and permissions of an EPT entry on a host that allows execute-only.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, __reset_rsvds_bits_mask_ept() (v6.8).
    """
    return EPT_BAD_MEMTYPE | EPT_BAD_W | EPT_BAD_WX


def present_leaf(prefetch: bool, accessed: bool) -> int:
    """The result of mapping a page over an entry that allows the access already; UNDECIDED if it depends.

    The entry is built anew and compared.  One that is prefetched lacks the accessed bit; what other bits the
    CPU may have set is not known.

    Source: Linux `arch/x86/kvm/mmu/tdp_mmu.c`, tdp_mmu_map_handle_target_level() (v6.12).
    """
    return RET_PF_FIXED if prefetch and accessed else UNDECIDED


def mark_spte_for_access_track(spte: int) -> int:
    """Take an EPT entry's rights away until it is used, and save them; done where there are no accessed bits.

    Source: Linux `arch/x86/kvm/mmu/spte.c`, mark_spte_for_access_track() (v6.12).
    """
    saved = (spte & SHADOW_ACC_TRACK_SAVED_BITS_MASK) << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
    return (spte | saved) & ~(SHADOW_ACC_TRACK_SAVED_BITS_MASK | SPTE_WRITE)


def restore_acc_track_spte(spte: int) -> int:
    """Give an entry without any rights those back that were saved.

    Source: Linux `arch/x86/kvm/mmu/spte.h`, restore_acc_track_spte() (v6.12).
    """
    if spte & (SHADOW_ACC_TRACK_SAVED_BITS_MASK | SPTE_WRITE) != 0:
        return spte
    saved = spte >> SHADOW_ACC_TRACK_SAVED_BITS_SHIFT & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    return spte & ~(SHADOW_ACC_TRACK_SAVED_BITS_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT) | saved
