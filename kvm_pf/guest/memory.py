# SPDX-License-Identifier: GPL-2.0-only
"""A VM's memory over time: what user space and KVM keep of it, and the page-fault handler that goes through it.

The fault path asks about one page at one moment.  `GuestMemory` holds the whole: attributes, slots, the host's
pages behind them, KVM's page-table entries and the vCPU's MMIO cache.  Its handler stands in for the MMU's: it
does what entries, slots, attributes and host decide, and says where they do not.

Simplified: the guest maps every address to itself with 2M pages, apart from what its page-directory entries
(`pdes`) say; no TLB keeps old entries; nothing happens at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

from kvm_pf import fault as path
from kvm_pf import faultin, mmio
from kvm_pf.attributes import kvm_vm_ioctl_set_mem_attributes
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.faultin import Faultin, handle_abnormal_pfn
from kvm_pf.guest.attribute_store import AttributeStore
from kvm_pf.guest.memslots import Memslot, Memslots
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
BASE_SLOT, BASE_SLOT_SIZE = 0, 0x200000
"""The slot for the guest's code and tables."""
USERSPACE_ADDR = 1 << 46
"""User space keeps the guest's memory here, in the guest's order."""
PAGES = {PG_LEVEL_4K: 1, PG_LEVEL_2M: 512}
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
        """Make a range read-only (mprotro), unmap it (unmap), or throw its contents away (zap)."""
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

    def look(self, gfn: int, write: bool, pages: int = 1) -> tuple[int, bool, bool]:
        """Look a page up: GUP_*, whether it may be written to, whether KVM's entry was dropped meanwhile.

        A page that is touched for the first time comes with its neighbours: `pages` in all, aligned.
        """
        verbs = {verb for start, end, verb in self._mapped if start <= gfn < end}
        if "unmap" in verbs or (write and "mprotro" in verbs):
            return faultin.GUP_FAULT, False, False
        was = self._page(gfn)
        if was == "absent" or (write and was == "zero"):
            self._pages.append((gfn & -pages, (gfn & -pages) + pages, "own" if write else "zero"))
        writable = write or (was in ("own", "huge") and "mprotro" not in verbs)
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
    level: int | None = None  # PG_LEVEL_* of the host's page, as far as KVM may use it


@dataclass
class Handler:
    """What the MMU's page-fault handler did."""

    fault: Fault  # with what the handler itself filled in: gfn, slot, levels
    ret: int = RET_PF_RETRY
    decided: bool = True
    fast: int | None = None  # fast_page_fault()'s result; None: not asked
    fast_lookups: Lookups = NO_LOOKUP  # of memory attributes, by fast_page_fault()
    fast_traced: bool = False
    walked: bool = False  # the guest's page tables were walked
    refused: bool = False  # and do not allow the access
    faultin: Faultin | None = None  # as kvm_faultin_pfn() returned it
    finished: Faultin | None = None  # after handle_abnormal_pfn()
    noslot: bool = False  # kvm_handle_noslot_fault() was asked
    gup_failed: bool = False  # the host's look-up failed
    gmem_ret: int = 0  # guest_memfd's answer, if asked
    mapped: bool = False  # an entry was asked for
    host_sized: bool = False  # how large it could be was up to the host's page
    mmio_spte: int | None = None  # the MMIO entry that was made
    spte_before: int = 0
    stats: Counter[str] = field(default_factory=Counter)


class GuestMemory:
    """The memory of one VM with one vCPU; see `kvm_pf.guest.machine.Machine` for the arguments."""

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
        self._fault_gfn = self.linked(path.fault_gfn)
        self._gen_bits = self.linked(mmio.mmio_spte_gen_mask)().bit_length()
        self.make_mmio_spte = self.linked(mmio.make_mmio_spte)
        self.mmio_spte_generation = self.linked(mmio.get_mmio_spte_generation)
        self._is_mmio_spte = self.linked(mmio.is_mmio_spte)
        self._track = self.linked(mark_spte_for_access_track)
        self._restore = self.linked(restore_acc_track_spte)
        ept = hardware == "ept"
        made = self.linked(mmio_format)(MMIO_EPT if ept else MMIO_NPT)
        kept = made.lower_gfn_mask & ~(options.l1tf_mask | options.l1tf_mask << 5)
        self.format = made._replace(
            caching=options.mmio_caching, nonpresent_or_rsvd_mask=options.l1tf_mask, lower_gfn_mask=kept
        )
        self.accessed = EPT_SPTE_ACCESSED if ept else NPT_SPTE_ACCESSED
        if not options.accessed_dirty:
            self.accessed = SPTE_READ
        ept_writable = names.get("EPT_SPTE_MMU_WRITABLE", EPT_SPTE_MMU_WRITABLE)
        self.mmu_writable = ept_writable if ept else NPT_SPTE_MMU_WRITABLE
        self.nonpresent = names.get("SPTE_NONPRESENT", SPTE_NONPRESENT)
        self.mmu = Mmu(True, hardware != "shadow", hardware != "shadow", False, False)
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
        self.attributes, self.host, self.cache = AttributeStore(), HostMemory(), MmioCache(0, 0, 0, 0)
        self.entries: dict[tuple[int, int], int] = {}
        self.nx_splits: set[int] = set()
        self.gmem_closed: set[int] = set()
        self.pdes: dict[int, int] = {}
        self.nx = True
        self.l2_pages: dict[int, int] | None = None
        self.given = Given()
        self.handler: Handler | None = None
        self.add_slot(BASE_SLOT, 0, BASE_SLOT_SIZE, "touch")

    # --- what user space does ---

    @typed(gpa=64, size=64)
    def set_attributes(self, gpa: int, size: int, private: bool) -> int:
        """Declare a range private or shared (KVM_SET_MEMORY_ATTRIBUTES): 0 or -EINVAL."""
        word = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        ret = kvm_vm_ioctl_set_mem_attributes(gpa, size, word, 0, self.has_private_mem)
        start, end = gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT
        if ret == 0 and self.attributes.set(start, end, word):
            self.drop(start, end, lambda gfn: self.slots.find(gfn) is not None)
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
            self.entries.clear()
        for key in self._entries_in(slot.base_gfn, slot.end_gfn):
            if self.entries[key] & SPTE_MMU_PRESENT_MASK:
                del self.entries[key]
        return 0

    def write_protect(self, start: int, end: int) -> None:
        """Begin to log writes anew: the CPU logs them by itself (PML), or the entries lose the right to write."""
        for key in [] if self.options.pml else self._entries_in(start, end):
            if self.entries[key] & SPTE_MMU_PRESENT_MASK:
                self.entries[key] &= ~SPTE_WRITE

    # --- entries ---

    @typed(gfn=52)
    def entry(self, gfn: int) -> tuple[int, int]:
        """Return the entry that maps a gfn, or ends the walk to it, and its level."""
        for level, pages in PAGES.items():
            if (spte := self.entries.get((gfn & -pages, level))) is not None:
                return spte, level
        return self.nonpresent, PG_LEVEL_4K

    @typed(gfn=52, spte=64)
    def put(self, gfn: int, spte: int, level: int = PG_LEVEL_4K) -> None:
        """Set the entry for a gfn; one that maps nothing is dropped."""
        first = gfn & -PAGES[level]
        self.drop(first, first + PAGES[level])
        if spte & SPTE_MMU_PRESENT_MASK or self.is_mmio(spte):
            self.entries[first, level] = spte

    def drop(self, start: int, end: int, which: Callable[[int], bool] = lambda gfn: True) -> None:
        """Drop the entries that map any gfn from `start` up to and without `end`, or those of `which` gfns."""
        for first, level in self._entries_in(start, end):
            if which(first):
                del self.entries[first, level]

    def _entries_in(self, start: int, end: int) -> list[tuple[int, int]]:
        return [
            (first, level) for first, level in self.entries if first < end and start < first + PAGES[level]
        ]

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

    @typed()
    def page_spte(self, writable: bool, executable: bool, accessed: bool, level: int) -> int:
        """Build the entry of a page: the bits that faults look at."""
        spte = SPTE_LARGE if level > PG_LEVEL_4K else 0
        spte |= (SPTE_WRITE | self.mmu_writable if writable else 0) | (self.accessed if accessed else 0)
        if self.hardware == "ept":
            spte |= EPT_SPTE_PAGE | (EPT_SPTE_EXEC if executable else 0)
            tracked = not (accessed or self.options.accessed_dirty)
            return int(self._track(spte)) if tracked else spte
        return spte | NPT_SPTE_PAGE | (0 if executable else SPTE_NX)

    # --- what a fault meets ---

    @typed(addr=64)
    def translate(self, addr: int) -> tuple[int, int]:
        """Walk the guest's tables (L1's for L2): where `addr` lies, and the entry (a PDE) that says so."""
        if self.l2_pages is not None:
            page = self.l2_pages[addr >> PAGE_SHIFT]
            return page | addr & PAGE_OFFSET_MASK, PDE_PRESENT | PDE_WRITE | PDE_USER
        offset = addr & (1 << PDE_SHIFT) - 1
        pde = self.pdes.get(addr >> PDE_SHIFT, addr - offset | PDE_PRESENT | PDE_WRITE | PDE_USER | PDE_LARGE)
        return pde & PDE_ADDRESS | offset, pde

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
        spte, level = self.entry((addr if self.mmu.direct else self.translate(addr)[0]) >> PAGE_SHIFT)
        sptes = [spte if n == level else 0 for n in (5, 4, 3, 2, 1)]
        gfn = addr >> PAGE_SHIFT
        slot = self.slots.find(gfn) is not None
        environment = Environment(slot, RET_PF_CONTINUE, False, emu_ret, False, False, False)
        return Vcpu(self.mmu, self.vm(gfn), self.format, Walk(level, level, *sptes), self.cache, environment)

    def _look(self, fault: Fault, memslot: Memslot | None) -> tuple[faultin.Memory, bool]:
        """Return what the fault-in can meet, and whether the host lets the page be written to."""
        gup, writable, dropped = faultin.GUP_OK, False, False
        if memslot and not fault.is_private:
            if fault.write and memslot.flags & faultin.KVM_MEM_READONLY:
                gup = faultin.GUP_RO_FAULT
            else:
                pages = PAGES[self.mapping_level(fault.gfn, memslot, PG_LEVEL_2M)] if self.given.level else 1
                gup, writable, dropped = self.host.look(fault.gfn, fault.write, pages)
        if self.given.invalidated is not None:
            dropped = self.given.invalidated
        if dropped:
            self.drop(fault.gfn, fault.gfn + 1)
        return faultin.Memory(
            slot=memslot.seen if memslot else faultin.Slot(0, 0),
            maxphyaddr=self.options.maxphyaddr,
            invalidation=faultin.Invalidation(False, 0),
            late_invalidation=faultin.Invalidation(False, int(dropped)),
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
        """Handle a filled fault, as far as entries, slots, attributes and the host decide it.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, direct_page_fault(), kvm_tdp_mmu_page_fault(),
        `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(page_fault) (v6.12).
        """
        h = self.handler = Handler(fault)
        gfn = self._fault_gfn(vcpu.vm, fault.addr)
        if not self.mmu.direct:
            gpa, pde = self.translate(fault.addr)
            gfn, h.walked = gpa >> PAGE_SHIFT, True
            no_exec = fault.exec and self.nx and pde & PDE_NX != 0
            h.refused = not pde & PDE_PRESENT or no_exec or (fault.write and not pde & PDE_WRITE)
            if h.refused:
                h.stats["pf_guest"] += 1
                return h.ret
            fault = fault._replace(max_level=PG_LEVEL_2M if pde & PDE_LARGE else PG_LEVEL_4K)
        memslot = self.slots.find(gfn)
        h.fault = fault = fault._replace(gfn=gfn, slot=memslot is not None)
        h.spte_before, level = self.entry(gfn)
        if self.mmu.direct:
            h.fast = h.ret = self._fast_page_fault(h, memslot, level)
            if h.ret != self.constant("RET_PF_INVALID"):
                h.stats["pf_fast"] += 1
                return h.ret
        h.noslot = memslot is None and fault.is_private == self.private(gfn)
        memory, writable = self._look(fault, memslot)
        h.gup_failed, h.gmem_ret = memory.gup_result != faultin.GUP_OK, memory.gmem_ret
        access = self.constant("ACC_ALL")
        now = vcpu._replace(vm=self.vm(gfn), cache=self.cache)
        found = self._faultin(now, fault, access, memory)
        if not (fault.is_private or writable):
            found = found._replace(found=found.found._replace(map_writable=False))
        h.faultin, h.finished = found, self._abnormal(now, fault, access, memory, found)
        self.cache, h.ret = h.finished.cache, h.finished.ret
        if h.ret == RET_PF_CONTINUE:
            h.ret = self._map(h, memslot, access)
        return h.ret

    def _fast_page_fault(self, h: Handler, memslot: Memslot | None, level: int) -> int:
        """Give a page back the right to write that dirty logging took, without a lock; else RET_PF_INVALID.

        Source: Linux `arch/x86/kvm/mmu/mmu.c`, fast_page_fault() (v6.12).
        """
        fault, spte = h.fault, h.spte_before
        invalid, fixed, spurious = (
            self.constant(f"RET_PF_{name}") for name in ("INVALID", "FIXED", "SPURIOUS")
        )
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
        if memslot is None:
            h.mmio_spte = self.make_mmio_spte(self.format, self.slots.generation, fault.gfn, access)
            h.stats["pf_mmio_spte_created"] += 1
            self.put(fault.gfn, h.mmio_spte)
            return self.constant("RET_PF_EMULATE")
        requested = self.mapping_level(fault.gfn, memslot, found.max_level)
        h.host_sized = self._largest(fault.gfn, memslot, found.max_level) > PG_LEVEL_4K
        goal, split = requested, fault.gfn // PAGES[PG_LEVEL_2M]
        if fault.nx_huge_page_workaround_enabled and requested > PG_LEVEL_4K:
            if fault.exec:
                self.nx_splits.add(split)
            goal = PG_LEVEL_4K if split in self.nx_splits else requested
        h.fault = fault = fault._replace(req_level=requested, goal_level=goal)
        old, level = self.entry(fault.gfn)
        ret = self.constant("RET_PF_FIXED")
        leaf_there = level == goal and old & SPTE_MMU_PRESENT_MASK != 0
        if leaf_there and (fault.prefetch or self.allows(old, _kind(fault))):
            tdp_mmu = self.mmu.direct and self.options.tdp_mmu
            leaf = UNDECIDED
            if fault.prefetch or tdp_mmu:
                leaf = self._present_leaf(fault.prefetch, old & self.accessed != 0)
            h.decided = leaf != UNDECIDED
            ret = leaf if h.decided else ret if self.given.handler_ret is None else self.given.handler_ret
        executable = goal == PG_LEVEL_4K or not fault.nx_huge_page_workaround_enabled
        self.put(fault.gfn, self.page_spte(found.map_writable, executable, not fault.prefetch, goal), goal)
        return ret

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


def _kind(fault: Fault) -> str:
    return "x" if fault.exec else "w" if fault.write else "r"
