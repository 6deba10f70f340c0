# SPDX-License-Identifier: GPL-2.0-only
"""The linker: names mean what a revision says all the way down, and equal digests mean equal deeds."""

import subprocess
import sys
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.revisions import get
from kvm_pf.revisions.link import digest, global_names, link

fixed = settings(derandomize=True, deadline=None)

MASK = 4


class Pair(NamedTuple):
    left: int
    right: int = 1


class Swapped(NamedTuple):
    right: int
    left: int = 1


def leaf(x):
    return x & MASK


def other(x):
    return x | MASK


def middle(x):
    return leaf(x) + 1


def root(x, y=0):
    """Do it."""
    return middle(x) + leaf(x) + y


def inner(x):
    return sum(leaf(n) & MASK for n in range(x))


def paired(x):
    return Pair(x)


class TestLink:
    @fixed
    @given(st.integers(0, 255))
    def test_without_names_a_copy_does_what_the_function_does(self, x):
        assert link(root, {})(x) == root(x)
        assert link(root, {})(x, y=3) == root(x, 3)

    @fixed
    @given(st.integers(0, 255), st.integers(0, 255))
    def test_a_constant_is_bound_however_deep_it_stands(self, x, mask):
        assert link(root, {"MASK": mask})(x) == (x & mask) + 1 + (x & mask)

    @fixed
    @given(st.integers(0, 255))
    def test_a_function_is_bound_for_every_caller(self, x):
        assert link(root, {"leaf": other})(x) == (x | 4) + 1 + (x | 4)

    def test_a_name_is_bound_inside_a_comprehension_too(self):
        assert link(inner, {"MASK": 1})(4) == 2
        assert link(inner, {"leaf": other, "MASK": 1})(4) == 4

    def test_the_root_itself_may_be_replaced(self):
        assert link(leaf, {"leaf": other})(1) == 5

    def test_the_originals_are_left_alone(self):
        link(root, {"MASK": 1, "leaf": other})
        assert (root(7), leaf.__globals__["MASK"], root.__globals__["leaf"]) == (9, 4, leaf)

    def test_every_function_is_bound_once_and_those_called_come_first(self):
        seen = []

        def bind(function):
            seen.append(function.__name__)
            return function

        link(root, {}, bind)
        assert seen == ["leaf", "middle", "root"]

    def test_every_integer_constant_passes_through_constant(self):
        assert link(leaf, {}, constant=lambda value: value - 1)(7) == 3

    def test_a_copy_keeps_name_docstring_defaults_and_annotations(self):
        copy = link(root, {})
        assert (copy.__name__, copy.__doc__, copy.__defaults__) == ("root", "Do it.", (0,))
        assert copy.__qualname__ == root.__qualname__
        assert copy.__module__ == root.__module__

    def test_a_function_that_stands_for_a_step_has_the_steps_name(self):
        names = []
        link(root, {"leaf": lambda x: x}, lambda f: names.append(f.__name__) or f)
        assert "leaf" in names

    def test_values_that_are_neither_functions_nor_integers_are_bound_as_they_are(self):
        assert type(link(paired, {"Pair": Swapped})(1)) is Swapped
        assert link(paired, {})(1) == (1, 1)

    def test_global_names_come_in_order_and_once(self):
        assert global_names(root.__code__) == ("middle", "leaf")
        assert global_names(inner.__code__) == ("sum", "range", "leaf", "MASK")


class TestDigest:
    def test_it_is_the_same_in_another_process(self):
        command = "from kvm_pf.revisions import get; print(get('v7_3').digest('kvm_mmu_page_fault'))"
        there = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        assert there.stdout.strip() == get("v7_3").digest("kvm_mmu_page_fault")

    @pytest.mark.parametrize(
        "names",
        [
            {"MASK": 5},
            {"leaf": other},
            {"leaf": lambda x: x & 5},
            {"middle": leaf},
            {"middle": lambda x: leaf(x) + 2},
        ],
    )
    def test_anything_bound_otherwise_shows_however_deep(self, names):
        assert digest(root, names) != digest(root, {})

    def test_what_is_not_reached_does_not_show(self):
        assert digest(root, {"OTHER": 1, "unused": other}) == digest(root, {})

    def test_a_value_of_the_function_around_shows(self):
        def made(mask):
            return lambda x: x & mask

        assert digest(root, {"leaf": made(1)}) != digest(root, {"leaf": made(2)})
        assert digest(root, {"leaf": made(1)}) == digest(root, {"leaf": made(1)})

    def test_a_function_of_the_function_around_shows(self):
        def made(step):
            return lambda x: step(x)

        assert digest(root, {"leaf": made(leaf)}) != digest(root, {"leaf": made(other)})

    def test_a_tuple_of_tuples_shows_all_the_way_down(self):
        def made(value):
            return lambda x: value

        def deep(value):
            for _ in range(60):  # written out it would never end
                value = (value, value)
            return value

        assert digest(made(deep((0, 1))), {}) == digest(made(deep((0, 1))), {})
        assert digest(made(deep((0, 1))), {}) != digest(made(deep((0, 2))), {})
        assert digest(made(((1, 2), 3)), {}) != digest(made((1, (2, 3))), {})

    def test_defaults_show(self):
        assert digest(root, {"leaf": lambda x, y=1: x}) != digest(root, {"leaf": lambda x, y=2: x})
        assert digest(root, {"leaf": lambda x, *, y=1: x}) != digest(root, {"leaf": lambda x, *, y=2: x})

    def test_inner_code_shows(self):
        one, two = (lambda x: sum(n + 1 for n in (x,))), (lambda x: sum(n + 2 for n in (x,)))
        assert digest(root, {"leaf": one}) != digest(root, {"leaf": two})

    def test_fields_and_defaults_of_a_record_show(self):
        assert digest(paired, {"Pair": Swapped}) != digest(paired, {})

    def test_which_of_two_seen_functions_is_called_shows(self):
        scope = {}
        exec(
            "def a(x): return c(x)\ndef b(x): return x\ndef c(x): return x + 1\ndef both(x): return a(x) + b(x)",
            scope,
        )
        assert digest(scope["both"], {"b": scope["a"]}) != digest(scope["both"], {"b": scope["c"]})

    def test_a_function_that_calls_itself_is_counted_once(self):
        scope = {}
        exec("def down(n): return down(n - 1) if n else 0", scope)
        assert digest(scope["down"], {}) == digest(scope["down"], {})
