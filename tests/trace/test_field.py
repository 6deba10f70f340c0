# SPDX-License-Identifier: GPL-2.0-only
"""Lines that people posted: what each is, and the answer to what they asked.

Expected values are the posters' own, or worked out by hand from the manuals' tables of bits.
"""

import re
from pathlib import Path

import pandas as pd
import pytest

from kvm_pf.trace import load, page

DATA = Path(__file__).parent / "data"


def groups():
    text = (DATA / "lines.txt").read_text(encoding="utf-8")
    parts = re.split(r"^# (\d\d) .*\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def group(tmp_path):
    def read(number):
        path = tmp_path / f"{number}.txt"
        path.write_text(groups()[number], encoding="utf-8")
        return load(path)

    return read


W, R, X = "write", "read", "fetch"

FAULTS = {
    # encoding, code, error code of the fault path, access, address, rip, vcpu
    "01": [
        ("ept", 0x181, 0x100000004, R, 0x113600002, 0x7F08A4602116, 5),
        ("ept", 0x182, 0x100000002, W, 0x113674000, 0xFFFFFFFF81511F37, 7),
        ("ept", 0x182, 0x100000002, W, 0xFEE000B0, 0xFFFFFFFF81040F72, 5),
    ],
    "02": [
        ("ept", 0x181, 0x100000004, R, 0x1050, 1, 0),
        ("ept", 0x1AA, 0x100000003, W, 0xF78, 1, 0),
    ],
    "04": [("npf", 0x4, 0x100000004, R, 0x84D000, None, None)],
    "05": [("npf", 0x200000006, 0x200000006, "walk", 0x1AB000, 0xFFFFFFFFFFBBE119, 0)],
    "06": [("ept", 0x181, 0x100000004, R, 0xFEBD0000, 0xFFFFF802987D6169, None)],
    "08": [("misconfig", None, 0x8, None, None, 0xFFFFF8031964A727, 0)],
    "10": [("misconfig", None, 0x8, None, None, 0x133025, None)],
    "12": [("memfault", 8, None, None, 4096, None, None)],
    "13": [("memfault", 8, None, None, 0x4000000, None, None)],
    "16": [("pf", 0xB, 0xB, W, None, None, None)],
    "17": [],
    "19": [],
    "20": [("pf", 0x10, 0x10, X, 0, 0, 0)],
    "22": [("ept", 0x83, 0x200000006, "walk", 0x7FC0000000, None, None)],
    "25": [("ept", 0x181, 0x100000004, R, 0xD0000000, 0xFFFFFFFF8134C508, None)],
    "30": [("ept", 0x83, 0x200000006, "walk", 0x16E5B2FF8, 0xFFFFFFFFB0E9BED0, 0)],
}

ANSWERS = {
    "01": ["a write, on a page that is not mapped", "0xfee000b0 is the local APIC (EOI)", "record exits"],
    "02": [
        "2 faults came while an event was being delivered to the guest (IDT vectoring 0x80000301)",
        "KVM cannot emulate the instruction (f4) at rip 0x1",
        "in nested guests: 1",
    ],
    "04": [
        "a large page (level 2) took the place of a table: what was mapped in gfn 0x800 to 0x9ff",
        "cut to 32 bits",
    ],
    "05": ["passed to L1", "a walk of the guest's page tables"],
    "06": ["KVM cannot emulate the instruction (f3 a5) at rip 0xfffff802987d6169", "#UD injected"],
    "08": ["EPT calls misconfigured", "in nested guests: 1"],
    "10": ["emulation failed: a reserved bit in the guest's own page tables", "instruction (ec)"],
    "12": ["to make the page private", "KVM_SET_MEMORY_ATTRIBUTES"],
    "13": ["to make the page private", "0x4000000 + 0x1000 to private", "KVM_EXIT 24, SYSTEM_EVENT"],
    "16": ["a reserved bit set, in the guest's own page tables", "physical-address width"],
    "17": [
        "level 1: SPTE 0xfffffc4465825, reserved bits that are set: bits 48-51",
        "reserved bits that are set: none",
    ],
    "19": ["262  @pf[CPU 1/KVM]", "no fault is here: record the events below"],
    "20": ["a supervisor-mode instruction fetch", "1 fault is the guest's own"],
    "22": ["a walk of the guest's page tables (read and write), on a page that is not mapped"],
    "25": ["Only the first one at a page is an EPT violation", "MMIO read"],
    "30": ["a walk of the guest's page tables (read and write), on a page that is not mapped"],
}


def test_every_group_is_expected():
    assert set(groups()) == set(FAULTS) == set(ANSWERS)


def plain(value):
    return None if pd.isna(value) else value


@pytest.mark.parametrize("number", FAULTS)
def test_faults_of_posted_lines(group, number):
    traced = group(number)
    columns = ["encoding", "raw_code", "error_code", "access", "address", "rip", "vcpu"]
    found = [tuple(plain(v) for v in row) for row in traced.faults[columns].astype(object).values.tolist()]  # noqa: PD011
    assert found == FAULTS[number]
    assert traced.reader.unread == []


@pytest.mark.parametrize("number", ANSWERS)
def test_the_page_answers_what_was_asked(group, number):
    text = re.sub(r" +", " ", page(group(number)))
    for answer in ANSWERS[number]:
        assert re.sub(r" +", " ", answer) in text


def test_old_codes_are_marked_as_cut_and_made_whole_where_the_exit_shows_them(group):
    assert group("04").faults["cut"].tolist() == [True]
    assert group("05").faults["cut"].tolist() == [False]


def test_the_two_sides_of_one_report_are_the_same_fault(tmp_path):
    # "Deadlock due to EPT_VIOLATION": the Intel host shows 0x683, the AMD host 0x200000006.
    line = "kvm_page_fault: vcpu 0 rip 0x1 address 0x0000000000001000 error_code {}\n"
    (tmp_path / "intel").write_text(line.format("0x683"))
    (tmp_path / "amd").write_text(line.format("0x200000006"))
    intel, amd = load(tmp_path / "intel").faults, load(tmp_path / "amd").faults
    same = ["error_code", "access", "mapped", "flags"]
    assert intel[same].equals(amd[same])
    assert intel["encoding"].item() == "ept"
    assert amd["encoding"].item() == "npf"
