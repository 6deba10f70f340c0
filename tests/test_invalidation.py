# SPDX-License-Identifier: GPL-2.0-only
"""The count of invalidations: what a fault that holds no lock can know of what is taken away meanwhile."""

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.faultin import Invalidation
from kvm_pf.guest.invalidation import Invalidations


def test_an_invalidation_counts_when_it_ends():
    it = Invalidations()
    it.mmu_invalidate_begin()
    it.mmu_invalidate_range_add(0x10, 0x20)
    assert it.seen_by(0x10) == Invalidation(True, 0)
    it.mmu_invalidate_end()
    assert it.seen_by(0x10) == Invalidation(False, 1)


def test_while_it_is_in_progress_only_its_own_pages_are_tried_again():
    it = Invalidations()
    it.mmu_invalidate_begin()
    it.mmu_invalidate_range_add(0x10, 0x20)
    assert [it.mmu_invalidate_retry_gfn(0, gfn) for gfn in (0xF, 0x10, 0x1F, 0x20)] == [
        False,
        True,
        True,
        False,
    ]


def test_when_it_has_ended_every_fault_that_began_before_is_tried_again():
    it = Invalidations()
    it.mmu_invalidate_begin()
    it.mmu_invalidate_range_add(0x10, 0x20)
    it.mmu_invalidate_end()
    assert it.mmu_invalidate_retry_gfn(0, 0x999)
    assert not it.mmu_invalidate_retry_gfn(1, 0x10)


def test_the_ranges_of_two_that_overlap_in_time_become_one_and_last_until_both_have_ended():
    it = Invalidations()
    it.mmu_invalidate_begin()
    it.mmu_invalidate_range_add(0x10, 0x11)
    it.mmu_invalidate_begin()
    it.mmu_invalidate_range_add(0x30, 0x31)
    assert it.seen_by(0x20).covers_gfn  # the kernel keeps one range that holds both
    it.mmu_invalidate_end()
    assert it.seen_by(0x10) == Invalidation(True, 1)
    it.mmu_invalidate_end()
    assert it.seen_by(0x10) == Invalidation(False, 2)
    it.mmu_invalidate_begin()
    assert not it.seen_by(0x20).covers_gfn  # a new one begins with no range


def test_without_a_slot_nothing_can_be_taken_away():
    it = Invalidations(mmu_invalidate_seq=3)
    assert it.is_page_fault_stale(True, 2, 0x10)
    assert not it.is_page_fault_stale(False, 2, 0x10)


@pytest.mark.parametrize("gfn", [-1, 1 << 52, "0x10", 1.0])
def test_what_is_no_gfn_is_refused(gfn):
    with pytest.raises(InputError):
        Invalidations().seen_by(gfn)
