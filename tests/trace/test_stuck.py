# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is stuck on, from the page alone: storms as somebody who debugs meets them, on every kind of CPU.

The events are as kernels print them (`arch/x86/kvm/trace.h`, Linux v6.12); what they mean was reasoned from the manuals
and the kernel, as said beside each.
"""

import re

import pytest

from kvm_pf.trace import load, page, storms
from kvm_pf.trace.storms import Finder
from kvm_pf.trace.stuck import stuck_on

RIP = "0xffffffff81000010"


def event(time, text, task="CPU 0/KVM-4145"):
    return f" {task}    [002] ..... {time:13.6f}: {text}\n"


def exit_(reason, info1=0, info2=0, rip=RIP):
    return (
        f"kvm_exit: vcpu 0 reason {reason} rip {rip} info1 0x{info1:016x} info2 0x{info2:016x} intr_info 0x00000000 "
        "error_code 0x00000000"
    )


def fault(address, code, rip=RIP):
    return f"kvm_page_fault: vcpu 0 rip {rip} address 0x{address:016x} error_code {code:#x}"


ENTRY = f"kvm_entry: vcpu 0, rip {RIP}"
QEMU = "qemu: memory fault: GPA 0x4000000 size 0x1000 flags {flags}"
CONVERT = "kvm_convert_memory start 0x4000000 size 0x1000 {way}"
TO_PRIVATE, TO_SHARED = CONVERT.format(way="shared_to_private"), CONVERT.format(way="private_to_shared")

# Each storm: the events of one turn (lines without a time if they are no events), and what must be said of it.
STORMS = {
    # KVM_EXIT_MMIO: kvm_mmio "unsatisfied-read" goes to user space
    "no memslot, Intel": (
        [exit_("EPT_MISCONFIG"), "kvm_emulate_insn: 0:ffffffff81000010: 8b 07 (prot64)",
         "kvm_mmio: mmio unsatisfied-read len 4 gpa 0xfedc0000 val 0x0", "kvm_userspace_exit: reason KVM_EXIT_MMIO (6)",
         ENTRY],
        "at 0xfedc0000; each time the access is emulated as MMIO: no memslot is there", "which device of the VMM",
    ),
    # RSVD in EXITINFO1 and nothing emulated: the mark is not taken for MMIO
    "a broken MMIO mark, AMD": (
        [exit_("npf", 0x10000000F, 0xFED40000), fault(0xFED40000, 0x10000000F), ENTRY],
        "marked with a reserved bit, as KVM marks MMIO, at 0xfed40000; each time the guest is resumed",
        "an MMIO entry that is stale or broken",
    ),
    # 0x1aa: a write; readable and executable (bits 3, 5), not writable (bit 4 clear)
    "a write to a read-only memslot": (
        [exit_("EPT_VIOLATION", 0x1AA), fault(0xFFC00000, 0x1AA), "kvm_mmio: mmio write len 1 gpa 0xffc00000 val 0x0",
         "kvm_userspace_exit: reason KVM_EXIT_MMIO (6)", ENTRY],
        "each time the write is emulated as MMIO: the page can be read and not written, as of a read-only memslot",
        "0xffc00000: which device",
    ),
    "dirty logging": (
        [exit_("EPT_VIOLATION", 0x1AA), fault(0x12345000, 0x1AA),
         "fast_page_fault: vcpu 0 gva 12345000 error_code P|W sptep 00000000ce97aa9a old 0x600012345b75 new "
         "0x600012345b77 spurious 0 fixed 1", ENTRY],
        "each time it is made writable, and is protected again when the guest comes back, as by dirty logging",
        "does a migration",
    ),
    # private (bit 34), then shared, each a mismatch: the attribute was changed in between (kvm_faultin_pfn, v6.12)
    "conversions, in turn, SNP": (
        [exit_("npf", 0x500000006, 0x4000000, "0x0"), fault(0x4000000, 0x500000006, "0x0"),
         "kvm_userspace_exit: reason KVM_EXIT_MEMORY_FAULT (39)", "kvm_entry: vcpu 0, rip 0x0",
         exit_("npf", 0x100000006, 0x4000000, "0x0"), fault(0x4000000, 0x100000006, "0x0"),
         "kvm_userspace_exit: reason KVM_EXIT_MEMORY_FAULT (39)", "kvm_entry: vcpu 0, rip 0x0"],
        "user space converts the page each time, to private and to shared in turn, and the guest then uses it the",
        "page-table entries for the page (C-bit, shared bit)",
    ),
    "conversions, in turn, as QEMU tells them": (
        [QEMU.format(flags="0x8") + " " + TO_PRIVATE, QEMU.format(flags="0x0") + " " + TO_SHARED],
        "user space converts the page each time, to private and to shared in turn", "VMM's log of conversions",
    ),
    "conversions, in turn, that are not told": (
        [QEMU.format(flags="0x8"), QEMU.format(flags="0x0")],
        "user space converts the page each time, to private and to shared in turn", "VMM's log of conversions",
    ),
    "converted back": (
        [QEMU.format(flags="0x8") + " " + TO_PRIVATE, TO_SHARED],
        "user space converts the page each time, and it is converted back before the guest comes again",
        "VMM's log of conversions",
    ),
    "nobody says whether it is converted": (
        [QEMU.format(flags="0x8")],
        "it does not convert the page, or something converts it back (no conversion is in the trace)",
        "VMM's log of conversions",
    ),
    "EFAULT hides the exit, SNP": (
        [fault(0x4000000, 0x2000500000006, "0x0"), "kvm_userspace_exit: reason error (14)",
         "kvm_entry: vcpu 0, rip 0x0"],
        "KVM_RUN fails with EFAULT, a memory fault", "VMM's log of conversions",
    ),
    # a VM without private memory: get_user_pages() fails
    "EFAULT, an ordinary VM": (
        [exit_("EPT_VIOLATION", 0x181), fault(0x3FEF42812000, 0x181), "kvm_userspace_exit: reason error (14)", ENTRY],
        "each time KVM_RUN fails with EFAULT and user space runs the vCPU again: it has no page there",
        "the VMM's memslot there",
    ),
    "an instruction that cannot be emulated": (
        [exit_("EPT_VIOLATION", 0x181), fault(0xFEBD0000, 0x181),
         "kvm_emulate_insn: 0:ffffffff81000010: f3 a5 (prot64)",
         "kvm_emulate_insn: 0:ffffffff81000010: f3 a5 (prot64) failed", "kvm_inj_exception: #UD", ENTRY],
        "KVM cannot emulate the instruction (emulation failed, #UD injected)", f"the instruction at rip {RIP}",
    ),
    "nested, AMD": (
        [exit_("npf", 0x200000006, 0x641000),
         exit_("npf", 0x200000006, 0x641000).replace("kvm_exit", "kvm_nested_vmexit"),
         fault(0x641000, 0x200000006),
         exit_("npf", 0x200000006, 0x641000).replace("kvm_exit", "kvm_nested_vmexit_inject"), ENTRY],
        "at 0x641000; each time it is handed to L1", "record the same events in L1",
    ),
    "the local APIC": (
        [fault(0xFEE00300, 0x182), ENTRY], "at 0xfee00300; each time the guest is resumed", "kvm_unmap_hva_range",
    ),
    # 0x19c: a fetch; readable and writable (bits 3, 4), not executable (bit 5 clear)
    "NX huge pages": (
        [exit_("EPT_VIOLATION", 0x19C), fault(0x40000F00, 0x19C),
         "kvm_mmu_set_spte: gfn 40000 spte 600040000b77 (rwxu) level 1 at ffff", ENTRY],
        "each time it is made executable, and is so no more when the guest comes back", "nx_huge_pages",
    ),
    # rip and linear address are hidden; KVM traces a private access as a write (2)
    "TDX": (
        [exit_("EPT_VIOLATION", 1, 0, "0x0"), fault(0x12345000, 2, "0x0"), "kvm_entry: vcpu 0, rip 0x0"],
        "an access to private memory of a TDX guest, on a page that is not mapped, at 0x12345000", "KVM tries again",
    ),
    "a large page taken away": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182),
         "kvm_mmu_set_spte: gfn 12345 spte 600012345b77 (rwxu) level 1 at ffff", ENTRY],
        "each time it is mapped, and the mapping is gone or does not suffice",
        "0x12345000: who takes the mapping away",
    ),
    # RMP (bit 31) in EXITINFO1: sev_handle_rmp_fault() splits the RMP's entry and zaps, and the guest tries again
    "refused by the RMP": (
        [exit_("npf", 0x580000007, 0x4000000, "0x0"), fault(0x4000000, 0x2000580000007, "0x0"),
         "kvm_rmp_fault: vcpu 0 gpa 0000000004000000 error_code 0x580000007 rmp_level 1 psmash_ret 0",
         "kvm_entry: vcpu 0, rip 0x0"],
        "at 0x4000000; each time KVM splits the RMP's entry", "read dmesg (SEV:, SEV-SNP:)",
    ),
    # bits 34 and 3: private memory that is marked as MMIO, which v6.10 refuses with a bare EFAULT
    "private MMIO, SNP": (
        [exit_("npf", 0x50000000D, 0xFED00000, "0x0"), fault(0xFED00000, 0x200050000000D, "0x0"),
         "kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"],
        "the guest takes emulated MMIO for private memory", "MMIO has to be mapped as shared",
    ),
    # check_mmio_spte() compares the generations; here a 0x1a beside 0x18 (Linux v6.12, mmutrace.h)
    "memslots that change all the time": (
        [exit_("EPT_MISCONFIG"), "check_mmio_spte: spte 6000fedc0007 kvm_gen 1a spte-gen 18 valid 0", ENTRY],
        "KVM finds its MMIO entry older than the memslots", "who changes memslots all the time",
    ),
    "a page that does not come": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182),
         "kvm_try_async_get_page: gva = 0x12345000, gfn = 0x12345",
         "kvm_async_pf_not_present: token 0x1000 gva 0x12345000", ENTRY],
        "KVM has the host bring the page in", "userfaultfd (post-copy migration)",
    ),
    # 0x1ba: a write; readable, writable and executable (bits 3, 4, 5)
    "allowed by now": (
        [exit_("EPT_VIOLATION", 0x1BA), fault(0x12345000, 0x1BA),
         "fast_page_fault: vcpu 0 gva 12345000 error_code P|W sptep 00000000ce97aa9a old 0x600012345b77 new "
         "0x600012345b77 spurious 1 fixed 0", ENTRY],
        "the entry allows the access by now, and the CPU refused it all the same", "does not flush the TLB",
    ),
    "the guest's own page tables": (
        [exit_("EXCEPTION_NMI", 0xFFFFF000).replace("intr_info 0x00000000", "intr_info 0x80000b0e").replace(
            "error_code 0x00000000", "error_code 0x00000009"), fault(0xFFFFF000, 0x9),
         "kvm_mmu_walker_error: pferr 9 P|RSVD", "kvm_inj_exception: #PF (0x9)", ENTRY],
        "each time the guest gets the #PF", "the guest's own page-table entries",
    ),
    "a write-protected page table": (
        [exit_("npf", 0x200000007, 0x1AB000), fault(0x1AB000, 0x200000007),
         "kvm_emulate_insn: 0:ffffffff81000010: 48 89 07 (prot64)", ENTRY],
        "the instruction is emulated, and the guest executes it again", "A page table of the guest's that KVM shadows",
    ),
    "KVM's own bug": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182), "kvm_userspace_exit: reason error (5)", ENTRY],
        "KVM_RUN fails (EIO: KVM met a bug of its own", "0x12345000: dmesg",
    ),
    "signals": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182), "kvm_userspace_exit: reason restart (4)", ENTRY],
        "a signal takes the vCPU out of KVM_RUN", "SIGBUS",
    ),
    "an entry whose address is not shown, then one that L1 gets": (
        [exit_("EPT_MISCONFIG"), exit_("EPT_MISCONFIG").replace("kvm_exit", "kvm_nested_vmexit"),
         exit_("EPT_MISCONFIG").replace("kvm_exit", "kvm_nested_vmexit_inject"), ENTRY,
         exit_("EPT_VIOLATION", 0x181), fault(0xFED40000, 0x181),
         exit_("EPT_VIOLATION", 0x181).replace("kvm_exit", "kvm_nested_vmexit_inject"), ENTRY],
        "(its address is not shown); then a read, on a page that is not mapped, at 0xfed40000; each time it is handed",
        "0xfed40000: an address of L2",
    ),
    "two faults in turn that end differently": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182),
         "kvm_mmu_set_spte: gfn 12345 spte 600012345b77 (rwxu) level 1 at ffff", ENTRY,
         exit_("EPT_VIOLATION", 0x181), fault(0x12346000, 0x181), "kvm_userspace_exit: reason error (14)", ENTRY],
        "at 0x12345000: each time it is mapped, and the mapping is gone or does not suffice when the guest comes back; "
        "then a read, on a page that is not mapped, at 0x12346000: each time KVM_RUN fails with EFAULT",
        "0x12345000",
    ),
}  # fmt: skip


EVENT = re.compile(r"(kvm_\w+|fast_page_fault|check_mmio_spte): ")


def recorded(tmp_path, turn, times=8, revision=None):
    path = tmp_path / "trace"
    lines, now = [], 100.0
    for _ in range(times):
        for text in turn:
            now += 0.00001
            lines.append(event(now, text) if EVENT.match(text) else f"{text}\n")
    path.write_text("".join(lines))
    return load(path, revision)


@pytest.mark.parametrize("name", STORMS)
def test_the_page_says_what_the_guest_is_stuck_on_and_what_to_look_at_next(name, tmp_path):
    turn, stuck, look = STORMS[name]
    told = page(recorded(tmp_path, turn))
    line = next(line for line in told.splitlines() if "stuck on" in line)
    assert stuck in line
    assert look in told.split("\nNext\n")[1]


def test_a_page_that_is_declared_so_already_is_not_converted_again(tmp_path):
    path = tmp_path / "trace"
    path.write_text(f"{TO_PRIVATE}\n" + f"{QEMU.format(flags='0x8')}\n" * 8)
    (row,) = storms(load(path).faults).itertuples()
    assert "the page is private already" in row.stuck_on
    assert "guest_memfd" in row.stuck_on


def test_user_space_that_does_not_convert_is_told_of_where_the_last_conversion_is_known(tmp_path):
    path = tmp_path / "trace"
    path.write_text(f"{TO_SHARED}\n" + f"{QEMU.format(flags='0x8')}\n" * 8)
    (row,) = storms(load(path).faults).itertuples()
    assert row.stuck_on.endswith("private or shared access each time and does not convert the page")


def test_different_pages_asked_for_in_turn_say_nothing_of_conversions(tmp_path):
    other = QEMU.format(flags="0x0").replace("0x4000000", "0x5000000")
    traced = recorded(tmp_path, [QEMU.format(flags="0x8"), other])
    assert "in turn" not in storms(traced.faults)["stuck_on"].iloc[0]


def test_a_storm_is_told_in_the_same_words_in_parts_of_any_size(tmp_path):
    for name in (
        "conversions, in turn, as QEMU tells them",
        "converted back",
        "two faults in turn that end differently",
    ):
        turn, _, _ = STORMS[name]
        faults = recorded(tmp_path, turn, 12).faults
        whole = storms(faults)["stuck_on"].tolist()
        for size in (1, 5, 7):
            finder = Finder()
            for start in range(0, len(faults), size):
                finder.add(faults.iloc[start : start + size].reset_index(drop=True))
            assert [stuck_on(storm) for storm in finder.found] == whole


def test_a_fault_that_takes_long_and_one_that_does_not_end_are_told_of(tmp_path):
    path = tmp_path / "trace"
    path.write_text(
        event(100, exit_("EPT_VIOLATION", 0x181)) + event(100.000001, fault(0x12345000, 0x181)) + event(103.2, ENTRY)
        + event(103.3, exit_("EPT_VIOLATION", 0x181)) + event(103.3001, fault(0x12346000, 0x181))
        + event(110, "kvm_entry: vcpu 1, rip 0x1", "CPU 1/KVM-4146")
    )  # fmt: skip
    traced = load(path)
    assert traced.faults["took"].round(6).tolist()[:1] == [3.2]
    assert traced.faults["took"].isna().tolist() == [False, True]
    told = page(traced)
    assert "line 1: this fault took 3.200 s, at 0x12345000" in told
    assert re.search(r"line 4: this fault has not ended when the trace does, 6\.700 s later", told)
    assert "sched_switch" in told.split("\nNext\n")[1]


def test_a_fault_without_an_end_is_no_wait_where_entries_are_not_recorded_or_hours_lie_between(tmp_path):
    path = tmp_path / "trace"
    other = event(110, "kvm_entry: vcpu 1, rip 0x1", "CPU 1/KVM-4146")
    path.write_text(event(100, fault(0x12345000, 0x181)) + other)
    assert "has not ended" not in page(load(path))
    path.write_text(event(99, ENTRY) + event(100, fault(0x12345000, 0x181)) + other)
    assert "line 2: this fault has not ended" in page(load(path))
    late = event(99_999, "kvm_entry: vcpu 1, rip 0x1", "CPU 1/KVM-4146")
    path.write_text(event(99, ENTRY) + event(100, fault(0x12345000, 0x181)) + late)
    assert "has not ended" not in page(load(path))


def test_a_kernel_that_adds_bit_49_before_the_trace_is_pointed_out(tmp_path):
    turn = [
        exit_("npf", 0x500000006, 0x4000000, "0x0"),
        fault(0x4000000, 0x2000500000006, "0x0"),
        "kvm_entry: vcpu 0, rip 0x0",
    ]
    assert "--revision v6_12" in page(recorded(tmp_path, turn, revision="posted")).split("\nNext\n")[1]


def test_storms_with_one_thing_to_look_at_share_a_line(tmp_path):
    lines = []
    for n, address in enumerate((0x12345000, 0x12346000)):
        turn = [fault(address, 0x182), ENTRY]
        lines += [event(100 + n + k / 1000, text) for k in range(8) for text in turn]
    path = tmp_path / "trace"
    path.write_text("".join(lines))
    told = page(load(path)).split("\nNext\n")[1].splitlines()
    assert sum("KVM tries again" in line for line in told) == 1
    assert any(line.strip().startswith("0x12345000, 0x12346000: KVM tries again") for line in told)
    assert "-e kvm:kvm_unmap_hva_range" in told[-1]


def test_two_vcpus_that_take_a_page_from_one_another_are_named(tmp_path):
    def turn(vcpu, info, code):
        who = f"CPU {vcpu}/KVM-{4145 + vcpu}"
        texts = [exit_("npf", info, 0x4000000, "0x0"), fault(0x4000000, code, "0x0"),
                 "kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"]  # fmt: skip
        return [(text.replace("vcpu 0", f"vcpu {vcpu}"), who) for text in texts]

    path = tmp_path / "trace"
    both = turn(0, 0x500000006, 0x2000500000006) + turn(1, 0x100000006, 0x100000006)
    path.write_text("".join(event(100 + n / 1000, text, who) for n, (text, who) in enumerate(both * 8)))
    first, second = (line for line in page(load(path)).splitlines() if "stuck on" in line)
    assert first.endswith(
        "meanwhile vCPU 1 asks for the same page as shared memory: they take it from one another"
    )
    assert second.endswith(
        "meanwhile vCPU 0 asks for the same page as private memory: they take it from one another"
    )
    # one after the other they do not
    one_by_one = turn(0, 0x500000006, 0x2000500000006) * 8 + turn(1, 0x100000006, 0x100000006) * 8
    path.write_text("".join(event(100 + n / 1000, text, who) for n, (text, who) in enumerate(one_by_one)))
    assert "meanwhile" not in page(load(path))


def test_a_page_declared_private_by_the_guest_that_ends_in_efault(tmp_path):
    # 12 is KVM_HC_MAP_GPA_RANGE, 0x10 MAP_GPA_ENCRYPTED; EPT's qualification does not tell private from shared
    turn = [
        exit_("EPT_VIOLATION", 0x182),
        fault(0x4000000, 0x182),
        "kvm_userspace_exit: reason error (14)",
        ENTRY,
    ]
    path = tmp_path / "trace"
    texts = ["kvm_hypercall: nr 0xc a0 0x4000000 a1 0x1 a2 0x10 a3 0x0", *turn * 8]
    path.write_text("".join(event(100 + n / 1000, text) for n, text in enumerate(texts)))
    told = page(load(path))
    assert "the page was declared private: its memslot has no guest_memfd" in told
    assert "whether the memslot there has a guest_memfd" in told.split("\nNext\n")[1]


def test_what_is_to_be_recorded_next_stands_in_the_command(tmp_path):
    told = page(recorded(tmp_path, STORMS["refused by the RMP"][0])).splitlines()[-1]
    assert told.endswith("-e kvm:kvm_rmp_fault -e kvm:kvm_vmgexit_enter")
    told = page(recorded(tmp_path, STORMS["a write-protected page table"][0])).splitlines()[-1]
    assert told.endswith("-e kvmmmu")


def test_the_same_disagreement_is_told_once(tmp_path):
    told = page(recorded(tmp_path, STORMS["refused by the RMP"][0], revision="posted"))
    part = told.split("\nWhere the trace and the model disagree\n")[1].split("\n\n")[0]
    assert len(part.splitlines()) == 1
    assert part.strip().startswith("line 1 and 7 more: kvm_page_fault shows 0x2000580000007")
