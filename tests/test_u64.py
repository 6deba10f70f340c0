# SPDX-License-Identifier: GPL-2.0-only
"""64-bit values mean the same in a plain run, in solver terms and in compiled code, or they are refused."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pandas as pd
import pytest
import z3

from kvm_pf.bits import U64_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.exits import PreFault
from kvm_pf.proof.ask import prove
from kvm_pf.proof.case import Case
from kvm_pf.proof.terms import all_paths, any_int, bool_term, explore, int_term, merge
from kvm_pf.revisions import get
from kvm_pf.run import batch
from kvm_pf.run.batch import evaluate
from kvm_pf.run.ranges import U64, Uses, as_int64
from kvm_pf.run.unsigned import compiled

STEPS = int(os.environ.get("U64_STEPS", "40"))
"""How many random steps are tried: 1,000 with U64_STEPS=1000, which takes a minute or two."""

EDGES = (
    0,
    1,
    7,
    63,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 5,
    U64_MASK - 1,
    U64_MASK,
)
NAMES = ("a", "b", "c")


def expression(draw, depth):
    """A random expression: a number made of the arguments, constants and operators."""
    if depth == 0 or draw.random() < 0.1:
        return draw.choice((*NAMES, *NAMES, str(draw.choice(EDGES)), str(draw.getrandbits(64))))
    one, two = (expression(draw, depth - 1) for _ in range(2))
    kind = draw.choice(("ring", "ring", "ring", "cut", "cut", "shift", "divide", "pick", "choose"))
    if kind == "ring":
        return draw.choice((f"({one} {draw.choice('&|^+-*')} {two})", f"(~{one})"))
    if kind == "cut":
        return f"(({one} {draw.choice('+-*')} {two}) & MASK)"
    if kind == "shift":
        by = draw.choice((str(draw.randrange(64)), f"({two} & 63)"))
        return f"({one} {draw.choice(('>>', '<<'))} {by})"
    if kind == "divide":
        return f"({one} {draw.choice(('//', '%'))} ({two} | 1))"
    if kind == "pick":
        return f"{draw.choice(('min', 'max'))}({one}, {two})"
    test = f"{one} {draw.choice(('<', '<=', '>', '>=', '==', '!='))} {two}"
    return f"({expression(draw, depth - 1)} if {test} else {expression(draw, depth - 1)})"


def step_of(text):
    """A step as a user would write it."""
    scope = {"MASK": U64_MASK}
    exec(f"def step(a, b, c):\n    return {text}", scope)
    return scope["step"]


def in_compiled_code(step):
    """The step compiled, from and to unsigned values.  Raises InputError."""
    uses = Uses()
    uses.bind(step)(*(uses.value(*U64) for _ in NAMES))
    made = compiled(step, uses.unsigned(step.__code__))
    return lambda *values: int(made(*(np.int64(as_int64(v)) for v in values))) & U64_MASK


def in_solver_terms(step):
    """The step fed with solver terms, of which values are put in afterwards.  Raises InputError."""
    arguments = [any_int(name, U64) for name in NAMES]
    term = int_term(merge(all_paths(step, *arguments)))

    def answer(*values):
        pairs = [(a.term, int_term(v)) for a, v in zip(arguments, values, strict=True)]
        return z3.simplify(z3.substitute(term, *pairs)).as_long()

    return answer


def test_random_steps_mean_the_same_in_all_engines_or_are_refused():
    draw = random.Random(int(os.environ.get("U64_SEED", "64")))
    answered = dict.fromkeys(("compiled", "solver"), 0)
    for _ in range(STEPS):
        text = expression(draw, 3)
        step = step_of(text)
        rows = [[draw.choice((draw.choice(EDGES), draw.getrandbits(64))) for _ in NAMES] for _ in range(8)]
        for name, engine in (("compiled", in_compiled_code), ("solver", in_solver_terms)):
            try:
                run = engine(step)
            except InputError:
                continue
            answered[name] += 1
            for row in rows:
                assert run(*row) == step(*row) & U64_MASK, (name, text, row)
    assert min(answered.values()) > STEPS // 4


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("a - b < c", "<"),
        ("(a << 4) > b", ">"),
        ("~a > b", ">"),
        ("(a + b) >> 1", ">>"),
        ("min(a - b, c)", "<"),
        ("(a - b) % 7", "%"),
        ("a // b", "//"),
        ("a >> b", ">>"),
        ("1 if a + b == c else 0", "=="),
        ("1 if a - b else 0", "if"),
    ],
)
def test_what_64_bits_cannot_mean_is_refused_by_name(text, operator):
    wanted = f"step 'step', operator {operator}:"
    with pytest.raises(InputError, match=wanted.replace("//", "/+")):
        in_compiled_code(step_of(text))
    with pytest.raises(InputError, match="step 'step', operator"):
        explore(lambda *values: bool(step_of(text)(*values)), *(any_int(name, U64) for name in NAMES))


@pytest.mark.parametrize(
    "text", ["(a - b & MASK) < c", "(a << 4 & MASK) > b", "(~a & MASK) > b", "(a + b & MASK) >> 1"]
)
def test_cut_to_64_bits_all_of_it_has_a_meaning(text):
    step = step_of(text)
    run, solve = in_compiled_code(step), lambda *v: step(*v)
    for row in [(0, 1, 5), (1 << 63, 1, 2), (U64_MASK, U64_MASK, 1 << 63)]:
        assert run(*row) == solve(*row) & U64_MASK


@pytest.mark.parametrize(
    ("text", "row", "answer"),
    [
        ("((9223372036854775808 + ((c << 63) & (a << 60))) & MASK)", (11, 0, 5), 0),
        ("((a << 63) + (b << 63)) & MASK", (1, 1, 0), 0),
        ("((a | (1 << 63)) - (1 << 63)) & MASK", (1 << 63, 0, 0), 0),
        ("(a * (1 << 63)) & MASK", (2, 0, 0), 0),
    ],
)
def test_what_overflows_keeps_its_low_64_bits(text, row, answer):
    """LLVM is not told that `+ - *` cannot overflow."""
    assert in_compiled_code(step_of(text))(*row) == answer
    assert in_solver_terms(step_of(text))(*row) == answer


@pytest.mark.parametrize(
    ("text", "row", "answer"),
    [
        ("1 if 1233228988311800966 >= 10422379289505174260 else 2", (0, 0, 0), 2),
        ("~(a < b) & MASK", (0, 1, 0), U64_MASK - 1),
        ("(a < b) << 63", (0, 1, 0), 1 << 63),
        ("1 if (a < b) == c else 0", (0, 1, 2), 0),
        ("((a < b) + (b < c)) // (c | 1)", (0, 1, 2), 0),
    ],
)
def test_constants_and_truth_values_are_numbers_of_their_size(text, row, answer):
    assert step_of(text)(*row) == answer
    assert in_compiled_code(step_of(text))(*row) == answer
    assert in_solver_terms(step_of(text))(*row) == answer


def test_small_constants_that_grow_are_numbers_of_64_bits():
    def step(a, b, c):
        one = 1
        high = one << 63
        return high >> 3

    assert in_compiled_code(step)(0, 0, 0) == 1 << 60


def test_constants_alone_are_not_compared_as_signed_where_others_are_unsigned():
    step = step_of("(1 if 5 >= -4 else 2) if c >= (1 << 63) else 3")
    assert step(0, 0, U64_MASK) == 1
    with pytest.raises(InputError, match="step 'step', operator >=:"):
        in_compiled_code(step)


@pytest.mark.parametrize("text", ["sum((a, b))", "(lambda x: x + (1 << 63))(a)", "a ** 2", "a / 2", "abs(a)"])
def test_what_computes_unseen_is_not_compiled(text):
    with pytest.raises(InputError, match=r"step 'step' .*engine='plain' runs it"):
        in_compiled_code(step_of(text))


@pytest.mark.parametrize("engine", ["plain", "compiled"])
@pytest.mark.parametrize("level", [1 << 16, -(1 << 15) - 1, 1 << 62])
def test_a_number_too_large_for_its_column_is_refused(engine, level):
    mine = get("posted").derive("mine", KVM_MAX_HUGEPAGE_LEVEL=level)
    with pytest.raises(InputError, match=r"revision 'mine': .* column 'f_max_level' can be"):
        evaluate(pd.DataFrame({"error_code": [6]}), mine, engine=engine)


def test_signed_values_are_compared_as_signed():
    uses = Uses()

    def step(ret, level):
        return 1 if ret < 0 and level > -1 else 0

    uses.bind(step)(uses.value(-4095, 6), uses.value(-1, 5))
    run = compiled(step, uses.unsigned(step.__code__))
    assert [run(-14, 3), run(-14, -1), run(1, 3)] == [1, 0, 0]


def test_a_signed_and_an_unsigned_value_are_not_compared():
    uses = Uses()
    with pytest.raises(InputError, match="step 'step', operator <"):
        uses.bind(step_of("a < b"))(uses.value(-1, 5), uses.value(*U64), uses.value(*U64))


# --- the path ---


@pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
@pytest.mark.parametrize(
    ("size", "done"), [(1 << 63, 4096), (U64_MASK, 4096), (4096, 4096), (4095, 4095), (0, 0), (8192, 4096)]
)
def test_a_range_mapped_ahead_ends_with_the_page_or_with_what_was_asked_for(revision, size, done):
    """Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_vcpu_pre_fault_memory() (v6.12): min(size, end - gpa), both u64."""
    state = {"size": size, "cr2_or_gpa": 0x100000000, "pf_ret": 4, "level": 1}
    assert Case(state).pre_fault(revision).ret == done
    case = Case()
    ret = case.pre_fault(revision).ret
    given = [getattr(case, name) == value for name, value in state.items()]
    fixed = [getattr(case, name) for name in ("allowed", "is_tdp", "root_valid")]
    reload = [case.reload_ret == 0]
    solver = z3.Solver()
    solver.add(*(bool_term(t) for t in (*given, *fixed, *reload, case.has_meaning(revision), *case.bounds)))
    assert solver.check(bool_term(ret == done)) == z3.sat
    ahead = bool_term((ret != done) & (ret >= 0) & (case.size != 0))
    assert solver.check(ahead) == z3.unsat


def test_a_size_is_unsigned_64_bits():
    assert PreFault(0, 1 << 63).size == 1 << 63


BIG = 1 << 63


def top_bit(error_code):
    """Compare, shift, divide and choose, with bit 63 set in values and in constants."""
    code = max(error_code, BIG >> 1) >> 3
    if error_code > BIG:
        code |= 4
    return code | error_code % 5 << 60 & U64_MASK | error_code // 9, 0


def test_a_derived_step_gives_the_same_compiled_as_plain_with_bit_63():
    mine = get("posted").derive("mine", sanitize=top_bit)
    codes = [0, 5, BIG - 1, BIG, BIG + 5, U64_MASK, 1 << 49 | BIG, 0x6]
    frame = pd.DataFrame({"info": np.array(codes, dtype=np.uint64)})
    later = get("v7_3").derive("mine", npf_synthetic=top_bit)  # whose exits' handlers take less to compile
    plain, fast = (evaluate(frame, later, kind="sources", engine=engine) for engine in ("plain", "compiled"))
    pd.testing.assert_frame_equal(plain, fast)
    assert plain.mmu_error_code.tolist() == [top_bit(code)[0] for code in codes]
    case = Case()
    term = int_term(case.step("sanitize", mine)(case.error_code)[0])
    for code in codes:
        value = z3.simplify(z3.substitute(term, (case.error_code.term, int_term(code))))
        assert value.as_long() == top_bit(code)[0]


def test_a_derived_step_without_a_64_bit_meaning_is_refused_by_both_engines():
    mine = get("posted").derive("mine", sanitize=lambda error_code: (4 if ~error_code < 9 else error_code, 0))
    frame = pd.DataFrame({"error_code": [6]})
    for ask in (lambda: evaluate(frame, mine, engine="compiled"), lambda: prove("sanitiser-is-a-mask", mine)):
        with pytest.raises(InputError, match="step 'sanitize', operator <"):
            ask()


def test_the_solver_gives_the_same_answers_to_several_threads():
    asked = [
        ("reserved-never-private", "before"),
        ("sanitiser-is-a-mask", "posted"),
        ("nothing-is-private", "posted_u32"),
    ]
    alone = [str(prove(*pair)) for pair in asked]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda pair: str(prove(*pair)), asked * 3))
    assert together == alone * 3


@pytest.mark.parametrize("damage", ["unwritable", "truncated"])
def test_a_cache_that_cannot_be_used_is_done_without(damage, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    if damage == "unwritable":
        folder = tmp_path / "file" / "cache"
        (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))

    def run():
        """As a process that begins: what is kept of the loop is what was written."""
        steps = {key: made for key, made in batch._compiled.items() if " " in key}
        monkeypatch.setattr(batch, "_compiled", steps)
        return evaluate(pd.DataFrame({"info": [6]}), kind="sources", engine="compiled").mmu_error_code[0]

    assert run() == 6
    if damage == "truncated":
        files = [f for f in folder.rglob("*") if f.suffix in (".nbi", ".nbc")]
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[:10])
        with pytest.warns(UserWarning, match="compiled code is not kept"):
            assert run() == 6
