# SPDX-License-Identifier: GPL-2.0-only
"""What should have followed a fault: recordings of a real KVM agree, and altered traces do not.

Expected endings are reasoned from the kernel: who answers what for a reserved bit, for private memory, for MMIO.
"""

import re
from pathlib import Path

import pytest

from kvm_pf.common.paths import data_dir
from kvm_pf.conformance.placement import revision_for
from kvm_pf.trace import disagreements, follows, load, page

DATA = Path(__file__).parent / "data"
RECORDINGS = data_dir() / "recordings"
ALTERED = ("inject",)
"""Scenarios in which the recorder changes codes on their way."""

HONEST = [
    path for path in sorted(RECORDINGS.glob("*/*.trace.gz")) if not any(word in path.name for word in ALTERED)
]


@pytest.fixture(scope="module")
def kernels(recorded_faults):
    return recorded_faults.groupby("recording")["kernel"].first()


@pytest.mark.parametrize("path", HONEST, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_a_real_kernel_did_is_among_what_the_model_allows(kernels, load_once, path):
    revision = revision_for(kernels[path.parent.name])[0]
    faults = load_once(path, revision).faults
    table = follows(faults, revision)
    assert table["line"].tolist() == faults["line"].tolist()
    beyond = ("not shown", "passed to L1")  # what L1's tables say is not of this path
    shown = table[~faults["outcome"].isin(beyond).to_numpy()]
    assert not shown["agrees"].eq(False).any(), shown[shown["agrees"].eq(False)]["what"].tolist()
    assert shown["agrees"].notna().all()


HEAD = "CPU 0/KVM-100 [000] ..... {time:.6f}: "
EXIT = "kvm_exit: vcpu 0 reason {reason} rip 0x1000 info1 {info1:#x} info2 {info2:#x} intr_info 0x0 error_code 0x0"
FAULT = "kvm_page_fault: vcpu 0 rip 0x1000 address {gpa:#018x} error_code {code:#x}"
EVENTS = {
    "entry": "kvm_entry: vcpu 0, rip 0x1000",
    "mapped": "kvm_mmu_set_spte: gfn 50 spte 8000000000000007 (rwxu) level 1 at 100",
    "emulated": "kvm_emulate_insn: 0:1000: 8b 00 (prot64)",
    "read": "kvm_mmio: mmio read len 4 gpa 0x50000 val 0x1",
    "memory fault": "kvm_userspace_exit: reason 0x27 (39)",
    "EFAULT": "kvm_userspace_exit: reason error (14)",
    "private": "kvm_hypercall: nr 0xc a0 0x50000 a1 0x1 a2 0x10 a3 0x0",
    "shared": "kvm_hypercall: nr 0xc a0 0x50000 a1 0x1 a2 0x0 a3 0x0",
}
GPA = 0x50000


def trace(tmp_path, *events):
    """Write a trace of events: names of EVENTS, or ("npf", code) and ("ept", qualification).

    ("snp", code) is an SNP guest's, which is traced with bit 49, and ("exit", code) is not traced by kvm_page_fault.
    """
    rows = []
    for event in events:
        if isinstance(event, str):
            rows.append(EVENTS[event])
            continue
        kind, code = event
        if kind == "ept":
            rows.append(EXIT.format(reason="EPT_VIOLATION", info1=code, info2=0))
        else:
            rows.append(EXIT.format(reason="npf", info1=code, info2=GPA))
        if kind == "exit":
            continue
        code |= (kind == "snp") << 49
        rows.append(FAULT.format(gpa=GPA, code=code))
    path = tmp_path / "trace"
    path.write_text("".join(HEAD.format(time=1 + n / 1e6) + row + "\n" for n, row in enumerate(rows)))
    return path


READ, RSVD, PRIVATE = 0x100000004, 0x10000000D, 0x500000004
AGREES, DISAGREES = True, False

STORIES = {
    # what the trace shows, the revision, and what the last fault's ending is to the model
    "a read that is mapped": ([("npf", READ), "mapped", "entry"], "v6_12", AGREES),
    "a read that the handler cannot map": ([("npf", READ), "EFAULT"], "v6_12", AGREES),
    # no reserved bit, so MMIO: the handler says so for a page without a memslot
    "a first read of MMIO": ([("npf", READ), "emulated", "read", "entry"], "v6_12", AGREES),
    # handle_mmio_page_fault() ends it, or nothing is there: it maps nothing unless the entry is old
    "a reserved bit, and the instruction is emulated": (
        [("npf", RSVD), "emulated", "entry"],
        "v6_12",
        AGREES,
    ),
    # the call that makes memory private fails in a VM that has none, and the trace does not show that
    "a shared access to memory that was to be private": (
        ["private", ("npf", READ), "emulated", "entry"],
        "v6_12",
        AGREES,
    ),
    # a shared access to what was made private: the attribute and the code differ, or, in a software-protected VM, not
    "a shared access to private memory": (["private", ("npf", READ), "EFAULT"], "v6_12", AGREES),
    # an encrypted access of an SNP guest is one to private memory; shared memory cannot be mapped for it
    "a private access to shared memory, refused": (["shared", ("snp", PRIVATE), "EFAULT"], "v6_12", AGREES),
    "a private access to shared memory, mapped": (
        ["shared", ("snp", PRIVATE), "mapped", "entry"],
        "v6_12",
        DISAGREES,
    ),
    "a private access to private memory, mapped": (
        ["private", ("snp", PRIVATE), "mapped", "entry"],
        "v6_12",
        AGREES,
    ),
    # KVM cannot read private memory, so it emulates nothing there; the one exception, a write to a shadowed page
    # table, is no read
    "a private access that is emulated": (
        ["private", ("snp", PRIVATE), "emulated", "entry"],
        "v6_12",
        DISAGREES,
    ),
    "a private write that is emulated": (
        ["private", ("snp", PRIVATE | 2), "emulated", "entry"],
        "v6_12",
        AGREES,
    ),
    # not marked by npf_interception(): of SEV, for which svm_check_emulate_instruction() wants the bytes, no more
    "an encrypted write of no SNP guest that is emulated": (
        [("npf", PRIVATE | 2), "emulated", "entry"],
        "v6_12",
        AGREES,
    ),
    "the same, of an exit alone": ([("exit", PRIVATE | 2), "emulated", "entry"], "v6_12", AGREES),
    "a write by EPT that is mapped": ([("ept", 0x182), "mapped", "entry"], "v6_12", AGREES),
    "a write by EPT to MMIO": ([("ept", 0x182), "emulated", "entry"], "v6_12", AGREES),
}


@pytest.mark.parametrize("story", STORIES)
def test_endings_that_the_kernel_has_and_has_not(story, tmp_path):
    events, revision, agrees = STORIES[story]
    faults = load(trace(tmp_path, *events), revision).faults
    assert follows(faults, revision)["agrees"].tolist() == [agrees]


def test_what_the_trace_does_not_tell_is_named_and_nothing_else(tmp_path):
    table = follows(load(trace(tmp_path, ("npf", READ), "mapped", "entry")).faults)
    assert set(table["not_in_trace"].item().split(", ")) == {
        "the handler's answer", "the page's attribute", "the kind of VM",
    }  # fmt: skip
    table = follows(load(trace(tmp_path, "private", ("npf", READ), "mapped", "entry")).faults)
    assert "the page's attribute" not in table["not_in_trace"].item()


def test_how_a_fault_ended_is_not_guessed_where_the_trace_does_not_show_it(tmp_path):
    table = follows(load(trace(tmp_path, ("npf", READ))).faults)
    assert table["agrees"].isna().tolist() == [True]
    assert table["seen"].tolist() == ["not shown"]
    assert "the guest goes on (the handler answers" in table["expected"].item()


@pytest.mark.parametrize(("revision", "code"), [("v6_10", PRIVATE), ("v6_12", PRIVATE | 1 << 49)])
def test_the_tracepoint_shows_what_the_handler_made_of_the_exits_code(revision, code, tmp_path):
    # From 6.11 on npf_interception() marks an encrypted access as private before it is traced.
    path = trace(tmp_path, ("npf", PRIVATE), "mapped", "entry")
    text = path.read_text()
    path.write_text(re.sub(r"error_code 0x500000004", f"error_code {code:#x}", text))
    assert follows(load(path, revision).faults, revision)["agrees"].tolist() == [True]
    path.write_text(re.sub(r"error_code 0x500000004", "error_code 0x700000004", text))
    said = follows(load(path, revision).faults, revision)
    assert said["agrees"].tolist() == [False]
    assert said["what"].item().startswith("kvm_page_fault shows 0x700000004; of 0x500000004 follows")


def test_a_memory_fault_about_what_was_so_already_is_no_disagreement(tmp_path):
    """A private page without memory ends so: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn_private() (v6.12)."""
    path = tmp_path / "log"
    path.write_text(
        "kvm_convert_memory start 0x1000 size 0x1000 shared_to_private\n"
        "qemu-system-x86_64: warning: memory fault: GPA 0x1000 size 0x1000 flags 0x8\n"
        "qemu-system-x86_64: warning: memory fault: GPA 0x1000 size 0x1000 flags 0x0\n"
    )
    assert disagreements(load(path)).empty
    assert load(path).digest.follows().empty


def test_loops_are_told_first_after_disagreements(tmp_path):
    events = [("npf", READ), "mapped", "entry"] * 10 + [("npf", 0x100000006), "mapped", "entry"]
    traced = load(trace(tmp_path, *events))
    assert traced.faults["again"].tolist() == [*range(10), 0]
    table = traced.digest.follows()
    assert table["faults"].tolist() == [10, 1]
    assert table["again"].tolist() == [9, 0]
    assert "9 of them the very same fault again" in page(traced)


def test_an_ending_that_a_table_of_others_lacks_is_not_judged(tmp_path):
    faults = load(trace(tmp_path, ("npf", READ), "mapped", "entry")).faults
    table = follows(faults.assign(outcome=[None]))
    assert table["seen"].isna().tolist() == table["agrees"].isna().tolist() == [True]
