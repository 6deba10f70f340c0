# SPDX-License-Identifier: GPL-2.0-only
"""Memory attributes: the ioctl's checks, and the store against a plain list of pages."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf import revisions
from kvm_pf.attributes import kvm_mem_is_private, kvm_vm_ioctl_set_mem_attributes, sum_wraps
from kvm_pf.common.errors import InputError
from kvm_pf.guest.attribute_store import GFN_END, AttributeStore
from kvm_pf.state import Vm

EINVAL = 22
PRIVATE = 8


def ask(address=0x100000, size=0x1000, attributes=PRIVATE, flags=0, has_private_mem=True):
    return kvm_vm_ioctl_set_mem_attributes(address, size, attributes, flags, has_private_mem)


class TestIoctl:
    def test_takes_a_page(self):
        assert ask() == 0
        assert ask(attributes=0) == 0

    @pytest.mark.parametrize("flags", [1, 8, 1 << 63])
    def test_no_flags(self, flags):
        assert ask(flags=flags) == -EINVAL

    @pytest.mark.parametrize("attributes", [1, 2, 4, 7, 9, 16, 1 << 63, 2**64 - 1])
    def test_only_the_private_bit(self, attributes):
        assert ask(attributes=attributes) == -EINVAL

    def test_private_only_where_there_is_private_memory(self):
        assert ask(has_private_mem=False) == -EINVAL
        assert ask(attributes=0, has_private_mem=False) == 0

    def test_size(self):
        assert ask(size=0) == -EINVAL
        assert ask(size=1 << 40) == 0

    @pytest.mark.parametrize("off", [1, 0x800, 0xFFF])
    def test_alignment(self, off):
        assert ask(address=0x100000 + off) == -EINVAL
        assert ask(size=0x1000 + off) == -EINVAL
        assert ask(address=0x100000 + off, size=0x2000 - off) == -EINVAL

    def test_range_must_end_within_64_bits(self):
        assert ask(address=2**64 - 0x2000, size=0x1000) == 0
        assert ask(address=2**64 - 0x1000, size=0x1000) == -EINVAL
        assert ask(address=2**64 - 0x1000, size=0x2000) == -EINVAL
        assert ask(address=0, size=2**64 - 0x1000) == 0
        assert ask(address=1 << 63, size=1 << 63) == -EINVAL

    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
    def test_wrap_is_the_carry(self, a, b):
        assert sum_wraps(a, b) == (a + b >= 2**64)

    def test_can_be_linked(self):
        assert revisions.get("v7_3").link("kvm_vm_ioctl_set_mem_attributes")(0, 0, 8, 0, True) == -EINVAL


class TestLookUp:
    VM = Vm(True, True, 1, 0, False, False, 0, 0)

    @pytest.mark.parametrize(("attrs", "private"), [(0, False), (8, True), (7, False), (15, True)])
    def test_asks_one_bit(self, attrs, private):
        assert kvm_mem_is_private(self.VM._replace(attrs=attrs), 0x123) == (private, (1, 0x123))

    def test_without_attributes_nothing_is_looked_up(self):
        assert kvm_mem_is_private(self.VM._replace(attrs=8, cfg_private_mem=False), 0x123) == (False, (0, 0))


class TestStore:
    def test_is_0_everywhere_at_first(self):
        store = AttributeStore()
        assert (store[0], store[GFN_END - 1], list(store)) == (0, 0, [])
        assert not store.mixed(0, GFN_END)

    def test_sets_a_range_without_its_end(self):
        store = AttributeStore()
        assert store.set(0x100, 0x200, PRIVATE)
        assert (store[0xFF], store[0x100], store[0x1FF], store[0x200]) == (0, PRIVATE, PRIVATE, 0)

    def test_says_that_nothing_changed(self):
        store = AttributeStore()
        assert not store.set(0, 10, 0)
        store.set(0, 10, PRIVATE)
        assert not store.set(2, 8, PRIVATE)
        assert store.set(2, 12, PRIVATE)

    def test_neighbours_become_one_range(self):
        store = AttributeStore()
        for gfn in (5, 7, 6):
            store.set(gfn, gfn + 1, PRIVATE)
        assert list(store) == [(5, 8, PRIVATE)]
        store.set(6, 7, 0)
        assert list(store) == [(5, 6, PRIVATE), (7, 8, PRIVATE)]

    def test_different_words_stay_apart(self):
        store = AttributeStore()
        store.set(0, 4, 8)
        store.set(4, 8, 9)
        assert list(store) == [(0, 4, 8), (4, 8, 9)]

    def test_reaches_the_last_gfn(self):
        store = AttributeStore()
        store.set(GFN_END - 2, GFN_END, PRIVATE)
        assert (store[GFN_END - 1], list(store)) == (PRIVATE, [(GFN_END - 2, GFN_END, PRIVATE)])
        store.set(0, GFN_END, 0)
        assert list(store) == []

    def test_huge_ranges_cost_nothing(self):
        store = AttributeStore()
        began = time.perf_counter()
        for n in range(200):
            store.set(n << 40, (n << 40) + (1 << 40), PRIVATE if n & 1 else 0)
        assert store.mixed(0, GFN_END)
        assert time.perf_counter() - began < 1
        assert len(list(store)) == 100

    def test_mixed(self):
        store = AttributeStore()
        store.set(0x200, 0x400, PRIVATE)
        assert not store.mixed(0x200, 0x400)
        assert not store.mixed(0, 0x200)
        assert store.mixed(0x1FF, 0x201)
        assert store.mixed(0x3FF, 0x401)
        assert not store.mixed(0x1FF, 0x200)

    def test_large_pages(self):
        store = AttributeStore()
        store.set(0x200, 0x400, PRIVATE)  # the second 2M of the first 1G
        assert [store.hugepage_mixed(gfn, 2) for gfn in (0, 0x1FF, 0x200, 0x3FF, 0x400)] == [False] * 5
        assert store.hugepage_mixed(0x300, 3)
        assert not store.hugepage_mixed(1 << 18, 3)
        store.set(0x201, 0x202, 0)
        assert store.hugepage_mixed(0x3FF, 2)

    @pytest.mark.parametrize(
        ("start", "end"),
        [(1, 1), (2, 1), (-1, 1), (0, GFN_END + 1), (GFN_END, GFN_END + 1), (0.0, 1), ("0", 1), (0, None)],
    )
    def test_refuses_what_is_no_range(self, start, end):
        with pytest.raises(InputError, match="gfns are numbers"):
            AttributeStore().set(start, end, PRIVATE)
        with pytest.raises(InputError, match="gfns are numbers"):
            AttributeStore().mixed(start, end)

    @pytest.mark.parametrize("word", [-1, 1 << 64, 8.0, "8", None])
    def test_refuses_what_is_no_word(self, word):
        with pytest.raises(InputError, match="64-bit"):
            AttributeStore().set(0, 1, word)

    @pytest.mark.parametrize("gfn", [-1, GFN_END, "0", 0.5])
    def test_refuses_what_is_no_gfn(self, gfn):
        with pytest.raises(InputError):
            AttributeStore()[gfn]
        with pytest.raises(InputError):
            AttributeStore().hugepage_mixed(gfn, 2)

    @pytest.mark.parametrize("level", [0, 1, 4, "2M"])
    def test_refuses_what_is_no_large_page(self, level):
        with pytest.raises(InputError, match="level"):
            AttributeStore().hugepage_mixed(0, level)


PAGES = 12
RANGES = [(start, end) for end in range(PAGES + 1) for start in range(end)]
WRITES = st.lists(st.tuples(st.sampled_from(RANGES), st.sampled_from([0, 1, 8])), max_size=12)


@given(WRITES, st.sampled_from([0, GFN_END - PAGES, 1 << 39]))
def test_store_is_a_word_for_each_page(writes, base):
    store, pages = AttributeStore(), [0] * PAGES
    for (start, end), word in writes:
        changed = pages[start:end] != [word] * (end - start)
        assert store.set(base + start, base + end, word) == changed
        pages[start:end] = [word] * (end - start)
    assert [store[base + n] for n in range(PAGES)] == pages
    listed = [(n, word) for start, end, word in store for n in range(start, end)]
    assert listed == [(base + n, word) for n, word in enumerate(pages) if word]
    assert all(a[1] < b[0] or a[2] != b[2] for a, b in pairwise(store))
    for start, end in RANGES:
        assert store.mixed(base + start, base + end) == (len(set(pages[start:end])) > 1)
