# SPDX-License-Identifier: GPL-2.0-only
"""A guest in the guest: L1's nested page table, and what KVM keeps in its place.

L1 maps pages of its own guest, L2, to pages of its own.  The CPU cannot walk that table behind KVM's back: KVM
shadows it, table by table, with entries of its own that map L2's pages to the host's.  `PageTable` is what L1
wrote and how KVM walks it.  `Shadow` is what KVM made of it: which tables it shadows and so watches, which
entries are there, and which of L1's pages each maps.

Simplified: one table format of four levels (AMD's long-mode format, or EPT), large pages of 2M.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK, SPTE_WRITE
from kvm_pf.state import GFN_MASK, PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K

LEVELS = 4
INDEX_BITS = 9
INDEX_MASK = (1 << INDEX_BITS) - 1
PTE_PREFETCH_NUM = 8
"""How many neighbours are looked at together.  Source: Linux `arch/x86/kvm/mmu/mmu.c` (v6.12)."""
ADDRESS = 0xFFFFFFFFFF000
LARGE = 1 << 7
EPT_RWX = 7

# Where the recorder's L1 keeps its nested page table: the root, then tables as they are needed.
NPT_ROOT = 0x30000
NPT_TABLES = (NPT_ROOT, NPT_ROOT + 0x1000, NPT_ROOT + 0x2000)
"""The tables that map L2's first 2M to L1's first 2M: the root, one of level 3, one of level 2."""


def index(page: int, level: int) -> int:
    """Return the index of a page (gfn) in its table of that level."""
    return page >> INDEX_BITS * (level - 1) & INDEX_MASK


def span(level: int) -> int:
    """Return how many 4K pages an entry of that level maps."""
    return 1 << INDEX_BITS * (level - 1)


class GuestWalk(NamedTuple):
    """What a walk of L1's table found, struct guest_walker: for `refused`, what L1 is told instead."""

    refused: bool
    gfn: int  # L1's page that L2's page is mapped to
    level: int  # of the entry that says so
    writable: bool  # the entry allows it, and its dirty bit is set, if there are such bits
    executable: bool
    tables: tuple[int, ...]  # gfns of the tables walked, the root first
    error_code: int  # of the fault for L1: 16 bits, PFERR_*
    qualification: int  # of the EPT violation for L1: bits 5:0


@dataclass
class PageTable:
    """L1's nested page table, word by word: `words` maps the address (L1's GPA) of a word to its 64 bits.

    `ept`: Intel's format, else AMD's.  `accessed_dirty`: entries have accessed and dirty bits (AMD: always).
    """

    ept: bool = False
    accessed_dirty: bool = True
    root: int = NPT_ROOT
    words: dict[int, int] = field(default_factory=dict)

    @property
    def accessed(self) -> int:
        """The accessed bit of an entry; 0: there is none."""
        return (1 << 8 if self.ept else 1 << 5) if self.accessed_dirty else 0

    @property
    def dirty(self) -> int:
        """The dirty bit of an entry; 0: there is none."""
        return (1 << 9 if self.ept else 1 << 6) if self.accessed_dirty else 0

    def node(self, table: int) -> int:
        """Return an entry that leads to a table, with all rights."""
        return table | 7

    def leaf(self, gpa: int, rights: str = "") -> int:
        """Return an entry that maps a page: read-only if `rights` are named and lack w; n takes execution."""
        writable = 2 if not rights or "w" in rights else 0
        if self.ept:
            return gpa | 0x30 | 1 | writable | (0 if "n" in rights else 4)
        return gpa | 5 | writable | (1 << 63 if "n" in rights else 0)

    def present(self, entry: int) -> bool:
        """Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(is_present_gpte) (v6.12)."""
        return entry & (EPT_RWX if self.ept else 1) != 0

    def reserved(self, entry: int, level: int) -> bool:
        """Say whether an entry of L1's sets what must not be set: for EPT, writable and not readable.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(is_rsvd_bits_set) (v6.12), the part modelled here.
        """
        return (self.ept and entry & 3 == 2) or (entry & LARGE != 0 and level == LEVELS)

    def rights(self, entry: int) -> tuple[bool, bool, bool]:
        """Return whether an entry lets the page be read, written, executed; AMD: by user accesses, as all are."""
        if self.ept:
            return entry & 1 != 0, entry & 2 != 0, entry & 4 != 0
        return entry & 4 != 0, entry & 2 != 0, not entry >> 63

    def walk(self, addr: int, access: int, mark: bool = True) -> GuestWalk:
        """Walk the table for L2's GPA with an access (PFERR_* bits), and `mark` entries accessed and dirty.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(walk_addr_generic) (v6.12).
        """
        table, level, all_entries, error = self.root, LEVELS, -1, 0
        read, write, execute = True, True, True
        path: list[int] = []
        while True:
            path.append(table + 8 * index(addr >> PAGE_SHIFT, level))
            entry = self.words.get(path[-1], 0)
            r, w, x = self.rights(entry)
            read, write, execute, all_entries = read and r, write and w, execute and x, all_entries & entry
            if not self.present(entry):
                break
            if self.reserved(entry, level):
                error = PFERR_RSVD_MASK | PFERR_PRESENT_MASK
                break
            if level == PG_LEVEL_4K or entry & LARGE:
                wants_write, wants_execute = access & PFERR_WRITE_MASK, access & PFERR_FETCH_MASK
                wants_read = access & PFERR_USER_MASK or not (wants_write or wants_execute)
                asked = ((wants_read, read), (wants_write, write), (wants_execute, execute))
                if all(allowed for wanted, allowed in asked if wanted):
                    if mark:
                        self._mark(path, access, all_entries)
                    return self._found(addr, access, path, level, write, execute)
                error = PFERR_PRESENT_MASK
                break
            table, level = entry & ADDRESS, level - 1
        asked_bits = PFERR_WRITE_MASK | PFERR_USER_MASK | (0 if self.ept else PFERR_FETCH_MASK)
        kinds = (
            (PFERR_WRITE_MASK, EPT_VIOLATION_ACC_WRITE), (PFERR_USER_MASK, EPT_VIOLATION_ACC_READ),
            (PFERR_FETCH_MASK, EPT_VIOLATION_ACC_INSTR),
        )  # fmt: skip
        qualification = sum(bit for mask, bit in kinds if access & mask) | (all_entries & EPT_RWX) << 3
        return GuestWalk(
            refused=True,
            gfn=0,
            level=level,
            writable=False,
            executable=False,
            tables=tuple(gpa >> PAGE_SHIFT for gpa in path),
            error_code=error | access & asked_bits,
            qualification=qualification if self.ept else 0,
        )

    def _mark(self, path: list[int], access: int, all_entries: int) -> None:
        """Set accessed bits on the way, and the dirty bit at its end, if one is missing.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(update_accessed_dirty_bits) (v6.12).
        """
        write_fault = access & PFERR_WRITE_MASK != 0
        if not all_entries & self.accessed or (write_fault and not self.words[path[-1]] & self.dirty):
            for gpa in path:
                self.words[gpa] |= self.accessed
            self.words[path[-1]] |= self.dirty if write_fault else 0

    def _found(
        self, addr: int, access: int, path: list[int], level: int, write: bool, execute: bool
    ) -> GuestWalk:
        entry = self.words[path[-1]]
        clean = self.accessed_dirty and not entry & self.dirty and not access & PFERR_WRITE_MASK
        return GuestWalk(
            refused=False,
            gfn=(entry & ADDRESS) >> PAGE_SHIFT & -span(level) | addr >> PAGE_SHIFT & span(level) - 1,
            level=level,
            writable=write and not clean,
            executable=execute,
            tables=tuple(gpa >> PAGE_SHIFT for gpa in path),
            error_code=0,
            qualification=0,
        )

    def prefetched(self, entry: int) -> int | None:
        """Return the gfn of a neighbour's entry (4K) that may be mapped ahead; None: it may not.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(prefetch_invalid_gpte) (v6.12).
        """
        if not self.present(entry) or (self.accessed_dirty and not entry & self.accessed):
            return None
        return None if self.reserved(entry, PG_LEVEL_4K) else (entry & ADDRESS) >> PAGE_SHIFT

    def writable_now(self, entry: int) -> bool:
        """Say whether an entry's rights, without more ado, let the page be written to: clean pages are watched.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(protect_clean_gpte) (v6.12).
        """
        return self.rights(entry)[1] and (not self.accessed_dirty or entry & self.dirty != 0)


class Leaf(NamedTuple):
    """An entry of KVM's that maps a page of L2's, or marks it as emulated memory."""

    spte: int
    gfn: int  # L1's page
    private: bool = False  # it is the private copy of L1's page that is mapped
    host_writable: bool = False  # the host lets the page be written to


@dataclass
class ShadowPage:
    """A table of KVM's that stands for one of L1's, struct kvm_mmu_page; `direct`: for a part of a large page.

    `writable`, `executable`: what a direct one's entries may allow at most, as L1's entry does.  `unsync`: L1 may have
    written to its table since.  `writes`: L1's writes that were emulated since a fault of L2's last came this way.
    """

    gfn: int
    level: int
    direct: bool
    writable: bool = True
    executable: bool = True
    leaves: dict[int, Leaf] = field(default_factory=dict)
    children: dict[int, ShadowPage] = field(default_factory=dict)
    unsync: bool = False
    writes: int = 0


class Shadow:
    """KVM's tables in the place of L1's; pages are L2's (`page`) or L1's (`gfn`), both 52 bits."""

    FLOOD = 3
    """So many emulated writes in a row and a table is no longer shadowed.

    Source: Linux `arch/x86/kvm/mmu/mmu.c`, detect_write_flooding() (v6.12).
    """

    def __init__(self, root: int) -> None:
        self.root = root >> PAGE_SHIFT
        self.pages: dict[tuple[int, int, int], ShadowPage] = {}

    def clear(self) -> None:
        """Forget everything."""
        self.pages.clear()

    def get(self, gfn: int, level: int, part_of: GuestWalk | None = None) -> tuple[ShadowPage, bool]:
        """Return the shadow of a table, or of a part of a large page, and whether it was made for that.

        Of such a part there is one for each set of rights.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_get_child_sp(), kvm_mmu_child_role() (v6.12).
        """
        writable, executable = (part_of.writable, part_of.executable) if part_of else (True, True)
        key = (gfn, level, 1 | writable << 1 | executable << 2 if part_of else 0)
        new = key not in self.pages
        made = ShadowPage(gfn, level, part_of is not None, writable, executable)
        return self.pages.setdefault(key, made), new

    def table(self, page: int) -> tuple[ShadowPage | None, int]:
        """Return the table in which the walk for a page of L2's ends, as far as tables are linked, and its level."""
        table = self.pages.get((self.root, LEVELS, 0))
        level = LEVELS
        while table and index(page, level) not in table.leaves and level > PG_LEVEL_4K:
            if (child := table.children.get(index(page, level))) is None:
                break
            table, level = child, level - 1
        return table, level

    def find(self, page: int) -> tuple[Leaf | None, int]:
        """Return the entry for a page of L2's, if there is one, and its level."""
        table, level = self.table(page)
        return table.leaves.get(index(page, level)) if table else None, level

    def path(self, page: int, walk: GuestWalk, goal: int) -> tuple[list[ShadowPage], list[int]]:
        """Make and link the tables down to level `goal`: those on the path, and the gfns newly shadowed.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(fetch) (v6.12).
        """
        tables, made = [], []
        table, level = None, LEVELS
        for gfn in walk.tables:
            child, new = self.get(gfn, level)
            made += [gfn] if new else []
            if table:
                self.link(table, page, child)
            tables.append(child)
            table, level = child, level - 1
        level += 1
        while level > goal and table:
            level -= 1
            child, _ = self.get(walk.gfn & -span(level + 1), level, part_of=walk)
            self.link(table, page, child)
            tables.append(child)
            table = child
        for each in tables:
            each.writes = 0
        return tables, made

    def link(self, table: ShadowPage, page: int, child: ShadowPage) -> None:
        """Let a table's entry for a page lead to another table."""
        at = index(page, table.level)
        table.leaves.pop(at, None)
        table.children[at] = child

    def put(self, table: ShadowPage, page: int, leaf: Leaf) -> None:
        """Set a table's entry for a page."""
        at = index(page, table.level)
        table.children.pop(at, None)
        table.leaves[at] = leaf

    def remove(self, page: int) -> None:
        """Drop the entry for a page of L2's."""
        table, level = self.table(page)
        if table:
            table.leaves.pop(index(page, level), None)

    def mapping(self, start: int, end: int) -> Iterator[tuple[ShadowPage, int]]:
        """Yield the entries (table, index) that map any of L1's gfns from `start` up to and without `end`."""
        for table in list(self.pages.values()):
            for at, leaf in list(table.leaves.items()):
                first = leaf.gfn & -span(table.level)
                if leaf.spte & SPTE_MMU_PRESENT_MASK and first < end and start < first + span(table.level):
                    yield table, at

    def drop(self, start: int, end: int, which: Callable[[int], bool]) -> None:
        """Drop the entries that map gfns of L1's; marks of emulated memory map none."""
        for table, at in self.mapping(start, end):
            if which(table.leaves[at].gfn):
                del table.leaves[at]

    def take(self, bits: int, start: int, end: int) -> None:
        """Take rights from the entries that map gfns of L1's."""
        for table, at in self.mapping(start, end):
            table.leaves[at] = table.leaves[at]._replace(spte=table.leaves[at].spte & ~bits)

    def tracked(self, gfn: int) -> bool:
        """Say whether L1 must not write to a page: a table of it that leads to others is shadowed.

        Source: Linux `arch/x86/kvm/mmu/page_track.c`, kvm_gfn_is_write_tracked(), `arch/x86/kvm/mmu/mmu.c`,
        account_shadowed() (v6.12).
        """
        return any((gfn, level, 0) in self.pages for level in range(PG_LEVEL_2M, LEVELS + 1))

    def shadowed(self, gfn: int) -> bool:
        """Say whether a page is one of L1's tables, and KVM shadows it."""
        return any(key[0] == gfn and not key[2] for key in self.pages)

    def try_to_unsync(self, gfn: int, prefetch: bool) -> bool:
        """Say whether a page may be mapped writable: if no table of it is shadowed but such as may be out of step.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, mmu_try_to_unsync_pages() (v6.12).
        """
        if self.tracked(gfn):
            return False
        table = self.pages.get((gfn, PG_LEVEL_4K, 0))
        if table and not table.unsync:
            if prefetch:
                return False
            table.unsync = True
        return True

    def emulated_write(self, gpa: int) -> None:
        """Follow an emulated write of L1's to a table: its shadow loses the entry, after three the table its shadow.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_track_write() (v6.12).
        """
        at = gpa >> 3 & INDEX_MASK
        for key, table in list(self.pages.items()):
            if key[0] != gpa >> PAGE_SHIFT or table.direct:
                continue
            table.writes += table.level > PG_LEVEL_4K
            if table.writes >= self.FLOOD:
                self.zap(table)
            else:
                table.leaves.pop(at, None)
                table.children.pop(at, None)

    def zap(self, table: ShadowPage) -> None:
        """Shadow a table no longer.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_prepare_zap_page() (v6.12).
        """
        self.pages = {key: page for key, page in self.pages.items() if page is not table}
        for page in self.pages.values():
            page.children = {at: child for at, child in page.children.items() if child is not table}

    def sync(self, words: PageTable, mark: Callable[[int, bool, bool], int]) -> list[int]:
        """Bring the tables that are out of step in line with L1's; return the gfns of those.

        `mark` makes the mark of emulated memory for a gfn anew, writable and executable or not.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_sync_roots(), kvm_sync_page_check(), kvm_sync_spte()
        (v6.12).
        """
        done = []
        for table in self.pages.values():
            if not table.unsync:
                continue
            table.unsync = False
            done.append(table.gfn)
            for at, leaf in list(table.leaves.items()):
                entry = words.words.get(table.gfn << PAGE_SHIFT | at << 3, 0)
                gfn = words.prefetched(entry)
                if gfn is None or gfn != leaf.gfn:
                    del table.leaves[at]
                elif not leaf.spte & SPTE_MMU_PRESENT_MASK:
                    table.leaves[at] = leaf._replace(
                        spte=mark(gfn, words.writable_now(entry), words.rights(entry)[2])
                    )
                else:
                    writable = leaf.host_writable and words.writable_now(entry) and not self.shadowed(gfn)
                    spte = leaf.spte | SPTE_WRITE if writable else leaf.spte & ~SPTE_WRITE
                    table.leaves[at] = leaf._replace(spte=spte)
        return done


def in_page(page: int, at: int, level: int = PG_LEVEL_4K) -> int:
    """Return the page of L2's that an index stands for in the table that maps `page`."""
    return page & ~(INDEX_MASK << INDEX_BITS * (level - 1)) & GFN_MASK | at << INDEX_BITS * (level - 1)
