# SPDX-License-Identifier: GPL-2.0-only
"""What the pages of the walkthrough show; and that the ledger's pointers to pages and cases lead somewhere."""

import re

import nbformat
import pandas as pd
import pytest

import kvm_pf
from kvm_pf.common.errors import InputError
from kvm_pf.conformance.follow import mmio_moments
from kvm_pf.patch.ledger import ledger
from kvm_pf.proof.claims import CLAIMS
from kvm_pf.show import page
from tools.notebooks import FOLDER

ROWS = ledger()
CASES = kvm_pf.load_corpus().cases


def headings(notebook: str) -> set[str]:
    """The anchors of a notebook, as data/ledger/README.md makes them."""
    cells = nbformat.read(FOLDER.parent / notebook, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in found}


@pytest.mark.parametrize("notebook", sorted(set(ROWS.notebook.str.partition("#")[0])))
def test_every_section_that_the_ledger_names_is_there(notebook):
    wanted = {each.partition("#")[2] for each in ROWS.notebook if each.startswith(notebook)}
    assert wanted <= headings(notebook)


def test_every_case_that_the_ledger_names_is_there():
    named = {case for cases in ROWS.cases for case in cases.split()}
    assert named <= set(CASES["id"])


@pytest.mark.parametrize(
    "row", list(ROWS[(ROWS.role == "code") & (ROWS.cases != "")].itertuples()), ids=lambda row: row.id
)
def test_a_line_that_runs_has_a_case_that_tells_before_from_posted(row):
    mine = CASES[CASES["id"].isin(row.cases.split())]
    before, posted = (
        mine[mine["revision"] == name].set_index("id")["expect"] for name in ("before", "posted")
    )
    tells = [
        any(
            before[case][column] != posted[case][column]
            for column in before[case].keys() & posted[case].keys()
        )
        for case in before.index.intersection(posted.index)
    ]
    assert any(tells)


class TestAsk:
    def test_each_fault_is_asked_of_each_revision(self):
        asked = page.ask("sanitize", {"49": 1 << 49, "none": {"error_code": 4}})
        assert list(asked.records) == [
            ("49", "before"),
            ("49", "posted"),
            ("none", "before"),
            ("none", "posted"),
        ]
        assert [record.after for record in asked.records.values()] == [1 << 49, 0, 4, 4]
        assert repr(asked) == "sanitize of before, posted"

    def test_a_step_that_the_fault_does_not_come_to_says_so(self):
        asked = page.ask("mark_private", {"no root": 2}, "posted", root_valid=False)
        assert asked.records["no root", "posted"] is None
        assert "not reached" in asked._repr_html_()

    def test_what_it_did_is_shown_with_the_code_before_and_after(self):
        html = page.ask(
            "mark_private", {"w": 2}, "posted", vm_type="sw-protected", private=True
        )._repr_html_()
        assert "<code>0x2 → 0x2000000000002</code><br>gfn 0x100000 is private" in html

    def test_a_step_without_a_code_shows_why_alone(self):
        assert "there is a page table" in page.ask("root_is_valid", {"w": 2}, "posted")._repr_html_()


def test_what_is_folded_opens_to_all_of_it():
    shown = page.change("sanitize")
    html = page.folded("one line", shown)._repr_html_()
    assert f"<details><summary>one line</summary>{shown.html}</details>" in html


class TestClaims:
    def test_each_claim_stands_with_its_sentence_and_the_smallest_state_that_refutes_it(self):
        asked = page.claims(["reserved-never-private", "code-says-private"], "before", "posted")
        assert list(asked.answers) == [
            ("reserved-never-private", "before"),
            ("reserved-never-private", "posted"),
            ("code-says-private", "before"),
            ("code-says-private", "posted"),
        ]
        html = asked._repr_html_()
        for name in ("reserved-never-private", "code-says-private"):
            assert f"<td>{CLAIMS[name].statement}<br><code>{name}</code></td>" in html
        assert html.count("<td>holds, proved</td>") == 2
        assert "<td><b>fails</b><br>attrs=0x8, walk_leaf=1, spte1=0x6, error_code=RSVD</td>" in html

    def test_posted_is_asked_if_no_revision_is_named(self):
        assert list(page.claims(["code-says-private"]).answers) == [("code-says-private", "posted")]

    def test_a_table_of_answers_has_a_row_for_each_claim(self):
        found = pd.DataFrame({"code-says-private": ["fails", "holds"]}, ["before", "posted"])
        html = page.answers(found)._repr_html_()
        assert CLAIMS["code-says-private"].statement in html
        assert html.endswith("<td><b>fails</b></td><td>holds</td></tr></table></div>")

    def test_another_name_is_refused(self):
        with pytest.raises(InputError, match="there is no claim 'nothing'"):
            page.claims(["nothing"])


def test_a_change_names_both_revisions():
    shown = page.change("sanitize", "posted", "v6_10")
    assert repr(shown) == "sanitize, posted and v6_10"
    assert "PFERR_SYNTHETIC_MASK" in shown._repr_html_()


def test_recorded_faults_stand_under_each_other():
    seen = kvm_pf.follow("posted-on-6.12", "3-inject", 9) + kvm_pf.follow("6.12", "3-inject", 9)
    frame = page.faults(seen, "recording", "trace_error_code", "in_is_private")
    assert list(frame["recording"]) == ["posted-on-6.12", "6.12"]
    assert list(frame["trace_error_code"]) == ["0x2000100000004", "0x100000004"]
    assert list(frame["in_is_private"]) == ["0", "0"]
    assert "agree" not in frame


def test_values_that_disagree_are_counted():
    (seen,) = kvm_pf.follow("posted-on-6.12", "3-inject", 9, revision="v6_12")
    frame = page.faults([seen])
    agreed, _, compared = frame["agree"].iloc[0].split()
    assert int(agreed) < int(compared)


def test_an_answer_of_the_handler_is_named_as_its_kernel_counts():
    seen = kvm_pf.follow("posted-on-6.12", "2-swprot", 36)[:1] + kvm_pf.follow(
        "posted-on-6.12", "2-swprot", 24
    )
    assert [each.row.handler_ret for each in seen] == [5, -14]
    assert list(page.faults(seen, "handler_ret").handler_ret) == ["FIXED", "-EFAULT"]
    assert list(seen[0].table("handler_ret").loc["handler_ret", ["kernel", "model"]]) == ["FIXED", "FIXED"]


def test_the_story_of_a_scenario_is_what_user_space_saw():
    frame = page.story("posted-on-6.12", "2-swprot", 1, 7, 14, 24)
    assert list(frame.index) == [1, 7, 14, 24]
    assert list(frame.loc[7]) == ["attr 0x40000000 0x200000 private", 0, 0, "", ""]
    assert list(frame.loc[14]) == ["r 0x40000000", 0, 0, "HLT", "0xabcd"]
    assert list(frame.loc[24])[1:4] == [-1, 14, "MEMORY_FAULT"]


def test_the_log_holds_each_warning_once():
    assert page.log("posted-on-6.12") == ["WARNING in kvm_mmu_page_fault, arch/x86/kvm/mmu/mmu.c:6120"]


class TestResults:
    def test_a_row_for_each_fault_and_revision(self):
        given = {"bit 49": {"error_code": "WRITE|PRIVATE_ACCESS"}, "write": {"error_code": 2}}
        frame = page.results("f_error_code f_is_private warns", given, "before", "posted")
        assert list(frame.loc[("bit 49", "before")]) == ["0x2000000000002", "0", ""]
        assert list(frame.loc[("bit 49", "posted")]) == ["2", "0", "synthetic"]
        assert list(frame.index.get_level_values("fault")) == ["bit 49", "bit 49", "write", "write"]

    def test_one_revision_needs_no_column_and_is_the_posted_one(self):
        frame = page.results("f_is_private", {"a": {"private": True}, "b": {}}, vm_type="sw-protected")
        assert list(frame.index) == ["a", "b"]
        assert list(frame.f_is_private) == ["1", "0"]

    def test_what_was_not_reached_is_a_dash_and_small_numbers_are_decimal(self):
        frame = page.results("f_gfn ret exit_reason", {"r": {"error_code": "RSVD"}})
        assert list(frame.loc["r"]) == ["–", "1", "0"]
        mismatch = page.results("exit_reason mf_gpa", {"m": {"is_private": 1}}, kind="faultin")
        assert list(mismatch.loc["m"]) == ["39", "0x100000000"]

    def test_an_answer_has_its_name_whatever_its_number(self):
        changing = {"error_code": "RSVD", "gen": 1 << 63, "walk_leaf": 1, "spte1": 6}
        frame = page.results("mmio_ret", {"slots are changing": changing}, "posted", "v6_12")
        assert list(frame.mmio_ret) == ["INVALID", "INVALID"]
        given = {"agree": {}, "conflict": {"is_private": 1}}
        assert list(page.results("ret", given, kind="faultin", slot_kind="user").ret) == [
            "CONTINUE",
            "-EFAULT",
        ]


def test_outputs_that_differ_are_counted_with_an_example():
    faults = pd.DataFrame({"error_code": [2, 1 << 49 | 2, 1 << 49], "vm_type": 0})
    frame = page.differ(faults, "before", "posted")
    assert list(frame.loc["f_error_code"]) == [2, "0x2000000000002", "2"]
    assert list(frame.loc["warns"]) == [2, "none", "synthetic"]
    assert list(frame.loc["attr_gfn"]) == [3, "0x100000", "–"]
    assert "f_is_private" not in frame.index
    assert page.differ(faults, "posted", "posted").empty


def test_the_moments_of_an_mmio_spte_are_those_of_the_trace():
    guest = kvm_pf.follow("posted-on-6.12", "2-swprot")
    wanted = [(45, 4, 4, None), (48, 4, 4, True), (50, 5, 4, False), (52, 5, 4, False), (52, 5, 5, None)]
    assert mmio_moments(guest, 0x60010) == wanted
    assert mmio_moments(guest, 0x12345) == []


def test_a_machine_beside_a_recording():
    machine = kvm_pf.Machine(revision="v6_12")
    found = page.beside("6.12-nested", "4-nested-prefetch", (18, 25, 26, 28, 36), machine)
    assert list(found.index) == [18, 25, 26, 28, 36]
    assert list(found.rax) == ["", "0x50", "0x51", "0x91", ""]
    assert list(found.kernel) == ["", "HLT", "HLT", "HLT", ""]
    assert list(found.reached) == ["", "shared", "shared", "private", ""]
    assert list(found.ahead) == ["", "0x40001 0x40002", "", "", ""]
    assert (found.machine[36], found.emulated[36], found.is_private[28]) == ("done", "1", "1")
