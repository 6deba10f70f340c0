# SPDX-License-Identifier: GPL-2.0-only
"""The decision functions take solver terms: three invariants over all 64-bit codes, and the explorer's own duty."""

from __future__ import annotations

import pytest
import z3

from kvm_pf.bits import PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, PFERR_SYNTHETIC_MASK
from kvm_pf.prove import Bool, always, any_int, any_of, as_int, bool_term, complete, explore
from kvm_pf.revisions import get
from kvm_pf.state import KVM_X86_SW_PROTECTED_VM, Mmu, Vm

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


def test_truth_is_not_asked_for_outside_of_an_exploration():
    with pytest.raises(TypeError, match="outside of explore"):
        bool(CODE == 0)
