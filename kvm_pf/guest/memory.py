# SPDX-License-Identifier: GPL-2.0-only
"""A VM's memory over time: what user space and KVM keep of it, and the page-fault handler that goes through it.

The fault path asks about one page at one moment.  `GuestMemory` holds the whole: attributes, slots, the host's
pages behind them, KVM's page-table entries and the vCPU's MMIO cache.  Its handler stands in for the MMU's: it
does what entries, slots, attributes and host decide, and says where they do not.

Simplified: the guest maps every address to itself with 2M pages, apart from what its page-directory entries
(`pdes`) say; no TLB keeps old entries.

A fault goes through the handler in steps (PLACES), between which other vCPUs and user space may act.

A guest in the guest (L2) has entries of its own: without a nested page table of L1's a second set for the same
gfns, with one those of `kvm_pf.guest.nested.Shadow`, which are found by L2's pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

from kvm_pf import fault as path
from kvm_pf import faultin, mmio
from kvm_pf.attributes import kvm_vm_ioctl_set_mem_attributes
from kvm_pf.bits import PFERR_RSVD_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.faultin import Faultin, handle_abnormal_pfn
from kvm_pf.guest.attribute_store import AttributeStore
from kvm_pf.guest.invalidation import Invalidations
from kvm_pf.guest.memslots import Memslot, Memslots
from kvm_pf.guest.nested import (
    LEVELS,
    NPT_TABLES,
    PTE_PREFETCH_NUM,
    GuestWalk,
    Leaf,
    PageTable,
    Shadow,
    ShadowPage,
    in_page,
    index,
    span,
)
from kvm_pf.mmio import MMIO_EPT, MMIO_NPT, mmio_format
from kvm_pf.revisions import Revision, get
from kvm_pf.revisions.link import link
from kvm_pf.run.tables import VM_TYPES
from kvm_pf.run.watch import Watcher
from kvm_pf.spte import (
    EPT_SPTE_ACCESSED,
    EPT_SPTE_EXEC,
    EPT_SPTE_MMU_WRITABLE,
    EPT_SPTE_PAGE,
    NPT_SPTE_ACCESSED,
    NPT_SPTE_MMU_WRITABLE,
    NPT_SPTE_PAGE,
    SPTE_LARGE,
    SPTE_MMU_PRESENT_MASK,
    SPTE_NONPRESENT,
    SPTE_NX,
    SPTE_READ,
    SPTE_WRITE,
    UNDECIDED,
    mark_spte_for_access_track,
    present_leaf,
    restore_acc_track_spte,
)
from kvm_pf.state import (
    EFAULT,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    NO_LOOKUP,
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    RET_PF_CONTINUE,
    RET_PF_RETRY,
    Environment,
    Fault,
    Lookups,
    MmioCache,
    Mmu,
    Vcpu,
    Vm,
    Walk,
)

HARDWARE = ("npt", "ept", "shadow")
NO_MMIO_CACHED = MmioCache(0, 0, 0, 0)
BASE_SLOT, BASE_SLOT_SIZE = 0, 0x200000
"""The slot for the guest's code and tables."""
BASE_PAGES = (2, 3, 4, 5, 6, 7, 9, 0x10)
"""Its pages (gfns) that user space fills: the guest's page tables, its descriptor table, its code."""
USERSPACE_ADDR = 1 << 46
"""User space keeps the guest's memory here, in the guest's order."""
NPT_SPTE_DIRTY, EPT_SPTE_DIRTY = 1 << 6, 1 << 9
"""Source: Linux `arch/x86/kvm/mmu/spte.c`, kvm_mmu_set_ept_masks(), kvm_mmu_reset_all_pte_masks() (v6.12)."""
PAGES = {PG_LEVEL_4K: 1, PG_LEVEL_2M: 512}
PLACES = (
    "kvm_mmu_page_fault", "fast_page_fault", "kvm_faultin_pfn", "kvm_mem_is_private", "__kvm_faultin_pfn",
    "is_page_fault_stale", "kvm_tdp_mmu_map",
)  # fmt: skip
"""Where a fault can be held: what comes next.  In order: the first look-up of the attribute; the entry is read
without a lock; the count of invalidations is noted; the attribute is looked up again, and the fault ends if its page
is being taken away; the host is asked for the page, and the count checked; the count is checked under mmu_lock; the
entry is made.  Before the last the lock is held for reading: other faults may come in between, an invalidation may not.
Before 6.10 the attribute is looked up again only in __kvm_faultin_pfn(), before the host is asked.

Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_tdp_mmu_page_fault(), kvm_faultin_pfn() (v6.12; v6.9)."""
SLOT_FLAGS = {
    "ro": faultin.KVM_MEM_READONLY,
    "log": faultin.KVM_MEM_LOG_DIRTY_PAGES,
    "gmem": faultin.KVM_MEM_GUEST_MEMFD,
    "touch": 0,  # user space writes to all of it first
    "thp": 0,  # the same, in huge pages
    "small": 0,  # never in huge pages
}

# The guest's own page-directory entries.
PDE_PRESENT, PDE_WRITE, PDE_USER, PDE_LARGE, PDE_NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
PDE_SHIFT, PDE_ADDRESS = 21, 0xFFFFFFFE00000


class HostMemory:
    """What user space has behind its slots, page by page.

    A page is absent until touched.  A read of an absent page finds the zero page; the write that replaces it
    makes the host drop KVM's entry for it while the fault is still under way.  Ranges are gfns, the end not
    included.
    """

    def __init__(self) -> None:
        self._pages: list[tuple[int, int, str]] = []  # of several that cover a gfn, the last counts
        self._mapped: list[tuple[int, int, str]] = []

    def touch(self, start: int, end: int, huge: bool = False) -> list[int]:
        """Let user space write to a range; return the gfns whose zero page is replaced."""
        if end - start == 1 and self._page(start) in ("own", "huge"):
            return []
        zeroes = [gfn for gfn, _, what in self._pages if what == "zero" and start <= gfn < end]
        replaced = [gfn for gfn in zeroes if self._page(gfn) == "zero"]
        self._pages.append((start, end, "huge" if huge else "own"))
        return replaced

    def change(self, verb: str, start: int, end: int) -> None:
        """Make a range read-only (mprotro) or writable again (mprotrw), unmap it (unmap), or empty it (zap)."""
        if verb == "zap":
            self._pages.append((start, end, "absent"))
        else:
            self._mapped.append((start, end, verb))

    def _page(self, gfn: int) -> str:
        return next((what for start, end, what in reversed(self._pages) if start <= gfn < end), "absent")

    def huge(self, gfn: int) -> bool:
        """Say whether a whole huge page is left around the gfn."""
        first = gfn & -PAGES[PG_LEVEL_2M]
        meets = [x for x in self._pages + self._mapped if x[0] < first + PAGES[PG_LEVEL_2M] and first < x[1]]
        whole = [start <= first and first + PAGES[PG_LEVEL_2M] <= end for start, end, _ in meets]
        return self._page(gfn) == "huge" and all(whole) and all(what == "huge" for _, _, what in meets)

    def ready(self, gfn: int) -> bool:
        """Say whether the host has the page at hand, and lets it be written to: only such are mapped ahead.

        Source: Linux `virt/kvm/kvm_main.c`, gfn_to_page_many_atomic() (v6.12).
        """
        changed = any(start <= gfn < end for start, end, _ in self._mapped)
        return self._page(gfn) in ("own", "huge") and not changed

    def look(self, gfn: int, write: bool, pages: int = 1) -> tuple[int, bool, bool]:
        """Look a page up: GUP_*, whether it may be written to, whether KVM's entry was dropped meanwhile.

        A page that is touched for the first time comes with its neighbours: `pages` in all, aligned.
        """
        verbs = [verb for start, end, verb in self._mapped if start <= gfn < end]
        read_only = next((verb for verb in reversed(verbs) if verb != "unmap"), "") == "mprotro"
        if "unmap" in verbs or (write and read_only):
            return faultin.GUP_FAULT, False, False
        was = self._page(gfn)
        if was == "absent" or (write and was == "zero"):
            self._pages.append((gfn & -pages, (gfn & -pages) + pages, "own" if write else "zero"))
        writable = write or (was in ("own", "huge") and not read_only)
        return faultin.GUP_OK, writable, write and was == "zero"


class Options(NamedTuple):
    """How the host is set up: module parameters, features of the CPU, the kernel's configuration."""

    sw_protected: bool = True  # CONFIG_KVM_SW_PROTECTED_VM
    private_mem: bool = True  # CONFIG_KVM_PRIVATE_MEM
    address_spaces: int = 1  # by which the slots' generation grows: 2 with SMM; private memory: always 1
    mmio_caching: bool = True
    nx_huge_pages: bool = False
    tdp_mmu: bool = True
    accessed_dirty: bool = True  # kvm_intel.eptad
    pml: bool = False  # dirty logging without write protection (Intel)
    mbec: bool = False  # EPT tells user from supervisor execution (7.3)
    gmet: bool = False  # the same for NPT
    nrips: bool = False  # SVM tells the next instruction's address
    l1tf_mask: int = 0  # bits of an address that an MMIO entry keeps inverted
    maxphyaddr: int = 46
    page_offset: int = 0  # where the kernel maps all memory; 0: the usual place
    slot_zap_all: bool = True  # KVM_X86_QUIRK_SLOT_ZAP_ALL; user space may turn it off (from 6.12)
    reserved_is_present: bool = False  # reserved faults set bit 0, as manuals say; QEMU does not


class Given(NamedTuple):
    """What happens outside the path.  None: the machine works it out."""

    pf_set: int = 0  # bits to set in kvm_mmu_page_fault()'s argument, as an experiment
    pf_clear: int = 0  # bits to clear there
    emu_ret: int | None = None  # the emulator's answer
    invalidated: bool | None = None  # host mappings were dropped during the look-up
    handler_ret: int | None = None  # the handler's result, where it is UNDECIDED
    pf_flip: int = 0  # bits to flip where `pf_set` and `pf_clear` are, after them
    lost: bool = False  # another vCPU changed the entry first: tdp_mmu_set_spte_atomic() failed
    level: int | None = None  # PG_LEVEL_* of the host's page, as far as KVM may use it


@dataclass
class Nested:
    """L1 as a hypervisor, and its guest L2.

    `paging`: L1 gives L2 a nested page table.  `running`: the vCPU is in L2.  `access`: what L2 was doing when
    user space was last asked, a kind and an address.  `cr3`: where L2's own page table is, in L2's memory.
    """

    paging: bool
    table: PageTable
    shadow: Shadow
    entries: dict[tuple[int, int], int] = field(default_factory=dict)  # without a nested page table
    running: bool = False
    access: tuple[str, int] | None = None
    cr3: int | None = None  # None: where L1 has its own
    next_table: int = NPT_TABLES[-1] + 0x1000


@dataclass
class Handler:
    """What the MMU's page-fault handler did."""

    fault: Fault  # with what the handler itself filled in: gfn, slot, levels
    ret: int = RET_PF_RETRY
    decided: bool = True
    fast: int | None = None  # fast_page_fault()'s result; None: not asked
    fast_lookups: Lookups = NO_LOOKUP  # of memory attributes, by fast_page_fault()
    fast_found: int = 0  # what it found
    fast_traced: bool = False
    walked: bool = False  # the guest's page tables were walked
    refused: bool = False  # and do not allow the access
    walk: GuestWalk | None = None  # L1's nested page table was walked, for L2
    walk_lookups: Lookups = NO_LOOKUP  # of memory attributes, after that walk
    walk_found: int = 0  # what was found
    write_tracked: bool = False  # a write to a page table that KVM shadows
    prefetched: tuple[int, ...] = ()  # gfns that were mapped ahead with the fault's own
    faultin_found: int = 0  # the attributes that is_private is compared with
    faultin: Faultin | None = None  # as kvm_faultin_pfn() returned it
    finished: Faultin | None = None  # after handle_abnormal_pfn()
    noslot: bool = False  # kvm_handle_noslot_fault() was asked
    gup_failed: bool = False  # the host's look-up failed
    gmem_ret: int = 0  # guest_memfd's answer, if asked
    mapped: bool = False  # an entry was asked for
    host_sized: bool = False  # how large it could be was up to the host's page
    mmio_spte: int | None = None  # the MMIO entry that was made
    spte_before: int = 0
    mmu_seq: int = 0  # the count of invalidations that kvm_faultin_pfn() noted
    stats: Counter[str] = field(default_factory=Counter)


class GuestMemory:
    """The memory of one VM and its vCPUs; see `kvm_pf.guest.machine.Machine` for the arguments."""

    def __init__(self, vm_type: str, hardware: str, revision: str | Revision, options: Options) -> None:
        self.hardware, self.revision, self.options = hardware, get(revision), options
        self.watcher = Watcher(self.revision)
        names = dict(self.revision.names)
        if options.page_offset:
            names["KVM_HVA_ERR_BAD"] = options.page_offset
            names["KVM_HVA_ERR_RO_BAD"] = options.page_offset + PAGE_OFFSET_MASK + 1
            if self.revision.step("INITIAL_HVA"):
                names["INITIAL_HVA"] = options.page_offset
        self._names, self._constants = names, dict[str, int]()
        self._faultin = self.linked(faultin.kvm_faultin_pfn)
        self._abnormal = self.linked(handle_abnormal_pfn)
        self._can_be_fast = self.linked(faultin.page_fault_can_be_fast)
        self._zap_all = self.linked(faultin.kvm_memslot_flush_zap_all)
        self._present_leaf = self.linked(present_leaf)
        self._walked_is_private = self.linked(faultin.walked_is_private)
        self._fault_gfn = self.linked(path.fault_gfn)
        self._gen_bits = self.linked(mmio.mmio_spte_gen_mask)().bit_length()
        self.make_mmio_spte = self.linked(mmio.make_mmio_spte)
        self.mmio_spte_generation = self.linked(mmio.get_mmio_spte_generation)
        self._is_mmio_spte = self.linked(mmio.is_mmio_spte)
        self._track = self.linked(mark_spte_for_access_track)
        self._restore = self.linked(restore_acc_track_spte)
        ept = hardware == "ept"
        made = self.linked(mmio_format)(MMIO_EPT if ept else MMIO_NPT, options.mmio_caching)
        kept = made.lower_gfn_mask & ~(options.l1tf_mask | options.l1tf_mask << 5)
        self.format = made._replace(nonpresent_or_rsvd_mask=options.l1tf_mask, lower_gfn_mask=kept)
        self.accessed = EPT_SPTE_ACCESSED if ept else NPT_SPTE_ACCESSED
        self.dirty = EPT_SPTE_DIRTY if ept else NPT_SPTE_DIRTY
        if not options.accessed_dirty:
            self.accessed = SPTE_READ
        ept_writable = names.get("EPT_SPTE_MMU_WRITABLE", EPT_SPTE_MMU_WRITABLE)
        self.mmu_writable = ept_writable if ept else NPT_SPTE_MMU_WRITABLE
        self.nonpresent = names.get("SPTE_NONPRESENT", SPTE_NONPRESENT)
        self.l1_mmu = Mmu(True, hardware != "shadow", hardware != "shadow", False, False)
        self.reset(vm_type)

    def linked(self, function: Callable[..., Any], **names: Any) -> Any:
        """Link a function of the path for this machine's revision, watched."""
        if not isinstance(function, FunctionType):
            raise InputError(f"{ascii(function)[:80]} is no function of the path")
        return link(function, {**self._names, **names}, self._bind)

    @typed()
    def constant(self, name: str) -> int:
        """Return one of the revision's numbers."""
        if name not in self._constants:
            self._constants[name] = self.revision.step(name)
        return self._constants[name]

    def _bind(self, function: FunctionType) -> Any:
        around = function.__name__ == "after_fault" and function.__closure__
        return function if around else self.watcher(function)

    @typed()
    def reset(self, vm_type: str) -> None:
        """Start a new VM.  Raises InputError if there is no such kind."""
        if vm_type not in VM_TYPES:
            raise InputError(f"there is no kind of VM {vm_type!r}; one of {', '.join(VM_TYPES)} is wanted")
        self.vm_type = VM_TYPES.index(vm_type)
        self.has_private_mem = self.options.private_mem and vm_type in ("sw-protected", "snp", "tdx")
        spaces = 1 if self.has_private_mem else self.options.address_spaces
        self.slots = Memslots(spaces, True, self.options.maxphyaddr, mmio_gen_bits=self._gen_bits)
        self.attributes, self.host, self.invalidations = AttributeStore(), HostMemory(), Invalidations()
        self.cpu = 0
        self.caches: dict[int, MmioCache] = {}
        self.entries: dict[tuple[int, int], int] = {}
        self.nx_splits: set[int] = set()
        self.gmem_closed: set[int] = set()
        self.pdes: dict[int, int] = {}
        self.nx = True
        self.l2: Nested | None = None
        self.mmu = self.l1_mmu
        self.given = Given()
        self.handler: Handler | None = None
        self.add_slot(BASE_SLOT, 0, BASE_SLOT_SIZE)
        for gfn in BASE_PAGES:
            self.host.touch(gfn, gfn + 1)

    @property
    def cache(self) -> MmioCache:
        """The MMIO cache of the vCPU that is at work, `cpu`."""
        return self.caches.get(self.cpu, NO_MMIO_CACHED)

    @cache.setter
    def cache(self, cache: MmioCache) -> None:
        self.caches[self.cpu] = cache

    # --- what user space does ---

    @typed(gpa=64, size=64)
    def set_attributes(self, gpa: int, size: int, private: bool) -> int:
        """Declare a range private or shared (KVM_SET_MEMORY_ATTRIBUTES): 0 or -EINVAL."""
        word = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        ret = kvm_vm_ioctl_set_mem_attributes(gpa, size, word, 0, self.has_private_mem)
        start, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        if ret == 0 and self.attributes.set(start, end, word):
            self.invalidate(start, end, lambda gfn: self.slots.find(gfn) is not None)
        return ret

    @typed(number=16, gpa=64, size=64)
    def add_slot(self, number: int, gpa: int, size: int, *flags: str) -> int:
        """Make a slot or change its flags (SLOT_FLAGS); 0 or a negative errno.  A slot of size 0 is deleted.

        Raises InputError for a flag that is none.
        """
        if unknown := set(flags) - set(SLOT_FLAGS):
            raise InputError(f"{unknown.pop()!r} is no flag of a slot; there are {', '.join(SLOT_FLAGS)}")
        if not size:
            return self.delete_slot(number)
        bits = sum(SLOT_FLAGS[flag] for flag in set(flags))
        ret = self.slots.set(number, gpa, size, USERSPACE_ADDR + gpa, bits)
        start, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        if ret == 0 and {"touch", "thp"} & set(flags):
            self.host.touch(start, end, "thp" in flags)
        if ret == 0 and "log" in flags:
            self.write_protect(start, end)
        return ret

    @typed(number=16)
    def delete_slot(self, number: int) -> int:
        """Delete a slot, with all entries or with those that map its range; 0 or a negative errno.

        Which, depends on the VM and the revision.  Marks of emulated memory map nothing: where not all entries
        go, they stay, and are stale.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_flush_shadow_memslot(), `arch/x86/kvm/mmu/tdp_mmu.c`,
        tdp_mmu_zap_leafs() (v6.12).
        """
        slot = next((slot for slot in self.slots if slot.id == number), None)
        ret = self.slots.delete(number)
        if slot is None or ret:
            return ret
        if self._zap_all(self.vm(slot.base_gfn), self.options.slot_zap_all):
            self.clear()
        for root in self._roots():
            for key in _entries_in(root, slot.base_gfn, slot.end_gfn):
                if root[key] & SPTE_MMU_PRESENT_MASK:
                    del root[key]
        if self.l2:
            self.l2.shadow.drop(slot.base_gfn, slot.end_gfn, lambda gfn: True)
        return 0

    def write_protect(self, start: int, end: int) -> None:
        """Begin to log writes anew: the CPU logs them by itself (PML), or the entries lose the right to write."""
        if not self.options.pml:
            self._take(SPTE_WRITE, start, end)

    @typed(gfn=52)
    def watch(self, gfn: int) -> None:
        """Let nobody write to a page unseen: it is a page table that KVM shadows.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_slot_gfn_write_protect() (v6.12).
        """
        self._take(SPTE_WRITE | self.mmu_writable, gfn, gfn + 1)

    def _take(self, bits: int, start: int, end: int) -> None:
        """Take rights from every entry that maps one of some gfns."""
        for root in self._roots():
            for key in _entries_in(root, start, end):
                if root[key] & SPTE_MMU_PRESENT_MASK:
                    root[key] &= ~bits
        if self.l2:
            self.l2.shadow.take(bits, start, end)

    # --- entries ---

    def _roots(self) -> list[dict[tuple[int, int], int]]:
        """The sets of entries by gfn: L1's, and L2's if L1 gives it no table of its own."""
        return [self.entries, *([self.l2.entries] if self.l2 else [])]

    def _root(self) -> dict[tuple[int, int], int]:
        """The set of entries that the vCPU uses now."""
        return self.l2.entries if self.l2 and self.mmu.guest_mode else self.entries

    def clear(self) -> None:
        """Drop all entries."""
        for root in self._roots():
            root.clear()
        if self.l2:
            self.l2.shadow.clear()

    @typed(page=52)
    def entry(self, page: int) -> tuple[int, int]:
        """Return the entry that maps a page, or ends the walk to it, and its level.

        `page`: a gfn; of L2 with a nested page table, L2's own page.
        """
        if self.l2 and self.mmu.nested:
            leaf, level = self.l2.shadow.find(page)
            return leaf.spte if leaf else self.nonpresent, level if leaf else PG_LEVEL_4K
        root = self._root()
        for level, pages in PAGES.items():
            if (spte := root.get((page & -pages, level))) is not None:
                return spte, level
        return self.nonpresent, PG_LEVEL_4K

    @typed(gfn=52, spte=64)
    def put(self, gfn: int, spte: int, level: int = PG_LEVEL_4K) -> None:
        """Set the entry for a gfn; one that maps nothing is dropped."""
        first, root = gfn & -PAGES[level], self._root()
        for key in _entries_in(root, first, first + PAGES[level]):
            del root[key]
        if spte & SPTE_MMU_PRESENT_MASK or self.is_mmio(spte):
            root[first, level] = spte

    def drop(self, start: int, end: int, which: Callable[[int], bool] = lambda gfn: True) -> None:
        """Drop the entries that map any gfn from `start` up to and without `end`, or those of `which` gfns."""
        for root in self._roots():
            for first, level in _entries_in(root, start, end):
                if which(first):
                    del root[first, level]
        if self.l2:
            self.l2.shadow.drop(start, end, which)

    @typed(start=52, end=64)
    def invalidate(self, start: int, end: int, which: Callable[[int], bool] = lambda gfn: True) -> None:
        """Take gfns away, the end not included: begin, drop the entries of `which` gfns, end.

        A range without a slot is none of KVM's: it does not count.

        Source: Linux `virt/kvm/kvm_main.c`, kvm_mmu_notifier_invalidate_range_start(), kvm_vm_set_mem_attributes(),
        kvm_handle_gfn_range() (v6.12).
        """
        if not any(slot.base_gfn < end and start < slot.end_gfn for slot in self.slots):
            return
        self.invalidations.mmu_invalidate_begin()
        self.invalidations.mmu_invalidate_range_add(start, end)
        self.drop(start, end, which)
        self.invalidations.mmu_invalidate_end()

    @typed(spte=64)
    def is_mmio(self, spte: int) -> bool:
        """Say whether an entry marks emulated memory."""
        return bool(self._is_mmio_spte(self.format, spte))

    @typed(spte=64)
    def allows(self, spte: int, access: str) -> bool:
        """Say whether an entry allows an access: r, w or x."""
        if not spte & SPTE_MMU_PRESENT_MASK:
            return False
        if access == "x":
            return spte & EPT_SPTE_EXEC != 0 if self.hardware == "ept" else not spte & SPTE_NX
        return spte & (SPTE_WRITE if access == "w" else SPTE_READ) != 0

    @typed(addr=64)
    def mark_dirty(self, addr: int) -> None:
        """Let the CPU mark the entry through which it wrote, if it has accessed and dirty bits."""
        page = self.page(addr)
        spte, level = self.entry(page)
        if (
            self.options.accessed_dirty
            and spte & SPTE_WRITE
            and (page & -PAGES[level], level) in self._root()
        ):
            self._root()[page & -PAGES[level], level] = spte | self.dirty

    @typed()
    def page_spte(self, writable: bool, executable: bool, accessed: bool, level: int, old: int = 0) -> int:
        """Build the entry of a page over `old`: the bits that faults look at.

        One that may be written to begins dirty, but not over one that might be written to already.  Where L1's
        table for L2 has no accessed and dirty bits, KVM's in its place has none either.

        Source: Linux `arch/x86/kvm/mmu/spte.c`, make_spte(), `arch/x86/kvm/mmu/mmu.c`,
        kvm_calc_shadow_ept_root_page_role() (v6.12).
        """
        spte = SPTE_LARGE if level > PG_LEVEL_4K else 0
        spte |= (SPTE_WRITE | self.mmu_writable if writable else 0) | (self.accessed if accessed else 0)
        accessed_dirty = self.options.accessed_dirty
        if self.l2 and self.mmu.nested:
            accessed_dirty = accessed_dirty and self.l2.table.accessed_dirty
        if writable and accessed_dirty and not old & SPTE_WRITE:
            spte |= self.dirty
        if self.hardware == "ept":
            spte |= EPT_SPTE_PAGE | (EPT_SPTE_EXEC if executable else 0)
            tracked = not (accessed or accessed_dirty)
            return int(self._track(spte)) if tracked else spte
        return spte | NPT_SPTE_PAGE | (0 if executable else SPTE_NX)

    # --- what a fault meets ---

    @typed(addr=64)
    def translate(self, addr: int) -> tuple[int, int]:
        """Walk the guest's own tables: where `addr` lies, and the entry (a PDE) that says so."""
        offset = addr & (1 << PDE_SHIFT) - 1
        pde = self.pdes.get(addr >> PDE_SHIFT, addr - offset | PDE_PRESENT | PDE_WRITE | PDE_USER | PDE_LARGE)
        return pde & PDE_ADDRESS | offset, pde

    @typed(addr=64)
    def page(self, addr: int) -> int:
        """Return the page that the entry of an address is found by: its own, or where the guest's tables lead."""
        walked = addr if self.mmu.direct or self.mmu.nested else self.translate(addr)[0]
        return walked >> PAGE_SHIFT

    @typed(gfn=52)
    def private(self, gfn: int) -> bool:
        """Say whether user space declared a gfn private."""
        return self.attributes[gfn] & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0

    @typed(gfn=52)
    def vm(self, gfn: int) -> Vm:
        """Return the VM as a fault on a gfn sees it."""
        o = self.options
        return Vm(
            o.sw_protected, o.private_mem, self.vm_type, self.attributes[gfn], o.nx_huge_pages, False, 0,
            self.slots.generation,
        )  # fmt: skip

    @typed(addr=64)
    def vcpu(self, addr: int, emu_ret: int) -> Vcpu:
        """Return all that kvm_mmu_page_fault() can see when it is called for `addr` (u64)."""
        spte, level = self.entry(self.page(addr))
        sptes = [spte if n == level else 0 for n in (5, 4, 3, 2, 1)]
        gfn = addr >> PAGE_SHIFT
        slot = self.slots.find(gfn) is not None
        environment = Environment(slot, RET_PF_CONTINUE, False, emu_ret, False, False, False)
        return Vcpu(self.mmu, self.vm(gfn), self.format, Walk(level, level, *sptes), self.cache, environment)

    def _look(
        self, fault: Fault, memslot: Memslot | None, early: faultin.Invalidation
    ) -> tuple[faultin.Memory, bool]:
        """Return what the fault-in can meet, and whether the host lets the page be written to.

        `early`: what the fault saw of invalidations when it began; one in progress ends it before the host is asked.
        """
        gup, writable, dropped = faultin.GUP_OK, False, False
        if memslot and not fault.is_private and not early.covers_gfn:
            if fault.write and memslot.flags & faultin.KVM_MEM_READONLY:
                gup = faultin.GUP_RO_FAULT
            else:
                pages = PAGES[self.mapping_level(fault.gfn, memslot, PG_LEVEL_2M)] if self.given.level else 1
                gup, writable, dropped = self.host.look(fault.gfn, fault.write, pages)
        if self.given.invalidated is not None:
            dropped = self.given.invalidated
        if dropped:
            self.invalidate(fault.gfn, fault.gfn + 1)
        return faultin.Memory(
            slot=memslot.seen if memslot else faultin.Slot(0, 0),
            maxphyaddr=self.options.maxphyaddr,
            invalidation=early,
            late_invalidation=self.invalidations.seen_by(fault.gfn),
            apicv_active=True,
            gmem_ret=-EFAULT if memslot and memslot.id in self.gmem_closed else 0,
            gmem_pfn=fault.gfn,
            gmem_order=0,
            vendor_max_level=0,
            gup_result=gup,
            gup_async=False,
            host_pfn=fault.gfn,
            hva=memslot.hva(fault.gfn) if memslot else 0,
            can_async_pf=False,
            apf_repeat=False,
            apf_setup_ok=False,
        ), writable

    # --- the handler ---

    @typed()
    def handle(self, vcpu: Vcpu, fault: Fault) -> int:
        """Handle a filled fault without a stop; see `handling`."""
        steps = self.handling(vcpu, fault)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return int(done.value)

    def handling(self, vcpu: Vcpu, fault: Fault) -> Generator[str, None, int]:
        """Handle a filled fault, as far as entries, slots, attributes and the host decide it.

        Yields each of PLACES before it goes on there; returns the result.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, direct_page_fault(), kvm_tdp_mmu_page_fault(),
        `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(page_fault) (v6.12).
        """
        h = self.handler = Handler(fault)
        gfn = self._fault_gfn(vcpu.vm, fault.addr)
        if not self.mmu.direct:
            walk = self._walk(h)
            if walk is None:
                return h.ret
            gfn, fault = walk.gfn, fault._replace(max_level=walk.level, gfn=walk.gfn)
            h.walk_found = self.attributes[gfn]
            private, h.walk_lookups = self._walked_is_private(self.vm(gfn), fault)
            fault = fault._replace(is_private=private)
        memslot = self.slots.find(gfn)
        h.fault = fault = fault._replace(gfn=gfn, slot=memslot is not None)
        if self.mmu.direct:
            yield "fast_page_fault"
        h.spte_before, level = self.entry(self.page(fault.addr))
        if memslot and self.l2 and self._write_tracked(fault):
            h.write_tracked, h.ret = True, self._protected()
            for table in self._on_path(fault.addr):
                table.writes = 0
            return h.ret
        if self.mmu.direct:
            h.fast = h.ret = self._fast_page_fault(h, memslot, level)
            if h.ret != self.constant("RET_PF_INVALID"):
                h.stats["pf_fast"] += 1
                return h.ret
        yield "kvm_faultin_pfn"
        h.mmu_seq = self.invalidations.mmu_invalidate_seq
        yield "kvm_mem_is_private"
        early = faultin.Invalidation(self.invalidations.mmu_invalidate_retry_gfn(h.mmu_seq, gfn), h.mmu_seq)
        compares_first = self.revision.has("compares-first")
        if not compares_first:
            yield "__kvm_faultin_pfn"
        h.noslot = memslot is None and fault.is_private == self.private(gfn)
        now = vcpu._replace(vm=self.vm(gfn), cache=self.cache)
        h.faultin_found = now.vm.attrs
        if compares_first:
            yield "__kvm_faultin_pfn"
        memory, writable = self._look(fault, memslot, early)
        h.gup_failed, h.gmem_ret = memory.gup_result != faultin.GUP_OK, memory.gmem_ret
        access = self.access_bits(h.walk.writable, h.walk.executable) if h.walk else self.constant("ACC_ALL")
        found = self._faultin(now, fault, access, memory)
        if not (fault.is_private or writable):
            found = found._replace(found=found.found._replace(map_writable=False))
        h.faultin, h.finished = found, self._abnormal(now, fault, access, memory, found)
        self.cache, h.ret = h.finished.cache, h.finished.ret
        if h.ret != RET_PF_CONTINUE:
            return h.ret
        yield "is_page_fault_stale"
        if self.invalidations.is_page_fault_stale(memslot is not None, found.found.mmu_seq, gfn):
            h.ret = self.constant("RET_PF_RETRY")
            return h.ret
        yield "kvm_tdp_mmu_map"
        h.ret = self._map(h, memslot, access)
        return h.ret

    def _walk(self, h: Handler) -> GuestWalk | None:
        """Walk the guest's tables, for L2 with a nested page table L1's; None: they do not allow the access."""
        fault, h.walked = h.fault, True
        if self.l2 and self.mmu.nested:
            h.walk = self.l2.table.walk(fault.addr, fault.error_code & ~PFERR_RSVD_MASK)
            h.refused = h.walk.refused
            return None if h.refused else h.walk
        gpa, pde = self.translate(fault.addr)
        no_exec = fault.exec and self.nx and pde & PDE_NX != 0
        h.refused = not pde & PDE_PRESENT or no_exec or (fault.write and not pde & PDE_WRITE)
        if h.refused:
            h.stats["pf_guest"] += 1
            return None
        level = PG_LEVEL_2M if pde & PDE_LARGE else PG_LEVEL_4K
        return GuestWalk(False, gpa >> PAGE_SHIFT, level, True, True, (), 0, 0)

    @typed()
    def access_bits(self, writable: bool, executable: bool) -> int:
        """Return the rights that L1's table gives to a page that can be read, as ACC_* bits."""
        everything = self.constant("ACC_ALL")
        execute = 8 if everything & 8 else 1  # ACC_EXEC_MASK in 7.3, and before
        return everything & ~((0 if writable else SPTE_WRITE) | (0 if executable else execute))

    def _write_tracked(self, fault: Fault) -> bool:
        """Say whether the fault is a write to a page table that KVM shadows.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, page_fault_handle_page_track() (v6.12).
        """
        assert self.l2
        return not fault.rsvd and fault.present and fault.write and self.l2.shadow.tracked(fault.gfn)

    def _protected(self) -> int:
        """What the handler answers to a write to a page table that it shadows."""
        own = self.revision.has("write-protected")
        return self.constant("RET_PF_WRITE_PROTECTED" if own else "RET_PF_EMULATE")

    def _on_path(self, addr: int) -> list[ShadowPage]:
        """The tables of KVM's on the way to an address of L2's; none elsewhere."""
        if not (self.l2 and self.mmu.nested):
            return []
        tables, level = [], LEVELS
        table = self.l2.shadow.pages.get((self.l2.shadow.root, LEVELS, 0))
        while table:
            tables.append(table)
            table, level = table.children.get(index(addr >> PAGE_SHIFT, level)), level - 1
        return tables

    def _fast_page_fault(self, h: Handler, memslot: Memslot | None, level: int) -> int:
        """Give a page back the right to write that dirty logging took, without a lock; else RET_PF_INVALID.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, fast_page_fault() (v6.12).
        """
        fault, spte = h.fault, h.spte_before
        invalid, fixed, spurious = (
            self.constant(f"RET_PF_{name}") for name in ("INVALID", "FIXED", "SPURIOUS")
        )
        h.fast_found = self.attributes[fault.gfn]
        can_be_fast, h.fast_lookups = self._can_be_fast(
            self.vm(fault.gfn), fault, self.options.accessed_dirty
        )
        if not can_be_fast:
            return invalid
        h.fast_traced = True
        if not spte & SPTE_MMU_PRESENT_MASK:
            return invalid
        if self.allows(spte, _kind(fault)):
            return spurious
        fixed_spte = spte if self.options.accessed_dirty else int(self._restore(spte))
        if fault.write and spte & self.mmu_writable:
            if level > PG_LEVEL_4K and memslot and memslot.flags & faultin.KVM_MEM_LOG_DIRTY_PAGES:
                return invalid
            fixed_spte |= SPTE_WRITE
        if not self.allows(fixed_spte, _kind(fault)):
            return invalid
        self.put(fault.gfn, fixed_spte, level)
        return fixed

    def _map(self, h: Handler, memslot: Memslot | None, access: int) -> int:
        """Make the entry: for MMIO one that the CPU refuses, else one that maps the page.

        Source: Linux `arch/x86/kvm/mmu/tdp_mmu.c`, kvm_tdp_mmu_map(), `arch/x86/kvm/mmu/mmu.c`,
        kvm_mmu_hugepage_adjust(), disallowed_hugepage_adjust() (v6.12).
        """
        assert h.finished is not None
        found, fault, h.mapped = h.finished.found, h.fault, True
        if self.given.lost:
            return RET_PF_RETRY
        tables = self._tables(h, fault)
        fault = h.fault
        if memslot is None:
            h.spte_before, _ = self.entry(self.page(fault.addr))
            h.mmio_spte = self.make_mmio_spte(self.format, self.slots.generation, fault.gfn, access)
            h.stats["pf_mmio_spte_created"] += 1
            self._store(h, h.mmio_spte, PG_LEVEL_4K, tables)
            return self.constant("RET_PF_EMULATE")
        requested = self.mapping_level(fault.gfn, memslot, found.max_level)
        h.host_sized = self._largest(fault.gfn, memslot, found.max_level) > PG_LEVEL_4K
        goal, split = requested, fault.gfn // PAGES[PG_LEVEL_2M]
        if fault.nx_huge_page_workaround_enabled and requested > PG_LEVEL_4K:
            if fault.exec:
                self.nx_splits.add(split)
            goal = PG_LEVEL_4K if split in self.nx_splits else requested
        h.fault = fault = fault._replace(req_level=requested, goal_level=goal)
        old, level = self.entry(self.page(fault.addr))
        ret = self.constant("RET_PF_FIXED")
        executable = goal == PG_LEVEL_4K or not fault.nx_huge_page_workaround_enabled
        executable = executable and (h.walk is None or h.walk.executable)
        writable = found.map_writable and (h.walk is None or h.walk.writable)
        protected = writable and self.l2 and not self.l2.shadow.try_to_unsync(fault.gfn, fault.prefetch)
        writable = writable and not protected
        new = self.page_spte(writable, executable, not fault.prefetch, goal, old)
        leaf_there = level == goal and old & SPTE_MMU_PRESENT_MASK != 0
        if leaf_there and (fault.prefetch or self.allows(old, _kind(fault))):
            tdp_mmu = self.mmu.direct and self.options.tdp_mmu
            leaf = UNDECIDED
            if fault.prefetch or tdp_mmu:
                leaf = self._present_leaf(fault.prefetch, old & self.accessed != 0)
            if tdp_mmu and leaf == UNDECIDED:
                leaf = self._same_leaf(old, new)
            h.decided = leaf != UNDECIDED
            ret = leaf if h.decided else ret if self.given.handler_ret is None else self.given.handler_ret
        if protected and fault.write:
            ret = self._protected()
        self._store(h, new, goal, tables, found.map_writable)
        return ret

    def _same_leaf(self, old: int, new: int) -> int:
        """Compare an entry with the one that would replace it: spurious if they are the same.

        The frame is the same: an entry goes before the host's page does.  UNDECIDED without accessed and dirty bits,
        and where the CPU may have set one of them since `old` was last seen.

        Source: Linux `arch/x86/kvm/mmu/tdp_mmu.c`, tdp_mmu_map_handle_target_level() (v6.12).
        """
        bits = SPTE_WRITE | self.mmu_writable | self.accessed | self.dirty
        bits |= EPT_SPTE_EXEC if self.hardware == "ept" else SPTE_NX
        changed = (old ^ new) & bits
        may_be_dirty = old & SPTE_WRITE and not old & self.dirty and not changed
        if not (self.options.accessed_dirty and old & self.accessed) or may_be_dirty:
            return UNDECIDED
        return self.constant("RET_PF_FIXED" if changed else "RET_PF_SPURIOUS")

    def _tables(self, h: Handler, fault: Fault) -> list[ShadowPage]:
        """Shadow the tables of L1's that were walked: it can write to none of them unseen any more."""
        if h.walk is None or self.l2 is None:
            return []
        tables, made = self.l2.shadow.path(fault.addr >> PAGE_SHIFT, h.walk, h.walk.level)
        for gfn in made:
            self.watch(gfn)
        if fault.write and fault.gfn in h.walk.tables[1:]:
            h.fault = fault._replace(write_fault_to_shadow_pgtable=True)
        return tables

    def _store(
        self, h: Handler, spte: int, level: int, tables: list[ShadowPage], host_writable: bool = False
    ) -> None:
        """Set the fault's own entry, and, for L2 with a nested page table, those of neighbours ahead."""
        if h.walk is None or self.l2 is None:
            self.put(h.fault.gfn, spte, level)
            return
        page = h.fault.addr >> PAGE_SHIFT
        if level < h.walk.level:
            tables, _ = self.l2.shadow.path(page, h.walk, level)
        leaf = Leaf(spte, h.fault.gfn & -span(level), h.fault.is_private, host_writable)
        self.l2.shadow.put(tables[-1], page, leaf)
        if level == PG_LEVEL_4K:
            h.prefetched = tuple(self._prefetch(tables[-1], page))

    def _prefetch(self, table: ShadowPage, page: int) -> Iterator[int]:
        """Map neighbours of a page of L2's ahead, and yield L1's gfns: nobody asks whether they are private.

        Source: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(pte_prefetch), FNAME(prefetch_gpte),
        `arch/x86/kvm/mmu/mmu.c`, __direct_pte_prefetch(), direct_pte_prefetch_many() (v6.12).
        """
        assert self.l2
        at, words = index(page, PG_LEVEL_4K), self.l2.table
        around = range(at & -PTE_PREFETCH_NUM, (at & -PTE_PREFETCH_NUM) + PTE_PREFETCH_NUM)
        free = [n for n in around if n != at and not _present(table.leaves.get(n))]
        if table.direct:
            yield from self._prefetch_direct(table, page, free)
            return
        for n in free:
            entry = words.words.get(table.gfn << PAGE_SHIFT | n << 3, 0)
            gfn = words.prefetched(entry)
            writable = words.writable_now(entry)
            if gfn is None:
                table.leaves.pop(n, None)  # FNAME(prefetch_invalid_gpte) drops what was there
            if gfn is None or not self.may_prefetch(gfn, writable):
                return
            self._put_ahead(table, page, n, gfn, writable, words.rights(entry)[2])
            yield gfn

    def _prefetch_direct(self, table: ShadowPage, page: int, free: list[int]) -> Iterator[int]:
        """The same in a part of a large page of L1's: run by run of free entries, until a run does not go.

        Each allows what the table may.
        """
        while free:
            run = [n for i, n in enumerate(free) if n == free[0] + i]
            free = free[len(run) :]
            ready = [n for n in run if self.may_prefetch(table.gfn + n, table.writable)]
            got = [n for i, n in enumerate(ready) if n == run[0] + i]
            for n in got:
                self._put_ahead(table, page, n, table.gfn + n, table.writable, table.executable)
                yield table.gfn + n
            if not got:
                return

    @typed(gfn=52)
    def may_prefetch(self, gfn: int, writable: bool) -> bool:
        """Say whether a gfn can be mapped ahead: it has a slot that may be written to, and a page of the host's."""
        slot = self.slots.find(gfn)
        refused = faultin.KVM_MEM_READONLY | faultin.KVM_MEMSLOT_INVALID
        refused |= faultin.KVM_MEM_LOG_DIRTY_PAGES if writable else 0
        return slot is not None and not slot.flags & refused and self.host.ready(gfn)

    def _put_ahead(
        self, table: ShadowPage, page: int, at: int, gfn: int, writable: bool, executable: bool
    ) -> None:
        assert self.l2
        allowed = writable and self.l2.shadow.try_to_unsync(gfn, prefetch=True)
        spte = self.page_spte(allowed, executable, False, PG_LEVEL_4K)
        self.l2.shadow.put(table, in_page(page, at), Leaf(spte, gfn, False, True))

    @typed(gfn=52)
    def mapping_level(self, gfn: int, memslot: Memslot | None, max_level: int) -> int:
        """Return the largest level at which host, slot and attributes let a gfn be mapped: 4K or 2M."""
        huge = self.host.huge(gfn) if self.given.level is None else self.given.level >= PG_LEVEL_2M
        return self._largest(gfn, memslot, max_level) if huge else PG_LEVEL_4K

    def _largest(self, gfn: int, memslot: Memslot | None, max_level: int) -> int:
        """Return the largest level at which slot and attributes let a gfn be mapped: 4K or 2M."""
        if memslot is None or max_level < PG_LEVEL_2M or memslot.flags & faultin.KVM_MEM_LOG_DIRTY_PAGES:
            return PG_LEVEL_4K
        first = gfn & -PAGES[PG_LEVEL_2M]
        fits = memslot.base_gfn <= first and first + PAGES[PG_LEVEL_2M] <= memslot.end_gfn
        whole = not self.attributes.hugepage_mixed(gfn, PG_LEVEL_2M)
        return PG_LEVEL_2M if fits and whole else PG_LEVEL_4K


def _entries_in(root: dict[tuple[int, int], int], start: int, end: int) -> list[tuple[int, int]]:
    return [(first, level) for first, level in root if first < end and start < first + PAGES[level]]


def _present(leaf: Leaf | None) -> bool:
    return leaf is not None and leaf.spte & SPTE_MMU_PRESENT_MASK != 0


def _kind(fault: Fault) -> str:
    return "x" if fault.exec else "w" if fault.write else "r"
