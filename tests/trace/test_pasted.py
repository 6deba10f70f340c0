# SPDX-License-Identifier: GPL-2.0-only
"""Lines at hand, read with nothing but the standard library: the same faults and the same words as the table has."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.trace import load
from kvm_pf.trace.pasted import LARGEST, read_text, repeated

DATA = Path(__file__).parent / "data"
RECORDINGS = data_dir() / "recordings"
FILES = [
    DATA / "2-swprot.v7.dat",
    DATA / "2-swprot.report.txt.gz",
    RECORDINGS / "6.12" / "2-swprot.trace.gz",
    RECORDINGS / "6.12-intel" / "1-default.trace.gz",
    RECORDINGS / "6.1-debian" / "1-default.trace.gz",
]

SPIN = "".join(
    f" CPU 0/KVM-4145 [002] ..... 86.58{n:04d}: kvm_page_fault: vcpu 0 rip 0x1000 address 0x5000 error_code 0x683\n"
    for n in range(0, 60, 10)
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_faults_codes_outcomes_and_words_are_those_of_the_table(path):
    pasted, table = read_text(path.read_bytes(), path.name), load(path).faults
    assert [told.fault.line for told in pasted.faults] == table["line"].tolist()
    assert [told.sentence for told in pasted.faults] == table["meaning"].tolist()
    assert [told.fault.outcome for told in pasted.faults] == table["outcome"].tolist()
    codes = table["raw_code"].astype(object)
    assert [told.fault.raw_code for told in pasted.faults] == codes.where(codes.notna(), None).tolist()


def test_alike_faults_are_one_kind_with_its_rate():
    other = SPIN.replace("0x683", "0x181")[: len(SPIN) // 6]
    kinds = read_text(SPIN + other).kinds()
    assert [len(kind.faults) for kind in kinds] == [6, 1]
    assert kinds[0].first.sentence == (
        "a walk of the guest's page tables (read and write), on a page that is not mapped"
    )
    assert kinds[0].rate == pytest.approx(100_000, rel=1e-6)  # one each 10 µs
    assert kinds[1].rate is None
    assert repeated(kinds) == kinds[:1]


def test_every_fault_is_in_one_kind():
    pasted = read_text(FILES[2].read_bytes())
    assert sum(len(kind.faults) for kind in pasted.kinds()) == len(pasted.faults) == 34


def test_a_line_that_looks_like_ours_is_kept():
    pasted = read_text("kvm_page_fault: address nowhere\n" + SPIN)
    assert [unread.line for unread in pasted.unread] == [1]
    assert len(pasted.faults) == 6


@pytest.mark.parametrize("given", ["", "\n\n", "good morning", b"\xff\xfe\0\0"])
def test_nothing_of_ours_is_no_fault(given):
    assert read_text(given).faults == []


def test_what_cannot_be_read_is_named_as_the_reader_knows_it():
    with pytest.raises(InputError, match=r"^half\.dat: "):
        read_text(FILES[0].read_bytes()[:200], "half.dat")
    with pytest.raises(InputError, match=r"^big\.txt: 16,777,217 bytes"):
        read_text(bytes(LARGEST + 1), "big.txt")


def test_no_library_is_needed():
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pandas', 'numpy', 'pyarrow', 'matplotlib', 'numba', 'z3'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from kvm_pf.trace.pasted import read_text\n"
        "from kvm_pf.common.errors import InputError\n"
        "print(read_text('kvm_page_fault: address febd0000 error_code 181').faults[0].sentence)\n"
        "for title, lines, _ in read_text(sys.argv[2]).aside:\n"
        "    print(title, *lines, sep=' | ')\n"
        "try:\n"
        "    read_text(open(sys.argv[1], 'rb').read(), 'it')\n"
        "except InputError as error:\n"
        "    print(error)"
    )
    others = (
        "kvm_convert_memory start 0x4000000 size 0x1000 shared_to_private\n"
        "get_mmio_spte: reserved bits set on MMU-present spte, addr 0xfffff000, hierarchy:\n"
        "------ spte = 0xfffffc4465825 level = 1, rsvd bits = 0xffff000000000000\n"
        "@pf[CPU 1/KVM]: 262\nKVM: unknown exit reason 24 EAX=00000000 EBX=00000000\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, FILES[0], others], capture_output=True, text=True, check=True
    )
    ended = "SYSTEM_EVENT (shutdown, reset, or an SEV guest that ends itself)"
    assert run.stdout.splitlines() == [
        "a read, on a page that is not mapped",
        "Conversions | line 1: 0x4000000 + 0x1000 to private by user space; then 0 faults, 0 of them memory "
        "faults",
        "Entries that KVM finds reserved bits in | level 1: SPTE 0xfffffc4465825, reserved bits that are set: bits "
        "48-51",
        "Counts (bpftrace, ftrace's triggers) |     262  @pf[CPU 1/KVM]",
        f"To know | line 5: user space met KVM_EXIT 24, {ended}",
        "it: it is packed with zstd, which takes pyarrow to unpack: unpack it first",
    ]


@pytest.mark.parametrize(
    ("codes", "runs"),
    [
        ("AAAAA", {"A": 5}),
        ("ABABABABAB", {"A": 5, "B": 5}),
        ("AAAABAAAAA", {"A": 5, "B": 1}),
        ("ABBBABBABA", {"A": 2, "B": 3}),
        ("A" + "BCDEFGHIJ" + "A", {"A": 1}),
    ],
)
def test_a_repetition_is_a_run_in_a_short_cycle(codes, runs):
    line = "kvm_page_fault: vcpu 0 rip 0x1 address {}000 error_code 0x181\n"
    digits = codes.translate(str.maketrans("GHIJ", "1234"))
    kinds = read_text("".join(line.format(f"0x{digit}") for digit in digits)).kinds()
    found = {f"{kind.first.fault.address >> 12:X}": kind.run for kind in kinds}
    assert {code: found[code] for code in runs} == runs


def test_faults_that_come_back_now_and_then_are_no_repetition():
    kinds = read_text(FILES[2].read_bytes()).kinds()
    assert max(len(kind.faults) for kind in kinds) >= 5
    assert repeated(kinds) == []
