# SPDX-License-Identifier: GPL-2.0-only
"""Text that others wrote, as it is shown."""

import ast
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvm_pf
from kvm_pf.common.text import escaped, one_line, visible
from kvm_pf.show.markup import element

ROOT = Path(kvm_pf.__file__).parent

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


def test_a_page_shows_text_as_text():
    assert escaped("<script>\"'&\n\t\x00\u202e") == "&lt;script&gt;&quot;&#x27;&amp;\n\t\\x00\\u202e"
    assert element("td", "<b>", title='"><i>') == '<td title="&quot;&gt;&lt;i&gt;">&lt;b&gt;</td>'


def sources():
    """Our modules: name below kvm_pf, and tree."""
    for module in sorted(ROOT.rglob("*.py")):
        yield module.relative_to(ROOT).as_posix(), ast.parse(module.read_text(encoding="utf-8"))


def test_nothing_goes_around_these_functions():
    """Only commands print, to streams that show control characters; only `escaped` makes HTML of text."""
    found = []
    for name, tree in sources():
        for node in ast.walk(tree):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "print"
                and not name.startswith("cli/")
            ):
                found.append(f"{where} prints")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "sys.__stdout__", "sys.__stderr__", "sys.stdout.buffer", "sys.stderr.buffer", "sys.stdout.write",
                "sys.stderr.write", "os.write",
            ) and name != "cli/common.py":  # fmt: skip
                found.append(f"{where} goes around the streams")
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "html"
                and "escape" in ast.unparse(node).split()
            ):
                found.append(f"{where} escapes HTML by itself")
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "html.escape"
                and name != "common/text.py"
            ):
                found.append(f"{where} escapes HTML by itself")
            if (
                isinstance(node, ast.JoinedStr)
                and re.search(r"<(td|tr|b|code|p|div|span)\b", ast.unparse(node))
                and name != "show/markup.py"
            ):
                found.append(f"{where} writes HTML around text")
    assert found == []
