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
    "two faults in turn that end differently": (
        [exit_("EPT_VIOLATION", 0x182), fault(0x12345000, 0x182),
         "kvm_mmu_set_spte: gfn 12345 spte 600012345b77 (rwxu) level 1 at ffff", ENTRY,
         exit_("EPT_VIOLATION", 0x181), fault(0x12346000, 0x181), "kvm_userspace_exit: reason error (14)", ENTRY],
        "at 0x12345000: each time it is mapped, and the mapping is gone or does not suffice when the guest comes back; "
        "then a read, on a page that is not mapped, at 0x12346000: each time KVM_RUN fails with EFAULT",
        "0x12345000",
    ),
}  # fmt: skip


def recorded(tmp_path, turn, times=8):
    path = tmp_path / "trace"
    lines, now = [], 100.0
    for _ in range(times):
        for text in turn:
            now += 0.00001
            lines.append(
                event(now, text) if text.startswith(("kvm_", "fast_")) and ":" in text[:30] else f"{text}\n"
            )
    path.write_text("".join(lines))
    return load(path)


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
    assert "--revision v6_12" in page(recorded(tmp_path, turn)).split("\nNext\n")[1]


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
