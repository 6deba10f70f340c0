# SPDX-License-Identifier: GPL-2.0-only
"""Whole lines are read by a short way: it gives what the long way gives, whatever stands around them."""

import gzip
import io
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.common.paths import data_dir
from kvm_pf.trace.lines import ENDS, FOREIGN, Reader

RECORDED = sorted((data_dir() / "recordings").glob("*/*.trace.gz"))
FIXTURES = [
    path for path in sorted((Path(__file__).parent / "data").iterdir()) if path.suffix not in (".dat",)
]


def told(text, is_quick=True):
    """Everything that a text tells: its events, and what was counted and refused."""
    reader = Reader()
    if not is_quick:
        reader._quick = lambda *line: None
    events = list(reader.read(io.BytesIO(text)))
    return events, {name: value for name, value in vars(reader).items() if name != "_quick"}


def text_of(path):
    data = path.read_bytes()
    return {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)(data)


@pytest.mark.parametrize("path", [*RECORDED, *FIXTURES], ids=lambda path: f"{path.parent.name}-{path.name}")
def test_files_tell_the_same_either_way(path):
    text = text_of(path)
    assert told(text) == told(text, is_quick=False)


def test_most_lines_of_a_recording_take_the_short_way():
    lines = text_of(data_dir() / "recordings" / "6.12" / "2-swprot.trace.gz").splitlines(keepends=True)
    events = [Reader._quick([], n, line) for n, line in enumerate(lines, 1)]
    assert sum(event is not None for event in events) > len(lines) * 0.9
    assert any(event is FOREIGN for event in events)


@pytest.mark.parametrize("name", ENDS)
def test_an_event_is_found_behind_what_another_prints(name):
    line = f"  A-1 [000] ..... 1.500000: other: said {name}: vcpu 0 reason x rip 0x1 address 0x2 error_code 0x4 err=1\n"
    assert Reader._quick([], 1, line.encode()) is None
    events, counts = told(line.encode())
    names = [event.name for event in events] + [row.why.split()[0] for row in counts["unread"]]
    assert names == [name]


HEAD = b"  CPU 0/KVM-12  (  9) [001] d..2. 12.500000: "
ASIDE = [
    HEAD + b"sched_switch: prev_comm=a prev_pid=3 ==> next_comm=kvm_exit next_pid=3\n",
    HEAD + b"sched_wakeup: comm=x-12 [001]\n",
    HEAD + b"kvm_msr: msr_read 10 = 0x0\n", HEAD + b"x: memory fault flags=8 gpa=0x1000\n",
    HEAD + b"x: kvm_entry: vcpu 0, rip 0x1\n", HEAD + b"kvm_page_fault: vcpu 0 rip 0x1\n",
    HEAD + b"kvm_mmio: mmio read len 8 gpa 0x1000 val=3D0x1\n", HEAD + b"print: attr 0x1000 0x1000 private\n",
    HEAD + b"kvm_exit: reason EPT_VIOLATION rip 0x1 info 181 0\n", HEAD + b"CAN'T FIND FIELD \"x\"\n",
    HEAD + b"CPU:1 [LOST 5 EVENTS]\n", HEAD + b"probe: (kvm_exit+0x10)\n", HEAD + b"x:\n",
    b"> " + HEAD + b"pf: err=0x4\n",
    b"address 0x5 error_code 0x4\n", b"foo=\n", b"=\n", b">\n", b"\n", b"CPU 0/KVM-1 [000]\n",
    b"KVM_EXIT_MEMORY_FAULT {\n", b"flags=8 gpa=0x1000 }\n", b"# entries-in-buffer/entries-written: 5/9\n",
]  # fmt: skip
"""Lines that tell of something else, or that stand for a part of one."""

LINES = [line for path in RECORDED for line in text_of(path).splitlines(keepends=True)[::97]]


@st.composite
def damaged(draw):
    lines = draw(st.lists(st.sampled_from(LINES) | st.sampled_from(ASIDE), min_size=2, max_size=6))
    for _ in range(draw(st.integers(0, 3))):
        n = draw(st.integers(0, len(lines) - 1))
        at = draw(st.integers(0, len(lines[n])))
        put = draw(
            st.sampled_from(
                [b"\n", b"=", b"=\n", b":", b"(", b"[", b"> ", b"\0", b"\xff", b"-", b" ", b"\r", b""]
            )
        )
        drop = draw(st.integers(0, 3))
        lines[n] = lines[n][:at] + put + lines[n][at + drop :]
    return b"".join(lines)


@given(damaged())
@settings(max_examples=200, deadline=None)
def test_damaged_lines_tell_the_same_either_way(text):
    assert told(text) == told(text, is_quick=False)
