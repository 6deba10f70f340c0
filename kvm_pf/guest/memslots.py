# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots: which gfns a guest has memory for, and the generation that tells old MMIO SPTEs from new."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import check, typed
from kvm_pf.faultin import (
    APIC_ACCESS_PAGE_PRIVATE_MEMSLOT,
    IDENTITY_PAGETABLE_PRIVATE_MEMSLOT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_GMEM_ONLY,
    KVM_MEMSLOT_INVALID,
    KVM_USER_MEM_SLOTS,
    TSS_PRIVATE_MEMSLOT,
    Slot,
    kvm_mmu_max_gfn,
)
from kvm_pf.state import EINVAL, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, PAGE_OFFSET_MASK, PAGE_SHIFT

EEXIST = 17
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
"""The most pages that a slot can have.  Source: Linux `virt/kvm/kvm_main.c` (v6.8)."""

_INTERNAL = {
    TSS_PRIVATE_MEMSLOT: "tss",
    APIC_ACCESS_PAGE_PRIVATE_MEMSLOT: "apic",
    IDENTITY_PAGETABLE_PRIVATE_MEMSLOT: "ident",
}

During = Callable[[], object]


def _nothing() -> None:
    pass


class Memslot(NamedTuple):
    """One slot: `npages` pages from `base_gfn` on, and where user space keeps them."""

    id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int  # KVM_MEM_*, KVM_MEMSLOT_*

    @property
    def end_gfn(self) -> int:
        """The first gfn after the slot."""
        return self.base_gfn + self.npages

    @property
    def has_gmem(self) -> bool:
        """Whether the slot is backed by guest_memfd."""
        return self.flags & KVM_MEM_GUEST_MEMFD != 0

    @property
    def kind(self) -> str:
        """The slot's kind, in the words of the fault-in tables' `slot_kind`."""
        if self.id in _INTERNAL:
            return _INTERNAL[self.id]
        gmem_only = self.flags & KVM_MEMSLOT_GMEM_ONLY != 0
        if self.flags & KVM_MEMSLOT_INVALID:
            return "gmem_only_invalid" if gmem_only else "invalid"
        if gmem_only:
            return "gmem_only"
        return "user" + "_gmem" * self.has_gmem + "_ro" * (self.flags & KVM_MEM_READONLY != 0)

    @property
    def seen(self) -> Slot:
        """The slot as the fault path sees it."""
        return Slot(self.id, self.flags)

    def hva(self, gfn: int) -> int:
        """Return the user-space address of one of the slot's gfns."""
        return self.userspace_addr + (gfn - self.base_gfn << PAGE_SHIFT)


class Memslots:
    """The slots of one VM, in address space 0 (SMM's own space is not modelled).

    `address_spaces`: by how much the generation grows with each update: 2; 1 for a VM with private memory
    and for a kernel without SMM.  `guest_memfd`: slots may be backed by guest_memfd: those of a VM with
    private memory, from 7.3 of any.  `maxphyaddr`: the width of the host's physical addresses.
    `direct_bits`: the gfn bit that says "shared" (TDX).  `mmio_gen_bits`: how many bits of the generation an
    MMIO SPTE holds: 19, from 7.3 18.

    While an update goes on, bit 63 of the old generation is set; then comes the new one.  To see a fault in
    that moment, give a function as `during`: it is called then.  A slot that is deleted or moved is updated
    twice, and is invalid from the first to the second time.

    >>> slots = Memslots()
    >>> slots.set(0, 0x40000000, 0x200000, 0x7F0000000000)
    0
    >>> slots.find(0x40001), slots.generation
    (Memslot(id=0, base_gfn=262144, npages=512, userspace_addr=139637976727552, flags=0), 2)
    """

    def __init__(
        self,
        address_spaces: int = 2,
        guest_memfd: bool = False,
        maxphyaddr: int = 46,
        direct_bits: int = 0,
        mmio_gen_bits: int = 19,
    ) -> None:
        if not isinstance(address_spaces, int) or address_spaces not in (1, 2):
            raise InputError(f"a VM has 1 or 2 address spaces, not {address_spaces!r}")
        if not 32 <= check("maxphyaddr", maxphyaddr, int) <= 52:
            raise InputError(f"physical addresses have 32 to 52 bits, not {maxphyaddr!r}")
        if check("mmio_gen_bits", mmio_gen_bits, int) not in (18, 19):
            raise InputError(f"an MMIO SPTE holds 18 or 19 bits of the generation, not {mmio_gen_bits!r}")
        guest_memfd = check("guest_memfd", guest_memfd, bool)
        direct_bits = check("direct_bits", direct_bits, int, 64)
        self.generation = 0
        self.mmio_zaps = 0
        """How often the generation in MMIO SPTEs began anew and all SPTEs were dropped for it."""
        self._address_spaces = address_spaces
        self._guest_memfd = guest_memfd
        self._unusable = ~kvm_mmu_max_gfn(maxphyaddr) | direct_bits
        self._mmio_gen_mask = (1 << mmio_gen_bits) - 1
        self._slots: list[Memslot] = []

    @property
    def mmio_generation(self) -> int:
        """The part of the generation that an MMIO SPTE holds."""
        return self.generation & self._mmio_gen_mask

    @typed()
    def find(self, gfn: int) -> Memslot | None:
        """Return the slot that `gfn` lies in, if any.

        Source: Linux `include/linux/kvm_host.h`, gfn_to_memslot() (v6.8).
        """
        i = bisect_right(self._slots, gfn, key=attrgetter("base_gfn"))
        return self._slots[i - 1] if i and gfn < self._slots[i - 1].end_gfn else None

    def __getitem__(self, number: int) -> Memslot:
        """Return the slot with the id `number`.  Raises InputError if there is none."""
        for slot in self._slots:
            if slot.id == number:
                return slot
        raise InputError(f"there is no slot {number!r}; there are {[slot.id for slot in self._slots]}")

    def __iter__(self) -> Iterator[Memslot]:
        """Give the slots, lowest gfn first."""
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def set(
        self,
        number: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
        *,
        gmem_only: bool = False,
        during: During = _nothing,
    ) -> int:
        """Make a slot, change its flags, move it or, with `memory_size` 0, delete it.

        This is KVM_SET_USER_MEMORY_REGION2.  `gmem_only`: its guest_memfd file can be mapped (from 7.3).  A slot
        with guest_memfd cannot be read-only, for a write to such memory means emulated MMIO, which is never private.
        Returns what the ioctl would: 0, -EINVAL or -EEXIST.  Raises InputError for a number too wide for it.

        Source: Linux `virt/kvm/kvm_main.c`, check_memory_region_flags(), kvm_vm_ioctl_set_memory_region(),
        __kvm_set_memory_region() (v6.8), commit `e563592224e0` ("KVM: Make KVM_MEM_GUEST_MEMFD mutually exclusive
        with KVM_MEM_READONLY") (v6.8).
        """
        _fits("a slot's id", number, 16)
        _fits("a slot's flags", flags, 32)
        valid = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
        if flags & KVM_MEM_GUEST_MEMFD:
            valid = KVM_MEM_GUEST_MEMFD if self._guest_memfd else 0
        if number >= KVM_USER_MEM_SLOTS or flags & ~valid:
            return -EINVAL
        kept = KVM_MEMSLOT_GMEM_ONLY if gmem_only else 0
        return self._set(number, guest_phys_addr, memory_size, userspace_addr, flags, kept, during)

    def delete(self, number: int, *, during: During = _nothing) -> int:
        """Delete a slot."""
        return self.set(number, 0, 0, 0, during=during)

    def _set(
        self, number: int, gpa: int, size: int, userspace_addr: int, flags: int, kept: int, during: During
    ) -> int:
        """Source: Linux `virt/kvm/kvm_main.c`, __kvm_set_memory_region(), kvm_set_memslot() (v6.8)."""
        _fits("a guest-physical address", gpa, 64)
        _fits("a slot's size", size, 64)
        _fits("a user-space address", userspace_addr, 64)
        if (gpa | size | userspace_addr) & PAGE_OFFSET_MASK:
            return -EINVAL
        if gpa + size >> 64 or userspace_addr + size >> 63 or size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
            return -EINVAL
        new = Memslot(number, gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, userspace_addr, flags)
        old = next((slot for slot in self._slots if slot.id == number), None)
        others = [slot for slot in self._slots if slot.id != number]
        if not size:
            return self._delete(old, others, during) if old else -EINVAL
        if old:
            if flags & KVM_MEM_GUEST_MEMFD or (flags ^ old.flags) & KVM_MEM_READONLY:
                return -EINVAL
            if (userspace_addr, new.npages) != (old.userspace_addr, old.npages):
                return -EINVAL
            if new == old:
                return 0
        if old is None or new.base_gfn != old.base_gfn:
            if any(new.base_gfn < slot.end_gfn and slot.base_gfn < new.end_gfn for slot in others):
                return -EEXIST
            if old:
                self._invalidate(old, others, during)
            if new.end_gfn - 1 & self._unusable:  # kvm_arch_prepare_memory_region()
                if old:
                    self._swap([*others, old], during)
                return -EINVAL
        self._swap([*others, new._replace(flags=flags | kept)], during)
        return 0

    def _delete(self, old: Memslot, others: list[Memslot], during: During) -> int:
        self._invalidate(old, others, during)
        self._swap(others, during)
        return 0

    def _invalidate(self, old: Memslot, others: list[Memslot], during: During) -> None:
        """Source: Linux `virt/kvm/kvm_main.c`, kvm_invalidate_memslot() (v6.8)."""
        self._swap([*others, old._replace(flags=old.flags | KVM_MEMSLOT_INVALID)], during)

    def _swap(self, slots: list[Memslot], during: During) -> None:
        """Make `slots` the slots, and go on to the next generation.

        Source: Linux `virt/kvm/kvm_main.c`, kvm_swap_active_memslots(), `arch/x86/kvm/mmu/mmu.c`,
        kvm_mmu_invalidate_mmio_sptes() (v6.8).
        """
        self._slots = sorted(slots, key=attrgetter("base_gfn"))
        self.generation |= KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
        during()
        self.generation = (self.generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) + self._address_spaces
        if self.mmio_generation & -self._address_spaces == 0:
            self.mmio_zaps += 1


def _fits(what: str, value: int, bits: int) -> None:
    if not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise InputError(f"{what} is an unsigned {bits}-bit number, not {value!r}")
