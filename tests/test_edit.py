# SPDX-License-Identifier: GPL-2.0-only
"""A step as text: what may stand in it, what is said of what may not, and that every verdict comes to an end."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.common.errors import InputError
from kvm_pf.common.text import escaped
from kvm_pf.conformance.cases import read_cases
from kvm_pf.proof import verdict as judge
from kvm_pf.proof.claims import CLAIMS
from kvm_pf.proof.edit import DoesNotEnd, constants, ending, read_step, step_text, steps
from kvm_pf.proof.verdict import RAISES, in_words, verdict
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.show.markup import Html
from kvm_pf.show.widgets.turn import your_turn

HEAD = "def sanitize(error_code):\n"


def judged(body, step="sanitize", head=HEAD, base="posted", **more):
    """The verdict of a step with this body."""
    return verdict(read_step(head + body, step, base), base=base, **more)


# --- text to step and back ---


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_step_of_every_revision_can_be_read_back_as_it_is(revision):
    names = steps(revision)
    assert {"sanitize", "route", "is_private", "kvm_mmu_page_fault", "kvm_faultin_pfn"} <= set(names)
    mine = get(revision).derive(
        "mine", "", **{name: read_step(step_text(name, revision), name, revision) for name in names}
    )
    for name in ("kvm_mmu_page_fault", "kvm_faultin_pfn", "npf_interception"):
        assert mine.digest(name) == get(revision).digest(name)
    with ending(mine):  # which takes each as it is
        pass


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_constant_of_every_revision_can_be_read_back_as_it_is(revision):
    names = constants(revision)
    assert {"PFERR_RSVD_MASK", "PAGE_SHIFT", "KVM_EXIT_MEMORY_FAULT"} <= set(names)
    for name in names:
        assert read_step(step_text(name, revision), name, revision) == get(revision).step(name)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("PFERR_IMPLICIT_ACCESS", 1 << 48),
        ("1 << 48 | PFERR_PRIVATE_ACCESS", 3 << 48),
        ("~PFERR_RSVD_MASK & 0xff", 0xF7),
        ("(1 << 63) + 1 - 1", 1 << 63),
    ],
)
def test_a_constant_may_be_made_of_numbers_and_other_constants(value, number):
    assert read_step(f"PFERR_SYNTHETIC_MASK = {value}", "PFERR_SYNTHETIC_MASK") == number


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it takes one line, PFERR_RSVD_MASK = a number, and nothing else"),
        ("PFERR_RSVD = 8", "it takes one line, PFERR_RSVD_MASK"),
        ("PFERR_RSVD_MASK = 8\nPAGE_SHIFT = 12", "it takes one line"),
        ("PFERR_RSVD_MASK == 8", "it takes one line"),
        ("PFERR_RSVD_MASK = ", "line 1, column"),
        ("PFERR_RSVD_MASK = -1", "line 1: -1 is no unsigned 64-bit number"),
        ("PFERR_RSVD_MASK = 1 << 63 << 1", "is no unsigned 64-bit number"),
        ("PFERR_RSVD_MASK = 1 << 99999999999", "<< by 99999999999 could be too far"),
        ("PFERR_RSVD_MASK = 1 >> -1", "negative shift count"),
        ("PFERR_RSVD_MASK = 8.5", "8.5 has no place in a constant"),
        ("PFERR_RSVD_MASK = True", "True has no place in a constant"),
        ("PFERR_RSVD_MASK = open('x')", "has no place in a constant"),
        ("PFERR_RSVD_MASK = 9 ** 9 ** 9", "has no place in a constant"),
        ("PFERR_RSVD_MASK = PFERR_WRITE_MASC", "no constant PFERR_WRITE_MASC; did you mean PFERR_WRITE_MASK"),
        ("PFERR_RSVD_MASK = sanitize", "the path has no constant sanitize"),
    ],
)
def test_what_no_constant_can_be_made_of_is_named(text, complaint):
    with pytest.raises(InputError, match=complaint):
        read_step(text, "PFERR_RSVD_MASK")


def test_a_step_that_only_a_later_kernel_has_can_be_edited_there():
    assert "kvm_mmu_write_protect_fault" in steps("v6_12")
    assert "kvm_mmu_write_protect_fault" not in steps("posted")
    with pytest.raises(InputError, match="no step or constant 'kvm_mmu_write_protect_fault'"):
        step_text("kvm_mmu_write_protect_fault", "posted")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"sanitize: it takes one function, def sanitize\(…\), and nothing else"),
        ("x = 1", "it takes one function"),
        (HEAD + "    return error_code, 0\nprint(1)", "line 3: it takes one function"),
        ("def sanitise(error_code):\n    return error_code, 0", r"line 1: it takes def sanitize\(error_code\)"),
        ("def sanitize(code):\n    return code, 0", r"line 1: it takes def sanitize\(error_code\)"),
        ("def sanitize(error_code, *more):\n    return error_code, 0", r"it takes def sanitize\(error_code\)"),
        ("def sanitize(error_code=print()):\n    return error_code, 0", "no decorators and no defaults"),
        ("@print\ndef sanitize(error_code):\n    return error_code, 0", "no decorators and no defaults"),
        ("def sanitize(error_code:\n    return 0", "line 1, column 13: '\\(' was never closed"),
        (HEAD + "    'only words'", "line 1: there is nothing in it"),
        (HEAD + "    return eror_code, 0", "line 2: the path has no name eror_code; did you mean error_code?"),
        (HEAD + "    return open('/x'), 0", "line 2: "),
        (HEAD + "    return __builtins__, 0", "line 2: the path has no name __builtins__"),
        (HEAD + "    return error_code.real.__class__, 0", "line 2: .__class__ has no place in a step"),
        (HEAD + "    import os\n    return 0, 0", "line 2: an import has no place in a step"),
        (HEAD + "    for n in (1, 2):\n        pass", "line 2: a for loop has no place in a step"),
        (HEAD + "    return [error_code][0], 0", "line 2: an index has no place in a step"),
        (HEAD + "    return error_code / 2, 0", r"line 2: / \(// divides whole numbers\) has no place"),
        (HEAD + "    return error_code ** 99999, 0", r"line 2: \*\* has no place in a step"),
        (HEAD + "    return error_code, 1.5", "line 2: 1.5 has no place in a step: it takes whole numbers"),
        (HEAD + "    return 'x', 0", "line 2: 'x' has no place in a step"),
        (HEAD + "    return error_code * error_code, 0", r"line 2: error_code \* error_code could be too much"),
        (HEAD + "    return 1 << error_code, 0", "line 2: << by error_code could be too far"),
        (HEAD + "    error_code <<= 64\n    return error_code, 0", "line 2: << by 64 could be too far"),
        ("\0", "null bytes"),
        (HEAD + "    return f(a=1, a=2)", "line 2, column 19: keyword argument repeated"),
        ("(" * 5000, "too many nested parentheses"),
        ("x" * 20_001, "20001 characters; it takes up to 20000"),
    ],
)  # fmt: skip
def test_what_is_no_step_is_said_in_one_line_with_its_place(text, complaint):
    with pytest.raises(InputError, match=complaint) as found:
        read_step(text, "sanitize")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("body", ["1 << 49", "error_code << PAGE_SHIFT + 2", "1 << (error_code & 63)"])
def test_a_shift_that_cannot_be_too_far_is_taken(body):
    head = "def mark_private(vm, cr2_or_gpa, error_code):\n"
    assert callable(read_step(f"{head}    return {body}, NO_LOOKUP", "mark_private"))


@given(st.text(max_size=60) | st.from_regex(r"\A[ a-z0-9_&|~<>()+*,=:.\n]{0,60}\Z"))
@settings(max_examples=80)
def test_any_text_is_a_step_or_a_complaint(text):
    for written in (text, HEAD + "    return " + text.replace("\n", " ")):
        try:
            step = read_step(written, "sanitize")
        except InputError as error:
            complaint = str(error)
        else:
            complaint = f"{step.__name__} can be called"
        assert complaint.startswith("sanitize")


# --- what the cases, the claims and the solver say ---


def test_a_function_stands_for_the_step_of_its_name():
    def sanitize(error_code):
        return error_code, 0

    assert verdict(sanitize, "sanitiser-is-a-mask").claims == 1  # not read letter by letter
    found = verdict(sanitize, ["sanitiser-is-a-mask", "reserved-never-private"])
    assert found.base is REVISIONS["posted"]
    assert "sanitize-both-bits" in found.cases
    assert [answer.claim.name for answer in found.fallen] == ["sanitiser-is-a-mask", "reserved-never-private"]
    later = verdict(sanitize, ["reserved-never-private"], base="v7_3")  # which leaves it to the callers
    assert (later.cases, later.fallen, later.witness) == ([], [], None)


def test_a_function_that_is_no_step_is_refused():
    def my_step(error_code):
        return error_code, 0

    for wrong in (my_step, 3, None, "posted"):
        with pytest.raises(InputError):
            verdict(wrong)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "3"])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(InputError, match="seconds="):
        judged("    return error_code, 0", seconds=seconds)


def test_an_unchanged_step_is_noticed_by_nobody():
    for name in ("sanitize", "faultin_pfn", "is_private"):
        found = verdict(read_step(step_text(name), name), ["sanitiser-is-a-mask"])
        assert (found.cases, found.fallen, found.witness, found.remark) == ([], [], None, "they do the same")


def test_the_smallest_witness_is_shown_as_two_lists_of_steps():
    found = judged("    return error_code & ~PFERR_IMPLICIT_ACCESS, 0", claims=["sanitiser-is-a-mask"])
    before, after = found.steps().values()
    assert [record.step for record in before] == [record.step for record in after]
    apart = [(a.step, a.after, b.after) for a, b in zip(before, after, strict=True) if a.after != b.after]
    assert ("sanitize", 0, 1 << 49) in apart or ("sanitize", 0, 1 << 48) in apart or found.witness.outputs
    text = found.beside()
    assert text.splitlines()[0] == f"smallest witness: {found.witness}"
    assert "posted " in text.splitlines()[1]
    assert "│" in text


def test_a_witness_of_one_function_says_what_each_returns():
    head = "def permission_pfec(access):\n"
    found = judged("    return 0, False", "permission_pfec", head, claims=["sanitiser-is-a-mask"])
    assert found.witness is not None
    assert found.witness.way == "permission_pfec"
    one, other = found.witness.outputs["result"]
    assert one != other == "(0, False)"
    assert found.steps() == {}


# --- it comes to an end ---


@pytest.mark.parametrize(
    "body",
    [
        "    while True:\n        error_code ^= 1",
        "    while error_code >= 0:\n        error_code += 1\n    return error_code, 0",
        "    if error_code & 1 << 62 != 0 and error_code & 1 << 61 == 0:\n"
        "        while True:\n            error_code ^= 1\n    return error_code & ~PFERR_SYNTHETIC_MASK, 0",
    ],
)
def test_a_step_that_does_not_end_is_stopped_and_named_with_its_line(body):
    start = time.process_time()
    with pytest.raises(DoesNotEnd, match=r"sanitize, line \d+: it does not return"):
        judged(body)
    assert time.process_time() - start < 20
    assert sys.gettrace() is None or "ending" not in repr(sys.gettrace())


def test_a_loop_that_ends_is_judged_like_any_other_step():
    body = "    while error_code & PFERR_SYNTHETIC_MASK != 0:\n        error_code &= ~PFERR_SYNTHETIC_MASK\n"
    found = judged(body + "    return error_code, 0", claims=["sanitiser-is-a-mask"])
    assert found.fallen == []
    assert "sanitize-both-bits" in found.cases  # it does not warn


def test_a_step_is_watched_only_while_it_is_judged():
    def sanitize(error_code):
        while error_code & 1:
            error_code >>= 1
        return error_code, 0

    mine = get("posted").derive("mine", sanitize=sanitize)
    before = sys.gettrace()
    with ending(mine):
        assert sys.gettrace() is not before
    assert sys.gettrace() is before


def test_steps_that_call_each_other_in_a_circle_are_refused():
    with pytest.raises(InputError, match="line 2: a step does not call itself"):
        judged("    return sanitize(error_code)")
    with pytest.raises(InputError, match="its steps call each other in a circle"):
        judged("    return kvm_mmu_page_fault(error_code)")


def test_a_step_that_raises_is_told_with_its_line():
    found = judged("    return 7 // (error_code & 1), 0", claims=["sanitiser-is-a-mask"])
    first = found.first("sanitize-both-bits")
    assert first.column == RAISES
    assert "ZeroDivisionError" in first.got
    assert first.got.endswith("in sanitize, line 2")
    assert "the divisor can be 0" in found.unasked["sanitiser-is-a-mask"]
    assert "not asked: 1 of them" in str(found)


@pytest.mark.parametrize(
    "body", ["    return 7", "    pass", "    return gpa_to_gfn, 0", "    return (1, 2), 0"]
)
def test_a_step_that_returns_something_else_is_judged_all_the_same(body):
    found = judged(body)
    assert len(found.cases) > 50
    assert all("\n" not in in_words(found.first(id)) for id in found.cases)
    assert "cases that fail" in str(found)


def test_nothing_is_run_once_the_time_is_up():
    with pytest.raises(DoesNotEnd, match="the cases took too long"):
        judged("    return error_code, 0", seconds=1e-9)


# --- the widget ---

ONE_BIT = """def sanitize(error_code: int) -> tuple[int, int]:
    if error_code & PFERR_PRIVATE_ACCESS != 0:
        return error_code & ~PFERR_PRIVATE_ACCESS, WARN_SYNTHETIC
    return error_code, 0
"""


@pytest.fixture
def few_claims(monkeypatch):
    """Widgets ask two claims, for tests of what becomes of a verdict, whatever it is."""
    monkeypatch.setattr(
        judge, "CLAIMS", {name: CLAIMS[name] for name in ("sanitiser-is-a-mask", "cpu-cannot-forge")}
    )


def test_an_edited_step_is_run_and_the_verdict_shown():
    w = your_turn("sanitize")
    assert w.controls["text"].value == step_text("sanitize")
    w.controls["text"].value = ONE_BIT
    assert w.verdict is None
    w.controls["run"].click()
    found = w.verdict
    asked = [row for row in read_cases() if row["revision"] == "posted"]
    assert f"{len(found.cases)} of {len(asked)} cases notice; {len(found.fallen)} of" in w.output.value
    assert "sanitize-bit48" in found.cases
    for answer in found.fallen:
        assert escaped(answer.claim.statement) in w.output.value
    assert "with your step" in w.output.value
    w.controls["undo"].click()
    assert (w.controls["text"].value, w.verdict) == (step_text("sanitize"), None)


@pytest.mark.usefixtures("few_claims")
def test_what_is_wrong_with_an_edited_step_is_said_and_no_verdict_stands():
    w = your_turn("sanitize", text=ONE_BIT)
    assert w.verdict is not None
    for text in ("def sanitize(", HEAD + "    while True:\n        pass", HEAD + "    return x, 0"):
        w.controls["text"].value = text
        w.controls["run"].click()
        assert isinstance(w.message.value, Html)
        assert 'role="alert"' in w.message.value
        assert w.verdict is None
        assert "cases notice" not in w.output.value
    w.controls["text"].value = ONE_BIT
    w.controls["run"].click()
    assert (w.message.value, w.verdict is not None) == ("", True)


def test_a_solver_that_runs_out_of_time_leaves_a_curated_case_as_witness(monkeypatch):
    """In a page it thinks ten times as long; what it was not asked is counted apart."""
    late = {"five-differences", "sanitiser-is-a-mask"}
    prove = judge.prove

    def slow(claim, revision):
        if claim.name in late:
            raise InputError("it takes too long")
        return prove(claim, revision)

    monkeypatch.setattr(judge, "prove", slow)
    monkeypatch.setattr(judge, "witness", lambda *_: (None, judge.OUT_OF_TIME))
    w = your_turn("sanitize", text=ONE_BIT)
    found = w.verdict
    assert set(found.unasked) == late
    assert f"{len(found.fallen)} of {found.claims - 2} claims fall, 2 could not be asked" in w.output.value
    assert found.witness.state["error_code"] & 1 << 48
    assert "of the curated cases" in w.output.value


def test_an_edited_constant_is_judged_like_a_step():
    """A mask without bit 49 lets through a bit 49 that came from outside: what the patch is to prevent."""
    w = your_turn("PFERR_SYNTHETIC_MASK", text="PFERR_SYNTHETIC_MASK = PFERR_IMPLICIT_ACCESS")
    assert {answer.claim.name for answer in w.verdict.fallen} >= {"cpu-cannot-forge", "sanitiser-is-a-mask"}
    assert w.verdict.witness.state["error_code"] == 1 << 49
    assert "is_private" in w.output.value
    w.controls["undo"].click()
    assert w.controls["text"].value == "PFERR_SYNTHETIC_MASK = 0x3000000000000\n"


def test_what_was_written_for_a_step_is_there_when_one_comes_back_to_it():
    w = your_turn("sanitize")
    w.controls["text"].value = ONE_BIT
    w.controls["step"].value = "is_private"
    w.controls["step"].value = "sanitize"
    assert w.controls["text"].value == ONE_BIT
    w.controls["undo"].click()
    w.controls["step"].value = "is_private"
    w.controls["step"].value = "sanitize"
    assert w.controls["text"].value == step_text("sanitize")


def test_another_step_or_revision_brings_its_own_text():
    w = your_turn("sanitize")
    w.controls["step"].value = "is_private"
    assert w.controls["text"].value == step_text("is_private", "posted")
    w.controls["revision"].value = "v6_12"
    assert w.controls["step"].value == "is_private"
    assert w.controls["text"].value == step_text("is_private", "v6_12")
    w.controls["step"].value = "kvm_mmu_write_protect_fault"
    w.controls["revision"].value = "before"
    assert w.controls["step"].value in steps("before")


@pytest.mark.usefixtures("few_claims")
def test_the_static_twin_has_the_step_and_the_verdict():
    w = your_turn("sanitize", text=ONE_BIT)
    html = w.static()._repr_html_()
    assert "return error_code &amp; ~PFERR_PRIVATE_ACCESS, WARN_SYNTHETIC" in html
    assert "cases notice; 2 of 2 claims fall" in html
    assert html == your_turn("sanitize", text=ONE_BIT).static()._repr_html_()


@pytest.mark.parametrize("wrong", [("nothing",), ("sanitize", "v9"), ("sanitize", "posted", "x = 1"), (3,)])
def test_a_turn_at_what_is_not_there_is_refused_at_once(wrong):
    with pytest.raises(InputError):
        your_turn(*wrong)


def test_without_the_solver_the_cases_judge_alone():
    code = (
        "import sys\nsys.modules['z3'] = None\n"
        "from kvm_pf.show.widgets import your_turn\n"
        f"w = your_turn('sanitize', text={ONE_BIT!r})\n"
        "assert w.verdict.claims == 0 and 'sanitize-bit48' in w.verdict.cases and w.verdict.witness\n"
        "assert 'z3, is not installed' in w.output.value and 'with your step' in w.output.value\n"
        "print(sorted({'pandas', 'numpy', 'numba', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
