# SPDX-License-Identifier: GPL-2.0-only
"""Broken logic is noticed by the cases, proved not to be broken, or shown as a gap; the record of it is today's."""

import gzip
import re
import tomllib

import pandas as pd
import pytest

from kvm_pf import bits, entry, fault, permission
from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_RSVD_MASK, PFERR_SYNTHETIC_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.proof import kills
from kvm_pf.proof.mutants import FUNCTION, PATH, Mutant, fails, killers, placed, rows, settle
from kvm_pf.proof.verdict import verdict
from kvm_pf.revisions import REVISIONS
from kvm_pf.state import EIO, KVM_X86_SW_PROTECTED_VM, NO_LOOKUP, WARN_KVM_BUG, gpa_to_gfn
from tools import mutants as maker


def mutant(origin, new) -> Mutant:
    """A function of the logic, and what stands in its place."""
    return Mutant(
        origin.__module__.removeprefix("kvm_pf."), origin.__name__, 0, "", {origin.__name__: new}, origin
    )


def number(module, name, value) -> Mutant:
    return Mutant(module, name, 0, "", {name: value})


# Plausible mistakes, each with cases that are there to notice it


def sanitize_one_bit(error_code):
    return error_code & ~(1 << 49), 1 if error_code & PFERR_SYNTHETIC_MASK else 0


def mark_any_type(vm, cr2_or_gpa, error_code):
    if vm.cfg_sw_protected and error_code & PFERR_RSVD_MASK == 0:
        private, lookups = kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
        return (error_code | 1 << 49 if private else error_code), lookups
    return error_code, NO_LOOKUP


def mark_reserved_too(vm, cr2_or_gpa, error_code):
    if vm.cfg_sw_protected and vm.vm_type == KVM_X86_SW_PROTECTED_VM:
        private, lookups = kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))
        return (error_code | 1 << 49 if private else error_code), lookups
    return error_code, NO_LOOKUP


NOTICED = {
    "only one bit is dropped": (mutant(entry.sanitize, sanitize_one_bit), "sanitize-both-bits"),
    "any type of VM": (mutant(entry.mark_private, mark_any_type), "private-type-snp"),
    "a reserved fault, too": (
        mutant(entry.mark_private, mark_reserved_too),
        "private-rsvd-excluded-stale-spte",
    ),
    "nothing is private": (
        mutant(fault.is_private, lambda vm, cr2_or_gpa, err: (False, NO_LOOKUP)),
        "private-sw-protected",
    ),
    "another number of VM": (number("state", "KVM_X86_SW_PROTECTED_VM", 2), "private-sw-protected"),
    "another bit": (number("bits", "PFERR_PRIVATE_ACCESS", 1 << 50), "private-sw-protected"),
    "a user at CPL 2": (number("permission", "USER_CPL", 2), "smap-emulated-at-cpl-2"),
}


@pytest.mark.parametrize("what", NOTICED)
def test_a_mistake_is_noticed_by_the_case_that_is_there_for_it(what):
    broken, case = NOTICED[what]
    assert case in killers(broken)


def test_a_revision_that_does_otherwise_is_left_alone():
    broken, _ = NOTICED["only one bit is dropped"]
    assert placed(broken, REVISIONS["posted"]).step("sanitize") is sanitize_one_bit
    assert placed(broken, REVISIONS["before"]) is None


def test_nothing_is_noticed_of_no_change():
    assert killers(mutant(entry.sanitize, lambda error_code: entry.sanitize(error_code))) == []


def test_another_way_to_say_the_same_is_proved_equivalent():
    def sanitize(error_code):
        if error_code & (1 << 48 | 1 << 49):
            return error_code & ~(1 << 48) & ~(1 << 49), 1 << 1
        return error_code, 0

    same = mutant(entry.sanitize, sanitize)
    assert killers(same) == []
    assert settle(same) == (FUNCTION, "")


def test_a_change_that_no_fault_can_meet_is_proved_equivalent():
    def bugged(way, mmio, handled):  # mmio's warnings are left out: a fault with any is settled before
        lookups, warns = fault.first_of(way.lookups, handled.lookups), way.warns | WARN_KVM_BUG
        return fault.Outcome(
            -EIO, warns, True, mmio, handled, lookups, fault.NO_UNPROTECT, fault.NO_EMULATION, handled.stats
        )

    assert settle(mutant(fault.bugged, bugged)) == (PATH, "")


def test_without_the_cases_that_notice_it_a_mistake_is_a_gap_shown_by_its_smallest_input():
    broken, case = NOTICED["a user at CPL 2"]
    noticed = killers(broken)
    assert case in noticed
    assert killers(broken, frozenset(noticed)) == []
    proof, gap = settle(broken)
    assert proof == ""
    assert "smap_applies" in gap
    assert "cpl=2" in gap


def test_a_mistake_that_does_not_end_is_stopped_and_noticed():
    def sanitize(error_code):
        while True:
            error_code ^= 1

    row = next(row for row in rows() if row.id == "sanitize-both-bits" and row.revision == "posted")
    assert fails(row, placed(mutant(entry.sanitize, sanitize), REVISIONS["posted"]))
    assert not fails(row, REVISIONS["posted"])


# How mutants are made


def test_a_function_is_changed_in_one_place_at_a_time():
    made = [m for m in maker.function_mutants(entry) if m.name == "sanitize"]
    changes = [m.change for m in made]
    assert "if error_code & PFERR_SYNTHETIC_MASK != 0: → if False:" in changes
    assert "return error_code, 0 → return error_code, 1" in changes
    assert len({(m.line, m.change) for m in made}) == len(made)
    source = entry.__file__
    with open(source, encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert all(m.change.startswith(lines[m.line - 1].strip()) for m in made)


def test_a_bit_that_moves_takes_its_masks_along():
    moved = next(m for m in maker.bit_mutants(bits) if m.name == "bit PRIVATE_ACCESS")
    assert moved.names["PFERR_PRIVATE_ACCESS"] == 1 << 50
    assert moved.names["PFERR_SYNTHETIC_MASK"] == 1 << 48 | 1 << 50


def test_a_constant_is_changed_by_one_or_by_a_bit():
    made = [m for m in maker.constant_mutants(permission) if m.name == "USER_CPL"]
    assert [m.names["USER_CPL"] for m in made] == [4, 2]


# The record in data/mutants


@pytest.fixture(scope="module")
def record():
    return kills.load()


def test_the_record_is_of_the_logic_and_the_cases_of_today():
    assert kills.stale() == [], "run make mutants"


def test_no_mutant_is_left(record, root):
    mutants = record.mutants
    ran = tomllib.loads((root / "data" / "mutants" / "run.toml").read_text())
    assert set(mutants["verdict"]) == {kills.KILLED, kills.EQUIVALENT}
    assert len(mutants) == ran["mutants"]
    assert (mutants["verdict"] == kills.KILLED).sum() == ran["killed"]
    assert (mutants["verdict"] == kills.EQUIVALENT).sum() == ran["equivalent"]
    assert (mutants["killers"] > 0).eq(mutants["verdict"] == kills.KILLED).all()
    assert (mutants["proof"] != "").eq(mutants["verdict"] == kills.EQUIVALENT).all()


def test_the_record_has_every_mutant_that_is_made_today(record):
    made = [*maker.function_mutants(entry), *maker.constant_mutants(entry)]
    recorded = record.of("entry").mutants
    assert [(m.name, m.change) for m in made] == list(zip(recorded["name"], recorded["change"], strict=True))


def test_the_readme_has_the_numbers_of_the_record(record, root):
    text = (root / "data" / "mutants" / "README.md").read_text(encoding="utf-8")
    counts = (
        record.mutants["proof"]
        .where(record.mutants["verdict"] == kills.EQUIVALENT, kills.KILLED)
        .value_counts()
    )
    told = {
        what.strip(): int(n.replace(",", ""))
        for what, n in re.findall(r"^\| (.+?) \| ([\d,]+) \|$", text, re.MULTILINE)
    }
    assert {what: told.get(what) for what in counts.index} == counts.to_dict()
    assert told["all"] == len(record.mutants)


def test_a_record_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(InputError, match="no result of breaking the logic"):
        kills.load(tmp_path)


def test_what_is_read_is_written_again(record, tmp_path, root):
    committed = root / "data" / "mutants"
    kills.save(record, tmp_path, kills.digests())
    assert (tmp_path / "cases.csv").read_bytes() == (committed / "cases.csv").read_bytes()
    one, two = (gzip.decompress((folder / "mutants.csv.gz").read_bytes()) for folder in (tmp_path, committed))
    assert one == two


def test_a_part_of_the_record_is_a_record(record):
    part = record.of("entry", "sanitize")
    assert set(part.mutants["name"]) == {"sanitize"}
    assert part.matrix.any(axis=1).all()
    with pytest.raises(InputError, match=r"entry\.nothing"):
        record.of("entry", "nothing")


# Which cases are needed

MATRIX = pd.DataFrame(
    [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]], pd.Index([*"abcd"], name="case"), dtype=bool
)


def test_a_few_cases_kill_all_that_is_killed():
    assert kills.minimal(MATRIX) == ["a", "b"]


def test_a_case_is_idle_if_others_have_its_kills():
    alone = MATRIX.assign(e=[False, False, False, True])
    assert kills.idle(MATRIX) == [*"abcd"]
    assert kills.idle(alone) == [*"abc"]


def test_the_minimal_set_of_the_record_kills_all(record):
    chosen = record.cases.index[record.cases["minimal"] == 1]
    assert record.matrix.loc[chosen].any().equals(record.matrix.any())
    assert not set(kills.idle(record.matrix)) & {case for case, n in record.cases["alone"].items() if n}


@pytest.mark.parametrize("by", ["step", "flag", "vm_type", "revision", "topic"])
def test_cases_are_counted(by):
    counts = kills.coverage(by)
    assert counts.index.name == by
    assert counts.max() <= len({row.id for row in rows()})
    assert (counts > 0).any()


def test_cases_are_counted_by_something():
    with pytest.raises(InputError, match="step, flag, vm_type, revision or topic"):
        kills.coverage("colour")


# A reader's own change


def test_a_plausible_wrong_change_gets_its_verdict():
    wrong = REVISIONS["posted"].derive("mine", mark_private=mark_any_type)
    judged = verdict(wrong, ["private-means-sw-protected", "outside-bits-never-survive"])
    assert "private-type-snp" in judged.cases
    assert [answer.claim.name for answer in judged.fallen] == ["private-means-sw-protected"]
    assert "smallest witness" in str(judged)
    assert judged.witness.state["vm_type"] != KVM_X86_SW_PROTECTED_VM


def test_a_harmless_change_gets_its_verdict():
    same = REVISIONS["posted"].derive("mine", sanitize=lambda error_code: entry.sanitize(error_code))
    judged = verdict(same, ["outside-bits-never-survive"])
    assert (judged.cases, judged.fallen, judged.witness) == ([], [], None)
    assert "they do the same" in str(judged)


def test_a_change_that_the_solver_cannot_be_asked_about_is_said_so():
    odd = REVISIONS["posted"].derive("odd", sanitize=lambda error_code: (int(str(error_code)), 0))
    judged = verdict(odd, ["outside-bits-never-survive"])
    assert list(judged.unasked) == ["outside-bits-never-survive"]
    assert "step 'sanitize' uses the text of a value" in judged.remark


def test_a_revision_without_a_base_cannot_be_judged():
    with pytest.raises(InputError, match="derived from no revision"):
        verdict(REVISIONS["posted"])


def test_what_has_no_case_counts_nothing():
    counts = kills.coverage("revision")
    assert counts["before+sanitize"] == 0
    assert counts["posted"] > 400
