# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel a trace is read as, from what the trace shows, and that what somebody asks for counts more.

What each release shows: Linux `arch/x86/kvm/svm/svm.c`, npf_interception(), marks an SNP guest's encrypted access
before the tracepoint, and `arch/x86/kvm/trace.h` has kvm_rmp_fault (both v6.11); `arch/x86/kvm/vmx/tdx.c` (v6.16);
codes are printed whole from commit `bff0adc40c00` on (v6.1).
"""

import json
import struct

import pytest

from kvm_pf.cli import main
from kvm_pf.common.errors import InputError
from kvm_pf.revisions import get
from kvm_pf.run.refusals import kernel_named
from kvm_pf.trace import convert, follows, load, page, read_all, summary
from kvm_pf.trace.pasted import read_text
from kvm_pf.trace.reading import Stream
from kvm_pf.trace.tables import TableStream

_EXIT = "kvm_exit: vcpu 0 reason {} rip {} info1 {:#018x} info2 {:#018x} intr_info 0x00000000 error_code 0x00000000"
_FAULT = "kvm_page_fault: vcpu 0 rip {} address {:#018x} error_code {:#x}"
_END = ["kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"]


def text(*events, before=""):
    return before + "".join(f" q-900 [003] ..... 100.{n:06}: {event}\n" for n, event in enumerate(events))


SNP = text(
    _EXIT.format("npf", "0x0", 0x500000006, 0x4000000),
    _FAULT.format("0x0", 0x4000000, 0x2000500000006),
    *_END,
)
TDX = text(_EXIT.format("EPT_VIOLATION", "0x0", 0x182, 0), _FAULT.format("0x0", 0x40002000, 0x2), *_END)
PLAIN = text(
    _EXIT.format("npf", "0x9", 0x100000004, 0x5000), _FAULT.format("0x9", 0x5000, 0x100000004), _END[1]
)
OLD = text("kvm_exit: reason npf rip 0x9 info 100000004 5000", "kvm_page_fault: address 5000 error_code 4")
RMP = "kvm_rmp_fault: vcpu 0 gpa 0000000000005000 pfn 0x12 error_code 0x100000004 rmp_level 1 psmash_ret 0"
DMESG = "[    0.000000] Linux version 6.12.5-1 (b@h) (gcc 14) #1 SMP\n"

TRACES = {
    "SNP, bit 49 in the tracepoint alone": (SNP, "v6_12", "bit 49 beside bit 34 (line 1)"),
    "SNP, exits not recorded": (text(_FAULT.format("0x0", 0, 0x2000500000006)), "v6_12", "(line 1)"),
    "SNP, bit 49 in the exit, too: a CPU's": (
        SNP.replace("info1 0x0000", "info1 0x0002"),
        "posted",
        "does not show",
    ),
    "TDX": (TDX, "v7_3", "a TDX guest"),
    "TDX, exits not recorded": (text(_FAULT.format("0x0", 0x40002000, 0x2)), "v7_3", "a TDX guest"),
    "the RMP's tracepoint": (text(RMP) + PLAIN, "v6_12", "kvm_rmp_fault"),
    "nothing": (PLAIN, "posted", "--revision 6.12"),
    "codes cut": (OLD, "v6_1", "before 6.1"),
    "perf script --header": (
        f"# ========\n# os release : 6.12.4-200.fc41.x86_64\n# ===\n#\n{PLAIN}",
        "v6_12",
        "6.12.4",
    ),
    "dmesg": (DMESG + PLAIN, "v6_12", "Linux 6.12.5-1"),
    "dmesg of 6.8": (DMESG.replace("6.12", "6.8") + PLAIN, "v6_8", "Linux 6.8.5-1"),
    "dmesg, between two": (DMESG.replace("6.12", "6.10") + PLAIN, "v6_10", "Linux 6.10.5-1"),
    "dmesg, another is nearest": (
        DMESG.replace("6.12", "6.17") + PLAIN,
        "v6_12",
        "the nearest that is older",
    ),
    "dmesg, older than all": (DMESG.replace("6.12", "5.15") + PLAIN, "v6_1", "the oldest"),
    "a distribution's 5.14 with newer code": (
        DMESG.replace("6.12.5-1", "5.14.0-503.el9_5.x86_64") + PLAIN,
        "posted",
        "",
    ),
    "a kernel with SNP carried back": (DMESG.replace("6.12", "6.8") + SNP, "v6_12", "bit 49"),
    "SNP on a later kernel": (DMESG.replace("6.12", "7.3") + SNP, "v7_3", "Linux 7.3.5-1"),
    "TDX, named": (DMESG.replace("6.12", "6.17") + TDX, "v7_3", "a TDX guest"),
}


@pytest.mark.parametrize("which", TRACES)
def test_a_trace_is_read_as_the_kernel_that_it_shows_however_it_is_read(which, tmp_path):
    given, name, why = TRACES[which]
    path = tmp_path / "t.txt"
    path.write_text(given)
    traced, stream = load(path), Stream(path)
    list(stream.parts(1))
    assert traced.digest.read_as.revision.name == name
    assert why in traced.digest.read_as.why
    assert stream.digest.read_as == traced.digest.read_as == read_text(given).read_as
    assert page(traced).startswith(f"read as:          {name}: ")
    assert summary(traced)["value"][0] == str(traced.digest.read_as)
    assert not traced.digest.disagreeing.count or "a CPU's" in which
    asked = load(path, "v6_10")
    assert (asked.digest.read_as.revision.name, asked.digest.read_as.why) == ("v6_10", "as was asked for")


def test_the_snp_trace_of_6_12_agrees_with_it_and_disagrees_with_the_posted_patch(tmp_path, capsys):
    path = tmp_path / "t.txt"
    path.write_text(SNP)
    assert follows(load(path).faults)["agrees"].tolist() == [True]
    assert follows(load(path).faults, "posted")["agrees"].tolist() == [False]
    assert main(["trace", str(path)]) == 0
    assert "disagree" not in capsys.readouterr().out
    assert main(["trace", str(path), "--revision", "posted"]) == 0
    assert "1  disagree" in capsys.readouterr().out
    assert main(["trace", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["revision"], told["disagreements"]) == ("v6_12", [])
    assert told["summary"]["read as"] == f"v6_12: {told['revision_why']}"


def test_each_of_several_traces_is_read_as_its_own_kernel(tmp_path):
    for name, given in (("a", SNP), ("b", TDX), ("c", PLAIN)):
        (tmp_path / name).write_text(given)
    fleet = read_all([tmp_path])
    assert fleet.files()["read_as"].tolist() == ["v6_12", "v7_3", "posted"]
    assert fleet.digest().revisions.keys() == {"v6_12", "v7_3", "posted"}
    assert read_all([tmp_path], "v6_12").files()["read_as"].tolist() == ["v6_12"] * 3


def test_a_table_is_read_as_the_kernel_that_it_shows(tmp_path):
    import pandas as pd

    for code, name in ((0x2000500000006, "v6_12"), (0x500000006, "posted")):
        raw = pd.DataFrame({"raw_code": pd.array([0x100000004, code], dtype="UInt64")})
        raw.to_parquet(tmp_path / "t.parquet")
        stream = TableStream(tmp_path / "t.parquet")
        list(stream.parts())
        assert stream.digest.read_as.revision.name == name
        assert convert(tmp_path / "t.parquet", tmp_path / "o.parquet").digest.read_as == stream.digest.read_as
    assert "(line 2)" in TableStream(tmp_path / "t.parquet").digest.read_as.why or name == "posted"


def test_a_part_that_shows_it_later_counts_from_there(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(PLAIN + SNP)
    stream = Stream(path)
    list(stream.parts(1))
    assert list(stream.digest.revisions) == ["posted", "v6_12"]
    assert not stream.digest.disagreeing.count


@pytest.mark.parametrize(
    ("line", "kernel"),
    [
        (
            "Linux version 6.8.0-45-generic (buildd@lcy02) (x86_64-linux-gnu-gcc) #45-Ubuntu SMP",
            "6.8.0-45-generic",
        ),
        ("# os release : 6.12.0", "6.12.0"),
        ("[ 1.2] CPU: 3 UID: 0 PID: 900 Comm: qemu Not tainted 6.11.0-rc3+ #12", "6.11.0-rc3+"),
        ("CPU: 3 PID: 900 Comm: qemu Tainted: G        W          6.10.2 #1 PREEMPT", "6.10.2"),
        ("Linux host 6.14.0-1 #1 SMP x86_64 GNU/Linux", "6.14.0-1"),
        ("the Linux version is unknown", ""),
        ("q-9 [000] 1.0: kvm_page_fault: vcpu 0 rip 0x6 address 0x6 error_code 0x6", ""),
    ],
)
def test_lines_that_name_a_kernel(line, kernel):
    assert kernel_named(line) == kernel


def test_trace_dat_names_its_kernel_in_an_option(tmp_path):
    """trace-cmd.dat.v6(5): option 5 is UNAME, its text that of uname -a; empty formats, no CPU's data."""

    def sized(data, kind="<Q"):
        return struct.pack(kind, len(data)) + data

    uname = b"Linux h 6.12.9 #1 SMP x86_64\0"
    head = b"\x17\x08\x44tracing6\0\0\x08" + struct.pack("<I", 4096)
    head += b"header_page\0" + sized(b"") + b"header_event\0" + sized(b"") + struct.pack("<II", 0, 0)
    head += struct.pack("<II", 0, 0) + sized(b"") + struct.pack("<I", 0)
    head += b"options  \0" + struct.pack("<HI", 5, len(uname)) + uname + struct.pack("<H", 0) + b"flyrecord\0"
    path = tmp_path / "trace.dat"
    path.write_bytes(head)
    assert load(path).digest.read_as.why.startswith("it names a kernel, Linux 6.12.9")


def test_a_revision_that_is_none_is_refused():
    with pytest.raises(InputError, match="there is no revision 'nope'"):
        read_text(SNP, revision="nope")


def test_a_release_stands_for_its_revision_wherever_one_is_named(tmp_path):
    """Which revision was made from which release: `kernel` of its row; others take the nearest that is older."""
    path = tmp_path / "t.txt"
    path.write_text(PLAIN)
    for release, name in (("6.12", "v6_12"), ("v6.12", "v6_12"), ("6.12.117", "v6_12"), ("7.3", "v7_3")):
        assert get(release) is get(name)
        assert load(path, release).digest.read_as.why == "as was asked for"
    for release, name in (("6.11", "v6_10"), ("6.9.3", "v6_8"), ("6.2", "v6_1"), ("7.9", "v7_3")):
        assert str(load(path, release).digest.read_as) == (
            f"{name}: as was asked for, the nearest that is older than {release}"
        )
    for none in ("5.19", "6", "6.12.1.1", "6.12-rc1", "v6_11", "", "0.0"):
        with pytest.raises(InputError, match=r"there is no revision .*, and releases from 6\.1 on"):
            get(none)
