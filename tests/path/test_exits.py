# SPDX-License-Identifier: GPL-2.0-only
"""What each exit hands to the fault path, revision by revision; expectations are reasoned from the kernel."""

import inspect
from functools import reduce
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf import exits
from kvm_pf.exits import (
    BREAK_EVENTS,
    BREAK_NONE,
    BREAK_SIGNAL,
    BREAK_SLOT_INVALID,
    BREAK_VM_DEAD,
    KIND_EPT,
    KIND_MISCFG,
    KIND_NPF,
    KIND_PF,
    KIND_TDX,
    AsyncPf,
    Event,
    Guest,
    PreFault,
    Retry,
)
from kvm_pf.revisions import get
from kvm_pf.run import tables
from kvm_pf.state import Environment, MmioCache, MmioFormat, Mmu, Vcpu, Vm, Walk

GPA = 0x40001000
EIO, EINTR, EINVAL, ENOENT, EFAULT, ENOMEM, EOPNOTSUPP = 5, 4, 22, 2, 14, 12, 95

UNCHECKED = ("v6_1", "before", "posted", "posted_u32", "guest_enc_ungated", "guest_enc_gated")
CHECKED = ("posted_series", "merged_patch", "v6_10", "v6_12", "v7_3")
UNTIL_6_10 = (*UNCHECKED, "posted_series", "merged_patch", "v6_10")
EVERY = (*UNCHECKED, *CHECKED)

u64 = st.integers(0, 2**64 - 1)


def run(revision, kind, info, addr=GPA, **more):
    guest = Guest(**{name: more.pop(name) for name in Guest._fields if name in more})
    return get(revision).link("source")(Event(kind, info, addr, guest=guest, **more))


def warnings(outcome):
    return [name for n, name in enumerate(exits.SOURCE_WARN_NAMES) if outcome.warns >> n & 1]


def codes(outcome):
    """What the tracepoint got and what the MMU got."""
    return outcome.trace.error_code, outcome.mmu.error_code


def effects(outcome):
    """The effects that an exit had besides calling somebody."""
    names = ("fast_mmio", "unprotect_virt", "apf_wait", "vm_dead", "vm_bugged")
    return {name for name in names if getattr(outcome, name)}


def assert_no_call(outcome):
    assert outcome.trace == (False, 0, 0)
    assert outcome.mmu == (False, 0, 0, 0, False, 0)
    assert outcome.rmp == (False, 0)


class TestNpf:
    def npf(self, revision, info, **more):
        return run(revision, KIND_NPF, info, **more)

    @pytest.mark.parametrize("revision", EVERY)
    def test_code_is_the_cpus(self, revision):
        outcome = self.npf(revision, 0x100000006, insn=True, insn_len=3)
        assert outcome.ret == 1
        assert outcome.warns == 0
        assert outcome.trace == (True, GPA, 0x100000006)
        assert outcome.mmu == (True, 1, GPA, 0x100000006, True, 3)
        assert outcome.rmp == (False, 0)
        assert effects(outcome) == set()

    @pytest.mark.parametrize("revision", [*UNCHECKED, "posted_on_6_12"])
    def test_kvms_bits_pass_where_nobody_looks(self, revision):
        outcome = self.npf(revision, 0x3000100000004)
        assert codes(outcome) == (0x3000100000004, 0x3000100000004)
        assert outcome.warns == 0

    @pytest.mark.parametrize("revision", CHECKED)
    @pytest.mark.parametrize("bits", [1 << 48, 1 << 49, 3 << 48])
    def test_kvms_bits_are_dropped_before_the_trace(self, revision, bits):
        outcome = self.npf(revision, bits | 0x100000004)
        assert codes(outcome) == (0x100000004, 0x100000004)
        assert warnings(outcome) == ["npf_synthetic"]

    @pytest.mark.parametrize("revision", EVERY)
    def test_unnamed_bits_pass(self, revision):
        unnamed = 1 << 37 | 1 << 47 | 0xFFFC << 48
        assert codes(self.npf(revision, unnamed)) == (unnamed, unnamed)

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize("ret", [-EFAULT, 0, 1])
    def test_answer_is_handed_up(self, revision, ret):
        assert self.npf(revision, 4, mmu_ret=ret).ret == ret

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_snp_encrypted_is_private(self, revision):
        outcome = self.npf(revision, 0x500000004, snp=True, sev_es=True)
        assert codes(outcome) == (0x2000500000004, 0x2000500000004)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_snp_unencrypted_is_shared(self, revision):
        assert codes(self.npf(revision, 0x100000004, snp=True, sev_es=True)) == (0x100000004, 0x100000004)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_encrypted_is_not_private_without_snp(self, revision):
        assert codes(self.npf(revision, 0x500000004, sev_es=True)) == (0x500000004, 0x500000004)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_snp_marks_after_the_check(self, revision):
        outcome = self.npf(revision, 0x2000500000004, snp=True, sev_es=True)
        assert codes(outcome) == (0x2000500000004, 0x2000500000004)
        assert warnings(outcome) == ["npf_synthetic"]

    @pytest.mark.parametrize("revision", UNTIL_6_10)
    def test_no_snp_until_6_10(self, revision):
        outcome = self.npf(revision, 0x580000004, snp=True, sev_es=True)
        assert codes(outcome) == (0x580000004, 0x580000004)
        assert not outcome.rmp.called

    @pytest.mark.parametrize(("revision", "ret"), [("v6_12", 1), ("v7_3", 1), ("v7_3", 5), ("v7_3", 6)])
    def test_rmp_conflict_is_handled_when_the_guest_goes_on(self, revision, ret):
        outcome = self.npf(revision, 0x580000004, snp=True, sev_es=True, mmu_ret=ret)
        assert outcome.rmp == (True, 0x2000580000004)
        assert outcome.ret == ret

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_rmp_bit_decides_not_the_vm(self, revision):
        assert self.npf(revision, 0x80000000).rmp == (True, 0x80000000)
        assert not self.npf(revision, 0x4, snp=True, sev_es=True).rmp.called

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize("ret", [0, -EFAULT])
    def test_rmp_conflict_waits_for_user_space(self, revision, ret):
        assert not self.npf(revision, 0x80000000, mmu_ret=ret).rmp.called


class TestNpfMmio:
    """From 7.3, a reserved fault has ways around the MMU."""

    READY = MappingProxyType({"nrips": True, "next_rip_known": True, "fast_mmio": True})

    def npf(self, revision="v7_3", info=0x10000000D, **more):
        return run(revision, KIND_NPF, info, **more)

    def test_fast_write_is_skipped(self):
        outcome = self.npf(**self.READY)
        assert effects(outcome) == {"fast_mmio"}
        assert outcome.ret == 1
        assert_no_call(outcome)

    @pytest.mark.parametrize("missing", READY)
    def test_fast_write_needs_all_three(self, missing):
        outcome = self.npf(**{**self.READY, missing: False})
        assert not outcome.fast_mmio
        assert outcome.mmu.error_code == 0x10000000D

    def test_only_reserved_faults_are_fast(self):
        outcome = self.npf(info=0x100000006, **self.READY)
        assert not outcome.fast_mmio
        assert outcome.mmu.called

    @pytest.mark.parametrize("why", ["vectoring", "sev_es"])
    def test_nothing_is_done_where_emulation_is_not_allowed(self, why):
        outcome = self.npf(**{why: True}, **self.READY)
        assert outcome.ret == 1
        assert effects(outcome) == set()
        assert_no_call(outcome)

    @pytest.mark.parametrize("why", ["vectoring", "sev_es"])
    def test_other_faults_need_no_emulation(self, why):
        assert self.npf(info=0x100000006, **{why: True}).mmu.called

    @pytest.mark.parametrize("why", ["vectoring", "sev_es", "fast_mmio"])
    def test_l2_goes_to_the_mmu(self, why):
        assert self.npf(guest_mode=True, **{**self.READY, why: True}).mmu.called

    @pytest.mark.parametrize("more", [READY, {"vectoring": True}])
    def test_check_of_kvms_bits_comes_first(self, more):
        outcome = self.npf(info=0x200010000000D, **more)
        assert warnings(outcome) == ["npf_synthetic"]
        assert not outcome.mmu.called

    @pytest.mark.parametrize("revision", [*UNTIL_6_10, "v6_12"])
    def test_always_to_the_mmu_before(self, revision):
        outcome = self.npf(revision, vectoring=True, sev_es=True, **self.READY)
        assert not outcome.fast_mmio
        assert outcome.mmu.error_code == 0x10000000D


class TestGmet:
    """Erratum 1218: under GMET the user bit of a fetch is what the privilege level says."""

    def code(self, info, revision="v7_3", gmet=True, **more):
        return run(revision, KIND_NPF, info, gmet=gmet, **more).mmu.error_code

    @pytest.mark.parametrize("cpl", [0, 1, 2])
    def test_supervisor_fetch_is_not_user(self, cpl):
        assert self.code(0x100000014, cpl=cpl) == 0x100000010

    @pytest.mark.parametrize("info", [0x100000010, 0x100000014])
    def test_user_fetch_is_user(self, info):
        assert self.code(info, cpl=3) == 0x100000014

    @pytest.mark.parametrize(("info", "cpl"), [(0x100000004, 0), (0x100000002, 3)])
    def test_other_accesses_keep_theirs(self, info, cpl):
        assert self.code(info, cpl=cpl) == info

    def test_sev_es_hides_the_level(self):
        assert self.code(0x100000014, cpl=0, sev_es=True) == 0x100000014

    def test_without_gmet_the_cpu_is_right(self):
        assert self.code(0x100000014, cpl=0, gmet=False) == 0x100000014

    @pytest.mark.parametrize("revision", [*UNTIL_6_10, "v6_12"])
    def test_unknown_before(self, revision):
        assert self.code(0x100000014, revision, cpl=0) == 0x100000014

    def test_comes_after_the_check_of_kvms_bits(self):
        assert self.code(0x1000100000014, cpl=0) == 0x100000010


class TestEptViolation:
    # qualification, code up to 6.10, in 6.12, in 7.3
    SEEN = (
        (0x181, 0x100000004, 0x100000004, 0x100000000),  # read
        (0x182, 0x100000002, 0x100000002, 0x100000002),  # write
        (0x184, 0x100000010, 0x100000010, 0x100000010),  # fetch
        (0x1AA, 0x100000003, 0x100000003, 0x100000003),  # write, readable and executable
        (0x582, 0x100000002, 0x100000002, 0x100000002),  # write, supervisor address
        (0x781, 0x100000004, 0x100000004, 0x100000004),  # read, user address
        (0xF82, 0x100000002, 0x100000002, 0x100000006),  # write, user address
        (0x683, 0x200000006, 0x200000006, 0x200000002),  # page walk with accessed/dirty bits
        (0x001, 0x200000004, 0x000000004, 0x000000000),  # read, no linear address
        (0x101, 0x100000004, 0x000000004, 0x000000000),  # the same, bit 8 without meaning
        (0x301, 0x100000004, 0x000000004, 0x000000000),  # the same, bits 8 and 9 without meaning
        (0x281, 0x200000004, 0x200000004, 0x200000000),  # read of a page table: bit 9 does not count
        (0x188, 0x100000001, 0x100000001, 0x100000001),  # readable
        (0x190, 0x100000001, 0x100000001, 0x100000001),  # writable
        (0x1A0, 0x100000001, 0x100000001, 0x100000001),  # executable
        (0x1C0, 0x100000000, 0x100000000, 0x100000000),  # user-executable, without MBEC
        (0x000, 0x200000000, 0x000000000, 0x000000000),
    )

    @pytest.mark.parametrize(("q", "old", "v6_12", "v7_3"), SEEN)
    def test_translation(self, q, old, v6_12, v7_3):
        expected = dict.fromkeys(UNTIL_6_10, old) | {"v6_12": v6_12, "v7_3": v7_3}
        assert {r: run(r, KIND_EPT, q).mmu.error_code for r in EVERY} == expected

    @pytest.mark.parametrize("revision", EVERY)
    def test_trace_gets_the_qualification_and_the_mmu_no_instruction(self, revision):
        outcome = run(revision, KIND_EPT, 0x182, insn=True, insn_len=15, mmu_ret=0)
        assert outcome.trace == (True, GPA, 0x182)
        assert outcome.mmu == (True, 1, GPA, 0x100000002, False, 0)
        assert outcome.rmp == (False, 0)
        assert outcome.ret == 0
        assert outcome.warns == 0
        assert effects(outcome) == set()

    @pytest.mark.parametrize("revision", EVERY)
    @given(q=u64)
    def test_never_reserved_and_never_private(self, revision, q):
        code = run(revision, KIND_EPT, q).mmu.error_code
        assert code & ~(1 << 33 | 1 << 32 | 1 << 4 | 1 << 2 | 1 << 1 | 1) == 0

    def test_mbec_counts_user_execution(self):
        assert run("v7_3", KIND_EPT, 0x1C0, mbec=True).mmu.error_code == 0x100000001
        assert run("v6_12", KIND_EPT, 0x1C0, mbec=True).mmu.error_code == 0x100000000

    @pytest.mark.parametrize(
        ("revision", "code"), [("posted", 0x100000002), ("v6_12", 0x100000002), ("v7_3", 0x2000100000002)]
    )
    def test_gpa_without_the_shared_bit_is_private_from_7_3(self, revision, code):
        assert run(revision, KIND_EPT, 0x182, direct_bits=1 << 35).mmu.error_code == code


@pytest.mark.parametrize("revision", EVERY)
@pytest.mark.parametrize("kind", [KIND_NPF, KIND_EPT, KIND_MISCFG, KIND_PF])
def test_guest_retries_by_faulting_again(revision, kind):
    outcome = run(revision, kind, 2, mmu_ret=-EFAULT, retry=Retry(1))
    assert (outcome.ret, outcome.mmu.calls) == (1, 1)


class TestPrivateGpa:
    @pytest.mark.parametrize(
        ("direct_bits", "gpa", "private"),
        [
            (0, 0x1000, False),
            (0, 1 << 47, False),
            (1 << 35, 0x1000, True),
            (1 << 35, 1 << 47 | 0x1000, False),
            (1 << 35, 1 << 51, True),
            (1 << 39, 1 << 47, True),
            (1 << 39, 1 << 51 | 0xFFF, False),
        ],
    )
    def test_private_is_without_the_shared_bit(self, direct_bits, gpa, private):
        assert exits.vt_is_tdx_private_gpa(direct_bits, gpa) is private


class TestEptMisconfig:
    @pytest.mark.parametrize("revision", EVERY)
    def test_bare_reserved_bit_and_no_trace(self, revision):
        outcome = run(revision, KIND_MISCFG, 0x123, insn=True, insn_len=3, mmu_ret=-EINVAL)
        assert outcome.trace == (False, 0, 0)
        assert outcome.mmu == (True, 1, GPA, 8, False, 0)
        assert outcome.ret == -EINVAL
        assert outcome.warns == 0
        assert effects(outcome) == set()

    @pytest.mark.parametrize("revision", EVERY)
    def test_fast_write_is_skipped(self, revision):
        outcome = run(revision, KIND_MISCFG, 0, fast_mmio=True)
        assert effects(outcome) == {"fast_mmio"}
        assert outcome.ret == 1
        assert outcome.warns == 0
        assert_no_call(outcome)

    @pytest.mark.parametrize("revision", EVERY)
    def test_l2_is_never_fast(self, revision):
        outcome = run(revision, KIND_MISCFG, 0, fast_mmio=True, guest_mode=True)
        assert not outcome.fast_mmio
        assert outcome.mmu.error_code == 8

    @pytest.mark.parametrize("guest_mode", [False, True])
    def test_nothing_is_done_while_an_event_is_delivered_in_7_3(self, guest_mode):
        outcome = run("v7_3", KIND_MISCFG, 0, vectoring=True, fast_mmio=True, guest_mode=guest_mode)
        assert outcome.ret == 1
        assert outcome.warns == 0
        assert effects(outcome) == set()
        assert_no_call(outcome)

    @pytest.mark.parametrize("revision", [*UNTIL_6_10, "v6_12"])
    def test_vectoring_is_not_asked_before(self, revision):
        assert run(revision, KIND_MISCFG, 0, vectoring=True).mmu.called


class TestLegacyPf:
    def pf(self, revision, info, **more):
        return run(revision, KIND_PF, info, addr=0xFFFF888012345678, **more)

    @pytest.mark.parametrize("revision", EVERY)
    def test_code_address_and_instruction_pass(self, revision):
        outcome = self.pf(revision, 0x8000_0000 | 0xB, insn=True, insn_len=15, mmu_ret=-EFAULT)
        assert outcome.trace == (True, 0xFFFF888012345678, 0x8000000B)
        assert outcome.mmu == (True, 1, 0xFFFF888012345678, 0x8000000B, True, 15)
        assert outcome.ret == -EFAULT
        assert outcome.warns == 0
        assert effects(outcome) == set()

    @pytest.mark.parametrize("revision", UNCHECKED)
    def test_upper_half_passes_where_nobody_looks(self, revision):
        outcome = self.pf(revision, 0x2000000000006)
        assert codes(outcome) == (0x2000000000006, 0x2000000000006)
        assert outcome.warns == 0

    @pytest.mark.parametrize("revision", CHECKED)
    @pytest.mark.parametrize("bit", [32, 49, 63])
    def test_upper_half_is_cut_before_the_trace(self, revision, bit):
        outcome = self.pf(revision, 1 << bit | 0x80000006)
        assert codes(outcome) == (0x80000006, 0x80000006)
        assert warnings(outcome) == ["pf_upper32"]

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize("flags", [1, 3])
    def test_page_not_present_puts_the_task_to_sleep(self, revision, flags):
        outcome = self.pf(revision, 6, apf_flags=flags, event_pending=True)
        assert effects(outcome) == {"apf_wait"}
        assert outcome.ret == 1
        assert outcome.warns == 0
        assert_no_call(outcome)

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize("flags", [2, 4, 1 << 31])
    def test_other_async_flags_are_a_surprise(self, revision, flags):
        outcome = self.pf(revision, 6, apf_flags=flags)
        assert warnings(outcome) == ["other"]
        assert outcome.ret == 1
        assert effects(outcome) == set()
        assert_no_call(outcome)

    @pytest.mark.parametrize("revision", CHECKED)
    def test_the_code_is_checked_before_the_async_flags(self, revision):
        assert warnings(self.pf(revision, 1 << 49, apf_flags=2)) == ["pf_upper32", "other"]
        assert warnings(self.pf(revision, 1 << 49, apf_flags=1)) == ["pf_upper32"]

    @pytest.mark.parametrize("pending", [False, True])
    def test_pending_event_unprotects_first_until_6_10(self, pending):
        assert {r: self.pf(r, 2, event_pending=pending).unprotect_virt for r in EVERY} == {
            **dict.fromkeys(UNTIL_6_10, pending),
            "v6_12": False,
            "v7_3": False,
        }


class TestTdx:
    """The TDX module hands on a qualification without bits 12:7, whichever address it was."""

    SHARED_BIT = 1 << 47

    def tdx(self, q, addr=GPA, revision="v7_3", retry=None, **more):
        retry = Retry(*retry) if retry else Retry()
        return run(revision, KIND_TDX, q, addr, direct_bits=1 << 35, retry=retry, **more)

    @pytest.mark.parametrize("revision", [*UNTIL_6_10, "v6_12"])
    def test_unknown_before(self, revision):
        outcome = self.tdx(0x2, revision=revision)
        assert outcome.ret == 0
        assert outcome.warns == 0
        assert effects(outcome) == set()
        assert_no_call(outcome)

    @pytest.mark.parametrize("q", [0, 0x1, 0x2, 0x4, 0x3F, 0x7BF])
    def test_private_fault_is_a_private_write_whatever_it_was(self, q):
        outcome = self.tdx(q, mmu_ret=5)
        assert outcome.trace == (True, GPA, 2)
        assert outcome.mmu == (True, 1, GPA, 0x2000000000002, False, 0)
        assert outcome.rmp == (False, 0)
        assert outcome.ret == 5
        assert outcome.warns == 0
        assert effects(outcome) == set()

    def test_shared_fault_is_translated(self):
        addr = self.SHARED_BIT | GPA
        outcome = self.tdx(0xA, addr, mmu_ret=6)  # a write; the page may be read
        assert outcome.trace == (True, addr, 0xA)
        assert outcome.mmu == (True, 1, addr, 0x3, False, 0)  # neither FINAL nor PAGE
        assert outcome.ret == 6

    def test_nothing_is_private_before_the_shared_bit_is_known(self):
        outcome = run("v7_3", KIND_TDX, 0x2)
        assert codes(outcome) == (0x2, 0x2)

    @pytest.mark.parametrize("q", [0x4, 0x5, 0x7])
    def test_fetch_from_shared_memory_is_a_bug(self, q):
        outcome = self.tdx(q, self.SHARED_BIT)
        assert outcome.ret == -EIO
        assert warnings(outcome) == ["kvm_bug"]
        assert effects(outcome) == {"vm_bugged"}
        assert_no_call(outcome)

    def test_unaccepted_page_ends_the_vm(self):
        outcome = self.tdx(0x1, tdx_pending=True)
        assert outcome.ret == -EIO
        assert effects(outcome) == {"vm_dead"}
        assert outcome.warns == 0
        assert_no_call(outcome)

    @pytest.mark.parametrize("protection", [1 << 3, 1 << 4, 1 << 5, 1 << 6])
    def test_pending_page_that_was_mapped_is_another_matter(self, protection):
        outcome = self.tdx(0x1 | protection, tdx_pending=True)
        assert not outcome.vm_dead
        assert outcome.mmu.called

    def test_pending_is_asked_of_private_pages_only(self):
        assert not self.tdx(0x1, self.SHARED_BIT, tdx_pending=True).vm_dead

    def test_private_fault_is_retried_at_once(self):
        outcome = self.tdx(0x2, mmu_ret=5, retry=(3, BREAK_NONE, 0))
        assert outcome.ret == 5
        assert outcome.mmu.calls == 4

    def test_shared_fault_is_not_retried(self):
        outcome = self.tdx(0x2, self.SHARED_BIT, mmu_ret=5, retry=(3, BREAK_NONE, 0))
        assert outcome.ret == 1
        assert outcome.mmu.calls == 1

    @pytest.mark.parametrize(
        ("kind", "ret"),
        [(BREAK_EVENTS, 1), (BREAK_SIGNAL, 1), (BREAK_VM_DEAD, -EIO), (BREAK_SLOT_INVALID, 1)],
    )
    @pytest.mark.parametrize(("after", "calls"), [(0, 1), (1, 1), (2, 2), (3, 3)])
    def test_what_ends_the_retries(self, kind, ret, after, calls):
        outcome = self.tdx(0x2, mmu_ret=5, retry=(3, kind, after))
        assert (outcome.ret, outcome.mmu.calls) == (ret, calls)
        assert not outcome.vm_dead

    @pytest.mark.parametrize("kind", [BREAK_EVENTS, BREAK_SIGNAL, BREAK_VM_DEAD, BREAK_SLOT_INVALID])
    def test_an_answer_comes_before_any_reason_to_stop(self, kind):
        outcome = self.tdx(0x2, mmu_ret=-EFAULT, retry=(1, kind, 2))
        assert (outcome.ret, outcome.mmu.calls) == (-EFAULT, 2)

    def test_missing_slot_is_no_reason_to_stop(self):
        outcome = self.tdx(0x2, mmu_ret=2, retry=(3, tables.BREAK_KINDS.index("no_slot"), 0))
        assert (outcome.ret, outcome.mmu.calls) == (2, 4)

    @pytest.mark.parametrize("kind", [BREAK_NONE, BREAK_VM_DEAD])
    def test_retries_end(self, kind):
        outcome = self.tdx(0x2, mmu_ret=1, retry=(0, kind, 9))
        assert (outcome.ret, outcome.mmu.calls) == (1, 8)


def vcpu(direct=True, is_tdp=True, private=False, vm_type=1, pf_ret=0, direct_bits=0):
    """A vCPU whose fault handler answers `pf_ret`."""
    return Vcpu(
        Mmu(True, direct, is_tdp, False, False),
        Vm(True, True, vm_type, 8 if private else 0, False, False, direct_bits, 5),
        MmioFormat(True, 6, 7, 0, 0, 0, 0, True, 0),
        Walk(4, -1, 0, 0, 0, 0, 0),
        MmioCache(0, 0, 0, 0),
        Environment(True, pf_ret, False, 1, False, False, False),
    )


class TestAsyncPageReady:
    def ready(self, revision, **work):
        machine = {name: work.pop(name) for name in ("direct", "private", "pf_ret") if name in work}
        return get(revision).link("kvm_arch_async_page_ready")(vcpu(**machine), AsyncPf(GPA, **work))

    @pytest.mark.parametrize("revision", [*UNCHECKED, "posted_series", "merged_patch"])
    def test_code_is_zero(self, revision):
        outcome = self.ready(revision, error_code=6)
        fault = outcome.handled.fault
        assert (fault.addr, fault.error_code, fault.write, fault.prefetch) == (GPA, 0, False, True)
        assert outcome.warns == 0

    @pytest.mark.parametrize("revision", ["v6_10", "v6_12", "v7_3"])
    def test_code_is_carried_from_6_10(self, revision):
        outcome = self.ready(revision, error_code=6)
        fault = outcome.handled.fault
        assert (fault.addr, fault.error_code, fault.write, fault.prefetch) == (GPA, 6, True, True)
        assert outcome.warns == 0

    @pytest.mark.parametrize(
        ("revision", "private"),
        [("before", True), ("posted", False), ("posted_series", False), ("v6_10", False), ("v7_3", False)],
    )
    def test_page_that_became_private_is_taken_for_shared_since_posted(self, revision, private):
        assert self.ready(revision, private=True).handled.fault.is_private is private

    @pytest.mark.parametrize("revision", ["v6_10", "v6_12", "v7_3"])
    def test_private_code_is_a_surprise_from_6_10(self, revision):
        outcome = self.ready(revision, error_code=1 << 49 | 6)
        assert warnings(outcome) == ["async_private"]
        assert not outcome.handled.called

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize(
        "work",
        [
            {"direct_map": False},
            {"direct": False},
            {"wakeup_all": True},
            {"reload_ret": -ENOMEM},
            {"direct": False, "direct_map": False, "same_cr3": False},
        ],
    )
    def test_nothing_is_done_if_the_page_is_of_no_use(self, revision, work):
        outcome = self.ready(revision, **work)
        assert not outcome.handled.called
        assert outcome.warns == 0
        assert outcome.stats == (0, 0, 0, 0)

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize("work", [{"same_cr3": False}, {"direct": False, "direct_map": False}])
    def test_direct_mmu_does_not_ask_for_the_root(self, revision, work):
        assert self.ready(revision, **work).handled.called

    @pytest.mark.parametrize(
        ("revision", "fixed", "here"), [("posted", 4, 0), ("v6_12", 5, 1), ("v7_3", 5, 1)]
    )
    def test_fixed_fault_is_counted_once(self, revision, fixed, here):
        outcome = self.ready(revision, pf_ret=fixed)
        assert outcome.stats == (0, here, 0, 0)
        assert outcome.handled.stats == (0, 1 - here, 0, 0)

    @pytest.mark.parametrize("revision", EVERY)
    @pytest.mark.parametrize("pf_ret", [0, 1, 2, -EFAULT])
    def test_nothing_else_is_counted(self, revision, pf_ret):
        outcome = self.ready(revision, pf_ret=pf_ret)
        assert outcome.stats == (0, 0, 0, 0)
        assert outcome.handled.stats == (0, 0, 0, 0)


class TestPreFault:
    FIXED = 5

    def ask(self, revision, gpa=GPA, size=0x1000, retry=(), **more):
        asked = {name: more.pop(name) for name in ("allowed", "reload_ret", "level") if name in more}
        machine = vcpu(**{"pf_ret": self.FIXED, **more})
        request = PreFault(gpa, size, retry=Retry(*retry), **asked)
        return get(revision).link("kvm_arch_vcpu_pre_fault_memory")(machine, request)

    @pytest.mark.parametrize("revision", UNTIL_6_10)
    def test_no_such_ioctl_until_6_10(self, revision):
        outcome = self.ask(revision)
        assert outcome[:-1] == (-EINVAL, 0, 0, 0, 0, (0, 0))
        assert not outcome.handled.called

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3", "posted_on_6_12"])
    def test_shared_page_is_a_final_access(self, revision):
        outcome = self.ask(revision)
        assert (outcome.addr, outcome.error_code) == (GPA, 0x100000000)
        assert (outcome.ret, outcome.calls, outcome.lookups) == (0x1000, 1, (1, 0x40001))
        fault = outcome.handled.fault
        assert (fault.prefetch, fault.is_private, fault.error_code) == (True, False, 0x100000000)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_private_page_is_a_private_access(self, revision):
        outcome = self.ask(revision, private=True)
        assert (outcome.addr, outcome.error_code) == (GPA, 0x2000100000000)
        assert outcome.handled.fault.is_private

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize(("vm_type", "asks"), [(0, False), (1, True), (2, False), (3, False), (4, True)])
    def test_attribute_counts_for_vms_with_private_memory(self, revision, vm_type, asks):
        outcome = self.ask(revision, private=True, vm_type=vm_type)
        assert outcome.lookups.count == int(asks)
        assert outcome.error_code == (0x2000100000000 if asks else 0x100000000)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize(
        ("state", "ret", "handed_on"),
        [
            ({"allowed": False}, -EOPNOTSUPP, (0, 0)),
            ({"reload_ret": -ENOMEM}, -ENOMEM, (0, 0)),
            ({"is_tdp": False, "direct": False}, -EOPNOTSUPP, (GPA, 0x100000000)),
        ],
    )
    def test_refusals(self, revision, state, ret, handed_on):
        outcome = self.ask(revision, **state)
        assert outcome[:5] == (ret, 0, 0, *handed_on)
        assert not outcome.handled.called

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize(
        ("pf_ret", "ret", "warned"),
        [
            (5, 0x1000, []),  # FIXED
            (6, 0x1000, []),  # SPURIOUS
            (3, 0x1000, []),  # WRITE_PROTECTED
            (2, -ENOENT, []),  # EMULATE: there is no page
            (0, -EIO, ["prefault"]),  # CONTINUE
            (4, -EIO, ["prefault"]),  # INVALID
            (-EFAULT, -EFAULT, []),
        ],
    )
    def test_answers(self, revision, pf_ret, ret, warned):
        outcome = self.ask(revision, pf_ret=pf_ret)
        assert (outcome.ret, warnings(outcome)) == (ret, warned)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_retries_until_there_is_an_answer(self, revision):
        outcome = self.ask(revision, retry=(3, BREAK_NONE, 0))
        assert (outcome.ret, outcome.calls) == (0x1000, 4)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_signal_is_asked_before_each_call(self, revision, after):
        outcome = self.ask(revision, retry=(3, BREAK_SIGNAL, after))
        assert outcome.ret == -EINTR
        assert (outcome.warns, outcome.calls, outcome.handled.called) == (0, after, after > 0)

    @pytest.mark.parametrize(("revision", "ret", "calls"), [("v6_12", 0x1000, 4), ("v7_3", -EIO, 2)])
    def test_dead_vm_ends_it_from_7_3(self, revision, ret, calls):
        outcome = self.ask(revision, retry=(3, BREAK_VM_DEAD, 2))
        assert (outcome.ret, outcome.calls) == (ret, calls)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_retries_end(self, revision):
        outcome = self.ask(revision, pf_ret=1)
        assert (outcome.ret, outcome.calls) == (-EINTR, 8)

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    @pytest.mark.parametrize(
        ("gpa", "size", "level", "done"),
        [
            (0x40001000, 0x1000, 1, 0x1000),
            (0x40001000, 0x3000, 1, 0x1000),
            (0x40001FFF, 0x1000, 1, 1),
            (0x40010000, 0x1000, 2, 0x1000),
            (0x40010000, 0x400000, 2, 0x1F0000),
            (0x40000000, 0x80000000, 3, 0x40000000),
        ],
    )
    def test_bytes_done_end_with_the_mapping(self, revision, gpa, size, level, done):
        assert self.ask(revision, gpa, size, level=level).ret == done

    def test_shared_page_of_a_trust_domain_gets_the_shared_bit(self):
        outcome = self.ask("v7_3", vm_type=5, direct_bits=1 << 35)
        assert (outcome.addr, outcome.error_code) == (1 << 47 | GPA, 0x100000000)
        assert outcome.handled.fault.gfn == 0x40001

    def test_private_page_of_a_trust_domain_stays_as_it_is(self):
        outcome = self.ask("v7_3", vm_type=5, direct_bits=1 << 35, private=True)
        assert (outcome.addr, outcome.error_code) == (GPA, 0x2000100000000)

    def test_address_with_the_shared_bit_is_refused(self):
        outcome = self.ask("v7_3", gpa=1 << 47 | GPA, vm_type=5, direct_bits=1 << 35)
        assert outcome[:-1] == (-EINVAL, 0, 0, 0, 0, (0, 0))


class TestTable:
    def event(self, **columns):
        values = {}
        for column in tables.SOURCE_INPUTS:
            value = columns.get(column.column, column.default)
            if column.kind == "label":
                value = column.labels.index(value)
            values[column.column] = bool(value) if column.kind == "bool" else value
        return tables.source_event(**values)

    def test_inputs_are_the_adapters_parameters(self):
        assert [i.column for i in tables.SOURCE_INPUTS] == list(
            inspect.signature(tables.source_event).parameters
        )

    def test_labels_stand_in_the_order_of_their_codes(self):
        assert [tables.KINDS[k] for k in (KIND_EPT, KIND_MISCFG, KIND_NPF, KIND_PF, KIND_TDX)] == [
            "ept", "miscfg", "npf", "pf", "tdx",
        ]  # fmt: skip
        kinds = (exits.SEV_NONE, exits.SEV_SEV, exits.SEV_ES, exits.SEV_SNP)
        assert [tables.SEV_KINDS[k] for k in kinds] == ["none", "sev", "sev_es", "snp"]
        kinds = (BREAK_NONE, BREAK_EVENTS, BREAK_SIGNAL, BREAK_VM_DEAD, BREAK_SLOT_INVALID)
        assert [tables.BREAK_KINDS[k] for k in kinds] == [
            "none",
            "events",
            "signal",
            "vm_dead",
            "slot_invalid",
        ]

    def test_defaults_are_harmless(self):
        assert self.event() == Event(KIND_NPF, 0, 0x100000000)

    @pytest.mark.parametrize(
        ("columns", "sev_es", "snp"),
        [
            ({}, False, False),
            ({"sev_kind": "sev"}, False, False),
            ({"sev_kind": "sev_es"}, True, False),
            ({"sev_kind": "snp"}, True, True),
            ({"snp_guest": 1}, True, True),
        ],
    )
    def test_snp_is_sev_es(self, columns, sev_es, snp):
        guest = self.event(**columns).guest
        assert (guest.sev_es, guest.snp) == (sev_es, snp)

    @pytest.mark.parametrize(
        ("columns", "insn"),
        [
            ({"kind": "npf", "insn_len": 3}, False),
            ({"kind": "npf", "decode_assists": 1}, True),
            ({"kind": "pf", "insn_len": 1}, True),
            ({"kind": "pf", "decode_assists": 1}, False),
        ],
    )
    def test_who_has_instruction_bytes(self, columns, insn):
        assert self.event(**columns).insn is insn

    def test_each_column_has_its_place(self):
        event = self.event(
            kind="tdx", info=1, addr=2, insn_len=3, guest_mode=1, aux_flag=1, apf_flags=4, mmu_ret=-5,
            direct_bits=6, mbec=1, nrips=1, next_rip_known=1, gmet=1, cpl=2, vectoring=1, tdx_pending=1,
            retries=7, break_kind="signal", break_after=8,
        )  # fmt: skip
        guest = Guest(True, True, True, True, False, False, True, True, True, 2, True, 6)
        assert event == Event(KIND_TDX, 1, 2, True, 3, 4, True, guest, -5, Retry(7, BREAK_SIGNAL, 8))

    def test_outputs_name_fields_of_the_outcome(self):
        outcome = run("v7_3", KIND_NPF, 4)
        for column in tables.SOURCE_OUTPUTS:
            value = reduce(getattr, column.path.split("."), outcome)
            assert isinstance(value, bool) == (column.kind == "bool"), column
            if column.reached:
                assert isinstance(reduce(getattr, column.reached.split("."), outcome), bool)


class TestWhatL1Sees:
    """The recordings of nested guests, 6.12.117 and 7.3.4; Intel SDM vol. 3, table of exit qualifications."""

    @pytest.mark.parametrize("revision", ["posted", "v6_12"])
    def test_the_upper_half_of_exitinfo1_as_the_cpu_reported_it(self, revision):
        info = get(revision).link("nested_svm_inject_npf_exit")
        assert info(0x100000006, 0x7) == 0x100000007
        assert info(0x2000100000004, 0x4) == 0x2000100000004  # bit 49, if the CPU reports it

    def test_from_7_3_only_the_stage_of_the_walk(self):
        info = get("v7_3").link("nested_svm_inject_npf_exit")
        assert info(0x2000100000004, 0x4) == 0x100000004
        assert info(0x200000006, 0x6) == 0x200000006
        assert info(0x300000000, 0x4) == info(0, 0x4) == 0x100000004  # both, or neither: "final address"

    def test_the_qualification_keeps_two_bits_and_gets_l1s_rights(self):
        qualification = get("v6_12").link("nested_ept_inject_page_fault")
        assert qualification(0x181, 0x1) == 0x181
        assert qualification(0x3FFF, 0x2A) == 0x1AA  # a write where L1's entry allows to read and execute
