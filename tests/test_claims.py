# SPDX-License-Identifier: GPL-2.0-only
"""Claims: answered as the facts say, with the smallest state reasoned by hand; a claim gone wrong is noticed."""

from __future__ import annotations

import pytest

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_PRIVATE_ACCESS, PFERR_RSVD_MASK, U64_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.patch.ledger import ledger
from kvm_pf.proof import claims
from kvm_pf.proof.ask import Answer, Witness, asked, prove, prove_all
from kvm_pf.proof.claims import CLAIMS, PROVED, Claim, flaws, steps
from kvm_pf.proof.terms import patience
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.state import NO_LOOKUP, gpa_to_gfn

REFUTED = [
    # before lets a caller's bit 49 through
    ("outside-bits-never-survive", "before", "error_code=PRIVATE_ACCESS"),
    # before follows the attribute, whatever the VM's type
    ("private-means-sw-protected", "before", "attrs=0x8"),
    # from 6.10 on, a caller's bit 49 is the interface: no attribute is needed
    ("private-means-declared", "v6_10", "error_code=PRIVATE_ACCESS"),
    # a reserved fault reaches the handler only past an MMIO SPTE of another generation (EPT: value 6)
    ("reserved-never-private", "before", "attrs=0x8, walk_leaf=1, spte1=0x6, error_code=RSVD"),
    # the posted series goes on to the handler with both bits; the merged one refuses
    ("private-and-reserved-is-refused", "posted_series", "error_code=RSVD|PRIVATE_ACCESS"),
    # without the prerequisite bit 49 is cut off
    ("declared-is-private", "posted_u32", "attrs=0x8, vm_type=sw-protected"),
    ("callers-may-say-private", "posted", "error_code=PRIVATE_ACCESS"),
    # code 0 says shared
    ("page-ready-asks-again", "posted", "attrs=0x8"),
    # what the thread says of the two borrowed bits
    ("encrypted-is-not-private", "guest_enc_ungated", "error_code=GUEST_ENC"),
    ("gated-parts-here", "guest_enc_ungated", "error_code=GUEST_ENC"),
    ("encrypted-access-is-refused", "guest_enc_gated", "error_code=GUEST_ENC"),
]

PROVED_ONES = [
    ("outside-bits-never-survive", "posted"),
    ("sanitiser-is-a-mask", "posted"),
    ("other-bits-pass", "posted"),
    ("private-means-sw-protected", "posted"),
    ("reserved-never-private", "posted"),
    ("private-exactly-then", "posted"),
    ("five-differences", "posted"),
    ("other-vms-see-nothing", "posted"),
    ("nothing-is-private", "posted_u32"),
    ("gated-parts-here", "guest_enc_gated"),
    ("ungated-parts-here", "guest_enc_ungated"),
    ("encrypted-is-not-private", "guest_enc_gated"),
    ("encrypted-access-is-refused", "guest_enc_ungated"),
    ("private-and-reserved-is-refused", "v6_10"),
    ("callers-may-say-private", "v6_12"),
]


@pytest.mark.parametrize(
    ("claim", "revision", "witness"), REFUTED, ids=lambda value: str(value).split(",")[0]
)
def test_a_claim_is_refuted_by_the_smallest_state_which_is_real(claim, revision, witness):
    answer = prove(claim, revision)
    assert (answer.status, str(answer.witness), answer.witness.real) == ("fails", witness, True)
    assert answer.as_expected


def test_any_state_that_refutes_a_claim_is_real_if_not_the_smallest():
    for claim, revision, _ in REFUTED[:3]:
        answer = prove(claim, revision, shrink=False)
        assert (answer.status, answer.strength, answer.witness.real) == ("fails", "refuted, run again", True)


@pytest.mark.parametrize(("claim", "revision"), PROVED_ONES)
def test_a_claim_is_proved(claim, revision):
    answer = prove(claim, revision)
    assert (answer.status, answer.strength, answer.witness) == ("holds", "proved", None)
    assert answer.as_expected


@pytest.mark.parametrize(
    ("claim", "revision"),
    [
        ("private-means-sw-protected", "posted_u32"),  # no fault is private there
        ("private-and-reserved-is-refused", "posted"),  # the sanitiser and the RSVD test see to it
    ],
)
def test_a_claim_about_nothing_is_told_from_one_that_holds(claim, revision):
    answer = prove(claim, revision)
    assert (answer.status, answer.holds, answer.as_expected) == ("empty", True, True)


def made(check, **expected):
    """A claim as a reader makes it."""
    return Claim("mine", "A claim of mine.", check=check, **expected)


def test_a_premise_that_never_comes_true_is_noticed():
    nonsense = made(lambda c, r: c.given((c.error_code == 1) & (c.error_code == 2), False), holds=("posted",))
    answer = prove(nonsense)
    assert (answer.status, answer.as_expected) == ("empty", False)


def test_a_falsified_claim_is_refuted():
    bits = PFERR_RSVD_MASK | PFERR_PRIVATE_ACCESS
    wrong = made(
        lambda c, r: c.step("sanitize", r)(c.error_code)[0] & bits != PFERR_RSVD_MASK, holds=("posted",)
    )
    answer = prove(wrong)
    assert (answer.status, str(answer.witness), answer.as_expected) == ("fails", "error_code=RSVD", False)
    assert answer.witness.real


def test_a_solver_that_gives_up_makes_the_answer_unknown_and_never_expected():
    def hard(c, r):  # a product of two primes
        factors = (c.cr2_or_gpa > 1) & (c.gen > 1) & (c.cr2_or_gpa < 1 << 32) & (c.gen < 1 << 32)
        return c.given(factors, c.cr2_or_gpa * c.gen & U64_MASK != 4294967291 * 4294967279)

    with patience(50):
        answer = prove(made(hard, holds=("posted",)))
    assert (answer.status, answer.holds, answer.as_expected, answer.witness) == ("unknown", None, False, None)
    assert "proved" not in str(answer)


def test_a_witness_that_is_none_when_it_is_run_is_not_as_expected():
    claim = CLAIMS["outside-bits-never-survive"]
    witness = Witness(claim, get("before"), {"error_code": 1}, real=False)
    answer = Answer(claim, get("before"), "fails", witness=witness)
    assert not answer.as_expected
    assert answer.strength == "refuted, but not when run again"


def any_vm(vm, cr2_or_gpa, error_code):
    """mark_private() as it would be for every VM with private memory."""
    if vm.cfg_sw_protected and error_code & PFERR_RSVD_MASK == 0:
        private, lookups = kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
        if private:
            error_code |= PFERR_PRIVATE_ACCESS
        return error_code, lookups
    return error_code, NO_LOOKUP


def test_a_change_made_elsewhere_is_asked_like_any_revision():
    blunt = get("posted").derive("blunt", mark_private=any_vm)
    answers = prove_all(["private-means-sw-protected", "reserved-never-private"], [blunt])
    assert [(a.status, a.expected) for a in answers] == [("fails", None), ("holds", None)]
    assert str(answers[0].witness) == "attrs=0x8"


def test_a_witness_is_shown_as_bits_and_as_two_lists_of_steps():
    witness = prove("callers-may-say-private", "posted").witness
    lines = witness.beside().split("\n")
    assert lines[0] == "error_code=PRIVATE_ACCESS"
    assert lines[1].startswith("error_code 0x2000000000000: bit 49, PRIVATE_ACCESS: ")
    assert [name.strip() for name in lines[2].split("│")] == ["posted", "posted_series"]
    assert "sanitize → 0x0: WARN: PRIVATE_ACCESS came from outside; dropped" in lines[5].split("│")[0]


def test_the_other_revision_keeps_the_claim_if_one_does():
    def other(name, revision):
        return Witness(CLAIMS[name], get(revision), {}).other.name

    assert other("reserved-never-private", "before") == "posted"
    assert other("callers-may-say-private", "before") == "posted_series"
    assert other("page-ready-asks-again", "posted") == "before"


def test_all_are_asked_in_the_order_given_in_two_processes_or_one():
    names, revisions, seen = ["sanitiser-is-a-mask", "never-released"], ["before", "posted"], []
    one = prove_all(names, revisions, jobs=1)
    two = prove_all(names, revisions, jobs=2, progress=lambda done, of: seen.append((done, of)))
    assert [str(a) for a in one] == [str(a) for a in two]
    assert [(a.claim.name, a.revision.name, a.status) for a in two] == [
        ("sanitiser-is-a-mask", "before", "fails"),
        ("sanitiser-is-a-mask", "posted", "holds"),
        ("never-released", "before", "holds"),
        ("never-released", "posted", "holds"),
    ]
    assert seen[-1] == (4, 4)


def test_what_is_not_there_is_named():
    with pytest.raises(InputError, match="there is no claim 'mine'; there are outside-bits-never-survive, "):
        asked(["mine"])
    with pytest.raises(InputError, match="there is no revision 'v9'"):
        asked((), ["v9"])


def test_each_claim_says_what_is_expected_once_of_revisions_that_there_are():
    for claim in CLAIMS.values():
        named = [*claim.holds, *claim.empty, *claim.fails]
        assert named
        assert len(named) == len(set(named))
        assert set(named) <= set(REVISIONS)
        assert claim.statement[0].isupper() or claim.statement.startswith("bit")
        assert claim.statement.endswith(".")
        assert claim.source or claim.strength != "stated"


def test_ledger_and_claims_name_each_other():
    rows = ledger()
    for row in rows.to_dict("records"):
        covering = [claim.name for claim in CLAIMS.values() if row["id"] in claim.lines]
        assert row["claims"].split() == covering
        assert covering or row["role"] != "code"
    assert {line for claim in CLAIMS.values() for line in claim.lines} <= set(rows["id"])


def test_a_dropped_path_of_any_function_is_noticed(monkeypatch):
    route = next(step for step in steps(get("posted")).values() if step.function.__name__ == "route")
    assert flaws(route) == []
    monkeypatch.setattr(claims, "_flaws", {})
    whole = claims.all_paths
    monkeypatch.setattr(claims, "all_paths", lambda *given: whole(*given)[1:])
    assert flaws(route) == ["some state is on no path"]


def test_every_function_of_the_path_is_asked_for_its_paths():
    names = {step.function.__name__ for step in steps(get("posted")).values()}
    assert {"sanitize", "mark_private", "is_private", "kvm_faultin_pfn", "make_mmio_spte"} <= names
    assert len(names) > 80


def test_most_claims_are_proved_and_every_rung_is_used():
    strengths = [claim.strength for claim in CLAIMS.values()]
    assert set(strengths) == {"proved", "exhausted", "tested", "stated"}
    assert strengths.count(PROVED) > 25
