# SPDX-License-Identifier: GPL-2.0-only
"""Incidents as logs and short traces show them: one fault, a VMM's last words, dmesg, strace, a map of bpftrace.

Lines are as kernels print them (`arch/x86/kvm/trace.h`, `mmutrace.h`, Linux v6.12) and as the VMMs do.  What they mean
was read in the sources that are named beside each.
"""

import re

import pandas as pd
import pytest

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
