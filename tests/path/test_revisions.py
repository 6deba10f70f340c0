# SPDX-License-Identifier: GPL-2.0-only
"""Revisions: what each changes, how they are built on each other, and how a reader makes one more."""

import importlib
import pickle
import re
from types import FunctionType

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.revisions import (
    HUNK_STEPS,
    LATTICE,
    REVISIONS,
    get,
    having,
    logic_names,
    path_modules,
    revision_modules,
    steps_of,
)
from kvm_pf.run import tables
from kvm_pf.run.batch import evaluate
from kvm_pf.run.inputs import case_state, case_values
from kvm_pf.run.watch import explain, source_of

BASES = {
    "before": "posted",
    "posted": None,
    "posted_series": "posted",
    "merged_patch": "posted",
    "v6_10": "merged_patch",
    "v6_12": "v6_10",
    "v7_3": "v6_12",
    "guest_enc_ungated": "before",
    "guest_enc_gated": "guest_enc_ungated",
    "v6_1": "before",
    "v6_8": "before",
    "posted_u32": "posted",
    "posted_on_6_12": "v6_12",
}
MODULES = [name for name in BASES if name not in ("posted", "posted_on_6_12")]

SOURCE = re.compile(r"Linux `|commits? `|mails? <|mail, TDX v19 013/130|inferred")
"""How a source begins: a file of Linux, a mail; or the word that says that nobody wrote it."""


def own_functions(module):
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


@pytest.fixture(scope="module")
def rows():
    """Faults in many states: the inputs of the posted revision's kernel vectors, every ninth row."""
    frame = load_corpus().vectors("cases", "posted").iloc[::9]
    return frame[[column.column for column in tables.CASE_INPUTS if column.column in frame]]


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_a_revision_stands_on_the_one_it_came_from(name, base):
    assert (REVISIONS[name].base.name if REVISIONS[name].base else None) == base
    assert repr(REVISIONS[name]) == f"<revision {name}>"
    assert REVISIONS[name].summary


@pytest.mark.parametrize("name", MODULES)
def test_a_revision_changes_only_names_that_the_path_or_an_earlier_revision_has_or_that_are_used(name, root):
    known = {**logic_names(), **get(name).base.names}
    package = "\n".join(path.read_text(encoding="utf-8") for path in root.glob("kvm_pf/**/*.py"))
    for changed in set(get(name).changes) - set(known):
        assert len(re.findall(rf"\b{changed}\b", package)) > 1, changed


@pytest.mark.parametrize("name", MODULES)
def test_a_change_is_of_the_kind_of_what_it_replaces_and_takes_the_same_arguments(name):
    revision = get(name)
    known = {**logic_names(), **revision.base.names}
    for changed, value in revision.changes.items():
        if changed not in known:
            continue
        old = known[changed]
        assert type(old) is type(value), changed
        if isinstance(value, FunctionType):
            code, was = value.__code__, old.__code__
            assert code.co_varnames[: code.co_argcount] == was.co_varnames[: was.co_argcount], changed
            assert value.__annotations__ == old.__annotations__, changed


@pytest.mark.parametrize("name", MODULES)
def test_a_change_differs_from_what_it_replaces(name):
    revision = get(name)
    known = {**logic_names(), **revision.base.names}
    for changed, value in revision.changes.items():
        if isinstance(value, FunctionType) and isinstance(known.get(changed), FunctionType):
            assert revision.digest(changed) != revision.base.digest(changed), changed


@pytest.mark.parametrize("name", MODULES)
def test_every_function_of_a_revision_names_its_source(name):
    for function in own_functions(importlib.import_module(f"kvm_pf.revisions.{name}")).values():
        assert SOURCE.search(source_of(function)), function.__name__


@pytest.mark.parametrize("name", [name for name in path_modules() if name not in ("bits", "state")])
def test_every_function_of_the_path_that_stands_for_the_kernels_names_its_source(name):
    """A function without a source is the model's own; it stands for none of the kernel's."""
    module = importlib.import_module(f"kvm_pf.{name}")
    named = [f for f in own_functions(module).values() if source_of(f)]
    assert named
    for function in named:
        assert SOURCE.search(source_of(function)), function.__name__


def test_no_posted_name_stands_in_two_modules():
    seen = {}
    for module in path_modules():
        for name in own_functions(importlib.import_module(f"kvm_pf.{module}")):
            assert seen.setdefault(name, module) == module, name


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("6.1", "v6_1"),
        ("v6.10", "v6_10"),
        ("6.12.117", "v6_12"),
        ("6.11", "v6_10"),
        ("6.16", "v6_12"),
        ("7.3", "v7_3"),
    ],
)
def test_a_release_is_its_revision_or_that_of_the_nearest_older_one(release, name):
    assert get(release) is REVISIONS[name]


@pytest.mark.parametrize("release", ["6.0", "5.19.1", "6", "6.12-rc1", "v6_13"])
def test_a_release_without_a_revision_is_refused(release):
    with pytest.raises(InputError, match=f"no revision '{re.escape(release)}'.*releases from 6.1 on"):
        get(release)


class TestPatch:
    def test_posted_is_before_and_the_three_steps_of_the_hunks(self):
        assert HUNK_STEPS == ("sanitize", "mark_private", "is_private")
        assert set(get("before").changes) == set(HUNK_STEPS)
        posted = {step: get("posted").step(step) for step in HUNK_STEPS}
        assert get("before").derive("again", **posted).digest("kvm_mmu_page_fault") == get("posted").digest(
            "kvm_mmu_page_fault"
        )

    def test_the_lattice_has_every_combination_of_the_three_steps(self):
        assert len(LATTICE) == 7
        assert {frozenset(steps) for steps in LATTICE.values()} == {
            frozenset(step for i, step in enumerate(HUNK_STEPS) if n >> i & 1) for n in range(1, 8)
        }
        assert set(LATTICE) < set(REVISIONS)

    def test_the_top_of_the_lattice_is_posted_and_its_bottom_is_before(self, rows):
        top = "before+sanitize+mark_private+is_private"
        assert REVISIONS[top].digest("kvm_mmu_page_fault") == REVISIONS["posted"].digest("kvm_mmu_page_fault")
        plain = {"engine": "plain"}
        assert evaluate(rows, top, **plain).equals(evaluate(rows, "posted", **plain))
        bottom = get("before").derive("bottom")
        assert evaluate(rows, bottom, **plain).equals(evaluate(rows, "before", **plain))
        assert not evaluate(rows, "posted", **plain).equals(evaluate(rows, "before", **plain))

    def test_marking_without_hunk_3_has_no_effect_and_hunk_3_without_marking_makes_nothing_private(self):
        private = {"vm_type": 1, "private": True}
        marked = explain(6, revision="before+mark_private", **private).outcome
        assert marked.handled.fault.error_code == 0x2000000000006
        assert marked.lookups.count == 2
        read = explain(6, revision="before+is_private", **private).outcome
        assert read.handled.fault.is_private is False


class TestAsk:
    def test_a_step_is_the_revisions_own_or_the_one_it_stands_on(self):
        assert get("before").step("sanitize") is not get("posted").step("sanitize")
        assert get("guest_enc_gated").step("sanitize") is get("before").step("sanitize")
        assert get("v7_3").step("RET_PF_INVALID") == 4
        assert get("posted").step("RET_PF_INVALID") == 3

    @pytest.mark.parametrize("name", ["nope", "", "kvm_pf", "_own"])
    def test_an_unknown_step_is_refused_by_name(self, name):
        with pytest.raises(InputError, match=re.escape(repr(name))):
            get("posted").step(name)

    @pytest.mark.parametrize("name", ["nope", "", None, 5, [], "POSTED"])
    def test_an_unknown_revision_is_refused_with_those_there_are(self, name):
        with pytest.raises(InputError, match=r"there is no revision.*before, posted"):
            get(name)
        assert name not in REVISIONS if isinstance(name, str) else True

    def test_a_revision_is_made_once_and_stands_for_itself(self):
        assert get("v6_12") is get("v6_12") is REVISIONS["v6_12"]
        assert get(get("v6_12")) is get("v6_12")
        assert len(REVISIONS) == len(list(REVISIONS)) == len(set(REVISIONS))

    def test_a_linked_step_is_made_once_unless_it_is_bound_anew(self):
        revision = get("posted")
        assert revision.link("route") is revision.link("route")
        assert revision.link("route", lambda f: f) is not revision.link("route")


class TestDerive:
    def test_a_derived_revision_differs_in_the_step_given_and_in_nothing_else(self, rows):
        wide = get("posted").derive(
            "wide", "any VM", mark_private=lambda vm, gpa, code: (code | 1 << 49, (0, 0))
        )
        assert (wide.base, wide.summary, set(wide.changes)) == (get("posted"), "any VM", {"mark_private"})
        assert wide.digest("sanitize") == get("posted").digest("sanitize")
        assert wide.digest("route") != get("posted").digest("route")
        assert get("posted").link("mark_private").__name__ == "mark_private"

    def test_a_constant_may_be_given(self):
        late = get("posted").derive("late", RET_PF_EMULATE=9)
        assert late.step("RET_PF_EMULATE") == 9
        assert explain(2, revision=late, pf_ret=2).outcome.emulation.called is False

    def test_derivation_goes_on(self):
        one = get("v7_3").derive("one", RET_PF_FIXED=7)
        two = one.derive("two", RET_PF_RETRY=8)
        assert (two.step("RET_PF_FIXED"), two.step("RET_PF_RETRY"), two.step("RET_PF_INVALID")) == (7, 8, 4)

    def test_what_the_path_does_not_have_cannot_be_replaced(self):
        with pytest.raises(InputError, match="no step or constant 'sanitise' that 'x' could replace"):
            get("posted").derive("x", sanitise=lambda code: (code, 0))
        with pytest.raises(InputError, match="RET_PF_WRITE_PROTECTED"):
            get("posted").derive("x", RET_PF_WRITE_PROTECTED=3)

    def test_a_function_is_not_replaced_by_a_number_nor_the_other_way_round(self):
        with pytest.raises(InputError, match="sanitize is a function; 'x' gives 5"):
            get("posted").derive("x", sanitize=5)
        with pytest.raises(InputError, match="RET_PF_RETRY is an integer"):
            get("posted").derive("x", RET_PF_RETRY=lambda: 1)


def test_the_last_kind_of_vm_is_the_kernels_and_passes_to_what_is_derived():
    known = {
        "posted": 1,
        "v6_10": 3,
        "v6_12": 4,
        "v7_3": 5,
    }  # SEV and SEV-ES from 6.10, SNP from 6.11, TDX from 6.16
    assert {name: get(name).last_vm_type for name in known} == known
    assert {name: get(name).derive("mine").last_vm_type for name in known} == known
    assert get("v7_3").derive("mine").lineage[:2] == ("mine", "v7_3")


def test_revisions_are_found_by_their_traits():
    assert having("tdx").split() == ["v7_3"]
    assert having("tdx", "callers-strip") == ""
    with pytest.raises(InputError, match="there is no trait 'nope'; there are strips, "):
        having("nope")


def test_the_linker_is_no_revision():
    assert "link" not in revision_modules()
    assert {"before", "v6_8", "v7_3"} <= set(revision_modules()) <= set(REVISIONS)


def test_a_name_and_a_summary_are_text():
    for given in ((1, ""), ("mine", None)):
        with pytest.raises(InputError, match="are text"):
            get("posted").derive(*given)


@pytest.mark.parametrize(("step", "value"), [("RET_PF_RETRY", "x"), ("sanitize", 3)])
def test_a_step_is_replaced_by_its_like(step, value):
    with pytest.raises(InputError, match=step):
        get("posted").derive("mine", **{step: value})


def test_a_revision_from_another_process_is_the_registered_one():
    assert pickle.loads(pickle.dumps(get("v6_12"))) is get("v6_12")
    mine = get("posted").derive("mine", RET_PF_RETRY=7)
    again = pickle.loads(pickle.dumps(mine))
    assert (again.name, again.base, again.step("RET_PF_RETRY")) == ("mine", get("posted"), 7)


@pytest.mark.parametrize("quirk", [True, False])
@pytest.mark.parametrize("vm_type", range(6))
def test_a_deleted_slot_takes_all_entries_until_6_12_and_then_those_of_an_ordinary_vm(vm_type, quirk):
    vm = case_state(case_values("v7_3", vm_type=vm_type), get("v7_3")).vm
    for revision in ("v6_1", "before", "posted", "v6_10"):
        assert get(revision).link("kvm_memslot_flush_zap_all")(vm, quirk)
    for revision in ("v6_12", "v7_3"):
        assert get(revision).link("kvm_memslot_flush_zap_all")(vm, quirk) == (vm_type == 0 and quirk)


class TestErrorsOfSteps:
    """An error that a derived revision's own steps raise, or cause, is a wrong input; others stay what they are."""

    def raised_by(self, revision, error=KeyError):
        with pytest.raises(error) as raised, steps_of(get("posted"), revision):
            revision.link("mark_private")(case_state(case_values(revision), revision).vm, 0, 0)
        return str(raised.value)

    def test_the_step_that_raises_is_named(self):
        def mark_private(vm, cr2_or_gpa, error_code):
            return {}[error_code]

        line = mark_private.__code__.co_firstlineno + 1
        for revision in (
            mine := get("posted").derive("mine", mark_private=mark_private),
            mine.derive("again", PFERR_RSVD_MASK=16),
        ):
            said = self.raised_by(revision, InputError)
            assert said == f"{revision.name}, step 'mark_private', line {line}: KeyError: 0"

    def test_what_a_step_returned_may_be_the_cause(self):
        mine = get("posted").derive("mine", kvm_mem_is_private=lambda vm, gfn: None)
        state = {"error_code": 6, "vm_type": "sw-protected"}
        with pytest.raises(InputError, match=r"mine, after kvm_mem_is_private: TypeError: .*NoneType"):
            explain(revision=mine, **state)

    def test_other_errors_stay_what_they_are(self):
        def raise_(revision, error):
            with steps_of(revision):
                raise error

        with pytest.raises(KeyError):
            raise_(get("posted"), KeyError("ours"))
        with pytest.raises(KeyError):  # it changes no function
            raise_(get("posted").derive("mine", PFERR_RSVD_MASK=16), KeyError("ours"))
        with pytest.raises(InputError, match=r"^said before$"):
            raise_(
                get("posted").derive("mine", sanitize=lambda error_code: (0, 0)), InputError("said before")
            )
        with pytest.raises(MemoryError):
            raise_(get("posted").derive("mine", sanitize=lambda error_code: (0, 0)), MemoryError())
