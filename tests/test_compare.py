# SPDX-License-Identifier: GPL-2.0-only
"""Compare: before and posted differ in the five ways of the kernel's facts; covers are exact and found by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kvm_pf.bits import PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.proof.case import WAYS, Case
from kvm_pf.proof.compare import changed_steps, compare, given
from kvm_pf.proof.compare import compare as public
from kvm_pf.proof.cover import cover, facts
from kvm_pf.proof.evidence import curated, recorded
from kvm_pf.proof.terms import all_of
from kvm_pf.revisions import REVISIONS, get

BEFORE, POSTED = get("before"), get("posted")


@pytest.fixture(scope="module")
def five():
    return compare("before", "posted")


FIVE = [
    # topic, then for each way: conditions, output that differs in all these states, smallest state
    ("warnings: a fault", [(("error_code has bit 48 or 49",), "warns", "error_code=IMPLICIT_ACCESS")]),
    ("the error code: a fault", [
        (("the page is private", "it reaches the handler", "error_code has not bit 48 or 49",
          "error_code has not RSVD"), "f_error_code", "attrs=0x8, vm_type=sw-protected"),
    ]),
    ("private or shared: a fault", [
        (("the page is private", "it reaches the handler", "error_code has not bit 48 or 49", "error_code has RSVD"),
         "f_is_private", "attrs=0x8, vm_type=sw-protected, walk_leaf=1, spte1=0x6, error_code=RSVD"),
    ]),
    ("private or shared: a page that became ready", [
        (("the page is private", "the handler is called for it"), "f_is_private", "attrs=0x8, vm_type=sw-protected"),
    ]),
    ("attribute look-ups", [
        (None, "attr_lookups", "all inputs at their defaults"),
        (
            ("the page is shared", "the handler is called for it", "cfg_sw_protected"),
            "attr_lookups",
            "all inputs at their defaults",
        ),
    ]),
]  # fmt: skip


def test_before_and_posted_differ_in_five_ways_no_more_no_fewer(five):
    from kvm_pf.proof.case import spelled

    assert five.exact
    assert [kind.topic for kind in five.kinds] == [topic for topic, _ in FIVE]
    for kind, (_, places) in zip(five.kinds, FIVE, strict=True):
        for place, (condition, output, state) in zip(kind.places, places, strict=True):
            assert condition is None or place.conditions == [condition]
            assert output in place.always
            assert spelled(place.state) == state


def test_look_ups_differ_for_the_other_kind_of_vm_and_for_reserved_faults(five):
    conditions = {frozenset(condition) for condition in five.kinds[4].places[0].conditions}
    common = {"it reaches the handler", "error_code has not bit 48 or 49", "cfg_private_mem"}
    assert conditions == {
        frozenset({*common, "vm_type is default"}),
        frozenset({*common, "the page is shared", "error_code has RSVD"}),
    }


def test_each_difference_is_real_and_has_a_case(five):
    for kind in five.kinds:
        for place in kind.places:
            assert place.shown
            assert all(one != other for one, other in place.shown.values())
            assert place.cases
    assert five.kinds[3].places[0].cases == ["revision-page-ready-and-now-private"]


def test_a_reserved_fault_on_a_private_page_was_recorded(five):
    names = five.kinds[2].places[0].recordings
    assert any(
        name.startswith("posted-on-6.12 2-swprot ") and name.endswith("f_is_private as posted")
        for name in names
    )


def test_the_text_says_all_of_it(five):
    text = str(five)
    assert text.startswith(
        "before → posted, states that can exist in both: 5 kinds of difference; nothing else "
    )
    assert text.endswith("steps that are not the same: sanitize, mark_private, is_private")
    assert all(output in text for place in five.kinds[0].places for output in place.sometimes)
    assert max(map(len, text.splitlines())) <= 110
    assert "+             error_code |= PFERR_PRIVATE_ACCESS\n" in five.diff()


def test_a_revision_and_itself_do_not_differ():
    same = compare("posted", POSTED.derive("renamed"))
    assert not same.kinds
    assert same.exact
    assert "no difference" in str(same)


def only_49(error_code):
    """A sanitiser that forgot bit 48."""
    if error_code & PFERR_PRIVATE_ACCESS != 0:
        return error_code & ~PFERR_PRIVATE_ACCESS, 2
    return error_code, 0


def test_a_revision_made_elsewhere_is_compared_with_its_diff():
    mine = POSTED.derive("only 49", sanitize=only_49)
    found = compare("posted", mine, way="kvm_mmu_page_fault")
    assert found.steps == ["sanitize"]
    assert found.kinds[0].places[0].state["error_code"] == PFERR_IMPLICIT_ACCESS
    assert any(set(c) == {"error_code has bit 48 or 49", "error_code has not PRIVATE_ACCESS"}
               for c in found.kinds[0].places[0].conditions)  # fmt: skip
    assert "+     if error_code & PFERR_PRIVATE_ACCESS != 0:" in found.diff()


def test_a_step_without_source_is_still_compared():
    scope = {}
    exec("def npf_synthetic(error_code):\n    return error_code & 7, 0\n", scope)
    found = compare("posted", POSTED.derive("typed", npf_synthetic=scope["npf_synthetic"]), way="source")
    assert found.kinds
    assert found.diff().startswith("npf_synthetic: ")


def test_changed_steps_are_those_of_the_revision():
    assert changed_steps(POSTED, get("posted_u32")) == ["handler_error_code", "U32_MASK"]
    assert changed_steps(POSTED, POSTED) == []


def test_what_is_not_there_is_named():
    with pytest.raises(InputError, match="way='door': it takes one of kvm_mmu_page_fault, source, "):
        compare("before", "posted", way="door")
    with pytest.raises(InputError, match="there is no revision 'v9'"):
        compare("before", "v9")


def test_the_package_offers_the_function():
    assert public is compare


class TestCover:
    """Regions that one can describe by hand."""

    def cover(self, region):
        case = Case()
        inside = region(case)
        return cover(case, inside, True, facts("kvm_mmu_page_fault", BEFORE, POSTED))

    def test_a_bit(self):
        assert self.cover(lambda c: c.error_code & PFERR_RSVD_MASK != 0) == ([("error_code has RSVD",)], True)

    def test_several_values_of_a_column(self):
        assert self.cover(lambda c: (c.vm_type == 2) | (c.vm_type == 3)) == (
            [("vm_type is sev or sev-es",)],
            True,
        )

    def test_all_values_but_one(self):
        conditions, exact = self.cover(lambda c: c.vm_type != 1)
        assert (conditions, exact) == ([("vm_type is not sw-protected",)], True)

    def test_one_thing_or_another(self):
        conditions, exact = self.cover(lambda c: c.direct | c.guest_mode)
        assert (sorted(conditions), exact) == ([("direct",), ("guest_mode",)], True)

    def test_everything(self):
        assert self.cover(lambda c: c.direct == c.direct) == ([()], True)

    def test_what_the_facts_cannot_tell_is_not_called_exact(self):
        assert self.cover(lambda c: c.cr2_or_gpa == 5) == ([], False)


def test_every_way_has_curated_cases():
    assert all(curated(way, POSTED) for way in WAYS)
    ready = dict(curated("kvm_arch_async_page_ready", POSTED))["revision-page-ready-and-now-private"]
    assert (ready["put_off_code"], ready["vm_type"], ready["attrs"]) == (0, 1, 8)


def test_recorded_faults_come_with_what_was_seen():
    name, state, seen = recorded()[0]
    assert name.startswith("posted-on-6.12 ")
    assert {"error_code", "cr2_or_gpa"} <= set(state)
    assert seen


def test_a_condition_holds_of_its_smallest_state(five):
    for kind in five.kinds:
        for place in kind.places:
            case = Case(place.state)
            told = {
                fact.words: fact.holds(case) for fact in facts(place.way, BEFORE, POSTED) if not fact.column
            }
            told |= {f.opposite: not f.holds(case) for f in facts(place.way, BEFORE, POSTED) if not f.column}
            assert any(all_of(told.get(words, True) for words in condition) for condition in place.conditions)


@pytest.mark.parametrize("way", WAYS)
def test_some_states_can_exist_in_two_revisions(way):
    """Each beside the next, and beside posted: a comparison over no state would find no difference."""
    case = Case()
    names = [name for name in REVISIONS if "+" not in name]
    for one, other in {*pairwise(names), *(("posted", name) for name in names)}:
        assert case.possible(given(way, get(one), get(other), True)(case)), (one, other)
