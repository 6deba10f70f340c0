# SPDX-License-Identifier: GPL-2.0-only
"""A page runs the lines of a notebook that a widget depends on, and no others."""

import pytest

from tools.live.lines import lines_for, shown_still


@pytest.mark.parametrize(
    ("cells", "lines"),
    [
        (["a = 1", "b = 2", "x = a"], ["a = 1", "x = a"]),
        (["x = 1", "x = 2"], ["x = 2"]),
        (["x = 1", "x += 2"], ["x = 1", "x += 2"]),
        (["x, y = 1, 2", "y = 3"], ["x, y = (1, 2)"]),
        (["from a import b, c", "x = c()"], ["from a import c", "x = c()"]),
        (["import a.b, d", "x = a.b.c"], ["import a.b", "x = a.b.c"]),
        (["x = make()", "x.part[0].value = y", "y = 1"], ["x = make()", "x.part[0].value = y"]),
        (["y = 1", "x = make()", "x.part.value = y"], ["y = 1", "x = make()", "x.part.value = y"]),
        (["x = make()", "x.add(1)", "x.told", "print(x)", "x.static()"], ["x = make()", "x.add(1)"]),
        (["import m", "m.draw(1)", "x = m.make()"], ["import m", "x = m.make()"]),
        (["y = 1", "x = [y for y in range(3)]"], ["x = [y for y in range(3)]"]),
        (["y = 1", "x = sorted([2], key=lambda y: -y)"], ["x = sorted([2], key=lambda y: -y)"]),
        (
            ["def f(a):\n    return a + k", "k = 1", "x = f(2)"],
            ["def f(a):\n    return a + k", "k = 1", "x = f(2)"],
        ),
        (
            ["x = []", "for n in range(3):\n    x.append(n)"],
            ["x = []", "for n in range(3):\n    x.append(n)"],
        ),
        (["x = 1", "assert x == 1", "%magic line", "!shell", "y = x"], ["x = 1"]),
        (["x = 1\n# why\nz = 3"], ["x = 1"]),
    ],
)
def test_what_is_taken(cells, lines):
    assert lines_for("x", cells) == "\n".join([*lines, "x"])


def test_an_expression_takes_what_it_names():
    assert lines_for("make(a, b=c)", ["a = 1", "b = 2", "c = 3"]) == "a = 1\nc = 3\nmake(a, b=c)"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("x.static()", "x"),
        ("x.value = 3\nx.static()", "x"),
        ("make(1).static()", "make(1)"),
        ("x.static", ""),
        ("x.static()\nx", ""),
        ("y = x.static()", ""),
        ("x", ""),
        ("", ""),
        ("%magic", ""),
    ],
)
def test_a_cell_that_shows_a_twin_ends_with_it(cell, shown):
    assert shown_still(cell) == shown
