# SPDX-License-Identifier: GPL-2.0-only
"""From a filled fault to a page frame: each branch of kvm_faultin_pfn(), with outcomes reasoned by hand.

The numbers are the tables' own: a host frame is 0x9000000 | low gfn bits, a guest_memfd frame 0x5000000 | them,
user space's address is 0x7f0000000000 + the page's, the invalidation count is 7.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf import revisions
from kvm_pf.fault import NO_FAULT
from kvm_pf.faultin import Found, Invalidation, Memory, Slot, kvm_max_level_for_order
from kvm_pf.mmio import MMIO_NPT
from kvm_pf.run import tables
from kvm_pf.run.inputs import row_values, run_row
from kvm_pf.state import Environment, MmioCache, Mmu, Vcpu, Vm, Walk

FIRST = ("before", "posted", "merged_patch")
SERIES = ("posted_series", "v6_10", "v6_12")
OLD = FIRST + SERIES
ALL = (*OLD, "v7_3")
REORDERED = (*SERIES, "v7_3")

CONTINUE, RETRY, EMULATE = 0, 1, 2
EINTR, EIO, EAGAIN, ENOMEM, EFAULT, EHWPOISON = 4, 5, 11, 12, 14, 133

ERR_FAULT, ERR_HWPOISON, ERR_RO, ERR_SIGPENDING, ERR_NEEDS_IO = (0x7FF0000000000000 + n for n in range(5))
NOSLOT = 1 << 63
HVA_BAD, HVA_RO_BAD = 0xFFFF888000000000, 0xFFFF888000001000

DEFAULTS = {
    "addr": 0x100000000, "gfn": 0x100000, "attrs": 0, "is_private": 0, "cfg_private_mem": 1, "slot_kind": "user",
    "guest_mode": 0, "nested": 0, "is_tdp": 1, "apicv_active": 1, "invalidation": "none", "gmem_ret": 0,
    "gmem_order": 0, "gup_result": "ok", "gup_async": 0, "prefetch": 0, "can_async_pf": 0, "apf_repeat": 0,
    "apf_setup_ok": 0, "write": 0, "exec": 0, "max_level": 3, "mmio_caching": 1, "access": 7, "vendor_max_level": 0,
    "late_invalidation": "none", "direct_bits": 0, "gen": 0x15,
}  # fmt: skip
PRIVATE = {"is_private": 1, "attrs": 8}
SLOW = {"gup_async": 1, "can_async_pf": 1}


def fault_in(revision, **changes):
    values = row_values("faultin", revision, **DEFAULTS | changes)
    return run_row("faultin", values, revisions.get(revision))


def initial_pfn(revision):
    return 0 if revision in FIRST else ERR_FAULT


def initial_hva(revision):
    return HVA_BAD if revision in SERIES else 0


def untouched(outcome):
    """Say whether no frame was looked for."""
    return outcome.calls == (0,) * 8


def exit_of(outcome):
    return tuple(outcome.exit)


NO_EXIT = (0, 0, 0, 0)
PRIVATE_EXIT = (39, 0x100000000, 4096, 8)
SHARED_EXIT = (39, 0x100000000, 4096, 0)


class TestSharedPage:
    @pytest.mark.parametrize("revision", ALL)
    def test_comes_from_the_host(self, revision):
        o = fault_in(revision, addr=0x123456789, gfn=0x123456)
        assert (o.ret, o.found.pfn, o.found.map_writable, o.found.slot) == (CONTINUE, 0x9023456, True, True)
        assert (o.found.mmu_seq, o.found.max_level) == (7, 3)
        assert (o.calls.gup, o.calls.gmem, o.lookups) == (1, 0, (1, 0x123456))
        assert (exit_of(o), o.warns, o.vm_bugged, o.cache) == (NO_EXIT, 0, False, (0, 0, 0, 0))

    @pytest.mark.parametrize("revision", OLD)
    def test_until_7_3_also_says_where_user_space_has_it(self, revision):
        o = fault_in(revision, addr=0x123456789, gfn=0x123456)
        assert (o.found.hva, o.found.refcounted_page) == (0x7F0123456000, False)

    def test_from_7_3_brings_the_page(self):
        o = fault_in("v7_3")
        assert (o.found.refcounted_page, o.found.hva) == (True, 0)

    def test_address_wraps_at_64_bits(self):
        o = fault_in("posted", gfn=0xFFFFFFFFFFFFF)
        assert o.found.hva == (0x7F0000000000 + 0xFFFFFFFFFFFFF000) % 2**64

    @pytest.mark.parametrize("revision", ALL)
    def test_in_a_read_only_slot_is_not_writable(self, revision):
        o = fault_in(revision, slot_kind="user_ro")
        assert (o.ret, o.found.pfn, o.found.map_writable) == (CONTINUE, 0x9000000, False)


class TestPrivatePage:
    @pytest.mark.parametrize("revision", ALL)
    def test_comes_from_guest_memfd(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="user_gmem", addr=0x123456789, gfn=0x123456)
        assert (o.ret, o.found.pfn, o.found.map_writable) == (CONTINUE, 0x5023456, True)
        assert (o.calls.gmem, o.calls.gup, exit_of(o)) == (1, 0, NO_EXIT)
        assert o.found.hva == initial_hva(revision)
        assert o.found.refcounted_page == (revision == "v7_3")

    @pytest.mark.parametrize("revision", ALL)
    def test_in_a_slot_without_guest_memfd_cannot_be_had(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="user")
        assert (o.ret, exit_of(o), untouched(o)) == (-EFAULT, PRIVATE_EXIT, True)
        assert o.found.pfn == initial_pfn(revision)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("errno", [EFAULT, EHWPOISON, EAGAIN, EIO, ENOMEM])
    def test_failure_of_guest_memfd_is_handed_up_with_an_exit(self, revision, errno):
        o = fault_in(revision, **PRIVATE, slot_kind="user_gmem", gmem_ret=-errno)
        assert (o.ret, exit_of(o), o.calls.gmem) == (-errno, PRIVATE_EXIT, 1)
        assert (o.found.pfn, o.found.map_writable) == (initial_pfn(revision), False)

    @pytest.mark.parametrize("revision", ALL)
    def test_in_a_read_only_slot_is_not_writable(self, revision):
        assert not fault_in(revision, **PRIVATE, slot_kind="user_gmem_ro").found.map_writable

    @pytest.mark.parametrize("revision", ALL)
    def test_is_always_a_mismatch_without_attributes_in_the_kernel(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="user_gmem", cfg_private_mem=0)
        assert (o.ret, exit_of(o), o.lookups.count) == (-EFAULT, PRIVATE_EXIT, 0)


class TestMismatch:
    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize(
        ("private", "attrs", "left"),
        [(1, 0, PRIVATE_EXIT), (0, 8, SHARED_EXIT), (0, 0xF, SHARED_EXIT), (1, 7, PRIVATE_EXIT)],
    )
    def test_is_told_to_user_space(self, revision, private, attrs, left):
        o = fault_in(revision, is_private=private, attrs=attrs, slot_kind="user_gmem")
        assert (o.ret, exit_of(o), untouched(o), o.lookups.count) == (-EFAULT, left, True, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_only_the_private_bit_of_the_attributes_counts(self, revision):
        assert fault_in(revision, attrs=7).ret == CONTINUE
        assert fault_in(revision, is_private=1, attrs=0xF, slot_kind="user_gmem").ret == CONTINUE

    @pytest.mark.parametrize(
        ("state", "posted"),
        [
            ({"slot_kind": "none", "guest_mode": 1}, CONTINUE),
            ({"slot_kind": "apic", "guest_mode": 1}, CONTINUE),
            ({"slot_kind": "apic", "apicv_active": 0}, EMULATE),
            ({"slot_kind": "invalid"}, RETRY),
            ({"invalidation": "covers_gfn"}, RETRY),
        ],
    )
    def test_escapes_in_the_posted_order_and_not_in_the_later_one(self, state, posted):
        for revision in FIRST:
            o = fault_in(revision, attrs=8, **state)
            assert (o.ret, exit_of(o), o.lookups.count) == (posted, NO_EXIT, 0)
        for revision in REORDERED:
            o = fault_in(revision, attrs=8, **state)
            assert (o.ret, exit_of(o), o.lookups.count) == (-EFAULT, SHARED_EXIT, 1)


class TestNoSlot:
    @pytest.mark.parametrize("revision", ALL)
    def test_is_remembered_as_mmio(self, revision):
        o = fault_in(revision, slot_kind="none", addr=0xFEE00123, gfn=0xFEE00)
        assert (o.ret, o.found.slot, o.found.pfn, o.found.map_writable) == (CONTINUE, False, NOSLOT, False)
        assert o.cache == (0, 0xFEE00, 0x15, 6)

    @pytest.mark.parametrize("revision", ALL)
    def test_costs_a_host_look_up_only_in_the_posted_order(self, revision):
        o = fault_in(revision, slot_kind="none")
        assert o.calls.gup == (1 if revision in FIRST else 0)
        if revision != "v7_3":
            assert o.found.hva == HVA_BAD

    @pytest.mark.parametrize("revision", ALL)
    def test_of_a_shadow_mmu_remembers_the_virtual_page(self, revision):
        o = fault_in(revision, slot_kind="none", is_tdp=0, addr=0x7FFF12345678, gfn=0xFEE00)
        assert o.cache == (0x7FFF12345000, 0xFEE00, 0x15, 6)

    @pytest.mark.parametrize("revision", ALL)
    def test_of_a_nested_mmu_remembers_no_virtual_page(self, revision):
        o = fault_in(revision, slot_kind="none", is_tdp=0, nested=1, addr=0x7FFF12345678, gfn=0xFEE00)
        assert o.cache == (0, 0xFEE00, 0x15, 6)

    @pytest.mark.parametrize("revision", ALL)
    def test_is_not_remembered_during_an_update_of_the_slots(self, revision):
        o = fault_in(revision, slot_kind="none", gen=1 << 63 | 0x15)
        assert (o.ret, o.cache) == (CONTINUE, (0, 0, 0, 0))

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize(("access", "kept"), [(0, 0), (1, 0), (3, 2), (5, 4), (7, 6)])
    def test_only_rights_that_an_mmio_spte_holds_are_remembered(self, revision, access, kept):
        assert fault_in(revision, slot_kind="none", access=access).cache.access == kept

    @pytest.mark.parametrize("revision", ALL)
    def test_is_emulated_at_once_without_mmio_caching(self, revision):
        o = fault_in(revision, slot_kind="none", mmio_caching=0)
        assert (o.ret, o.cache.gfn) == (EMULATE, 0x100000)

    @pytest.mark.parametrize("revision", ALL)
    def test_is_emulated_at_once_beyond_the_hosts_addresses(self, revision):
        assert fault_in(revision, slot_kind="none", gfn=(1 << 34) - 1).ret == CONTINUE
        assert fault_in(revision, slot_kind="none", gfn=1 << 34).ret == EMULATE
        assert fault_in(revision, slot_kind="none", gfn=(1 << 52) - 1).ret == EMULATE

    @pytest.mark.parametrize("revision", ALL)
    def test_private_is_refused_for_an_ordinary_guest(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="none")
        assert (o.ret, exit_of(o), o.cache.gfn, untouched(o)) == (-EFAULT, PRIVATE_EXIT, 0, True)
        assert (o.found.slot, o.found.pfn) == (False, initial_pfn(revision))

    @pytest.mark.parametrize("revision", FIRST)
    def test_private_is_taken_for_mmio_in_l2_in_the_posted_order(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="none", guest_mode=1)
        assert (o.ret, exit_of(o), o.cache.gfn, o.found.pfn) == (CONTINUE, NO_EXIT, 0x100000, NOSLOT)
        assert (untouched(o), o.found.hva) == (True, 0)

    @pytest.mark.parametrize("revision", REORDERED)
    def test_private_is_refused_in_l2_in_the_later_order(self, revision):
        o = fault_in(revision, **PRIVATE, slot_kind="none", guest_mode=1)
        assert (o.ret, exit_of(o), o.cache.gfn) == (-EFAULT, PRIVATE_EXIT, 0)

    @pytest.mark.parametrize("revision", ALL)
    def test_does_not_wait_for_an_invalidation(self, revision):
        assert fault_in(revision, slot_kind="none", invalidation="covers_gfn").ret == CONTINUE


class TestInternalSlots:
    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("kind", ["apic", "tss", "ident"])
    def test_are_mapped_for_an_ordinary_guest(self, revision, kind):
        o = fault_in(revision, slot_kind=kind)
        assert (o.ret, o.found.slot, o.calls.gup) == (CONTINUE, True, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_apic_page_is_emulated_if_the_cpu_does_not_virtualize_it(self, revision):
        o = fault_in(revision, slot_kind="apic", apicv_active=0)
        assert (o.ret, o.found.slot, untouched(o)) == (EMULATE, True, True)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("apicv", [0, 1])
    def test_apic_page_does_not_exist_for_l2(self, revision, apicv):
        o = fault_in(revision, slot_kind="apic", guest_mode=1, apicv_active=apicv)
        assert (o.ret, o.found.slot, o.found.pfn, o.cache.gfn) == (CONTINUE, False, NOSLOT, 0x100000)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("kind", ["tss", "ident"])
    def test_others_are_hidden_from_l2_only_in_the_posted_order(self, revision, kind):
        assert fault_in(revision, slot_kind=kind, guest_mode=1).found.slot == (revision not in FIRST)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("kind", ["tss", "ident"])
    def test_apicv_says_nothing_about_the_others(self, revision, kind):
        assert fault_in(revision, slot_kind=kind, apicv_active=0).ret == CONTINUE


class TestInvalidSlot:
    @pytest.mark.parametrize("revision", ALL)
    def test_is_retried(self, revision):
        o = fault_in(revision, slot_kind="invalid")
        assert (o.ret, o.found.slot, o.found.pfn, untouched(o)) == (RETRY, True, initial_pfn(revision), True)

    @pytest.mark.parametrize("revision", ALL)
    def test_ends_a_prefetch_from_7_3(self, revision):
        assert fault_in(revision, slot_kind="invalid", prefetch=1).ret == (
            -EAGAIN if revision == "v7_3" else RETRY
        )

    def test_goes_before_guest_memfd(self):
        assert fault_in("v7_3", slot_kind="gmem_only_invalid").ret == RETRY


class TestInvalidation:
    @pytest.mark.parametrize("revision", ALL)
    def test_of_this_page_is_retried_before_any_look_up(self, revision):
        o = fault_in(revision, invalidation="covers_gfn")
        assert (o.ret, untouched(o), o.found.mmu_seq) == (RETRY, True, 7)

    @pytest.mark.parametrize("revision", ALL)
    def test_of_another_page_does_not_matter(self, revision):
        o = fault_in(revision, invalidation="other_gfn", late_invalidation="other_gfn")
        assert (o.ret, o.calls.released) == (CONTINUE, 0)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("page", [{}, {**PRIVATE, "slot_kind": "user_gmem"}])
    def test_during_the_look_up_gives_the_frame_back(self, revision, page):
        o = fault_in(revision, **page, late_invalidation="covers_gfn")
        assert (o.ret, o.calls.released, o.calls.gup + o.calls.gmem) == (RETRY, 1, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_that_ended_during_the_look_up_is_noticed_by_the_count(self, revision):
        o = with_late(revision, Invalidation(False, 8))
        assert (o.ret, o.calls.released, o.found.mmu_seq) == (RETRY, 1, 7)
        assert with_late(revision, Invalidation(False, 7)).ret == CONTINUE

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("result", ["fault", "sigpending", "hwpoison", "ro_fault"])
    def test_comes_after_the_errors(self, revision, result):
        o = fault_in(revision, gup_result=result, late_invalidation="covers_gfn")
        assert o.ret == fault_in(revision, gup_result=result).ret
        assert o.calls.released == 0


MEMORY = Memory(
    slot=Slot(0, 0), maxphyaddr=46, invalidation=Invalidation(False, 7), late_invalidation=Invalidation(False, 7),
    apicv_active=True, gmem_ret=0, gmem_pfn=0x5000000, gmem_order=0, vendor_max_level=0, gup_result=0,
    gup_async=False, host_pfn=0x9000000, hva=0x7F0000000000, can_async_pf=False, apf_repeat=False, apf_setup_ok=False,
)  # fmt: skip


def with_late(revision, late):
    """Fault a shared page in; `late` is what the invalidations are when it has been looked up."""
    mmu, vm = Mmu(True, True, True, False, False), Vm(True, True, 1, 0, False, False, 0, 0x15)
    environment = Environment(True, 0, False, 0, False, False, False)
    walk, cache = Walk(4, -1, 0, 0, 0, 0, 0), MmioCache(0, 0, 0, 0)
    r = revisions.get(revision)
    vcpu = Vcpu(mmu, vm, r.link("mmio_format")(MMIO_NPT, True), walk, cache, environment)
    memory = MEMORY._replace(late_invalidation=late)
    fault = r.link("new_fault")(vcpu, 0x100000000, 0, False, False)
    return r.link("kvm_faultin_pfn")(vcpu, fault, 7, memory)


class TestHostErrors:
    @pytest.mark.parametrize("revision", ALL)
    def test_bad_address_goes_to_user_space_without_an_exit(self, revision):
        o = fault_in(revision, gup_result="fault")
        assert (o.ret, o.found.pfn, exit_of(o)) == (-EFAULT, ERR_FAULT, NO_EXIT)

    @pytest.mark.parametrize("revision", ALL)
    def test_signal_interrupts(self, revision):
        o = fault_in(revision, gup_result="sigpending")
        assert (o.ret, o.found.pfn, o.calls.signal_exit) == (-EINTR, ERR_SIGPENDING, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_poisoned_page_is_a_signal_and_a_retry(self, revision):
        o = fault_in(revision, gup_result="hwpoison")
        assert (o.ret, o.found.pfn, o.calls.hwpoison_signal) == (RETRY, ERR_HWPOISON, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_write_to_read_only_memory_is_emulated(self, revision):
        o = fault_in(revision, gup_result="ro_fault")
        assert (o.ret, o.found.pfn, o.found.map_writable) == (EMULATE, ERR_RO, False)
        if revision != "v7_3":
            assert o.found.hva == HVA_RO_BAD

    def test_write_to_a_read_only_slot_does_not_reach_the_host_from_7_3(self):
        o = fault_in("v7_3", slot_kind="user_ro", write=1)
        assert (o.ret, o.found.pfn, untouched(o)) == (EMULATE, ERR_RO, True)
        assert fault_in("v7_3", slot_kind="user_ro", write=0).ret == CONTINUE

    @pytest.mark.parametrize("revision", FIRST)
    def test_no_slot_behind_a_slot_goes_on_unnoticed_in_the_posted_order(self, revision):
        o = fault_in(revision, gup_result="noslot")
        assert (o.ret, o.found.slot, o.found.pfn, o.warns, o.cache.gfn) == (CONTINUE, True, NOSLOT, 0, 0)

    @pytest.mark.parametrize("revision", REORDERED)
    def test_no_slot_behind_a_slot_is_warned_about_in_the_later_order(self, revision):
        o = fault_in(revision, gup_result="noslot")
        assert (o.ret, o.found.slot, o.found.pfn, o.cache.gfn) == (CONTINUE, False, NOSLOT, 0x100000)
        assert [n for bit, n in enumerate(tables.FAULTIN_WARN_NAMES) if o.warns >> bit & 1] == ["noslot"]


class TestWhatTheHostAnswers:
    """The stand-in for __gfn_to_pfn_memslot(), before 7.3, asked when an earlier look-up had said "writable"."""

    @staticmethod
    def ask(flags=0, slot=True, may_wait=True, **host):
        memory = MEMORY._replace(slot=Slot(0, flags), **host)
        found = Found(slot, 7, 0, 0, False, True, 3)
        return revisions.get("posted").link("outside_answers_lookup")(memory, found, may_wait)

    def test_an_error_leaves_the_writable_flag(self):
        for result in ("fault", "sigpending", "hwpoison"):
            assert self.ask(gup_result=tables.GUP_RESULTS.index(result))[0].map_writable

    def test_a_page_to_be_read_leaves_it_too(self):
        found, needs_io = self.ask(gup_async=True, may_wait=False)
        assert (found.map_writable, needs_io, found.pfn) == (True, True, ERR_FAULT)

    def test_read_only_memory_clears_it(self):
        assert not self.ask(gup_result=tables.GUP_RESULTS.index("ro_fault"))[0].map_writable
        for result in range(len(tables.GUP_RESULTS)):
            assert not self.ask(flags=2, gup_result=result)[0].map_writable

    @pytest.mark.parametrize("where", [{"slot": False}, {"flags": 1 << 16}])
    def test_no_slot_or_a_deleted_one_has_no_address(self, where):
        found, needs_io = self.ask(gup_async=True, may_wait=False, **where)
        assert (found.pfn, found.hva, found.map_writable, needs_io) == (NOSLOT, HVA_BAD, False, False)


class TestAsyncPageFault:
    @pytest.mark.parametrize("revision", ALL)
    def test_is_begun_while_the_host_reads(self, revision):
        o = fault_in(revision, **SLOW, apf_setup_ok=1)
        assert (o.ret, o.calls.gup, o.calls.apf_setup, o.calls.apf_halt) == (RETRY, 1, 1, 0)
        assert o.found.pfn == (ERR_NEEDS_IO if revision == "v7_3" else ERR_FAULT)
        assert not o.found.map_writable

    @pytest.mark.parametrize("revision", ALL)
    def test_again_on_the_same_page_halts_the_vcpu(self, revision):
        o = fault_in(revision, **SLOW, apf_repeat=1, apf_setup_ok=1)
        assert (o.ret, o.calls.gup, o.calls.apf_setup, o.calls.apf_halt) == (RETRY, 1, 0, 1)

    @pytest.mark.parametrize("revision", ALL)
    def test_that_cannot_be_set_up_becomes_a_wait(self, revision):
        o = fault_in(revision, **SLOW)
        assert (o.ret, o.calls.gup, o.calls.apf_setup) == (CONTINUE, 2, 1)
        assert (o.found.pfn, o.found.map_writable) == (0x9000000, True)

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("state", [{"can_async_pf": 0}, {"can_async_pf": 1, "prefetch": 1}])
    def test_is_not_tried_for_a_prefetch_or_a_guest_that_cannot(self, revision, state):
        o = fault_in(revision, gup_async=1, apf_setup_ok=1, **state)
        assert (o.ret, o.calls.gup, o.calls.apf_setup) == (CONTINUE, 2, 0)

    @pytest.mark.parametrize("revision", ALL)
    def test_the_wait_can_end_in_an_error(self, revision):
        o = fault_in(revision, gup_async=1, gup_result="sigpending")
        assert (o.ret, o.calls.gup) == (-EINTR, 2)

    @pytest.mark.parametrize("revision", ALL)
    def test_never_for_a_private_page(self, revision):
        o = fault_in(revision, **PRIVATE, **SLOW, slot_kind="user_gmem", apf_setup_ok=1)
        assert (o.ret, o.calls.apf_setup, o.calls.gup) == (CONTINUE, 0, 0)

    @pytest.mark.parametrize(
        ("write", "slow", "how"), [(0, 0, "N"), (1, 0, "WN"), (0, 1, "N|I"), (1, 1, "WN|WI")]
    )
    def test_from_7_3_the_second_look_up_may_be_interrupted(self, write, slow, how):
        o = fault_in("v7_3", write=write, gup_async=slow)
        assert tables.GUP_FLAGS[o.calls.gup_flags] == how

    @pytest.mark.parametrize("revision", OLD)
    def test_a_read_only_error_is_known_at_once(self, revision):
        o = fault_in(revision, **SLOW, gup_result="ro_fault", apf_setup_ok=1)
        assert (o.ret, o.calls.gup, o.calls.apf_setup) == (EMULATE, 1, 0)


class TestMappingLevel:
    def test_of_an_order(self):
        assert [kvm_max_level_for_order(n) for n in (0, 8, 9, 17, 18, 19)] == [1, 1, 2, 2, 3, 3]

    @pytest.mark.parametrize("revision", [*FIRST, "posted_series", "v6_10"])
    @pytest.mark.parametrize(
        ("order", "fault", "level"), [(0, 3, 1), (9, 3, 2), (18, 3, 3), (18, 2, 2), (18, 1, 1), (9, 1, 1)]
    )
    def test_of_a_private_page_is_the_smaller_of_page_and_fault(self, revision, order, fault, level):
        o = fault_in(
            revision, **PRIVATE, slot_kind="user_gmem", gmem_order=order, max_level=fault, vendor_max_level=1
        )
        assert o.found.max_level == level

    @pytest.mark.parametrize(
        ("order", "fault", "vendor", "level"),
        [
            (18, 3, 0, 3),
            (18, 3, 2, 2),
            (18, 3, 1, 1),
            (9, 3, 3, 2),
            (0, 3, 3, 1),
            (18, 1, 3, 1),
            (9, 3, 0, 2),
        ],
    )
    def test_in_6_12_the_vendor_may_lower_it(self, order, fault, vendor, level):
        page = {**PRIVATE, "slot_kind": "user_gmem", "gmem_order": order}
        assert fault_in("v6_12", **page, max_level=fault, vendor_max_level=vendor).found.max_level == level

    @pytest.mark.parametrize(("order", "fault", "level"), [(0, 3, 1), (18, 1, 3), (9, 1, 2)])
    def test_from_7_3_it_is_the_pages_even_above_the_faults(self, order, fault, level):
        page = {**PRIVATE, "slot_kind": "user_gmem", "gmem_order": order}
        assert fault_in("v7_3", **page, max_level=fault, vendor_max_level=1).found.max_level == level

    @pytest.mark.parametrize("revision", ALL)
    @pytest.mark.parametrize("level", [1, 2, 3])
    def test_of_a_shared_page_stays_the_faults(self, revision, level):
        assert fault_in(revision, max_level=level).found.max_level == level


class TestSlotsWithGuestMemfdOnly:
    def test_from_7_3_serve_shared_faults_from_it(self):
        o = fault_in("v7_3", slot_kind="gmem_only")
        assert (o.ret, o.found.pfn, o.calls.gmem, o.calls.gup) == (CONTINUE, 0x5000000, 1, 0)

    def test_a_failure_on_a_shared_fault_is_an_exit_without_the_private_flag(self):
        o = fault_in("v7_3", slot_kind="gmem_only", gmem_ret=-EIO)
        assert (o.ret, exit_of(o)) == (-EIO, SHARED_EXIT)

    def test_do_not_change_what_a_mismatch_is(self):
        assert exit_of(fault_in("v7_3", slot_kind="gmem_only", attrs=8)) == SHARED_EXIT

    @pytest.mark.parametrize("revision", OLD)
    def test_earlier_kernels_know_no_such_flag(self, revision):
        assert fault_in(revision, slot_kind="gmem_only").calls.gup == 1


class TestSharedBitLeftInTheGfn:
    BIT = 1 << 35

    def test_from_7_3_is_a_bug_and_the_end_of_the_vm(self):
        o = fault_in("v7_3", gfn=self.BIT | 0x100, direct_bits=self.BIT, attrs=8)
        assert (o.ret, o.vm_bugged, exit_of(o)) == (-EFAULT, True, NO_EXIT)
        assert [n for bit, n in enumerate(tables.FAULTIN_WARN_NAMES) if o.warns >> bit & 1] == ["kvm_bug"]
        assert (o.found.mmu_seq, o.lookups.count, untouched(o)) == (0, 0, True)

    def test_a_gfn_without_it_is_fine(self):
        o = fault_in("v7_3", gfn=0x100, direct_bits=self.BIT)
        assert (o.ret, o.vm_bugged, o.found.mmu_seq) == (CONTINUE, False, 7)

    @pytest.mark.parametrize("revision", OLD)
    def test_earlier_kernels_do_not_look(self, revision):
        assert not fault_in(revision, gfn=self.BIT | 0x100, direct_bits=self.BIT).vm_bugged


STATES = st.fixed_dictionaries(
    {
        "attrs": st.sampled_from([0, 7, 8, 15]),
        "slot_kind": st.sampled_from(tables.SLOT_KINDS),
        "invalidation": st.sampled_from(tables.INVALIDATIONS),
        "gmem_ret": st.sampled_from([0, -EFAULT]),
        "gup_result": st.sampled_from(tables.GUP_RESULTS),
        **{
            flag: st.integers(0, 1)
            for flag in (
                "is_private", "cfg_private_mem", "guest_mode", "nested", "is_tdp", "apicv_active", "gup_async",
                "prefetch", "can_async_pf", "apf_repeat", "apf_setup_ok", "write", "mmio_caching",
            )
        },
    }
)  # fmt: skip


@given(STATES)
def test_before_and_posted_fault_in_alike(state):
    assert fault_in("before", **state) == fault_in("posted", **state)


@given(STATES)
def test_the_posted_series_asks_in_the_order_of_6_10(state):
    assert fault_in("posted_series", **state) == fault_in("v6_10", **state)


@given(STATES, st.sampled_from(REORDERED))
def test_no_mismatch_escapes_the_later_order(state, revision):
    o = fault_in(revision, **state)
    declared = state["cfg_private_mem"] and state["attrs"] & 8 != 0
    if bool(state["is_private"]) != bool(declared):
        assert (o.ret, o.exit.exit_reason, o.exit.flags) == (-EFAULT, 39, 8 * state["is_private"])


@given(STATES, st.sampled_from(ALL))
def test_an_exit_comes_with_an_error_and_every_private_success_from_guest_memfd(state, revision):
    o = fault_in(revision, **state)
    assert o.exit.exit_reason == 0 or o.ret < 0
    if state["is_private"] and o.ret == CONTINUE and o.found.slot:
        assert o.found.pfn == 0x5000000


def test_each_slot_kind_has_its_flags():
    flags = [tables.faultin_slot(code).flags for code in range(len(tables.SLOT_KINDS))]
    assert dict(zip(tables.SLOT_KINDS, flags, strict=True)) == {
        "none": 0, "user": 0, "user_gmem": 4, "user_ro": 2, "user_gmem_ro": 6, "invalid": 1 << 16, "apic": 0, "tss": 0,
        "ident": 0, "gmem_only": 1 << 17 | 4, "gmem_only_invalid": 1 << 17 | 1 << 16 | 4,
    }  # fmt: skip
    internal = {k: tables.faultin_slot(tables.SLOT_KINDS.index(k)).id for k in ("tss", "apic", "ident")}
    assert internal == {"tss": 32764, "apic": 32765, "ident": 32766}


def test_nothing_is_left_to_the_caller_but_in_6_1():
    done = fault_in("posted")
    assert revisions.get("posted").link("handle_abnormal_pfn")(None, None, 7, None, done) is done


class TestTheFastPath:
    """Linux `arch/x86/kvm/mmu/mmu.c`, page_fault_can_be_fast(): before commit b74d002d3d58 (v6.11) and after."""

    VM = Vm(True, True, 1, 8, False, False, 0, 0)  # software-protected, the page private
    WRITE = NO_FAULT.fault._replace(present=True, write=True, gfn=0x40)

    def ask(self, revision, vm=VM, accessed_dirty=True, **fault):
        asked = revisions.get(revision).link("page_fault_can_be_fast")
        return asked(vm, self.WRITE._replace(**fault), accessed_dirty)

    @pytest.mark.parametrize("revision", ["before", "posted", "v6_10"])
    def test_takes_a_shared_write_to_a_private_page_up_to_6_10(self, revision):
        assert self.ask(revision, is_private=False) == (True, (0, 0))

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_leaves_it_to_the_comparison_from_6_11_on(self, revision):
        assert self.ask(revision, is_private=False) == (False, (1, 0x40))
        assert self.ask(revision, is_private=True) == (True, (1, 0x40))

    @pytest.mark.parametrize("vm_type", [0, 2, 3])
    def test_does_not_ask_for_a_vm_without_private_memory(self, vm_type):
        assert self.ask("v7_3", self.VM._replace(vm_type=vm_type, attrs=0)) == (True, (0, 0))

    def test_never_takes_a_reserved_fault_and_does_not_look_it_up(self):
        assert self.ask("v6_12", rsvd=True, is_private=True) == (False, (0, 0))

    @pytest.mark.parametrize(("present", "write", "accessed_dirty", "fast"), [
        (True, True, True, True), (True, False, True, False), (False, True, True, False), (False, False, False, True),
    ])  # fmt: skip
    def test_mends_writes_and_without_accessed_bits_what_is_tracked(
        self, present, write, accessed_dirty, fast
    ):
        asked = self.ask("posted", accessed_dirty=accessed_dirty, present=present, write=write)
        assert asked == (fast, (0, 0))


def test_nobody_asks_again_after_the_walk():
    vm = Vm(True, True, 1, 8, False, False, 0, 0)  # the page that was found is private
    for revision in revisions.REVISIONS:
        asked = revisions.get(revision).link("walked_is_private")
        assert [asked(vm, NO_FAULT.fault._replace(is_private=p)) for p in (True, False)] == [
            (True, (0, 0)), (False, (0, 0)),
        ]  # fmt: skip
