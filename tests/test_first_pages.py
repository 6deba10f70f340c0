# SPDX-License-Identifier: GPL-2.0-only
"""What the first pages of the walkthrough, up to `06_why_synthetic`, say and do not show, run."""

from __future__ import annotations

import pytest

from kvm_pf import REVISIONS, Machine, encode, explain, follow, load_corpus
from kvm_pf.bits import (
    PFERR,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PRIVATE_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_SYNTHETIC_MASK,
    Origin,
)
from kvm_pf.permission import smap_applies
from kvm_pf.revisions import LATTICE
from kvm_pf.show import page

WRITE = "WRITE|USER|GUEST_FINAL"
SW = {"vm_type": "sw-protected", "private": True}
STALE = {"error_code": "RSVD|USER|GUEST_FINAL", "mmio_cfg": 2, "walk_leaf": 1, "spte1": 0x8000060010027}


class TestIndex:
    @pytest.mark.parametrize(
        ("fault", "private", "lookups"),
        [
            ({"error_code": WRITE}, "00", "10"),
            ({"error_code": WRITE, **SW}, "11", "11"),
            ({"error_code": WRITE, "vm_type": "sw-protected"}, "00", "11"),
            ({**STALE, **SW}, "10", "10"),
            ({"error_code": f"{WRITE}|GUEST_ENC", "vm_type": "sev"}, "00", "10"),
            ({"error_code": f"{WRITE}|GUEST_ENC", "vm_type": "sev-es"}, "00", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "snp"}, "00", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "tdx"}, "00", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "snp", "private": True}, "10", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "tdx", "private": True}, "10", "10"),
            ({**STALE, **SW, "direct": False}, "10", "10"),
        ],
        ids=[
            "default", "software-protected, private page", "software-protected, shared page",
            "software-protected, reserved fault, stale mark", "SEV", "SEV-ES", "SNP, shared page", "TDX, shared page",
            "SNP, private page", "TDX, private page", "L2, reserved fault",
        ],
    )  # fmt: skip
    def test_what_changes_for_each_kind_of_vm(self, fault, private, lookups):
        ran = page.results("f_is_private attr_lookups", {"it": fault}, "before", "posted")
        assert ("".join(ran.f_is_private), "".join(ran.attr_lookups)) == (private, lookups)

    @pytest.mark.parametrize("revision", ["before", "posted"])
    def test_l2_is_private_by_the_look_up_though_the_page_that_is_meant_is_shared(self, revision):
        machine = Machine("sw-protected", revision=revision)
        for op in (
            "slot 1 0x40000000 0x200000 gmem",
            "nest",
            "l2map 0x4a000000 0x40000000 w",
            "attr 0x4a000000 0x1000 private",
        ):
            machine.run(op)
        (taken,) = machine.l2_access("r", 0x4A000000).faults
        assert taken.handled.fault.is_private
        assert taken.outcome.lookups.count == 1
        assert (taken.exit.exit_reason, taken.exit.flags) == (39, 8)


class TestBits:
    def test_the_mask_is_what_kvm_sets_and_no_cpu_sets_a_bit_above_37(self):
        kvms = {row.bit for row in PFERR if row.set_by is Origin.KVM}
        assert kvms == {48, 49}
        assert PFERR_SYNTHETIC_MASK == 0x3000000000000
        assert max(row.bit for row in PFERR if row.bit not in kvms) == 37

    def test_ac_lifts_smap_for_an_explicit_access_only(self):
        state = {"cpl": 0, "page_user": True, "cr4_smap": True, "rflags_ac": True}
        assert [smap_applies(code, **state) for code in (0, PFERR_IMPLICIT_ACCESS)] == [False, True]

    def test_no_recorded_cpu_reported_a_bit_of_kvms(self):
        recorded = load_corpus().recordings
        reported = recorded[recorded.source.isin(["npf", "pf"])].cpu_code
        assert len(reported) > 1000
        assert not any(int(code) & PFERR_SYNTHETIC_MASK for code in reported)

    def test_the_qualification_of_the_report_becomes_the_code_of_the_report(self):
        assert REVISIONS["posted"].link("ept_error_code")(0x683, mbec=False, private_gpa=False) == 0x200000006

    def test_with_32_bits_a_private_page_ends_in_an_exit_that_says_shared(self):
        machine = Machine("sw-protected", revision="posted_u32")
        machine.add_slot(1, 0x40000000, 0x200000, "gmem")
        machine.set_attributes(0x40000000, 0x200000, private=True)
        ended = machine.access("w", 0x40002000).exit
        assert (ended.reason, ended.memory_fault.flags) == ("memory-fault", 0)


class TestSanitising:
    @pytest.mark.parametrize(
        ("code", "before", "posted"),
        [
            (0x100000006, 0x100000006, 0x100000006),
            (0x1000100000006, 0x100000006, 0x100000006),
            (0x2000100000006, 0x2000100000006, 0x100000006),
            (0x3000100000006, 0x2000100000006, 0x100000006),
            (0x4800100000006, 0x4800100000006, 0x4800100000006),
            (0xFFFFFFFFFFFFFFFF, 0xFFFEFFFFFFFFFFFF, 0xFFFCFFFFFFFFFFFF),
        ],
    )
    def test_what_becomes_of_a_code(self, code, before, posted):
        asked = page.ask("sanitize", {"it": code})
        assert [asked.records["it", name].after for name in ("before", "posted")] == [before, posted]

    def test_a_fault_goes_on_as_if_the_bits_had_not_been_there(self):
        both, clean = explain(0x3000100000006).outcome, explain(0x100000006).outcome
        assert both.warns
        assert both._replace(warns=0) == clean

    @pytest.mark.parametrize("kind", ["default", "sw-protected", "sev", "sev-es", "snp", "tdx"])
    def test_a_callers_bit_49_is_dropped_as_posted_and_believed_once_the_check_has_moved(self, kind):
        ran = page.results(
            "f_is_private", {"it": {"vm_type": kind}}, "posted", "posted_series", "v7_3",
            error_code="WRITE|USER|PRIVATE_ACCESS",
        )  # fmt: skip
        assert "".join(ran.f_is_private) == "011"

    def test_without_a_root_there_is_no_look_up(self):
        fault = explain(0x3000100000006, root_valid=False, **SW)
        assert fault.outcome.lookups.count == 0

    def test_of_the_recorded_faults_those_with_a_bit_of_kvms_and_no_others_are_found_by_the_check(self):
        altered = [
            seen for name in ("3-inject", "4-inject-swprot") for seen in follow("posted-on-6.12", name)
        ]
        found = [seen for seen in altered if seen.row.pf_err & PFERR_SYNTHETIC_MASK]
        assert [seen for seen in altered if "synthetic" in seen.taken.warns] == found
        assert (len(found), len(page.log("posted-on-6.12"))) == (14, 1)


PRIVATE_WRITE = {"error_code": 0x100000006, "cr2_or_gpa": 0x40002000, **SW}


class TestWhoseMemory:
    @pytest.mark.parametrize(
        "fails",
        [
            {"cfg_sw_protected": False, "cfg_private_mem": False},
            {"error_code": 0x10000000E, "walk_leaf": 1, "spte1": 0x1000000BE},
            {"vm_type": "default", "private": False},
            {"private": False},
        ],
        ids=["build", "reserved", "type", "attribute"],
    )
    def test_each_of_the_four_tests_keeps_the_bit_off(self, fails):
        assert explain(**PRIVATE_WRITE).outcome.handled.fault.error_code & PFERR_PRIVATE_ACCESS
        assert (
            not explain(**{**PRIVATE_WRITE, **fails}).outcome.handled.fault.error_code & PFERR_PRIVATE_ACCESS
        )

    def test_the_look_up_is_one_function_from_the_patch_to_7_3(self):
        kernels = ("posted", "merged_patch", "v6_10", "v6_12", "v7_3")
        assert len({REVISIONS[name].step("mark_private") for name in kernels}) == 1

    @pytest.mark.parametrize(
        ("revision", "ends"), [("before", "memory-fault"), ("posted", "mmio"), ("v6_12", "mmio")]
    )
    def test_a_reserved_fault_of_l2s_is_no_longer_looked_up(self, revision, ends):
        machine = Machine("sw-protected", revision=revision)
        for op in (
            "slot 1 0x40000000 0x200000 gmem,touch",
            "nest",
            "l2map 0x4b000000 0x60000000",
            "l2r 0x4b000000",
            "attr 0x4b000000 0x1000 private",
            "slot 4 0xa0000000 0x10000 touch",
        ):
            machine.run(op)
        assert machine.run("l2r 0x4b000000").exit.reason == ends

    @pytest.mark.parametrize(
        ("declared", "converted", "copy"),
        [
            (("private", "shared"), (0x40002000, "private"), "private"),
            (("private", "shared"), (0x4A002000, "shared"), "shared"),
            (("shared", "private"), (0x40002000, "shared"), "shared"),
            (("shared", "private"), (0x4A002000, "private"), "private"),
        ],
        ids=["obeyed", "L2's address", "obeyed, the other way", "L2's address, the other way"],
    )
    def test_obeying_the_exit_hands_l2_the_other_copy_than_l1_meant(self, declared, converted, copy):
        machine = Machine("sw-protected", revision="v6_12")
        for op in (
            "slot 1 0x40000000 0x200000 gmem,touch",
            "nest",
            "l2map 0x4a002000 0x40002000",
            f"attr 0x4a002000 0x1000 {declared[0]}",
            f"attr 0x40002000 0x1000 {declared[1]}",
        ):
            machine.run(op)
        assert machine.run("l2r 0x4a002000").exit.errno
        machine.run(f"attr {converted[0]:#x} 0x1000 {converted[1]}")
        assert machine.run("run").copy == copy


class TestReservedAndMmio:
    MARK = 0x8000060010027  # as recorded: gfn 0x60010, write and user, generation 4

    def test_without_the_exclusion_a_stale_mark_on_a_private_page_ends_as_before(self):
        posted = REVISIONS["posted"]

        def mark_private(vm, cr2_or_gpa, error_code):
            rsvd = error_code & PFERR_RSVD_MASK
            marked, lookups = posted.step("mark_private")(vm, cr2_or_gpa, error_code & ~PFERR_RSVD_MASK)
            return marked | rsvd, lookups

        without = posted.derive("without", mark_private=mark_private)
        ends = [
            follow("posted-on-6.12", "2-swprot", step=50, revision=revision)[0].taken.exit.flags
            for revision in ("before", without, "posted")
        ]
        assert ends == [8, 8, 0]

    def test_the_mark_is_the_one_that_the_recorded_kernel_made(self):
        (seen,) = follow("posted-on-6.12", "2-swprot", step=48)
        posted = REVISIONS["posted"]
        npt = posted.link("mmio_format")(2, True)
        assert seen.row.check_spte == self.MARK
        assert posted.link("make_mmio_spte")(npt, gen=4, gfn=0x60010, access=6) == self.MARK

    @pytest.mark.parametrize(
        ("revision", "vm", "reserved"),
        [
            ("posted", "default", False),
            ("posted", "sw-protected", False),
            ("v6_12", "default", False),
            ("v6_12", "sw-protected", True),
        ],
    )
    def test_a_mark_outlives_the_deletion_of_a_slot_from_6_12_on_but_not_of_an_ordinary_vm(
        self, revision, vm, reserved
    ):
        machine = Machine(vm, revision=revision)
        for op in ("slot 1 0x40000000 0x200000 touch", "r 0x60010000", "slot 1 0x40000000 0 -"):
            machine.run(op)
        assert bool(machine.run("r 0x60010000").faults[0].error_code & encode("RSVD")) == reserved

    @pytest.mark.parametrize(
        ("at_hand", "answer", "asked"),
        [
            ({"walk_leaf": 1, "spte1": MARK}, "EMULATE", False),
            ({"walk_leaf": 1, "spte1": MARK, "gen": 5}, "INVALID", True),
            ({"walk_leaf": 1, "spte1": MARK, "gen": 4 | 1 << 63}, "INVALID", True),
            ({"walk_leaf": 1, "spte1": 0x1234000 | 1 << 11 | 7}, "RETRY", False),
            ({"walk_leaf": 1, "spte1": 0x1234000 | 1 << 51 | 1 << 11 | 6}, "-22", False),
            ({}, "RETRY", False),
            ({"mmio_gfn": 0x60010, "mmio_gen": 4}, "EMULATE", False),
            ({"mmio_gfn": 0x60010, "mmio_gen": 4, "gen": 4 + (1 << 19)}, "RETRY", False),
            ({"cr2_or_gpa": 0, "mmio_gfn": 0, "mmio_gen": 4}, "RETRY", False),
        ],
        ids=[
            "current", "stale", "slots being changed", "an ordinary page", "the same with bit 51", "no entry",
            "remembered", "remembered, 2^19 changes ago", "page 0",
        ],
    )  # fmt: skip
    def test_only_a_mark_that_is_not_believed_leads_to_the_handler(self, at_hand, answer, asked):
        state = {"error_code": "RSVD|USER|GUEST_FINAL", "cr2_or_gpa": 0x60010000, "mmio_cfg": 2, "gen": 4}
        (told,) = page.results("mmio_ret pf_called", {"it": {**state, "memslot": 0, **at_hand}}).to_numpy()
        assert (told[0].replace("-EINVAL", "-22"), told[1]) == (answer, str(int(asked)))

    def test_step_50_alone_is_private_before_and_shared_as_posted(self):
        before, posted = (
            follow("posted-on-6.12", "2-swprot", revision=name) for name in ("before", "posted")
        )
        pairs = zip(before, posted, strict=True)
        unlike = [
            a.row.step
            for a, b in pairs
            if a.taken.handled.fault.is_private != b.taken.handled.fault.is_private
        ]
        assert unlike == [50]

    def test_three_reads_have_three_ends(self):
        ends = {seen.row.step: seen for seen in follow("posted-on-6.12", "2-swprot")}
        told = [
            (ends[step].row.in_is_private, ends[step].row.pf_ret, ends[step].row.memory_fault_flags)
            for step in (24, 48, 50)
        ]
        assert told == [(True, -14, 8), (None, 0, None), (False, -14, 0)]
        assert [ends[step].taken.outcome.lookups.count for step in (24, 48, 50)] == [1, 0, 0]
        assert all(ends[step].row.state_private for step in (24, 48, 50))


class TestFaultStruct:
    @pytest.mark.parametrize(
        ("fault", "before", "posted"),
        [
            ({"error_code": "WRITE|USER", **SW}, True, True),
            ({**STALE, **SW}, True, False),
            ({"error_code": "WRITE|USER"}, False, False),
            ({"error_code": "WRITE|USER|PRIVATE_ACCESS"}, False, False),
        ],
        ids=["private page", "reserved, stale mark", "ordinary VM", "bit 49 from outside"],
    )
    def test_what_each_kernel_answers(self, fault, before, posted):
        asked = page.ask("is_private", {"it": fault})
        assert [asked.records["it", name].result[0] for name in ("before", "posted")] == [before, posted]

    def test_the_differences_but_the_fourth(self):
        ran = page.results(
            "warns f_error_code f_is_private attr_lookups",
            {
                "1": {"error_code": "WRITE|USER|PRIVATE_ACCESS"},
                "2": {"error_code": "WRITE|USER", **SW},
                "3": {**STALE, **SW, "error_code": "RSVD|USER"},
                "5": {"error_code": "WRITE|USER"},
            },
            "before",
            "posted",
        )
        assert [tuple(row) for row in ran.to_numpy()] == [
            ("", "0x2000000000006", "0", "1"), ("synthetic", "6", "0", "0"),
            ("", "6", "1", "1"), ("", "0x2000000000006", "1", "1"),
            ("", "0xc", "1", "1"), ("", "0xc", "0", "0"),
            ("", "6", "0", "1"), ("", "6", "0", "0"),
        ]  # fmt: skip

    def test_the_fourth_difference_is_a_page_that_becomes_ready(self):
        told = []
        for name in ("before", "posted", "v6_10"):
            machine = Machine("sw-protected", revision=name)
            machine.add_slot(1, 0x40000000, 0x200000, "gmem")
            machine.set_attributes(0x40000000, 0x1000, private=True)
            taken = machine.page_ready(0x40000000, encode("USER|GUEST_FINAL"))
            fault = taken.handled.fault
            told.append((fault.error_code, fault.is_private, taken.exit.exit_reason))
        assert told == [(0, True, 0), (0, False, 39), (0x100000004, False, 39)]

    def test_only_all_three_changes_are_right_for_every_fault(self):
        faults = {
            "private page": {"error_code": "WRITE|USER", **SW},
            "stale mark": {**STALE, **SW, "error_code": "RSVD|USER"},
            "bit 49": {"error_code": "WRITE|USER|PRIVATE_ACCESS"},
        }
        ran = page.results("f_is_private", faults, "before", *LATTICE).f_is_private.unstack(
            "fault", sort=False
        )
        right = ran.index[(ran == ["1", "0", "0"]).all(axis=1)]
        assert [set(name.split("+")) for name in right] == [
            {"before", "sanitize", "mark_private", "is_private"}
        ]

    def test_a_private_fault_is_refused_where_a_shared_one_is_emulated(self):
        columns = "ret exit_reason mf_flags emu_called st_taken st_emulate"
        ran = page.results(
            columns, {"private": SW, "shared": {"vm_type": "sw-protected"}},
            error_code="WRITE|USER", pf_ret="EMULATE", pf_wpf=1,
        )  # fmt: skip
        assert [tuple(row) for row in ran.to_numpy()] == [
            ("-14", "39", "8", "0", "1", "0"),
            ("1", "0", "–", "1", "1", "1"),
        ]


class TestWhySynthetic:
    @pytest.mark.parametrize(
        ("state", "told"),
        [
            ({**SW, "error_code": "WRITE|USER"}, "111"),
            ({**SW, "error_code": "RSVD|USER", "walk_leaf": 1, "spte1": 0x1000000BE}, "011"),
            ({"vm_type": "sw-protected", "error_code": "USER|GUEST_ENC"}, "011"),
            ({"vm_type": "sev", "error_code": "USER|GUEST_ENC"}, "001"),
            ({"vm_type": "sev-es", "error_code": "USER|GUEST_ENC"}, "001"),
            ({"error_code": "USER|GUEST_ENC"}, "001"),
            ({"vm_type": "snp", "error_code": "USER|GUEST_ENC"}, "011"),
        ],
        ids=["everyday", "reserved", "stray bit 34", "SEV", "SEV-ES", "default", "SNP"],
    )
    def test_where_posted_and_the_two_ways_of_borrowing_part(self, state, told):
        ran = page.results("f_is_private", {"it": state}, "posted", "guest_enc_gated", "guest_enc_ungated")
        assert "".join(ran.f_is_private) == told
