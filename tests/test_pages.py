# SPDX-License-Identifier: GPL-2.0-only
"""What pages of the walkthrough say, and do not show: the answers to exercises and questions, run."""

from __future__ import annotations

import re

import pytest

from kvm_pf import REVISIONS, compare, describe, explain, follow, trace
from kvm_pf.bits import PFERR_RSVD_MASK
from kvm_pf.common.paths import data_dir
from kvm_pf.entry import TO_FAULT, TO_RETRY, Route, mark_private, reserved_fault, root_is_valid, sanitize
from kvm_pf.patch.ledger import relatives
from kvm_pf.run import codes
from kvm_pf.show import page
from kvm_pf.state import WARN_BAD_ROOT
from tools import notebooks

SW = {"vm_type": "sw-protected", "private": True}
STALE = dict(error_code="RSVD|USER", mmio_cfg=2, walk_leaf=1, spte1=0x8000060010027, **SW)


class TestExercises:
    """`21_exercises`; 3, 4 and 11 are answered by recordings and the page that each names, 10 by `test_first_pages`."""

    def test_1_the_second_code_has_bit_49_too(self):
        assert describe(0x100000006) == "WRITE|USER|GUEST_FINAL"
        assert describe(0x2000100000006) == "WRITE|USER|GUEST_FINAL|PRIVATE_ACCESS"

    def test_2_a_qualification_becomes_an_error_code(self):
        made = REVISIONS["v6_10"].link("ept_error_code")(0x182, mbec=False, private_gpa=False)
        assert made == 0x100000002

    def test_5_no_mark_no_look_up(self):
        outcome = explain("RSVD|USER", **SW).outcome
        assert (outcome.lookups.count, outcome.ret) == (0, 1)

    def test_6_a_stale_mark_was_private_and_is_not(self):
        private = [
            explain(**STALE, revision=r).outcome.handled.fault.is_private for r in ("before", "posted")
        ]
        assert private == [True, False]

    def test_7_both_bits_are_dropped(self):
        assert explain(0x3000100000006).outcome.handled.fault.error_code == 0x100000006

    def test_8_nothing_to_save_without_private_memory(self):
        without = {"error_code": 6, "cfg_private_mem": False, "cfg_sw_protected": False}
        assert [explain(**without, revision=r).outcome.lookups.count for r in ("before", "posted")] == [0, 0]

    def test_9_without_hunk_2_nothing_is_private(self):
        assert not explain("WRITE", **SW, revision="before+is_private").outcome.handled.fault.is_private

    def test_12_checked_last_the_look_up_is_lost(self):
        as_posted = REVISIONS["posted"].step("mark_private")

        def marked_then_checked(vm, address, code):
            marked, lookups = as_posted(vm, address, code)
            return marked & ~(3 << 48), lookups

        late = REVISIONS["posted"].derive("late", mark_private=marked_then_checked)
        assert not explain("WRITE", **SW, revision=late).outcome.handled.fault.is_private


class TestYourTraces:
    """`09_your_traces`."""

    def test_exercise_1_is_likely_amds(self):
        read = codes.read("14")
        assert (read.best.encoding, read.best.meaning.sentence) == (
            "npf",
            "an instruction fetch, on a page that is not mapped",
        )
        assert any(other.encoding == "pf" for other in read.others)

    def test_exercise_2_is_a_write_to_a_protected_page(self):
        sentence = codes.read("0x100000007").best.meaning.sentence
        assert sentence == "a write, on a page that is not mapped for writing"

    def test_exercise_3_is_a_write_to_private_memory(self):
        sentence = codes.read("0x2000500000006").best.meaning.sentence
        assert sentence == "a write (private memory), on a page that is not mapped"

    def test_every_tool_records_the_same_events(self):
        named = (
            "page_fault exit entry userspace_exit mmio emulate_insn inj_exception hypercall unmap_hva_range"
        )
        wanted = {*(f"kvm_{name}" for name in named.split()), "kvmmmu:*"}
        cells = notebooks.read(notebooks.FOLDER / "09_your_traces.ipynb").cells
        told, table = cells[1].outputs[0].text, cells[2].source
        for tool in told.replace("-e kvmmmu ", "-e kvmmmu:* ").split("\n\n"):
            assert {*re.findall(r"kvm_\w+|kvmmmu:\*", tool)} == wanted
        assert wanted <= {*re.findall(r"`(\S+)`", table)}

    def test_no_line_of_a_software_protected_guest_shows_bit_49(self):
        faults = trace.read(data_dir() / "recordings/6.12/2-swprot.trace.gz")
        assert len(faults)
        assert not any(word >> 49 & 1 for word in faults.error_code)

    @pytest.mark.parametrize(
        ("revision", "fault", "printed"),
        [
            ("v6_12", {"kind": "npf", "info": 0x100000006}, "0x100000006"),  # software-protected
            ("v6_12", {"kind": "npf", "info": 0x500000006, "snp_guest": 1}, "0x2000500000006"),
            ("v7_3", {"kind": "tdx", "info": 0x2, "direct_bits": 1 << 35}, "2"),
            ("posted", {"kind": "npf", "info": 0x500000006, "snp_guest": 1}, "0x500000006"),  # exercise 3
        ],
    )
    def test_what_the_line_prints_of_a_private_write(self, revision, fault, printed):
        assert (
            page.results("trace_error_code", {"a write": fault}, revision, kind="sources").squeeze()
            == printed
        )


def test_the_root_check_saves_look_ups_and_changes_nothing_else():
    """`20_reviewers_questions`: look the page up first, then ask for the root."""

    def route(mmu, vm, cr2_or_gpa, error_code):
        error_code, warns = sanitize(error_code)
        error_code, lookups = mark_private(vm, cr2_or_gpa, error_code)
        if not root_is_valid(mmu):
            return Route(TO_RETRY, error_code, warns | WARN_BAD_ROOT, lookups)
        if error_code & PFERR_RSVD_MASK == 0:
            return Route(TO_FAULT, error_code, warns, lookups)
        to, refusal = reserved_fault(error_code)
        return Route(to, error_code, warns | refusal, lookups)

    apart = compare(
        "posted", REVISIONS["posted"].derive("look_up_first", route=route), way="kvm_mmu_page_fault"
    )
    places = [place for kind in apart.kinds for place in kind.places]
    assert apart.exact
    assert {column for each in places for column in (*each.always, *each.sometimes)} == {
        "attr_lookups",
        "attr_gfn",
    }


def test_a_tracked_write_is_answered_before_the_fault_in_compares():
    """`11_two_findings`: step 17, as the kernel traced it."""
    (seen,) = follow("6.12-nested-emulated", "12-nested-emulated", 17)
    assert (seen.row.handler_ret, seen.row.in_is_private, seen.row.faultin_ret) == (3, True, None)


def test_the_map_has_every_patch_of_the_series():
    """`22_the_series`: fifteen others, this one, and the one that came with the merge."""
    others = [each.name for each in relatives() if each.name.startswith("series-")]
    (table,) = (cell.source for cell in notebooks.read(notebooks.FOLDER / "22_the_series.ipynb").cells[:1])
    rows = [line.split("](")[0].strip("| [") for line in table.splitlines() if line.startswith("| [")]
    assert rows == [*(f"{number:02d}" for number in range(1, 17)), "new"]
    assert len(others) == len(rows) - 1
