# SPDX-License-Identifier: GPL-2.0-only
"""Page-table entries that map a page; bits and answers reasoned by hand from the kernel's spte.h and tdp_mmu.c."""

import pytest

from kvm_pf.revisions import REVISIONS
from kvm_pf.spte import UNDECIDED

RWX = 0x7


@pytest.mark.parametrize(
    ("revision", "saved"),
    [("posted", 1 << 54 | 1 << 56), ("v6_12", 1 << 54 | 1 << 56), ("v7_3", 1 << 52 | 1 << 54)],
)
def test_access_tracking_saves_read_and_execute_and_takes_all_rights(revision, saved):
    r = REVISIONS[revision]
    assert r.link("mark_spte_for_access_track")(0x123000 | RWX) == 0x123000 | saved
    assert r.link("restore_acc_track_spte")(0x123000 | saved) == 0x123000 | 0x5


def test_an_entry_with_any_right_is_not_restored():
    restore = REVISIONS["posted"].link("restore_acc_track_spte")
    for right in (0x1, 0x2, 0x4):
        assert restore(right | 1 << 54 | 1 << 56) == right | 1 << 54 | 1 << 56


@pytest.mark.parametrize(
    ("revision", "prefetch", "accessed", "answer"),
    [
        ("v6_12", True, True, "RET_PF_FIXED"),
        ("v6_12", True, False, None),
        ("v6_12", False, True, None),
        ("v7_3", True, True, "RET_PF_SPURIOUS"),
        ("v7_3", False, False, "RET_PF_SPURIOUS"),
    ],
)
def test_mapping_over_an_entry_that_allows_the_access(revision, prefetch, accessed, answer):
    r = REVISIONS[revision]
    assert r.link("present_leaf")(prefetch, accessed) == (UNDECIDED if answer is None else r.step(answer))
