# SPDX-License-Identifier: GPL-2.0-only
"""Incidents as logs and short traces show them: one fault, a VMM's last words, dmesg, strace, a map of bpftrace.

Lines are as kernels print them (`arch/x86/kvm/trace.h`, `mmutrace.h`, Linux v6.12) and as the VMMs do.  What they mean
was read in the sources that are named beside each.
"""

import re

import pandas as pd
import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.run.codes import read
from kvm_pf.trace import follows, load, page, storms

EXIT = "kvm_exit: vcpu 0 reason {} rip {} info1 {:#018x} info2 {:#018x} intr_info 0x00000000 error_code 0x00000000"
FAULT = "kvm_page_fault: vcpu 0 rip {} address {:#018x} error_code {:#x}"
GPA = 0x7F3A1000
EFAULT, ENTRY = "kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"


@pytest.fixture
def told(tmp_path):
    """Give the page of a trace of events, and the trace."""

    def give(*events, revision=None):
        path = tmp_path / "trace"
        path.write_text(
            "".join(f" CPU 0/KVM-71 [002] ..... 1000.{n:06}: {event}\n" for n, event in enumerate(events))
        )
        traced = load(path, revision)
        return page(traced), traced

    return give


def part(text, title):
    """Give a part of a page, its lines joined."""
    found = re.search(rf"^{re.escape(title)}.*\n((?:  .*\n?)+)", text, re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]) if found else ""


class TestEncrypted:
    """Bit 34 alone: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.11), adds bit 49 to an SNP guest's only.

    It does so before the tracepoint kvm_page_fault, so the exit's own code tells neither way.
    """

    TURN = EXIT.format("npf", "0x9", 0x500000006, GPA), FAULT.format("0x9", GPA, 0x500000006), EFAULT, ENTRY

    @pytest.mark.parametrize(
        ("revision", "private", "kind"),
        [("6.12", False, "encrypted, not private"), (None, None, "private if it is")],
    )
    def test_without_bit_49_it_is_no_snp_guest_where_the_kernel_adds_it(self, told, revision, private, kind):
        text, traced = told(*self.TURN, revision=revision)
        flag = traced.faults["private"].iloc[0]
        assert (None if flag is pd.NA else bool(flag)) is private
        split = part(text, "Private, shared, MMIO")
        assert kind in split
        assert "private, says the code" not in split

    def test_sev_is_not_told_of_guest_memfd(self, told):
        text, _ = told(*self.TURN * 8, revision="6.12")
        assert "guest_memfd" not in text
        assert "C-bit" not in text
        assert "it has no page there" in text
        assert "/proc/PID/smaps" in part(text, "Next")

    def test_an_unknown_kernel_leaves_both_open(self, told):
        text, _ = told(*self.TURN * 8)
        why = part(text, "Storms")
        assert "Of an SNP guest that is one to private memory" in why
        assert "Of SEV and SEV-ES it never is" in why

    def test_an_exit_alone_decides_nothing(self, told):
        _, traced = told(self.TURN[0], ENTRY, revision="6.12")
        assert traced.faults["private"].isna().all()

    @pytest.mark.parametrize(
        ("shown", "agrees"), [(0x500000006, True), (0x2000500000006, True), (0x100000006, False)]
    )
    def test_either_guest_agrees_and_a_lost_bit_does_not(self, told, shown, agrees):
        _, traced = told(self.TURN[0], FAULT.format("0x9", GPA, shown), ENTRY, revision="6.12")
        assert follows(traced.faults, "6.12")["agrees"].tolist() == [agrees]

    def test_exit_39_tells_that_it_is_an_snp_guest(self, told):
        _, traced = told(
            *(*self.TURN[:2], "kvm_userspace_exit: reason KVM_EXIT_MEMORY_FAULT (39)", ENTRY) * 8
        )
        assert "or the page is private already" in storms(traced.faults)["why"].iloc[0]


class TestGuestMemfd:
    """kvm_gmem_get_folio() makes a page that is not there: Linux `virt/kvm/guest_memfd.c` (v6.12).

    kvm_gmem_get_pfn() fails with EFAULT without a file only; poison is EHWPOISON, no memory ENOMEM.
    """

    def test_a_hole_is_no_cause(self, told):
        turn = FAULT.format("0x0", GPA, 0x2000500000006), EFAULT, ENTRY
        text, _ = told(*turn * 8)
        assert "memslot has no guest_memfd" in text
        assert not re.search(r"\bhole|no page in it", text)


class TestErrnos:
    """Rust's std::io::Error prints strerror() and "(os error N)"; KVM prints "reason error (N)", N decimal.

    Linux `include/trace/events/kvm.h`, kvm_userspace_exit (v6.12); `errno-base.h`: 14 is EFAULT.
    """

    CHV = (
        "cloud-hypervisor: 12.345s: <vcpu0> ERROR:vmm/src/cpu.rs:1234 -- VCPU generated error: Failed to run vcpu: "
        "VcpuRun(VCpu error Bad address (os error 14))"
    )

    @pytest.mark.parametrize(
        "line",
        [CHV, "Failed to run vCPU: Bad address (os error 14)", "addr 0x1000: KVM_RUN failed, errno 14",
         "page fault at 0x1000: error code 14 (Bad address)", "gpa 0x1000: Bad address, error=-14"],
    )  # fmt: skip
    def test_bad_address_is_no_code(self, line):
        with pytest.raises(InputError, match="KVM_RUN failed with EFAULT"):
            read(line)

    def test_a_code_beside_an_errno_is_read(self):
        read_ = read("page fault at 0x1000, error code 0x14; KVM_RUN: Bad address (os error 14)")
        assert [read_.best.code, *(more.best.code for more in read_.more)] == [0x14]


class TestExit39:
    """Linux `include/uapi/linux/kvm.h`: KVM_EXIT_MEMORY_FAULT is 39, its flag PRIVATE bit 3 (v6.8)."""

    @pytest.mark.parametrize(
        ("text", "code"),
        [("exit 39 flags 8", 8), ("exit reason 39, flags 0", 0), ("exit 0x27 flags=0x8", 8), ("flags 8", 8)],
    )
    def test_its_flags_are_read(self, text, code):
        best = read(text).best
        assert (best.encoding, best.code) == ("memfault", code)
        assert f"(gpa and size beside the flags) {'private' if code else 'shared'}" in " ".join(
            best.meaning.notes
        )

    @pytest.mark.parametrize("text", ["exit 39", "KVM_EXIT_MEMORY_FAULT", "exit reason 39", "exit=0x27"])
    def test_alone_it_is_told_what_to_do(self, text):
        with pytest.raises(
            InputError, match=r"private \(flags 8\) or shared \(0\), with KVM_SET_MEMORY_ATTRIBUTES"
        ):
            read(text)


# kvm_mmu_do_page_fault(), `arch/x86/kvm/mmu/mmu_internal.h` (v6.10); tdx_handle_ept_violation(),
# `arch/x86/kvm/vmx/tdx.c` (v6.16); QEMU `accel/kvm/kvm-all.c`, kvm_convert_memory()
SAID = {
    "[  12.1] kvm: unexpected emulation request on private memory\n": (
        "would have to be emulated",
        "local APIC's",
    ),
    "[  77.1] kvm_intel: Guest access before accepting 0x80005000 on vCPU 2\n": (
        "had not accepted",
        "accept_memory=",
    ),
    "qemu-system-x86_64: Convert non guest_memfd backed memory region (0xfee00000 ,+ 0x1000) to private\n"
    "error: kvm run failed Bad address\n": ("no guest_memfd backs", "info mtree"),
}


@pytest.mark.parametrize("text", SAID)
def test_a_line_that_names_the_cause_is_told_with_what_to_look_at(text, tmp_path):
    what, look = SAID[text]
    (tmp_path / "log").write_text(text)
    given = page(load(tmp_path / "log"))
    assert what in part(given, "To know")
    assert look in part(given, "Next")
    with pytest.raises(InputError, match=what):
        read(text)


def test_eio_may_be_a_page_that_was_not_accepted():
    with pytest.raises(InputError, match="a TDX guest touched private memory that it had not accepted"):
        read("kvm_userspace_exit: reason error (5)")


class TestTdx:
    """Linux `arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16).

    A pending page (extended qualification 6, no permission bits) ends the VM with EIO before the tracepoint; private
    faults are tried again inside it, after one tracepoint; the address has its shared bit, 47 or 51.
    """

    @pytest.mark.parametrize(
        ("qualification", "extended", "pending"),
        [(0, 6, True), (2, 6, True), (0, 0, False), (0xA, 6, False), (0, 0x26, True), (0x182, 6, False)],
    )
    def test_a_page_that_was_not_accepted(self, told, qualification, extended, pending):
        text, traced = told(
            EXIT.format("EPT_VIOLATION", "0x0", qualification, extended),
            "kvm_userspace_exit: reason error (5)",
        )
        assert ("has not accepted" in part(text, "Faults by meaning")) is pending
        assert ("Guest access before accepting, and ends the VM" in part(text, "To know")) is pending
        assert ("accept_memory=" in part(text, "Next")) is pending
        assert traced.faults["private"].eq(True).fillna(False).tolist() == [pending]

    @pytest.mark.parametrize(
        ("code", "address", "silent"), [(2, 0x80005000, True), (2, 1 << 47 | 0x5000, False)]
    )
    def test_a_vcpu_that_never_comes_back(self, tmp_path, code, address, silent):
        other = "CPU 1/KVM-72 [003] d.... {}: kvm_entry: vcpu 1, rip 0x0"
        lines = [
            f"CPU 0/KVM-71 [002] d.... 1000.000001: {EXIT.format('EPT_VIOLATION', '0x0', code, 0)}",
            f"CPU 0/KVM-71 [002] ..... 1000.000002: {FAULT.format('0x0', address, code)}",
            other.format("1001.000001"), other.format("1009.000002"),
        ]  # fmt: skip
        (tmp_path / "trace").write_text("".join(f" {line}\n" for line in lines))
        text = page(load(tmp_path / "trace"))
        assert ("never comes back from its fault in the trace, 9.000 s" in text) is silent
        assert ("/task/*/stack" in part(text, "Next")) is silent

    @pytest.mark.parametrize("bit", [47, 51])
    def test_a_shared_page_is_named_without_the_shared_bit(self, told, bit):
        turn = FAULT.format("0x0", 0x80005000 | 1 << bit, 1), EFAULT, ENTRY
        text, traced = told(*turn * 8)
        assert traced.faults["gfn"].eq(0x80005).all()
        assert "gfn 0x80005," in part(text, "Pages")
        assert " 0x80005000: the VMM" in part(text, "Next")
        assert f"{0x80005000 | 1 << bit:#x}" not in text
        assert "as a rule KVM_EXIT_MEMORY_FAULT with flags 0" in part(text, "Storms")

    def test_two_vcpus_want_one_page_otherwise(self, tmp_path):
        events = []
        for n in range(20):
            for vcpu, address, code in ((0, 0x80005000, 2), (1, 1 << 47 | 0x80005000, 1)):
                for event in (
                    FAULT.format("0x0", address, code).replace("vcpu 0", f"vcpu {vcpu}"),
                    EFAULT,
                    ENTRY,
                ):
                    events.append(f" CPU {vcpu}/KVM-7{vcpu} [00{vcpu}] ..... 1000.{n:06}: {event}\n")
        (tmp_path / "trace").write_text("".join(events))
        assert "asks for the same page as" in part(page(load(tmp_path / "trace")), "Storms")


class TestOneFault:
    """How VMs die: one fault that KVM_RUN ends with an error, and no storm.

    Linux `virt/kvm/guest_memfd.c`, __kvm_gmem_get_pfn(): poison is EHWPOISON, 133 (v6.12).
    """

    def test_private_memory(self, told):
        text, _ = told(FAULT.format("0x9", GPA, 0x2000500000006), EFAULT)
        assert f"{GPA:#x}: the VMM's log of conversions" in part(text, "Next")
        assert "does the memslot there have a guest_memfd" in part(text, "Next")

    def test_an_ordinary_vm(self, told):
        text, _ = told(
            EXIT.format("EPT_VIOLATION", "0x9", 0x181, 0), FAULT.format("0x9", 0xC0000000, 0x181), EFAULT
        )
        assert "0xc0000000: the VMM's memslot there, and its mapping (/proc/PID/smaps)" in part(text, "Next")

    def test_poison(self, told):
        text, _ = told(FAULT.format("0x9", GPA, 0x2000500000006), "kvm_userspace_exit: reason error (133)")
        assert "1 fault ends with EHWPOISON: the host's page is poisoned" in part(text, "To know")
        assert f"{GPA:#x}: dmesg (mce, Memory failure) says which page is poisoned" in part(text, "Next")
        assert "guest_memfd" not in part(text, "Next")

    def test_a_storm_is_not_told_twice(self, told):
        text, _ = told(*(FAULT.format("0x9", GPA, 0x2000500000006), EFAULT, ENTRY) * 8)
        assert part(text, "Next").count("log of conversions") == 1


def test_resumed_and_what_is_not_shown_agree_in_words(told):
    text, _ = told(FAULT.format("0x9", GPA, 0x100000006), ENTRY)
    assert "1 resumed" in part(text, "How they ended")
    assert "what became of resumed faults is not shown" in part(text, "Next")
    assert "how faults end is not shown" not in text


WARNING = (
    "[ 12.1] WARNING: CPU: 3 PID: 47 at arch/x86/kvm/mmu/mmu.c:6071 kvm_mmu_page_fault+0x2a1/0x2f0 [kvm]\n"
)
COMM = "[ 12.2] CPU: 3 UID: 0 PID: 47 Comm: CPU 0/KVM Not tainted {} #1\n"
RSVD_AND_PRIVATE, BIT_48 = "a fault is private and reserved", "the CPU set bit 48"


# Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(): v6.9 warns of bit 48, v6.10 of private and reserved
@pytest.mark.parametrize(
    ("release", "told_of"),
    [("6.12.30", [RSVD_AND_PRIVATE]), ("6.8.0-60-generic", [BIT_48]), ("6.10.1", [RSVD_AND_PRIVATE]),
     ("5.14.0-503.el9.x86_64", [BIT_48, RSVD_AND_PRIVATE]), ("", [BIT_48, RSVD_AND_PRIVATE])],
)  # fmt: skip
def test_a_warning_has_the_causes_of_its_kernel_alone(release, told_of, tmp_path):
    text = WARNING + (COMM.format(release) if release else "")
    (tmp_path / "log").write_text(text)
    given = page(load(tmp_path / "log"))
    with pytest.raises(InputError) as refused:
        read(text)
    for said in (part(given, "To know"), str(refused.value)):
        assert [cause for cause in (BIT_48, RSVD_AND_PRIVATE) if cause in said] == told_of
    assert "bits 3 and 49 together are a bug of the CPU's or of KVM's" in part(given, "Next")


class TestStrace:
    """strace prints `ioctl(FD, KVM_RUN, 0) = -1 EFAULT (Bad address)`; EINTR is a signal's and no failure."""

    RUN = "[pid  4711] ioctl(29, KVM_RUN, 0)       = -1 {}\n"
    CONVERT = "ioctl(12, KVM_SET_MEMORY_ATTRIBUTES, {address=0x7f3a1000, size=0x1000, attributes=0x8}) = 0\n"
    EFAULT = RUN.format("EFAULT (Bad address)")

    @pytest.mark.parametrize(
        ("text", "times", "helped"),
        [(EFAULT + CONVERT + EFAULT, "2 times (line 1, 3)", False), (EFAULT + EFAULT, "2 times (line 1, 2)", True),
         (EFAULT + CONVERT + RUN.format("EINTR (Interrupted system call)"), "1 time (line 1)", True)],
    )  # fmt: skip
    def test_failures_are_counted_beside_conversions(self, text, times, helped, tmp_path):
        (tmp_path / "log").write_text(text)
        given = page(load(tmp_path / "log"))
        assert f"KVM_RUN fails with EFAULT {times}" in part(given, "To know")
        assert ("which did not help" in given) is not helped
        assert ("does the memslot there have a guest_memfd" in part(given, "Next")) is not helped
        assert "KVM_MEM_GUEST_MEMFD" in given or helped
        assert "no fault is here" not in given


# a map of fentry:kvm:kvm_tdp_page_fault { @[args.fault->is_private, args.fault->gfn] = count(); }
@pytest.mark.parametrize(
    ("line", "said"),
    [("@[1, 524193]: 18231", "private, gfn 0x7ffa1"), ("@[0, 524193]: 18229", "not private, gfn 0x7ffa1"),
     ("@[0, 386]: 12", "if a code, 0x182"), ("@[386, 0xfee000b0]: 12", "if a code, 0x182")],
)  # fmt: skip
def test_a_count_by_page_is_taken_for_no_code(line, said, tmp_path):
    (tmp_path / "log").write_text(line + "\n")
    assert said in part(page(load(tmp_path / "log")), "Counts")
    if "gfn" in said:
        with pytest.raises(InputError, match="a count by is_private and gfn"):
            read(line)


@pytest.mark.parametrize(
    ("code", "address", "revision", "says"),
    [(2, 0x80005000, "6.17", True), (2, 0x80005000, "6.12", False), (2, 0x80005000, "7.4", False),
     (0x182, 0x80005000, "6.17", False)],
)  # fmt: skip
def test_a_release_without_tdx_of_its_own_is_told_where_that_is(told, code, address, revision, says):
    text, _ = told(FAULT.format("0x0", address, code), ENTRY, revision=revision)
    assert ("of which v7_3 is the oldest revision that knows" in text) is says
