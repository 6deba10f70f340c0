# SPDX-License-Identifier: GPL-2.0-only
"""What the first pages of the walkthrough, up to `06_why_synthetic`, say and do not show, run."""

from __future__ import annotations

import pytest

from kvm_pf import REVISIONS, Machine, encode, explain, follow, load_corpus
from kvm_pf.bits import PFERR, PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_SYNTHETIC_MASK, Origin
from kvm_pf.permission import smap_applies
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
            ({**STALE, **SW, "direct": False}, "10", "10"),
        ],
        ids=[
            "default", "software-protected, private page", "software-protected, shared page",
            "software-protected, reserved fault, stale mark", "SEV", "SEV-ES", "SNP", "TDX", "L2, reserved fault",
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


class TestWhoseMemory:
    WRITE = {"error_code": 0x100000006, "cr2_or_gpa": 0x40002000, **SW}

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
        assert explain(**self.WRITE).outcome.handled.fault.error_code & PFERR_PRIVATE_ACCESS
        assert not explain(**{**self.WRITE, **fails}).outcome.handled.fault.error_code & PFERR_PRIVATE_ACCESS

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
