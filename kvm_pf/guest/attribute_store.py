# SPDX-License-Identifier: GPL-2.0-only
"""A whole guest's memory attributes, as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from kvm_pf.common.errors import InputError
from kvm_pf.state import GFN_MASK, PG_LEVEL_1G, PG_LEVEL_2M

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
        if not isinstance(level, int) or level not in _PAGES:
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
