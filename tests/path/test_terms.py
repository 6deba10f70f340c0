# SPDX-License-Identifier: GPL-2.0-only
"""The decision functions take solver terms: three invariants over all 64-bit codes, and the explorer's own duty."""

from __future__ import annotations

import sys

import pytest
import z3

from kvm_pf.bits import PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, PFERR_SYNTHETIC_MASK
from kvm_pf.proof.terms import (
    Bool,
    Summary,
    Unknown,
    Variable,
    all_of,
    always,
    any_int,
    any_of,
    as_int,
    bool_term,
    complete,
    explore,
    patience,
    smallest,
)
from kvm_pf.revisions import get
from kvm_pf.state import KVM_X86_SW_PROTECTED_VM, Mmu, Vm

prove = sys.modules["kvm_pf.proof.terms"]  # the package's own name for prove() hides the module
CODE, ADDRESS = any_int("error_code"), any_int("cr2_or_gpa")
MMU, VM = any_of(Mmu), any_of(Vm)


def routes(revision):
    """Every way of every fault in any state."""
    return explore(get(revision).link("route"), MMU, VM, ADDRESS, CODE)


def implies(premise, conclusion):
    return Bool(z3.Implies(bool_term(premise), bool_term(conclusion)))


def holds(revision, claim):
    return always(routes(revision), claim)


def bit(value, mask):
    return (as_int(value) & mask) != 0


def test_bits_48_and_49_from_outside_never_survive_the_sanitizer():
    paths = explore(get("posted").link("sanitize"), CODE)
    assert always(paths, lambda r: (as_int(r[0]) & PFERR_SYNTHETIC_MASK) == 0)


def test_all_other_bits_pass_through_unchanged():
    kept = ~PFERR_SYNTHETIC_MASK
    assert holds("posted", lambda r: (as_int(r.error_code) & kept) == (CODE & kept))


def test_a_private_fault_implies_a_software_protected_vm_and_no_reserved_bit():
    def claim(r):
        right = (VM.vm_type == KVM_X86_SW_PROTECTED_VM) & ((CODE & PFERR_RSVD_MASK) == 0)
        return implies(bit(r.error_code, PFERR_PRIVATE_ACCESS), right)

    assert holds("posted", claim)


@pytest.mark.parametrize("revision", ["posted_series", "v6_10", "v6_12"])
def test_a_callers_private_bit_survives_where_the_check_moved_away_and_the_witness_is_real(revision):
    def claim(r):
        return implies(bit(r.error_code, PFERR_PRIVATE_ACCESS), VM.vm_type == KVM_X86_SW_PROTECTED_VM)

    verdict = holds(revision, claim)
    assert not verdict
    code = verdict.witness.eval(CODE.term, model_completion=True).as_long()
    assert code & PFERR_PRIVATE_ACCESS


@pytest.mark.parametrize("revision", ["before", "posted", "v6_10", "guest_enc_gated"])
def test_the_paths_cover_every_state_and_do_not_overlap(revision):
    assert list(complete(routes(revision))) == []


def test_a_dropped_path_is_noticed():
    assert list(complete(routes("posted")[1:])) == ["some state is on no path"]


def test_a_path_that_is_there_twice_is_noticed():
    paths = routes("posted")
    assert list(complete([*paths, paths[0]])) == [f"paths 0 and {len(paths)} overlap"]


def test_a_question_that_takes_too_long_is_unknown():
    product = CODE * ADDRESS == 4294967291 * 4294967279  # two primes
    factors = [CODE > 1, CODE < 1 << 32, ADDRESS > 1, ADDRESS < 1 << 32]
    with patience(50), pytest.raises(Unknown):
        always(explore(lambda: product & all_of(factors)), lambda both: both == False)  # noqa: E712


def test_patience_ends():
    usual = prove.TIMEOUT_MS
    with patience(7):
        assert prove.TIMEOUT_MS == 7
    assert usual == prove.TIMEOUT_MS


def test_the_smallest_state_has_few_bits_in_codes_then_few_oddities_then_small_numbers():
    state = {"code": Variable(CODE, 0, is_code=True), "address": Variable(ADDRESS, 0x1000)}

    def least(condition):
        return smallest(condition, state)

    assert least(CODE & 0xF0 != 0) == {"code": 0x10, "address": 0x1000}
    assert least((CODE == 7) | (CODE == 8)) == {"code": 8, "address": 0x1000}
    assert least((CODE == 3) | (ADDRESS != 0x1000)) == {"code": 0, "address": 0}
    assert least(ADDRESS > 0x1000) == {"code": 0, "address": 0x2000}
    assert least((CODE == 1) & (CODE == 2)) is None


def test_a_function_that_answers_for_all_its_paths_says_what_they_say():
    sanitize = get("posted").link("sanitize", Summary)
    code, warns = sanitize(CODE)
    assert always(explore(lambda: code & PFERR_SYNTHETIC_MASK == 0), lambda truth: truth)
    paths = explore(get("posted").link("sanitize"), CODE)
    assert always(paths, lambda r: (as_int(r[0]) == code) & (as_int(r[1]) == warns))


def test_truth_is_not_asked_for_outside_of_an_exploration():
    with pytest.raises(TypeError, match="outside of explore"):
        bool(CODE == 0)
