# SPDX-License-Identifier: GPL-2.0-only
"""The same fault in everybody's form; storms and conversions that are known by construction; hostile input."""

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.cli import main
from kvm_pf.common.errors import InputError
from kvm_pf.trace import chunks, conversions, load, page, read, storms
from kvm_pf.trace.fast import _finder
from kvm_pf.trace.lines import LONGEST, Reader

NEW = "vcpu 3 rip 0xffffffff81000000 address 0x00000000fee000b0 error_code 0x182"

FORMS = {
    "ftrace": f"       CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_fault: {NEW}",
    "ftrace, 4 flags": f"       CPU 5/KVM-4145    [002] d...    86.581928: kvm_page_fault: {NEW}",
    "ftrace, thread group": f"       CPU 5/KVM-4145    (   4100) [002] .....    86.581928: kvm_page_fault: {NEW}",
    "trace-cmd report": f"       CPU 5/KVM-4145  [002]    86.581928: kvm_page_fault:       {NEW}",
    "perf script": f"       CPU 5/KVM  4145 [002]    86.581928:       kvm:kvm_page_fault: {NEW}",
    "perf script, period": f"       CPU 5/KVM  4100/4145 [002]    86.581928:      1   kvm:kvm_page_fault: {NEW}",
    "perf trace": f"   86581.928 CPU 5/KVM/4145 kvm:kvm_page_fault:{NEW}",
    "perf trace, arguments": "   86581.928 (         ): CPU 5/KVM/4145 kvm:kvm_page_fault(vcpu_id: 3, "
    "guest_rip: 18446744071578845184, fault_address: 4276093104, error_code: 386)",
    "quoted": f"> >        CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_fault: {NEW}",
    "wrapped after rip": f"CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_fault: {NEW}".replace(
        "rip ", "rip\n"
    ),
    "quoted and wrapped": f"> CPU 5/KVM-4145 [002] ..... 86.581928: kvm_page_fault: {NEW}".replace(
        "address ", "address\n> "
    ),
    "wrapped before the time": f"CPU 5/KVM-4145    [002] .....\n86.581928: kvm_page_fault: {NEW}",
    "wrapped before the name": f"CPU 5/KVM-4145    [002] .....    86.581928:\nkvm_page_fault: {NEW}",
    "quoted-printable": f"CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_=\nfault: {NEW}",
    "foreign blanks": f"CPU 5/KVM-4145\u00a0\u00a0[002] .....\ufffd 86.581928: kvm_page_fault:\u00a0{NEW}",
    "carriage returns": f"CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_fault: {NEW}\r",
}

WHERE_NO_CPU = ("perf trace", "perf trace, arguments")


@pytest.mark.parametrize("form", FORMS)
def test_one_fault_in_every_form(form, tmp_path):
    path = tmp_path / "trace"
    path.write_text(f"\n# a remark\n{FORMS[form]}\n", encoding="utf-8", newline="")
    traced = load(path)
    assert traced.reader.unread == []
    (row,) = traced.faults.itertuples()
    assert (row.time, row.task, row.pid, row.vcpu) == (86.581928, "CPU 5/KVM", 4145, 3)
    assert form in WHERE_NO_CPU or row.cpu == 2
    assert (row.rip, row.gpa, row.gfn) == (0xFFFFFFFF81000000, 0xFEE000B0, 0xFEE00)
    assert (row.raw_code, row.encoding, row.error_code) == (0x182, "ept", 0x100000002)


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_files_are_told_by_their_first_bytes(kind, tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(PACKED[kind]((FORMS["ftrace"] + "\n").encode() * 3))
    assert len(read(path)) == 3


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_packed_file_that_was_cut_is_refused(kind, tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(PACKED[kind]((FORMS["ftrace"] + "\n").encode() * 300)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_standard_input_is_read(monkeypatch):
    data = io.BufferedReader(io.BytesIO((FORMS["ftrace"] + "\n").encode() * 5))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert len(read("-")) == 5


MEMORY_FAULTS = {
    "Rust": "Unexpected exit: MemoryFault { flags: 8, gpa: 4096, size: 8192 }",
    "Rust, over lines": "exit: MemoryFault {\n    flags: 8,\n    gpa: 4096,\n    size: 8192,\n}",
    "QEMU": "qemu-system-x86_64: warning: memory fault: GPA 0x1000 size 0x2000 flags 0x8",
    "a C program": "KVM_EXIT_MEMORY_FAULT: gpa=0x1000 size=0x2000 flags=0x8",
}


@pytest.mark.parametrize("form", MEMORY_FAULTS)
def test_memory_faults_of_several_user_spaces(form, tmp_path):
    path = tmp_path / "log"
    path.write_text(MEMORY_FAULTS[form] + "\n")
    (row,) = read(path).itertuples()
    assert (row.encoding, row.gpa, row.size, row.private) == ("memfault", 0x1000, 0x2000, True)


def test_a_line_of_ours_that_cannot_be_read_is_kept_with_its_number(tmp_path):
    path = tmp_path / "trace"
    lines = [
        FORMS["ftrace"],
        "kvm_page_fault: vcpu 1 rip 0x1 address zzz error_code 0x1",
        "",
        FORMS["ftrace"],
    ]
    path.write_text("\n".join(lines) + "\n")
    traced = load(path)
    assert len(traced.faults) == 2
    assert [(unread.line, "zzz" in unread.text) for unread in traced.reader.unread] == [(2, True)]
    assert traced.faults.attrs["unread"] == 1
    assert "line 2" in page(traced)


def test_lost_events_are_counted(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        f"# entries-in-buffer/entries-written: 10/15   #P:1\nCPU:3 [LOST 7 EVENTS]\n{FORMS['ftrace']}\n"
    )
    assert load(path).reader.lost == 12


def faults_text(count, period=1, step=0.001):
    rows = []
    for n in range(count):
        turn = n % period
        rows.append(
            f"CPU 0/KVM-100 [000] ..... {10 + n * step:.6f}: kvm_page_fault: vcpu 0 rip {0x1000 + turn:#x} "
            f"address {0x5000 + 0x1000 * turn:#018x} error_code 0x83"
        )
    return "\n".join(rows) + "\n"


def test_a_storm_is_found_with_rate_span_and_words(tmp_path):
    path = tmp_path / "trace"
    path.write_text(FORMS["ftrace"] + "\n" + faults_text(1001) + FORMS["ftrace"] + "\n")
    (row,) = storms(read(path)).itertuples()
    assert (row.faults, row.cycle, row.first_line, row.last_line) == (1001, 1, 2, 1002)
    assert row.span == pytest.approx(1.0)
    assert row.rate == pytest.approx(1000)
    assert "a walk of the guest's page tables" in row.stuck_on
    assert "0x5000" in row.stuck_on


@pytest.mark.parametrize("period", [2, 3, 8])
def test_a_cycle_of_several_faults_is_one_storm(period, tmp_path):
    path = tmp_path / "trace"
    path.write_text(faults_text(period * 20, period))
    (row,) = storms(read(path)).itertuples()
    assert (row.faults, row.cycle) == (period * 20, period)


def test_ordinary_faults_are_no_storm(tmp_path):
    path = tmp_path / "trace"
    path.write_text(faults_text(500, 500))
    assert len(storms(read(path))) == 0


def test_two_vcpus_in_turn_are_two_storms(tmp_path):
    path = tmp_path / "trace"
    one = "A-{0} [000] ..... 1.{1:06}: kvm_page_fault: vcpu {0} rip 0x1 address 0x{0}000 error_code 0x182\n"
    path.write_text("".join(one.format(1 + n % 2, n) for n in range(200)))
    table = storms(read(path))
    assert sorted(table["vcpu"]) == [1, 2]
    assert table["faults"].tolist() == [100, 100]


def test_conversions_are_read_from_hypercalls_and_strace(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        "A-1 [000] ..... 1.000001: kvm_hypercall: nr 0xc a0 0x100000 a1 0x2 a2 0x10 a3 0x0\n"
        "ioctl(9, KVM_SET_MEMORY_ATTRIBUTES, {address=0x100000, size=0x2000, attributes=0, flags=0}) = 0\n"
    )
    table = conversions(load(path))
    assert table["gpa"].tolist() == [0x100000] * 2
    assert table["size"].tolist() == [0x2000] * 2
    assert table["private"].tolist() == [True, False]


def test_chunks_are_the_table_in_parts(tmp_path):
    path = tmp_path / "trace"
    path.write_text(faults_text(100))
    parts = list(chunks(path, rows=30))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    assert [line for part in parts for line in part["line"]] == read(path)["line"].tolist()


def test_64_bit_values_stay_exact(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        "kvm_page_fault: vcpu 0 rip 0xffffffffffffffff address 0x0020000000000001 error_code 0x2000000000001\n"
        "kvm_page_fault: address 1000 error_code 14\n"
    )
    table = read(path)
    assert table["rip"][0] == (1 << 64) - 1
    assert table["address"][0] == (1 << 53) + 1
    assert table["raw_code"][0] == (1 << 49) + 1
    assert str(table["rip"].dtype) == "UInt64"


# --- hostile ---


def test_no_control_character_reaches_the_page(tmp_path, capsys):
    path = tmp_path / "trace"
    evil = "\x1b[2J\x9b31m\u202e\x07"
    path.write_text(
        f"{evil}-5 [000] ..... 1.000000: kvm_exit: reason {evil}NPF rip 0x1 info 4 1000\n"
        f"kvm_page_fault: {evil} address 1000 error_code {evil}\n@pf[{evil}]: 5\n"
        f"A-5 [000] ..... 1.000000: kvm_inj_exception: {evil} (0x1)\n" + FORMS["ftrace"] + "\n",
        encoding="utf-8",
    )
    assert main(["trace", str(path)]) == 0
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().out)


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "[1] ",
        ">",
        "> ",
        "=",
        "-",
        "kvm_page_fault: ",
        "@[",
        "memory fault flags ",
        "reason error (",
        "\u00a0",
    ],
)
def test_long_lines_take_bounded_time(piece, tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        (piece * (LONGEST // len(piece.encode()) - 1) + "\n") * 50 + piece * 200_000, encoding="utf-8"
    )
    start = time.process_time()
    load(path)
    assert time.process_time() - start < 5


def test_a_line_longer_than_the_limit_is_counted_and_the_next_is_read(tmp_path):
    path = tmp_path / "trace"
    path.write_text("x" * (LONGEST * 3 + 5) + "\n" + FORMS["ftrace"] + "\n")
    traced = load(path)
    assert len(traced.faults) == 1
    assert traced.reader.cut == traced.reader.unread_count == 1


@given(
    st.lists(st.sampled_from([*FORMS.values(), *MEMORY_FAULTS.values(), faults_text(2)]), max_size=5),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_damaged_text_never_crashes(parts, data):
    text = bytearray("\n".join(parts).encode())
    for _ in range(data.draw(st.integers(0, 8))):
        if text:
            at = data.draw(st.integers(0, len(text) - 1))
            text[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    reader = Reader()
    for event in reader.read(io.BytesIO(bytes(text))):
        assert event.line >= 1


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 5000, b"\x17\x08\x44tracing", b"\x1f\x8b", b"hello\n", bytes(range(256)) * 40]
)
def test_what_is_no_trace_is_refused_in_one_line(data, tmp_path, capsys):
    path = tmp_path / "x"
    path.write_bytes(data)
    assert main(["trace", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["/nonexistent", "/"])
def test_a_file_that_is_not_there_is_refused_in_one_line(path, capsys):
    assert main(["trace", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_json_and_parquet_hold_the_faults(tmp_path, capsys):
    import pandas as pd

    path, out = tmp_path / "trace", tmp_path / "faults.parquet"
    path.write_text(FORMS["ftrace"] + "\n")
    assert main(["trace", str(path), "--json", "--parquet", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["faults"][0]["raw_code"] == "0x182"
    assert pd.read_parquet(out)["raw_code"].tolist() == [0x182]


def test_live_input_through_a_pipe():
    done = subprocess.run(
        [sys.executable, "-m", "kvm_pf", "trace", "-"],
        input=faults_text(50),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Storms" in done.stdout


def test_the_compiled_scanner_gives_the_same_values(tmp_path):
    import pandas as pd

    from kvm_pf.trace.fast import scan

    path = tmp_path / "trace"
    forms = [FORMS[form] for form in ("ftrace", "ftrace, 4 flags", "trace-cmd report", "perf script")]
    old = "A-1 [000] ..... 5.250000: kvm_page_fault: address 1ab000 error_code 200000006"
    text = faults_text(400) + "\n".join([*forms, old, "kvm_page_fault: address 84d000 error_code 4", ""])
    path.write_text(text)
    whole = read(path)
    names = ["time", "vcpu", "rip", "address", "raw_code", "cut", "encoding", "error_code", "access"]
    for threads, chunk in ((1, 1 << 20), (2, 1000), (2, 333)):
        table = pd.concat(scan(path, threads=threads, chunk=chunk, vendor="both"), ignore_index=True)
        assert table["offset"].is_monotonic_increasing
        for name in names:
            assert (
                table[name].astype(object).fillna(0).tolist() == whole[name].astype(object).fillna(0).tolist()
            ), name


@pytest.mark.parametrize("library", [True, False])
def test_the_name_is_found_at_every_place_with_and_without_the_c_librarys_search(library, monkeypatch):
    if not library:
        monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    find, name = _finder(), b"kvm_page_fault:"
    chance = random.Random(2)
    parts = [name, name[:-1], name[1:], b"kvm_", b":", b"fault:", b"x" * 20]
    text = b"".join(chance.choice(parts) for _ in range(200))
    data = np.frombuffer(text, dtype=np.uint8)
    for start, end in [
        (0, len(text)),
        (len(text), len(text)),
        *((chance.randrange(900), chance.randrange(900, 1500)) for _ in range(99)),
    ]:
        assert find(data, start, end) == text.find(name, start, end)


def test_the_compiled_scanner_tells_codes_apart_however_many_there_are(tmp_path):
    """More codes than are numbered at first; equal ones that are cut or whole; of a TDX guest or of another."""
    import pandas as pd

    from kvm_pf.trace.fast import scan

    chance = random.Random(7)
    codes = [chance.getrandbits(chance.choice((3, 8, 9, 40, 64))) for _ in range(6000)] + [
        0x81,
        0x82,
        0x2,
    ] * 20
    chance.shuffle(codes)
    lines = []
    for n, code in enumerate(codes):
        rip, address = (
            chance.choice((0, 1 << 40)),
            chance.choice((0, 1 << 47, 1 << 51)) | chance.getrandbits(30),
        )
        rest = f"rip {rip:#x} address {address:#x} error_code {code:#x}"
        old = f"address {address:x} error_code {code & 0xFFFFFFFF:x}"
        lines.append(f"A-1 [000] ..... {n}.250000: kvm_page_fault: {old if n % 3 else f'vcpu 1 {rest}'}\n")
    path = tmp_path / "trace"
    path.write_text("".join(lines))
    whole = read(path, "posted")
    assert len(whole[["raw_code", "cut"]].drop_duplicates()) > 2048
    table = pd.concat(scan(path, vendor="both"), ignore_index=True)
    assert (whole["encoding"] == "tdx").sum() > 10
    for name in ("raw_code", "cut", "encoding", "error_code", "access"):
        assert (
            table[name].astype(object).fillna(0).tolist() == whole[name].astype(object).fillna(0).tolist()
        ), name


def test_the_compiled_scanner_counts_what_it_cannot_read(tmp_path):
    from kvm_pf.trace.fast import scan

    path = tmp_path / "trace"
    path.write_text(
        "kvm_page_fault: vcpu 1 rip\n0x1 address 0x1 error_code 0x1\nkvm_page_fault: nonsense\n"
        + faults_text(3)
    )
    (table,) = scan(path)
    assert len(table) == 3
    assert table.attrs["unread"] == 2


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_trace_that_is_damaged_is_refused_by_name(tmp_path, pack):  # found by make fuzz, case 90
    whole = pack((FORMS["ftrace"] + "\n").encode() * 50)
    for at in range(6, len(whole), 3):  # behind what says how it is packed
        path = tmp_path / f"{at}.trace"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        said = path.name
        try:
            read(path)
        except InputError as error:
            said = str(error)
        assert path.name in said


# Dumps and lines of people's own scripts: the text, and each fault as (source, code, address, encoding).
DUMPED = {
    "KVM's VMCB": (
        "[47175.219980] SVM: exit_code:          00000400\n[47175.220208] SVM: exit_info1:         0000000100000014\n"
        "[47175.220441] SVM: exit_info2:         00000000000fc000\n[47175.220684] SVM: exit_int_info:      00000000\n",
        [("npf", 0x100000014, 0xFC000, "npf")],
    ),
    "KVM's VMCB, of another exit": (
        "kvm_amd: exit_code:          ffffffff\nkvm_amd: exit_info1:         0000000000000000\n", [],
    ),
    "KVM's VMCS": (
        "kvm_intel: VMExit: intr_info=00000000 errcode=00000000 ilen=00000003\n"
        "kvm_intel:         reason=00000030 qualification=0000000000000981\n"
        "kvm_intel: IDTVectoring: info=800000ec errcode=00000000\n",
        [("ept", 0x981, None, "ept")],
    ),
    "KVM's VMCS, entry failed": ("        reason=80000021 qualification=0000000000000000\n", []),
    # KVM_INTERNAL_ERROR_EMULATION: flags, then the exit's reason and infos (prepare_emulation_failure_exit, v6.12)
    "internal error 1": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000000\nextra data[1]: 0x0000000000000400\n"
        "extra data[2]: 0x000000010000000f\nextra data[3]: 0x00000000fed00000\nextra data[4]: 0x0000000000000000\n",
        [("npf", 0x10000000F, 0xFED00000, "npf")],
    ),
    "internal error 1, with the instruction": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x1\nextra data[1]: 0x41c03127ae0f480f\n"
        "extra data[2]: 0x8b4865ca010fc489\nextra data[3]: 0x30\nextra data[4]: 0x584\n",
        [("ept", 0x584, None, "ept")],
    ),
    # KVM_INTERNAL_ERROR_DELIVERY_EV: the event, reason, qualification (not defined for 49), address, CPU
    "internal error 3": (
        "KVM internal error. Suberror: 3\nextra data[0]: 0x0000000080000b0e\nextra data[1]: 0x0000000000000031\n"
        "extra data[2]: 0x0000000000000683\nextra data[3]: 0x000000007f809000\nextra data[4]: 0x0000000000000026\n",
        [("misconfig", None, 0x7F809000, "misconfig")],
    ),
    "internal error 3, of a WRMSR": (
        "KVM internal error. Suberror: 3\nextra data[0]: 0x8000002f\nextra data[1]: 0x20\nextra data[2]: 0xf82\n", [],
    ),
    "two internal errors": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0\nextra data[1]: 0x30\nextra data[2]: 0x181\n"
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0\nextra data[1]: 0x30\nextra data[2]: 0x182\n",
        [("ept", 0x181, None, "ept"), ("ept", 0x182, None, "ept")],
    ),
    "a script of bpftrace, decimal code": (
        "vcpu 3 gpa 0xfee00300 error_code 386\n", [("", 0x182, 0xFEE00300, "ept")],
    ),
    "a script, everything decimal": (
        "vcpu=1 gpa=4620025858 error_code=4294967302\n", [("", 0x100000006, 0x113600002, "npf")],
    ),
    "a script, hexadecimal": ("addr: 113600002 error_code: 0x683\n", [("", 0x683, 0x113600002, "ept")]),
    "Rust, a tuple": (
        "thread 'vcpu0' panicked: Unexpected exit: MemoryFault(8, 1048576, 4096)\n",
        [("memory_fault", 8, 0x100000, "memfault")],
    ),
    # up to 5.9 the second info of an exception is the interruption information: here an intercepted #PF
    "an intercepted #PF, before 5.10": (
        "a.out-20024 [001] .... 2323301.154940: kvm_exit: reason EXCEPTION_NMI rip 0x1000 info 1000 80000b0e\n"
        "a.out-20024 [001] .... 2323301.154942: kvm_page_fault: address 1000 error_code 14\n",
        [("pf", 0x14, 0x1000, "pf")],
    ),
    "LTTng": (
        "[13:36:05.386] (+0.000001234) host kvm_x86_page_fault: { cpu_id = 3 }, { fault_address = 4276093104, "
        "error_code = 386 }\n",
        [("", 0x182, 0xFEE000B0, "ept")],
    ),
    "drgn": (
        "{ .addr = (const gpa_t)4276093104, .error_code = (const u64)4294967302 }\n",
        [("", 0x100000006, 0xFEE000B0, "npf")],
    ),
    "nested, as old kernels print": (
        " kvm_nested_vmexit: rip: 0x00000000004004d0 reason: EXIT_NPF ext_inf1: 0x0000000100000006 ext_inf2:"
        " 0x0000000000641000 ext_int: 0x00000000 ext_int_err: 0x00000000\n",
        [("npf", 0x100000006, 0x641000, "npf")],
    ),
    "an exit by its number": (
        "kvm_exit: reason 48 rip 0xffffffff81000000 info 181 0\nkvm_exit: vcpu 0 reason UNKNOWN (49) rip 0x1 info1 0x0"
        " info2 0x0 intr_info 0x0 error_code 0x0\n",
        [("ept", 0x181, None, "ept"), ("misconfig", None, None, "misconfig")],
    ),
    "another hypervisor": (
        "EPT_VIOLATION exit qual 0x182 gpa 0xfee000b0\n", [("", 0x182, 0xFEE000B0, "ept")],
    ),
    # a TDX guest (from 6.16 on): rip 0, no linear address, private accesses traced as writes
    "TDX, private": (
        "q-1 [003] ..... 100.0: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000012345000 error_code 0x2\n",
        [("", 0x2, 0x12345000, "tdx")],
    ),
    "TDX, shared": (
        "q-1 [003] ..... 100.0: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000800012345000 error_code 0x1\n",
        [("", 0x1, 0x800012345000, "tdx")],
    ),
    "TDX, with the exit": (
        "q-1 [003] d.... 100.000000: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 info1 0x0000000000000003 info2"
        " 0x0000000000000006 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000\n"
        "q-1 [003] ..... 100.000001: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000012345000 error_code 0x2\n",
        [("ept", 0x2, 0x12345000, "tdx")],
    ),
    "shadow paging at address 0": (
        "s-1 [003] ..... 100.0: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000000000 error_code 0x10\n",
        [("", 0x10, 0x0, "pf")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DUMPED)
def test_faults_in_dumps_and_scripts_are_found(name, tmp_path):
    text, wanted = DUMPED[name]
    path = tmp_path / "log"
    path.write_text(text)
    traced = load(path)
    found = traced.faults[["source", "raw_code", "address", "encoding"]].astype(object)
    assert [
        tuple(None if pd.isna(value) else value for value in row) for row in found.itertuples(index=False)
    ] == wanted
    assert not traced.reader.unread
    assert page(traced)


@pytest.mark.parametrize(
    ("info1", "vectoring"), [(0x0, None), (0x1, None), (0x4, None), (0x81, 0x80000301), (0x184, 0x80000301)]
)
def test_the_second_info_of_a_tdx_guests_exit_is_no_event(tmp_path, info1, vectoring):
    """But the extended exit qualification: Linux `arch/x86/kvm/vmx/tdx.c`, tdx_get_exit_info() (v6.16)."""
    path = tmp_path / "trace"
    path.write_text(
        f"q-1 [003] d.... 100.000000: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 info1 {info1:#018x}"
        " info2 0x0000000080000301 intr_info 0x00000000 error_code 0x00000000\n"
    )
    assert read(path)["vectoring"].astype(object).fillna(0).tolist() == [vectoring or 0]


def test_a_tdx_guests_accesses_are_told_apart_by_the_address(tmp_path):
    path = tmp_path / "trace"
    path.write_text(DUMPED["TDX, private"][0] + DUMPED["TDX, shared"][0])
    faults = read(path)
    assert faults["private"].tolist() == [True, False]
    # what kvm_mmu_page_fault() gets: a write to private memory; USER stands for a read (vmx/common.h, v6.16 to 7.2)
    assert faults["error_code"].tolist()[0] & (1 << 49 | 2) == 1 << 49 | 2
    assert "private memory of a TDX guest" in faults["meaning"].iloc[0]
    assert "a read of shared memory" in faults["meaning"].iloc[1]


def test_a_reserved_bit_under_shadow_paging_is_kvms_mark_and_in_a_guests_report_its_own(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        "kvm_page_fault: vcpu 0 rip 0xffffffff81000000 address 0xffffc90000000000 error_code 0xd\n"
        "[    0.414047] #PF: error_code(0x000b) - reserved bit violation\n"
    )
    shadow, own = sorted(read(path)["meaning"], key=lambda said: "own" in said)
    assert shadow.endswith("which under shadow paging is how KVM marks MMIO")
    assert own.endswith("in the guest's own page tables")


def test_counts_of_ftraces_triggers_are_counts(tmp_path):
    path = tmp_path / "hist"
    path.write_text(
        "{ error_code: 0x181 } hitcount: 52\n{ address: 0xfee000b0, error_code: 386 } hitcount: 7\n"
    )
    traced = load(path)
    assert traced.faults.empty
    assert [count["count"] for count in traced.joiner.counts] == [52, 7]
    assert "if a code, 0x182: a write, on a page that is not mapped (ept)" in page(traced)


def test_a_stack_trace_beside_an_event_is_no_line_that_could_not_be_read(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        "notdxvm-533084  [088] ..... 14915.616719: kvm_mmio: mmio write len 4 gpa 0xc0004014 val 0x0\n"
        "notdxvm-533084  [088] ...1. 14915.616720: <stack trace>\n=> trace_event_raw_event_kvm_mmio\n=> write_mmio\n"
    )
    assert not load(path).reader.unread


# --- by field, by hand, and dumps of other hypervisors ---

RAW = "CPU 5/KVM-4145  [002]    86.581928: "

OTHERS = {
    # `trace-cmd report -R` and perfetto print fields: longs as 0x…, others in decimal; 385 is 0x181
    "raw, 6.1 on": (
        f"{RAW}kvm_page_fault: vcpu_id=5 guest_rip=0x7f08a4602116 fault_address=4620025858 error_code=385\n",
        [(0x181, "ept", 0x113600002)],
    ),
    "raw, before 6.1": (
        f"{RAW}kvm_page_fault: fault_address=0xfee000b0 error_code=386\n", [(0x182, "ept", 0xFEE000B0)]
    ),
    "raw, an exit": (
        f"{RAW}kvm_exit: exit_reason=48 guest_rip=0x1000 isa=1 info1=386 info2=0 intr_info=0 error_code=0 vcpu_id=5\n"
        f"{RAW}kvm_page_fault: vcpu_id=5 guest_rip=0x1000 fault_address=4276093104 error_code=386\n",
        [(0x182, "ept", 0xFEE000B0)],
    ),
    "perfetto": (
        "CPU 5/KVM-4145  ( 4140) [002] .... 86.581928: kvm_page_fault: vcpu_id=5 guest_rip=139674 "
        "fault_address=4620025858 error_code=8589934598\n",
        [(0x200000006, "npf", 0x113600002)],
    ),
    "JSON, hexadecimal": (
        '{"ts":86.58,"event":"kvm_page_fault","vcpu":5,"rip":"0x7f08","address":"0x113600002","error_code":"0x181"}\n',
        [(0x181, "ept", 0x113600002)],
    ),
    "JSON, decimal": (
        '{"event":"kvm_page_fault","vcpu_id":5,"guest_rip":139674,"fault_address":4620025858,"error_code":385}\n',
        [(0x181, "ept", 0x113600002)],
    ),
    "JSON, a memory fault": ('{"flags":8,"gpa":67108864,"size":4096}\n', [(8, "memfault", 0x4000000)]),
    "by hand": ("vcpu=5 rip=7f08a4602116 gpa=113600002 ec=181\n", [(0x181, "ept", 0x113600002)]),
    "by hand, err": ("pf: gpa 0x113600002 err 0x200000006 vcpu 5\n", [(0x200000006, "npf", 0x113600002)]),
    "any error beside an address": ("qemu: gpa 0x80000000 code 14\nkvm: gpa 0x1000 error 5\n", []),
    "bhyve, VMX": (
        "vm exit[0]\n\treason\t\tVMX\n\trip\t\t0x00000000ffffff53\n\tinst_length\t3\n\tstatus\t\t0\n"
        "\texit_reason\t48 (EPT violation)\n\tqualification\t0x0000000000000181\n\tinst_type\t\t0\n",
        [(0x181, "ept", None)],
    ),
    "bhyve, VMX, another exit": (
        "vm exit[0]\n\treason\t\tVMX\n\texit_reason\t30\n\tqualification\t0x0000000000000181\n", []
    ),
    "bhyve, SVM": (
        "vm exit[0]\n\treason\t\tSVM\n\trip\t\t0x0\n\tinst_length\t0\n\texitcode\t0x400\n\texitinfo1\t0x100000006\n"
        "\texitinfo2\t0xfee000b0\n",
        [(0x100000006, "npf", 0xFEE000B0)],
    ),
    "Xen, EPT": (
        "(XEN) d1v0 EPT violation 0x1aa (-w-/r-x) gpa 0x000000fee000b0 mfn 0xffffffffffffffff type 5\n"
        "(XEN) d1v0 Walking EPT tables for GFN fee00:\n(XEN) d1v0  epte 9c0000003f7d2107\n",
        [(0x1AA, "ept", 0xFEE000B0)],
    ),
    "Xen, a VMCB": (
        "(XEN) d1v0 VMCB dump:\n(XEN) exitcode = 0x400 exitintinfo = 0\n"
        "(XEN) exitinfo1 = 0x100000006 exitinfo2 = 0xfee000b0\n",
        [(0x100000006, "npf", 0xFEE000B0)],
    ),
    "VirtualBox": ("HM: EPT violation uExitQual=0x182 GCPhys=0xfee000b0\n", [(0x182, "ept", 0xFEE000B0)]),
    "ACRN": ("ept violation [exit qual = 0x00000182, gpa = 0xfee000b0]\n", [(0x182, "ept", 0xFEE000B0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_fields_hand_written_lines_and_dumps_of_others_are_read(name, tmp_path):
    text, expected = OTHERS[name]
    path = tmp_path / "trace"
    path.write_text(text)
    faults = read(path)
    found = [
        (int(row.raw_code), row.encoding, None if pd.isna(row.address) else int(row.address))
        for row in faults.itertuples()
    ]
    assert found == expected
    assert faults.attrs["unread"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("       EPT_VIOLATION      52310    96.02%    99.10%      0.57us\n", "how often exits came"),
        (" Event            Total %Total CurAvg/s\n kvm_exit        52310   50.0    1000\n", "how often"),
        ("         1,192,184      kvm:kvm_page_fault\n", "counts only"),
        ("*** STOP: 0x00000050 (0xFFFFF8A00B2D7000, 0x1, 0xFFFFF80002CD5C3A, 0x0)\n", "Windows"),
        ("    521 0x683\n     12 0x181\n", "kvm-pf decode reads 0x683, EPT-violation exit qualification"),
        ("kvm_mmu_page_fault(vcpu=0xffff8881, cr2_or_gpa=0xfee000b0, error_code=0x100000006) {\n",
         "kvm-pf decode reads 0x100000006, page-fault error code inside KVM"),
    ],
)  # fmt: skip
def test_a_file_without_faults_is_called_what_it_is(text, said, tmp_path):
    path = tmp_path / "trace"
    path.write_text(text)
    told = page(load(path))
    assert said in told.split("What this is\n")[1].split("\n\n")[0]


def test_a_trace_or_prose_without_faults_is_called_nothing(tmp_path):
    path = tmp_path / "trace"
    for text in ("", "hello world\n", f"{RAW}kvm_entry: vcpu 0, rip 0x1000\n"):
        path.write_text(text)
        assert "What this is" not in page(load(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"       EPT_VIOLATION      52310    96.02%    99.10%      0.57us\n",
            "here is: how often exits came, not why",
        ),
        (
            b"    521 0x683\n     12 0x181\n",
            "here is: kvm-pf decode reads 0x683, EPT-violation exit qualification",
        ),
        (b"PERFILE2h" + bytes(100), "perf.data, which perf alone reads"),
        (b"PK\x03\x04" + bytes(100), "a zip archive; unpack it"),
        (b"\xc1\x1f\xfc\xc1" + bytes(100), "LTTng"),
    ],
)
def test_the_command_says_what_a_file_is_that_is_no_trace(content, said, tmp_path, capsys):
    path = tmp_path / "trace"
    path.write_bytes(content)
    assert main(["trace", str(path)]) == 2
    assert said in capsys.readouterr().err
