# SPDX-License-Identifier: GPL-2.0-only
"""L2, a guest of the guest: what KVM records of it (6.12.117, Debian), and what the manuals say of its tables.

X is an address of L2's, Y the page of L1's that it is mapped to.
"""

import gzip
import re
from pathlib import Path

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.follow import scenario_of
from kvm_pf.conformance.join import faults
from kvm_pf.conformance.placement import kernel_of
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.guest.machine import Machine
from kvm_pf.guest.memory import BASE_PAGES
from kvm_pf.guest.nested import PageTable, Shadow

DATA = Path(__file__).parents[1] / "data" / "recordings"
X, Y = 0x4A000000, 0x40000000
L1_PAGES = (*BASE_PAGES, 0x28, 0x29)
"""Where the recorder's L1 has its code and tables, and on Intel the fields that it writes and reads."""
HARDWARE = pytest.mark.parametrize("hardware", ["npt", "ept"])
REVISIONS = pytest.mark.parametrize("revision", ["before", "posted", "v6_12", "v7_3"])


def machine(hardware="npt", revision="v6_12", **options):
    """L1 is software-protected, has a slot at Y, and runs L2."""
    made = Machine("sw-protected", hardware, revision, **options)
    for op in (f"slot 1 {Y:#x} 0x200000 gmem,touch", "nest", f"l2map {X:#x} {Y:#x}"):
        made.run(op)
    return made


def attr(at, kind):
    return f"attr {at:#x} 0x1000 {kind}"


def of_handler(access):
    return access.faults[-1].handler


class TestTheCaveat:
    """KVM asks about X and compares about Y: the steps of the recording nested612, scenario 1-nested-swprot."""

    @HARDWARE
    @REVISIONS
    @pytest.mark.parametrize(("x", "y", "flags"), [("private", "shared", 8), ("shared", "private", 0)])
    def test_where_they_differ_user_space_is_told_of_y_with_the_answer_for_x(
        self, hardware, revision, x, y, flags
    ):
        it = machine(hardware, revision)
        it.run(attr(X, x)), it.run(attr(Y, y))
        for done in (it.run(f"l2r {X:#x}"), it.run("run")):  # steps 33 and 34, 46 and 47: for ever
            assert (done.exit.reason, done.exit.errno, done.exit.memory_fault) == (
                "memory-fault", 14, (39, Y, 0x1000, flags),
            )  # fmt: skip
            assert of_handler(done).fault.gfn == Y >> 12
            assert of_handler(done).fault.is_private == (x == "private")

    @pytest.mark.parametrize("kind", ["private", "shared"])
    def test_where_they_agree_the_page_is_mapped(self, kind):
        it = machine()
        it.run(attr(X, kind)), it.run(attr(Y, kind))
        assert it.run(f"l2r {X:#x}").copy == kind  # steps 22 and 28
        assert it.run(f"r {Y:#x}").copy == kind

    @pytest.mark.parametrize(("x", "y"), [("private", "shared"), ("shared", "private")])
    def test_obeying_the_exit_hands_over_the_other_copy(self, x, y):
        it = machine()
        it.run(attr(X, x)), it.run(attr(Y, y))
        it.run(f"l2r {X:#x}")
        it.run(attr(Y, x))  # steps 36 and 48
        assert it.run("run").copy == x

    @pytest.mark.parametrize(("x", "y"), [("private", "shared"), ("shared", "private")])
    def test_only_the_attribute_of_x_helps(self, x, y):
        it = machine()
        it.run(attr(X, x)), it.run(attr(Y, y))
        it.run(f"l2w {X:#x} 1")
        it.run(attr(X, y))  # steps 41 and 53
        assert it.run("run").copy == it.run(f"r {Y:#x}").copy == y

    def test_what_lies_at_x_in_l1_does_not_matter(self):
        it = machine()
        it.run(f"l2map {Y + 0x80000:#x} {Y + 0x8000:#x}"), it.run(attr(Y + 0x80000, "private"))
        assert it.run(f"l2r {Y + 0x80000:#x}").exit.memory_fault.gpa == Y + 0x8000  # step 78

    def test_the_attribute_of_x_drops_nothing_that_of_y_does(self):
        it = machine()
        it.run(f"l2r {X:#x}"), it.run(attr(X, "private"))
        assert not it.run(f"l2r {X:#x}").faults  # step 68
        it.run(attr(Y, "private"))
        assert it.run(f"l2r {X:#x}").copy == "private"  # step 71

    def test_the_tables_of_l2_are_asked_about_in_the_same_way(self):
        it = machine()
        it.run("l2map 0x4d000000 0x2000"), it.run(attr(0x4D000000, "private")), it.run("l2cr3 0x4d000000")
        done = it.run(f"l2r {X:#x}")  # step 115
        assert done.exit.memory_fault == (39, 0x2000, 0x1000, 8)
        assert done.faults[0].error_code == 0x200000006

    @pytest.mark.parametrize("hardware", ["npt", "ept"])
    def test_pre_faulting_is_refused_while_l2_runs(self, hardware):
        it = machine(hardware)
        it.run(attr(X, "private")), it.run(f"l2r {X:#x}")
        assert it.run(f"prefault {Y:#x} 0x1000") == -95  # step 35
        it.run("l2leave")
        assert it.run(f"prefault {Y:#x} 0x1000") == 0

    @HARDWARE
    def test_without_a_nested_page_table_x_is_y(self, hardware):
        it = machine(hardware)
        it.run("nest np0"), it.run(attr(Y, "private"))
        done = it.run(f"l2r {Y:#x}")  # scenario 3-nested-np0, step 9
        assert (done.exit.reason, done.copy, of_handler(done).fault.is_tdp) == ("done", "private", True)


class TestWhereNothingIsCompared:
    @pytest.mark.parametrize("x", ["private", "shared"])
    def test_the_fault_is_l1s(self, x):
        it = machine()
        it.run(attr(0x4C000000, x))
        done = it.run("l2r 0x4c000000")  # steps 103 and 104
        assert (done.exit.reason, done.exit.l1_exit) == ("l1", (0x400, 0x100000004, 0x4C000000))
        assert of_handler(done).ret == 1
        assert of_handler(done).faultin is None

    def test_l1s_table_forbids_to_write(self):
        it = machine()
        it.run(f"l2map 0x4c002000 {Y + 0x9000:#x} r")
        assert it.run("l2w 0x4c002000 1").exit.l1_exit == (0x400, 0x100000007, 0x4C002000)  # step 107

    def test_intel_gets_an_exit_qualification(self):
        it = machine("ept")
        done = it.run("l2r 0x4c000000")
        assert done.exit.l1_exit == (48, 0x181, 0x4C000000)
        it.run(f"l2map 0x4c002000 {Y + 0x9000:#x} r")
        assert (
            it.run("l2w 0x4c002000 1").exit.l1_exit.info1 == 0x182 | 5 << 3
        )  # L1 lets it be read and executed
        it.run(f"l2map 0x4c003000 {Y + 0x9000:#x} wn")
        assert it.run("l2x 0x4c003000").exit.l1_exit.info1 == 0x184 | 3 << 3
        it.l2.table.words[it.l2_stores(0x4C004000, Y, "", False)[-1][0]] = Y | 2  # writable, not readable
        assert it.run("l2r 0x4c004000").exit.l1_exit == (49, 0, 0x4C004000)

    @HARDWARE
    @pytest.mark.parametrize("x", ["private", "shared"])
    def test_a_write_to_a_table_that_kvm_shadows_is_emulated(self, x, hardware):
        it = machine(hardware)
        it.run("l2map 0x4e000000 0x32000"), it.run("l2r 0x4e000000"), it.run(attr(0x4E000000, x))
        done = it.run("l2w 0x4e000ff8 0")  # steps 131 and 133
        handler = of_handler(done)
        assert (handler.ret, handler.fault.is_private, handler.faultin) == (3, x == "private", None)
        assert done.exit.reason == "done"
        assert done.faults[0].stats == {"pf_taken": 1, "pf_emulate": 1}

    def test_up_to_6_11_the_same_write_is_refused_if_it_is_private(self):
        it = machine(revision="v6_10")
        it.run("l2map 0x4e000000 0x32000"), it.run("l2r 0x4e000000"), it.run(attr(0x4E000000, "private"))
        assert it.run("l2w 0x4e000ff8 0").exit.reason == "memory-fault"

    def test_reserved_faults_are_not_looked_up_from_the_patch_on(self):
        for revision, reason in (("before", "memory-fault"), ("posted", "mmio"), ("v6_12", "mmio")):
            it = machine(revision=revision)
            (
                it.run("l2map 0x4b000000 0x60000000"),
                it.run("l2r 0x4b000000"),
                it.run(attr(0x4B000000, "private")),
            )
            assert it.run("l2r 0x4b000000").exit.reason == "mmio"  # step 85: the mark is good
            it.run("slot 4 0xa0000000 0x10000 touch")
            assert it.run("l2r 0x4b000000").exit.reason == reason  # step 101: it is stale

    def test_without_marks_of_mmio_every_access_is_looked_up(self):
        it = machine(mmio_caching=False)
        it.run("l2map 0x4b000000 0x60000000"), it.run("l2r 0x4b000000"), it.run(attr(0x4B000000, "private"))
        assert it.run("l2r 0x4b000000").exit.memory_fault == (39, 0x60000000, 0x1000, 8)


class TestPrefetch:
    """Scenario 4-nested-prefetch."""

    def three(self, hardware="npt", **options):
        it = machine(hardware, **options)
        for n in range(1, 3):
            it.run(f"l2map {X + n * 0x1000:#x} {Y + n * 0x1000:#x}")
        return it

    def touched(self, *args, **options):
        it = self.three(*args, **options)
        for n in range(3):
            it.run(f"l2r {X + n * 0x1000:#x}")
        return it

    @HARDWARE
    def test_a_fault_on_a_shared_page_maps_shared_copies_of_private_neighbours(self, hardware):
        it = self.touched(hardware)
        (
            it.run(attr(Y + 0x1000, "private")),
            it.run(attr(Y + 0x2000, "private")),
            it.run(attr(X + 0x2000, "private")),
        )
        it.run(attr(Y, "private")), it.run(attr(Y, "shared"))
        assert of_handler(it.run(f"l2r {X:#x}")).prefetched == (0x40001, 0x40002)  # step 25
        for n in (1, 2):
            done = it.run(f"l2r {X + n * 0x1000:#x}")  # steps 26 and 27
            assert (done.faults, done.copy) == ((), "shared")
            assert it.run(f"r {Y + n * 0x1000:#x}").copy == "private"  # steps 28 and 29

    def test_only_neighbours_whose_entry_is_accessed(self):
        it = self.three()
        assert of_handler(it.run(f"l2r {X:#x}")).prefetched == ()

    def test_without_accessed_bits_every_neighbour(self):
        it = machine("ept", accessed_dirty=False)
        it.run(f"l2map {X + 0x1000:#x} {Y + 0x1000:#x}")
        assert of_handler(it.run(f"l2r {X:#x}")).prefetched == (0x40001,)
        # mark_spte_for_access_track() took its rights: the first access faults, and is compared
        assert len(it.run(f"l2r {X + 0x1000:#x}").faults) == 1

    @HARDWARE
    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize(("used", "taken", "copy"), [("l2r", 1, "private"), ("l2w", 0, "shared")])
    def test_what_l2_wrote_before_it_can_write_without_a_fault(self, hardware, revision, used, taken, copy):
        """The dirty bit in L1's table: Linux `arch/x86/kvm/mmu/paging_tmpl.h`, FNAME(protect_clean_gpte)."""
        it = self.three(hardware, revision=revision)
        for n in range(3):
            it.run(f"{used} {X + n * 0x1000:#x}" + " 1" * (used == "l2w"))
        for at, kind in ((Y + 0x2000, "private"), (X + 0x2000, "private"), (Y, "private"), (Y, "shared")):
            it.run(attr(at, kind))
        it.run(f"l2r {X:#x}")
        done = it.run(f"l2w {X + 0x2000:#x} 2")
        assert (len(done.faults), done.copy) == (taken, copy)

    def test_without_accessed_bits_it_allows_nothing_until_it_is_used(self):
        """Recorded on Intel; L1's EPT alone has none: scenario nested-noad, steps 21 to 24."""
        for options, op in (({"accessed_dirty": False}, "nest"), ({}, "nest noad")):
            it = Machine("sw-protected", "ept", "v6_12", **options)
            for each in (f"slot 1 {Y:#x} 0x200000 gmem,touch", op, f"l2map {X:#x} {Y:#x}",
                         f"l2map {X + 0x1000:#x} {Y + 0x1000:#x}", f"l2map {X + 0x2000:#x} {Y + 0x2000:#x}",
                         f"attr {Y + 0x1000:#x} 0x2000 private", attr(X + 0x2000, "private")):  # fmt: skip
                it.run(each)
            assert of_handler(it.run(f"l2r {X:#x}")).prefetched == (0x40001, 0x40002)
            assert it.run(f"l2w {X + 0x1000:#x} 1").exit.memory_fault == (39, Y + 0x1000, 0x1000, 0)
            done = it.run(f"l2r {X + 0x2000:#x}")
            assert (len(done.faults), done.copy) == (1, "private")

    def test_not_beyond_the_eight_around_the_fault(self):
        it = self.touched()
        it.run(f"l2map {X + 0x8000:#x} {Y + 0x8000:#x}"), it.run(f"l2r {X + 0x8000:#x}")
        it.run(attr(Y, "private")), it.run(attr(Y, "shared"))
        assert 0x40008 not in of_handler(it.run(f"l2r {X:#x}")).prefetched

    def test_not_what_the_host_has_not_at_hand(self):
        it = self.touched()
        for at in (Y + 0x1000, Y):
            it.run(f"zap {at:#x} 0x1000")
        assert of_handler(it.run(f"l2r {X:#x}")).prefetched == ()  # the first that does not go ends it

    def test_not_what_may_not_be_written_to(self):
        it = Machine("default", revision="v6_12")
        for op in (f"slot 1 {Y:#x} 0x10000 ro,touch", "nest", f"l2map {X:#x} {Y:#x}",
                   f"l2map {X + 0x1000:#x} {Y + 0x1000:#x}",
                   f"l2r {X + 0x1000:#x}", f"zap {Y + 0x1000:#x} 0x1000", f"poke {Y + 0x1000:#x} 1"):  # fmt: skip
            it.run(op)
        assert of_handler(it.run(f"l2r {X:#x}")).prefetched == ()

    def test_in_a_large_page_of_l1s_as_l1s_entry_allows(self):
        """As recorded at step 41, after reads alone: none of the eight may be written to."""
        text = gzip.decompress((DATA / "6.12-nested" / "4-nested-prefetch.trace.gz").read_bytes()).decode()
        recorded = re.findall(r"set_spte: gfn 8000([0-7]) spte \w+ \(r(.)xu\) level 1 at 28a1", text)
        assert recorded == [(str(n), "-") for n in range(8)]
        for use, taken in (("l2r 0x50000000", 1), ("l2w 0x50000000 1", 0)):
            it = machine()
            it.run("slot 5 0x80000000 0x400000 gmem,thp"), it.run("l2map 0x50000000 0x80000000 L")
            for op in (use, attr(0x80002000, "private"), "l2r 0x50000000"):
                it.run(op)
            assert len(it.run("l2w 0x50001000 1").faults) == taken

    def test_in_a_large_page_of_l1s_all_of_them(self):
        it = machine()
        it.run("slot 5 0x80000000 0x400000 gmem,thp"), it.run("l2map 0x50000000 0x80000000 L")
        assert of_handler(it.run("l2r 0x50000000")).fault.goal_level == 2  # step 38
        it.run(attr(0x80002000, "private"))
        assert of_handler(it.run("l2r 0x50000000")).prefetched == tuple(range(0x80001, 0x80008))  # step 41
        assert it.run("l2r 0x50002000").copy == "shared"  # step 43; L1's page is private
        it.run("zap 0x8000a000 0x1000")
        assert of_handler(it.run("l2r 0x50009000")).prefetched == (0x80008,)
        assert of_handler(it.run("l2r 0x5000a000")).prefetched == tuple(range(0x8000B, 0x80010))


class TestL1sTable:
    def test_l1s_stores_are_watched_once_it_is_shadowed(self):
        it = machine()
        assert not it.run(f"l2map {X:#x} {Y:#x}").faults  # L1 has just written there
        it.run(f"l2r {X:#x}")
        leaf = it.run(f"l2map {X + 0x1000:#x} {Y:#x}").faults  # step 27: out of step from now on
        assert [(hex(f.addr), f.handler.ret) for f in leaf] == [("0x34008", 5)]
        assert not it.run(f"l2map {X + 0x2000:#x} {Y:#x}").faults
        above = it.run(f"l2map {Y + 0x80000:#x} {Y:#x}").faults  # step 77: emulated
        assert (above[0].addr, above[0].handler.ret, above[0].outcome.emulation.called) == (0x33000, 3, True)

    def test_l1_may_map_another_page_or_none(self):
        it = machine()
        it.run(f"l2w {X:#x} 1"), it.run(f"l2map {X:#x} {Y + 0xA000:#x}")
        assert of_handler(it.run(f"l2r {X:#x}")).fault.gfn == 0x4000A  # step 120
        it.run(f"l2unmap {X:#x}")
        assert it.run(f"l2r {X:#x}").exit.reason == "l1"

    def test_a_page_that_is_clean_in_l1s_table_is_mapped_read_only(self):
        it = machine()
        it.run(f"l2r {X:#x}")
        assert it.run(f"l2w {X:#x} 1").faults[0].error_code == 0x100000007  # step 23
        assert not it.run(f"l2w {X:#x} 1").faults

    def test_rights_that_l1_takes_away_are_gone_at_the_next_entry(self):
        it = machine()
        it.run(f"l2w {X:#x} 1"), it.run(f"l2map {X:#x} {Y:#x} r")
        assert it.run(f"l2w {X:#x} 1").exit.l1_exit.info1 == 0x100000007

    def test_marks_of_mmio_are_made_anew_when_the_table_is_brought_in_line(self):
        it = machine()
        (
            it.run("l2map 0x4b000000 0x60000000"),
            it.run("l2r 0x4b000000"),
            it.run("slot 4 0xa0000000 0x10000 touch"),
        )
        it.run("l2map 0x4b003000 0x60003000")
        assert it.run("l2r 0x4b000000").faults[0].handler is None  # the generation is right again
        it.run("l2map 0x4b000000 0x60004000")
        assert of_handler(it.run("l2r 0x4b000000")).fault.gfn == 0x60004

    def test_after_three_emulated_writes_a_table_is_watched_no_more(self):
        it = machine()
        it.run(f"l2r {X:#x}")
        results = []
        for n in range(5):
            results += [
                f.handler.ret
                for f in it.run(f"l2map {X + (n + 1 << 21):#x} {Y:#x}").faults
                if f.addr >> 12 == 0x33
            ]
        assert results[:3] == [3, 3, 3]
        assert 3 not in results[3:]
        assert it.run(f"l2r {X:#x}").faults  # its shadow is gone

    def test_an_emulated_store_takes_the_entry_out_of_the_shadow(self):
        it = machine()
        (
            it.run("slot 5 0x80000000 0x400000 gmem,thp"),
            it.run("l2map 0x50000000 0x80000000 L"),
            it.run("l2r 0x50000000"),
        )
        it.run("l2map 0x50000000 0x80200000 L")
        assert of_handler(it.run("l2r 0x50000000")).fault.gfn == 0x80200

    def test_l2_may_write_to_a_table_that_it_is_walked_through(self):
        it = machine()
        it.run(f"l2map {X + 0x1000:#x} 0x34000")
        handler = of_handler(it.run(f"l2w {X + 0x1000:#x} 0"))
        assert handler.fault.write_fault_to_shadow_pgtable

    def test_deleting_the_slot_takes_l2s_entries(self):
        it = machine()
        it.run(f"l2r {X:#x}")
        it.delete_slot(1)
        assert it.run(f"l2r {X:#x}").exit.reason == "mmio"

    def test_dirty_logging_takes_the_right_to_write_from_l2_too(self):
        it = Machine("default", revision="v6_12")
        for op in (f"slot 1 {Y:#x} 0x10000 touch", "nest", f"l2map {X:#x} {Y:#x}", f"l2w {X:#x} 1",
                   f"slot 1 {Y:#x} 0x10000 touch,log"):  # fmt: skip
            it.run(op)
        assert it.run(f"l2w {X:#x} 1").faults[0].error_code == 0x100000007

    @pytest.mark.parametrize(("ept", "leaf"), [(False, 0x40000087), (True, 0x400000B7)])
    def test_a_large_entry(self, ept, leaf):
        table = PageTable(ept)
        table.words = {0x30000: 0x31007, 0x31008: 0x32007, 0x32000: leaf}
        found = table.walk(0x40123456, 4)
        assert (found.gfn, found.level, found.tables) == (0x40123, 2, (0x30, 0x31, 0x32))

    def test_l1s_root_may_not_hold_a_large_entry(self):
        table = PageTable()
        table.words = {0x30000: 0x31087}
        assert table.walk(0, 4).error_code == 0xD  # present, user, reserved

    def test_accessed_and_dirty_bits(self):
        table = PageTable()
        table.words = {0x30000: 0x31007, 0x31000: 0x32007, 0x32000: 0x33007, 0x33000: 0x7007}
        table.walk(0, 4)
        assert set(table.words.values()) == {0x31027, 0x32027, 0x33027, 0x7027}
        table.walk(0, 6)
        assert table.words[0x33000] == 0x7067
        table.words[0x33000] = 0x7005
        table.walk(0, 6)
        assert table.words[0x33000] == 0x7005  # refused: nothing is marked


class TestShadow:
    def test_a_page_is_found_through_linked_tables_only(self):
        assert Shadow(0x30000).find(0x4A000) == (None, 4)
        Shadow(0x30000).remove(0x4A000)


class TestOps:
    @pytest.mark.parametrize("op", ["l2r 0x1000", "l2map 0x1000 0x1000", "l2cr3 0x2000", "l2leave"])
    def test_need_nest_first(self, op):
        with pytest.raises(InputError, match="nest comes first"):
            Machine("default").run(op)

    def test_run_goes_on_only_where_something_is_under_way(self):
        assert Machine("default").run("run") is None
        it = machine()
        it.run(f"l2r {X:#x}")
        assert it.run("run") is None
        with pytest.raises(InputError, match="L2 is not running"):
            it.run_again()

    def test_l1_can_run_l2_with_a_nested_page_table_only_on_nested_paging(self):
        it = Machine("default", "shadow", "v6_12")
        it.run("nest")
        assert it.run("l2r 0x10000").exit.l1_exit.code == 0xFFFFFFFF  # recorded as exit code -1
        it.run(f"slot 1 {Y:#x} 0x10000 touch"), it.run("nest np0")
        done = it.run(f"l2r {Y:#x}")
        assert (done.exit.reason, of_handler(done).walked) == ("done", True)

    def test_an_access_of_l1s_ends_l2(self):
        it = machine()
        it.run(attr(X, "private")), it.run(f"l2r {X:#x}")
        assert it.run(f"r {Y:#x}").copy == "shared"
        assert it.run("run") is None


SCENARIOS = [
    (path.parent.name, path.name.partition(".")[0])
    for path in sorted(DATA.glob("*nested*/*.json.gz"))
    if "inject" not in path.name
]


@pytest.mark.parametrize(("boot", "name"), SCENARIOS)
def test_operations_alone_give_the_recorded_faults(boot, name):
    """Nothing is told to the machine but what user space did; left out are faults on L1's and L2's code and tables."""
    recording = read_recording(DATA / boot)
    it = Machine("default", recording.mode, kernel_of(recording)[0])
    rows = [row for row in faults(recording) if row.scenario == name and row.address >> 12 not in L1_PAGES]
    for step in scenario_of(recording, name).steps:
        done = it.run(step.op)
        mine = [row for row in rows if row.step == step.number]
        if isinstance(done, int) or done is None:
            assert not [row for row in mine if row.source != "prefault"]
            continue
        taken = [
            (f.addr, f.error_code, f.ret, f.handler and (f.handler.ret, f.handler.fault.is_private),
             (f.handler and " ".join(map(hex, f.handler.prefetched))) or None)
            for f in done.faults if f.addr >> 12 not in L1_PAGES
        ]  # fmt: skip
        recorded = [
            (row.address, row.pf_err, row.pf_ret,
             None if row.handler is None else (row.handler_ret, row.out_is_private), row.prefetched)
            for row in mine
        ]  # fmt: skip
        assert taken == recorded, step.op
        assert (done.exit.reason == "memory-fault") == any(row.memory_fault_flags is not None for row in mine)


def test_a_private_write_that_is_emulated_ends_in_the_shared_copy():
    """The recording 6.12-nested-emulated: steps 17 to 21."""
    recording = read_recording(DATA / "6.12-nested-emulated")
    steps = scenario_of(recording, "12-nested-emulated").steps
    it = Machine("default", revision="v6_12")
    copies = {step.number: getattr(it.run(step.op), "copy", None) for step in steps}
    rax = {
        step.number: (step.result.get("vmcb12") or step.result.get("run0", {})).get("rax") for step in steps
    }
    assert (copies[17], rax[17]) == ("shared", "0x77")  # L2 writes to a page that is private for X and for Y
    assert (copies[18], int(rax[18], 0)) == ("private", 0)  # and reads what it did not write
    assert (copies[19], int(rax[19], 0)) == ("private", 0)
    assert (copies[21], rax[21]) == ("shared", "0x77")


def carried_out(boot, name, l2_block):
    """Of a recording's steps: how KVM_RUN ended, what was read or written, and what the machine makes of them."""
    recording = read_recording(DATA / boot)
    steps = scenario_of(recording, name).steps
    it = Machine("default", recording.mode, "v6_12")
    done = {step.number: it.run(step.op) for step in steps}
    ends = {step.number: step.result.get("run0", {}) for step in steps}
    rax = {step.number: (step.result.get(l2_block) or ends[step.number]).get("rax") for step in steps}
    return ends, rax, done


@pytest.mark.parametrize(
    ("boot", "l2_block"), [("6.12-nested-dirty", "vmcb12"), ("6.12-nested-intel", "vmcs12")]
)
def test_a_write_through_an_entry_that_was_mapped_ahead_ends_in_the_shared_copy(boot, l2_block):
    """Scenario nested-dirty: private copies hold 0x91 and 0x92, the shared ones 0x61 and 0x62."""
    ends, rax, done = carried_out(boot, "1-nested-dirty", l2_block)
    assert (ends[17]["name"], done[17].exit.reason) == ("MEMORY_FAULT", "memory-fault")  # a write that faults
    for step, value in ((22, "0xb1"), (23, "0xb2"), (36, "0xb3")):
        assert (ends[step]["name"], ends[step]["stats"], rax[step]) == ("HLT", {}, value)  # no fault
        assert (done[step].faults, done[step].copy) == ((), "shared")
    for step, value in ((26, 0x91), (27, 0x92), (37, 0)):  # L1 does not find it, …
        assert (done[step].copy, int(rax[step], 0)) == ("private", value)
    for step, value in ((29, "0xb1"), (30, "0xb2"), (39, "0xb3")):  # … but the host has it
        assert (done[step].copy, rax[step]) == ("shared", value)


def test_without_accessed_bits_in_l1s_table_each_first_access_is_held_against_the_attribute():
    """Scenario nested-noad: private copies hold 0x91 and 0x92, the shared ones 0x61 and 0x62."""
    ends, rax, done = carried_out("6.12-nested-intel", "2-nested-noad", "vmcs12")
    for step in (17, 22, 35):
        assert (ends[step]["name"], done[step].exit.reason) == ("MEMORY_FAULT", "memory-fault")
    for step, value in ((23, "0x92"), (24, "0xb2"), (25, "0x91"), (26, "0xb2")):
        assert (done[step].copy, rax[step]) == ("private", value)
    for step, value in ((28, "0x61"), (29, "0x62"), (38, "0xf4")):
        assert (done[step].copy, rax[step]) == ("shared", value)
