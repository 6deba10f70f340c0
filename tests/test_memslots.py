# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots: the ioctl's checks, the generation, and the store against a plain dict of pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf.common.errors import InputError
from kvm_pf.guest.memslots import KVM_MEM_MAX_NR_PAGES, Memslot, Memslots
from kvm_pf.run.tables import SLOT_KINDS, faultin_slot

EEXIST, EINVAL = 17, 22
LOG, READONLY, GMEM, INVALID, GMEM_ONLY = 1, 2, 4, 1 << 16, 1 << 17
UPDATING = 1 << 63
HVA = 0x7F0000000000


def made(*regions, **vm):
    """Slots 0, 1, … of one VM, each region a (guest-physical address, size, flags)."""
    slots = Memslots(**vm)
    for number, (gpa, size, flags) in enumerate(regions):
        assert slots.set(number, gpa, size, HVA, flags) == 0
    return slots


ONE = (0x40000000, 0x200000, 0)


class TestLookUp:
    def test_a_slot_holds_its_pages_and_no_other(self):
        slots = made(ONE)
        assert [slots.find(gfn) and slots.find(gfn).id for gfn in (0x3FFFF, 0x40000, 0x401FF, 0x40200)] == [
            None,
            0,
            0,
            None,
        ]

    def test_by_number(self):
        slots = made(ONE, (0x80000000, 0x1000, 0))
        assert slots[1] == Memslot(1, 0x80000, 1, HVA, 0)
        with pytest.raises(InputError, match="no slot 2"):
            slots[2]

    def test_in_order_of_address(self):
        slots = made((0x80000000, 0x1000, 0), ONE)
        assert ([slot.id for slot in slots], len(slots)) == ([1, 0], 2)

    def test_user_space_address_of_a_page(self):
        assert made(ONE)[0].hva(0x40003) == HVA + 0x3000


class TestIoctl:
    @pytest.mark.parametrize(
        ("gpa", "size", "hva"),
        [
            (0x40000800, 0x1000, HVA), (0x40000000, 0x1800, HVA), (0x40000000, 0x1000, HVA + 1),
            (2**64 - 0x1000, 0x1000, HVA), (0x40000000, 0x1000, 2**63 - 0x1000), (0x40000000, 0x1000, 2**63),
            (0, KVM_MEM_MAX_NR_PAGES + 1 << 12, HVA),
        ],
    )  # fmt: skip
    def test_refuses_what_does_not_fit(self, gpa, size, hva):
        slots = Memslots()
        assert slots.set(0, gpa, size, hva) == -EINVAL
        assert (len(slots), slots.generation) == (0, 0)

    def test_the_largest_slot(self):
        assert Memslots().set(0, 0, KVM_MEM_MAX_NR_PAGES << 12, HVA) == 0

    def test_numbers_of_kvms_own_slots_are_not_user_spaces(self):
        assert Memslots().set(32763, *ONE[:2], HVA) == 0
        for number in (32764, 32766, 32767, 65535):
            assert Memslots().set(number, *ONE[:2], HVA) == -EINVAL

    @pytest.mark.parametrize("flags", [8, 1 << 16, 1 << 17, 1 << 31, GMEM | LOG, GMEM | READONLY])
    def test_unknown_flags_and_combinations(self, flags):
        assert Memslots(guest_memfd=True).set(0, *ONE[:2], HVA, flags) == -EINVAL

    @pytest.mark.parametrize("flags", [0, LOG, READONLY, LOG | READONLY])
    def test_known_flags(self, flags):
        assert made((0x40000000, 0x1000, flags))[0].flags == flags

    def test_guest_memfd_only_where_the_vm_may(self):
        assert Memslots().set(0, *ONE[:2], HVA, GMEM) == -EINVAL
        assert made((0x40000000, 0x1000, GMEM), guest_memfd=True)[0].has_gmem

    def test_slots_do_not_overlap(self):
        slots = made(ONE)
        assert slots.set(1, 0x40100000, 0x200000, HVA) == -EEXIST
        assert slots.set(1, 0x3FF00000, 0x200000, HVA) == -EEXIST
        assert slots.set(1, 0x40200000, 0x1000, HVA) == 0
        assert slots.set(2, 0x3FFFF000, 0x1000, HVA) == 0
        assert slots.set(3, 0x3F000000, 0x2000000, HVA) == -EEXIST

    def test_size_address_and_read_only_are_for_life(self):
        slots = made(ONE)
        assert slots.set(0, 0x40000000, 0x100000, HVA) == -EINVAL
        assert slots.set(0, *ONE[:2], HVA + 0x1000) == -EINVAL
        assert slots.set(0, *ONE[:2], HVA, READONLY) == -EINVAL

    def test_a_guest_memfd_slot_cannot_be_changed_only_deleted(self):
        slots = made((*ONE[:2], GMEM), guest_memfd=True)
        assert slots.set(0, 0x80000000, ONE[1], HVA, GMEM) == -EINVAL
        assert slots.set(0, *ONE[:2], HVA, GMEM) == -EINVAL
        assert slots.delete(0) == 0

    def test_what_is_not_there_cannot_be_deleted(self):
        assert Memslots().delete(0) == -EINVAL

    def test_beyond_the_hosts_addresses(self):
        assert Memslots(maxphyaddr=46).set(0, (1 << 46) - 0x1000, 0x1000, HVA) == 0
        assert Memslots(maxphyaddr=46).set(0, (1 << 46) - 0x1000, 0x2000, HVA) == -EINVAL

    def test_the_shared_bit_of_tdx_is_no_address(self):
        slots = Memslots(maxphyaddr=52, direct_bits=1 << 35)
        assert slots.set(0, 1 << 47, 0x1000, HVA) == -EINVAL
        assert slots.set(0, (1 << 47) - 0x1000, 0x1000, HVA) == 0

    @pytest.mark.parametrize(
        "numbers",
        [
            (-1, 0, 0, 0, 0), (1 << 16, 0, 0, 0, 0), (0, -1, 0x1000, 0, 0), (0, 1 << 64, 0x1000, 0, 0),
            (0, 0, 1 << 64, 0, 0), (0, 0, 0x1000, -1, 0), (0, 0, 0x1000, 0, 1 << 32), ("0", 0, 0x1000, 0, 0),
            (0, 0.0, 0x1000, 0, 0),
        ],
    )  # fmt: skip
    def test_refuses_what_cannot_even_be_asked(self, numbers):
        with pytest.raises(InputError, match="unsigned"):
            Memslots().set(*numbers)

    @pytest.mark.parametrize("spaces", [0, 3, "2"])
    def test_refuses_other_numbers_of_address_spaces(self, spaces):
        with pytest.raises(InputError, match="address spaces"):
            Memslots(address_spaces=spaces)


class TestMove:
    def test_takes_the_pages_along(self):
        slots = made(ONE)
        assert slots.set(0, 0x80000000, ONE[1], HVA) == 0
        assert (slots.find(0x40000), slots[0]) == (None, Memslot(0, 0x80000, 0x200, HVA, 0))

    def test_onto_itself_is_allowed_onto_another_not(self):
        slots = made(ONE, (0x80000000, 0x1000, 0))
        assert slots.set(0, 0x40100000, ONE[1], HVA) == 0
        assert slots.set(0, 0x7FF00000, ONE[1], HVA) == -EEXIST

    def test_that_fails_late_leaves_the_slot_but_costs_two_generations(self):
        slots = made(ONE)
        assert slots.set(0, 1 << 46, ONE[1], HVA) == -EINVAL
        assert (slots[0].base_gfn, slots[0].kind, slots.generation) == (0x40000, "user", 2 + 4)


class TestKinds:
    @pytest.mark.parametrize("kind", SLOT_KINDS[1:])
    def test_are_those_of_the_fault_in_tables(self, kind):
        seen = faultin_slot(SLOT_KINDS.index(kind))
        slot = Memslot(seen.id, 0, 1, 0, seen.flags)
        assert (slot.kind, slot.seen) == (kind, seen)

    def test_a_mappable_guest_memfd_file_makes_the_slot_its_own(self):
        slots = Memslots(guest_memfd=True)
        slots.set(0, *ONE[:2], HVA, GMEM, gmem_only=True)
        assert (slots[0].flags, slots[0].kind) == (GMEM | GMEM_ONLY, "gmem_only")


class TestGeneration:
    def test_grows_by_the_number_of_address_spaces(self):
        assert made(ONE).generation == 2
        assert made(ONE, address_spaces=1).generation == 1

    @pytest.mark.parametrize(("spaces", "seen"), [(1, [2, 7, 8, 9]), (2, [4, 0xE, 0x10, 0x12])])
    def test_goes_as_recorded_from_two_kernels(self, spaces, seen):
        """Scenario 1 of the recordings: the generations that MMIO faults showed, on 6.12 without SMM and on 6.1."""
        slots = made((0, 0x1000, 0), ONE, address_spaces=spaces)
        generations = [slots.generation]
        slots.set(2, 0x50000000, 0x10000, HVA, READONLY)
        slots.set(3, 0x70000000, 0x10000, HVA)
        slots.set(3, 0x70000000, 0x10000, HVA, LOG)
        slots.set(4, 0x80000000, 0x400000, HVA)
        slots.set(5, 0x90000000, 0x10000, HVA)
        generations.append(slots.generation)
        slots.set(6, 0xA0000000, 0x10000, HVA)
        generations.append(slots.generation)
        slots.set(7, 0x60000000, 0x10000, HVA)
        generations.append(slots.generation)
        assert generations == seen

    def test_a_deleted_or_moved_slot_counts_twice(self):
        slots = made(ONE)
        slots.set(0, 0x80000000, ONE[1], HVA)
        assert slots.generation == 6
        slots.delete(0)
        assert slots.generation == 10

    def test_nothing_changed_nothing_counted(self):
        slots = made(ONE)
        assert slots.set(0, *ONE[:2], HVA) == 0
        assert slots.generation == 2

    def test_an_update_shows_in_bit_63(self):
        seen = []
        slots = made(ONE)
        slots.set(1, 0x80000000, 0x1000, HVA, during=lambda: seen.append((slots.generation, len(slots))))
        assert seen == [(UPDATING | 2, 2)]
        assert slots.generation == 4

    def test_a_slot_is_invalid_before_it_goes(self):
        seen = []

        def look():
            slot = slots.find(0x40000)
            seen.append((slots.generation, slot and slot.kind))

        slots = made(ONE)
        slots.delete(0, during=look)
        assert seen == [(UPDATING | 2, "invalid"), (UPDATING | 4, None)]

    @pytest.mark.parametrize(("bits", "spaces"), [(19, 2), (19, 1), (18, 1), (18, 2)])
    def test_wraps_in_the_bits_of_an_mmio_spte_and_drops_them_all(self, bits, spaces):
        slots = Memslots(address_spaces=spaces, mmio_gen_bits=bits)
        slots.generation = (1 << bits) - 2 * spaces
        slots.set(0, *ONE[:2], HVA)
        assert (slots.mmio_generation, slots.mmio_zaps) == ((1 << bits) - spaces, 0)
        slots.set(1, 0x80000000, 0x1000, HVA)
        assert (slots.generation, slots.mmio_generation, slots.mmio_zaps) == (1 << bits, 0, 1)

    def test_the_other_address_spaces_wrap_counts_too(self):
        slots = Memslots()
        slots.generation = (1 << 19) - 1  # as SMM's space counts: 1, 3, 5, …
        slots.set(0, *ONE[:2], HVA)
        assert (slots.mmio_generation, slots.mmio_zaps) == (1, 1)


PAGES, NUMBERS = st.integers(0, 15), st.integers(0, 3)
FLAGS = st.sampled_from([0, LOG, READONLY])


def plainly(slots, number, base, size, flags):
    """What a request does to slots kept as {number: (pages, flags)}: (result, slots, updates)."""
    pages = set(range(base, base + size))
    old_pages, old_flags = slots.get(number, (set(), 0))
    others = {n: slot for n, slot in slots.items() if n != number}
    if not size:
        return (0, others, 2) if old_pages else (-EINVAL, slots, 0)
    if old_pages and (len(pages) != len(old_pages) or (flags ^ old_flags) & READONLY):
        return -EINVAL, slots, 0
    if (pages, flags) == (old_pages, old_flags):
        return 0, slots, 0
    if any(pages & taken for taken, _ in others.values()):
        return -EEXIST, slots, 0
    return 0, others | {number: (pages, flags)}, 2 if old_pages and pages != old_pages else 1


@given(st.lists(st.tuples(NUMBERS, PAGES, st.integers(0, 5), FLAGS), max_size=20))
def test_store_does_what_sets_of_pages_do(requests):
    slots, plain, generation = Memslots(), {}, 0
    for number, base, size, flags in requests:
        expected, plain, updates = plainly(plain, number, base, size, flags)
        generation += 2 * updates
        assert slots.set(number, base << 12, size << 12, HVA, flags) == expected
        assert slots.generation == generation
        assert {slot.id: (set(range(slot.base_gfn, slot.end_gfn)), slot.flags) for slot in slots} == plain
        found = {gfn: slot.id for gfn in range(24) if (slot := slots.find(gfn))}
        assert found == {gfn: n for n, (pages, _) in plain.items() for gfn in pages}
