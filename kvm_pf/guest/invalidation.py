# SPDX-License-Identifier: GPL-2.0-only
"""What is taken away while a fault is under way: the count of invalidations, and the checks against it.

The host takes a page of the guest away, or user space changes an attribute, in three parts: an invalidation
begins, the page-table entries go, the invalidation ends.  A fault that is under way on another vCPU holds no
lock meanwhile.  So it notes the count when it starts to look for a page frame, and asks before it installs the
frame whether anything was taken away since.  If so, it answers RET_PF_RETRY and the guest faults again.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvm_pf.common.typed import typed
from kvm_pf.faultin import Invalidation, mmu_invalidate_retry_gfn_unsafe


@dataclass
class Invalidations:
    """The part of struct kvm that counts invalidations; the fields have the kernel's names.

    The range is that of gfns from `mmu_invalidate_range_start` up to and without `mmu_invalidate_range_end`; it
    grows while several invalidations are in progress, and holds only while one is.

    Source: Linux `include/linux/kvm_host.h`, struct kvm (v6.12).
    """

    mmu_invalidate_seq: int = 0
    mmu_invalidate_in_progress: int = 0
    mmu_invalidate_range_start: int = 0
    mmu_invalidate_range_end: int = 0

    def mmu_invalidate_begin(self) -> None:
        """Begin an invalidation, as yet of nothing.

        Source: Linux `virt/kvm/kvm_main.c`, kvm_mmu_invalidate_begin() (v6.12).
        """
        self.mmu_invalidate_in_progress += 1
        if self.mmu_invalidate_in_progress == 1:
            self.mmu_invalidate_range_start = self.mmu_invalidate_range_end = 0

    @typed(start=52, end=64)
    def mmu_invalidate_range_add(self, start: int, end: int) -> None:
        """Add gfns, the end not included, to what the invalidations in progress take away.

        Source: Linux `virt/kvm/kvm_main.c`, kvm_mmu_invalidate_range_add() (v6.12).
        """
        if self.mmu_invalidate_range_start == self.mmu_invalidate_range_end:
            self.mmu_invalidate_range_start, self.mmu_invalidate_range_end = start, end
        self.mmu_invalidate_range_start = min(self.mmu_invalidate_range_start, start)
        self.mmu_invalidate_range_end = max(self.mmu_invalidate_range_end, end)

    def mmu_invalidate_end(self) -> None:
        """End an invalidation: only now it counts.

        Source: Linux `virt/kvm/kvm_main.c`, kvm_mmu_invalidate_end() (v6.12).
        """
        self.mmu_invalidate_seq += 1
        self.mmu_invalidate_in_progress -= 1

    @typed(gfn=52)
    def seen_by(self, gfn: int) -> Invalidation:
        """Return what a fault on `gfn` sees at this moment."""
        inside = self.mmu_invalidate_range_start <= gfn < self.mmu_invalidate_range_end
        return Invalidation(self.mmu_invalidate_in_progress > 0 and inside, self.mmu_invalidate_seq)

    @typed(mmu_seq=64, gfn=52)
    def mmu_invalidate_retry_gfn(self, mmu_seq: int, gfn: int) -> bool:
        """Say, under mmu_lock, whether a fault that noted `mmu_seq` must try again.

        Source: Linux `include/linux/kvm_host.h`, mmu_invalidate_retry_gfn() (v6.12); before v6.8 the range is one of
        user-space addresses, mmu_invalidate_retry_hva().
        """
        return mmu_invalidate_retry_gfn_unsafe(self.seen_by(gfn), mmu_seq)

    @typed(mmu_seq=64, gfn=52)
    def is_page_fault_stale(self, slot: bool, mmu_seq: int, gfn: int) -> bool:
        """Say whether what a fault found is out of date.  Without a slot nothing can be taken away.

        The other reason, that the vCPU's root is obsolete, does not come about here.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, is_page_fault_stale() (v6.12).
        """
        return slot and self.mmu_invalidate_retry_gfn(mmu_seq, gfn)
