# SPDX-License-Identifier: GPL-2.0-only
"""Memory attributes: what user space last declared about a page.

The logic asks about one page.  `AttributeStore` keeps the whole guest's attributes, for scenarios.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from kvm_pf.errors import InputError
from kvm_pf.state import (
    EINVAL,
    GFN_MASK,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    NO_LOOKUP,
    PAGE_OFFSET_MASK,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    Lookups,
    Vm,
)


def kvm_mem_is_private(vm: Vm, gfn: int) -> tuple[bool, Lookups]:
    """Say whether user space declared `gfn` private, and count the look-up.

    A kernel built without memory attributes answers False without looking.

    Source: Linux `include/linux/kvm_host.h`, kvm_mem_is_private() (v6.8).
    """
    if not vm.cfg_private_mem:
        return False, NO_LOOKUP
    return vm.attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0, Lookups(1, gfn)


def kvm_supported_mem_attributes(has_private_mem: bool) -> int:
    """Return the attributes that user space may set.

    Source: Linux `virt/kvm/kvm_main.c`, kvm_supported_mem_attributes() (v6.8).
    """
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if has_private_mem else 0


def sum_wraps(a: int, b: int) -> bool:
    """Say whether the sum of two u64 values does not fit into 64 bits."""
    return (a & b | (a | b) & ~(a + b)) >> 63 & 1 != 0


def kvm_vm_ioctl_set_mem_attributes(
    address: int, size: int, attributes: int, flags: int, has_private_mem: bool
) -> int:
    """Check the arguments (u64) of KVM_SET_MEMORY_ATTRIBUTES: 0, or -EINVAL.

    The last page of the address space cannot be set: the range's end would be 2^64.

    Source: Linux `virt/kvm/kvm_main.c`, kvm_vm_ioctl_set_mem_attributes() (v6.8).
    """
    if flags != 0:
        return -EINVAL
    if attributes & ~kvm_supported_mem_attributes(has_private_mem) != 0:
        return -EINVAL
    if size == 0 or sum_wraps(address, size):
        return -EINVAL
    if (address | size) & PAGE_OFFSET_MASK != 0:
        return -EINVAL
    return 0


GFN_END = GFN_MASK + 1
"""The first gfn that there is not."""

_PAGES = {PG_LEVEL_2M: 1 << 9, PG_LEVEL_1G: 1 << 18}


class AttributeStore:
    """A guest's memory attributes: a word for each gfn, 0 until set.

    Neighbours with the same word are kept as one range, so that time and space go with the number of ranges
    and not of pages.

    >>> store = AttributeStore()
    >>> store.set(0x100000, 0x100200, 8)
    True
    >>> store[0x1001FF], store[0x100200]
    (8, 0)
    """

    def __init__(self) -> None:
        self._starts = [0]
        self._words = [0]

    def __getitem__(self, gfn: int) -> int:
        """Return the word of `gfn`.  Raises InputError if there is no such gfn."""
        _check(gfn, gfn + 1 if isinstance(gfn, int) else gfn)
        return self._words[bisect_right(self._starts, gfn) - 1]

    def set(self, start: int, end: int, word: int) -> bool:
        """Give the gfns from `start` up to and without `end` the attributes `word`; say whether any changed.

        Raises InputError if the range is empty or not one of gfns, or if the word is not a u64.
        """
        _check(start, end)
        if not isinstance(word, int) or word >> 64:
            raise InputError(f"attributes are an unsigned 64-bit number, not {word!r}")
        if self[start] == word and not self.mixed(start, end):
            return False
        i, j = bisect_left(self._starts, start), bisect_right(self._starts, end)
        rest = [(end, self[end])] if end < GFN_END else []
        starts, words = [], []
        before = self._words[i - 1] if i else None
        for first, new in [(start, word), *rest]:
            if new != before:
                starts.append(first)
                words.append(new)
            before = new
        self._starts[i:j] = starts
        self._words[i:j] = words
        return True

    def mixed(self, start: int, end: int) -> bool:
        """Say whether the gfns from `start` up to and without `end` have different words.

        Raises InputError if the range is empty or not one of gfns.
        """
        _check(start, end)
        return bisect_right(self._starts, start) < bisect_left(self._starts, end)

    def hugepage_mixed(self, gfn: int, level: int) -> bool:
        """Say whether the 2M (level 2) or 1G (level 3) page around `gfn` is mixed: KVM_LPAGE_MIXED_FLAG.

        KVM keeps that flag for large pages that lie in one slot; no other can be mapped large anyway.
        Raises InputError if there is no such gfn or level.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, hugepage_has_attrs(),
        kvm_arch_post_set_memory_attributes() (v6.8).
        """
        if level not in _PAGES:
            raise InputError(f"a large page has level 2 (2M) or 3 (1G), not {level!r}")
        _check(gfn, gfn + 1 if isinstance(gfn, int) else gfn)
        start = gfn & -_PAGES[level]
        return self.mixed(start, start + _PAGES[level])

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Give the ranges with a word other than 0, lowest first, as (start, end, word)."""
        ends = [*self._starts[1:], GFN_END]
        return (piece for piece in zip(self._starts, ends, self._words, strict=True) if piece[2])


def _check(start: int, end: int) -> None:
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= GFN_END):
        raise InputError(
            f"gfns are numbers from 0 to 2^52 - 1, a range ends after it starts; not {start!r} to {end!r}"
        )
