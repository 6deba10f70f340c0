# SPDX-License-Identifier: GPL-2.0-only
"""Text that others wrote, as it is shown."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf.common.text import one_line, visible

OBEYED = [
    "\x00", "\x07", "\x08", "\t", "\n", "\r", "\x1b", "\x7f",  # C0
    "\x85", "\x90", "\x9b", "\x9d",  # C1: next line, DCS, CSI, OSC
    "\u200b", "\u200e", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff",  # no width, direction of writing
    "\u2028", "\u2029", "\ud800", "\U000e0041", "\ue000",  # ends of lines, half a pair, a tag, private use
]  # fmt: skip


@pytest.mark.parametrize("character", OBEYED, ids=ascii)
def test_what_a_terminal_obeys_is_written_out(character):
    assert visible(f"a{character}b") == "a" + ascii(character)[1:-1] + "b"


def test_what_can_be_seen_stays():
    text = "Łukasz – 日本語 «é» \u00a0\u3000 ▲ 'a' \"b\" \\ 🙂"
    assert visible(text) == text


def test_what_is_kept_is_kept():
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@given(st.text())
def test_nothing_shown_is_obeyed(text):
    assert not {unicodedata.category(each) for each in visible(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(), st.integers(20, 100))
def test_a_line_is_one_line_and_bounded(text, longest):
    line = one_line(text, longest)
    assert len(line) <= longest
    assert "\n" not in line
    assert visible(line) == line


def test_a_long_line_keeps_both_ends():
    line = one_line("from " + "x" * 10_000 + " to")
    assert len(line) == 1000
    assert line.startswith("from x")
    assert line.endswith("x to")
