# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is stuck on, from the page alone: storms as somebody who debugs meets them, on every kind of CPU.

The events are as kernels print them (`arch/x86/kvm/trace.h`, Linux v6.12); what they mean was reasoned from the manuals
and the kernel, as said beside each.
"""

import re

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.run.codes import read
from kvm_pf.trace import load, page, storms
from kvm_pf.trace.pasted import read_text
from kvm_pf.trace.storms import Finder
from kvm_pf.trace.stuck import verdict

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
        "inside the guest (the host cannot read it there): the page-table entries for the page, C-bit or shared bit",
    ),
    "conversions, in turn, as QEMU tells them": (
        [QEMU.format(flags="0x8") + " " + TO_PRIVATE, QEMU.format(flags="0x0") + " " + TO_SHARED],
        "user space converts the page each time, to private and to shared in turn", "inside the guest",
    ),
    "conversions, in turn, that are not told": (
        [QEMU.format(flags="0x8"), QEMU.format(flags="0x0")],
        "user space converts the page each time, to private and to shared in turn", "VMM's log of conversions",
    ),
    "converted back": (
        [QEMU.format(flags="0x8") + " " + TO_PRIVATE, TO_SHARED],
        "user space converts the page each time, and it is converted back before the guest comes again",
        "inside the guest",
    ),
    "nobody says whether it is converted": (
        [QEMU.format(flags="0x8")],
        "no conversion of the page is in the trace: user space makes none (or of another range), or something undoes "
        "it, or the page is private already, and its memslot has no guest_memfd, or (another error than EFAULT)",
        "there, too: does the memslot there have a guest_memfd",
    ),
    "EFAULT hides the exit, SNP": (
        [fault(0x4000000, 0x2000500000006, "0x0"), "kvm_userspace_exit: reason error (14)",
         "kvm_entry: vcpu 0, rip 0x0"],
        "or the page is private already, and its memslot has no guest_memfd; KVM_RUN ends with a memory fault (EFAULT)",
        "VMM's log of conversions",
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
        "KVM cannot emulate the instruction (emulation failed, #UD injected)",
        "0xfebd0000: is there a memslot at that address",
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
        "at 0x4000000; each time the RMP refuses the page", "read dmesg (SEV:, SEV-SNP:)",
    ),
    # bits 34 and 3, which v6.10 refuses with a bare EFAULT; to an SNP guest the CPU gives #VC instead (APM 15.35.4)
    "private MMIO, SNP": (
        [exit_("npf", 0x50000000D, 0xFED00000, "0x0"), fault(0xFED00000, 0x200050000000D, "0x0"),
         "kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"],
        "private and reserved at once, which KVM refuses. No guest can bring that about",
        "bits 3 and 49 together are a bug of the CPU's or of KVM's",
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
        "at 0x12345000; then a read, on a page that is not mapped, at 0x12346000; each time it is mapped, and the "
        "mapping is gone or does not suffice when the guest comes back; then each time KVM_RUN fails with EFAULT",
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


def first_storm(told):
    """Give what the page says of the first storm: why, which comes first, and on what the guest is stuck."""
    lines = told.splitlines()
    n = next(n for n, line in enumerate(lines) if line.strip().startswith("stuck on"))
    return f"{lines[n].strip()}; {lines[n - 1].strip()}"


@pytest.mark.parametrize("name", STORMS)
def test_the_page_says_what_the_guest_is_stuck_on_and_what_to_look_at_next(name, tmp_path):
    turn, stuck, look = STORMS[name]
    told = page(recorded(tmp_path, turn))
    assert stuck in first_storm(told)
    assert look in told.split("\nNext\n")[1]


def test_a_page_that_is_declared_so_already_is_not_converted_again(tmp_path):
    path = tmp_path / "trace"
    path.write_text(f"{TO_PRIVATE}\n" + f"{QEMU.format(flags='0x8')}\n" * 8)
    (row,) = storms(load(path).faults).itertuples()
    assert row.why.startswith(
        "the page is private already, so that converting it does not help: its memslot has no "
    )


def test_user_space_that_does_not_convert_is_told_of_where_the_last_conversion_is_known(tmp_path):
    path = tmp_path / "trace"
    path.write_text(f"{TO_SHARED}\n" + f"{QEMU.format(flags='0x8')}\n" * 8)
    (row,) = storms(load(path).faults).itertuples()
    assert row.why.startswith("user space does not convert the page")


def test_different_pages_asked_for_in_turn_say_nothing_of_conversions(tmp_path):
    other = QEMU.format(flags="0x0").replace("0x4000000", "0x5000000")
    traced = recorded(tmp_path, [QEMU.format(flags="0x8"), other])
    assert "in turn" not in storms(traced.faults)["why"].iloc[0]


def test_a_storm_is_told_in_the_same_words_in_parts_of_any_size(tmp_path):
    for name in (
        "conversions, in turn, as QEMU tells them",
        "converted back",
        "two faults in turn that end differently",
    ):
        turn, _, _ = STORMS[name]
        faults = recorded(tmp_path, turn, 12).faults
        whole = storms(faults)["why"].tolist()
        for size in (1, 5, 7):
            finder = Finder()
            for start in range(0, len(faults), size):
                finder.add(faults.iloc[start : start + size].reset_index(drop=True))
            assert [verdict(storm) for storm in finder.found] == whole


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
    first, second = (
        line.strip() for line in page(load(path)).splitlines() if "take it from one another" in line
    )
    assert first.startswith("vCPU 1 asks for the same page as shared memory meanwhile")
    assert second.startswith("vCPU 0 asks for the same page as private memory meanwhile")
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
    assert "does the memslot there have a guest_memfd" in told.split("\nNext\n")[1]


def test_what_is_to_be_recorded_next_stands_in_the_command(tmp_path):
    told = page(recorded(tmp_path, STORMS["refused by the RMP"][0])).splitlines()[-1]
    assert told.endswith("-e kvmmmu -e kvm:kvm_vmgexit_enter")  # kvm_rmp_fault is there already
    told = page(recorded(tmp_path, STORMS["a write-protected page table"][0])).splitlines()[-1]
    assert told.endswith("-e kvmmmu")


def test_the_same_disagreement_is_told_once(tmp_path):
    told = page(recorded(tmp_path, STORMS["refused by the RMP"][0], revision="posted"))
    part = told.split("\nWhere the trace and the model disagree\n")[1].split("\n\n")[0]
    assert len(part.splitlines()) == 1
    assert part.strip().startswith("line 1 and 7 more: kvm_page_fault shows 0x2000580000007")


def test_a_memory_fault_in_memory_that_is_declared_so_already_is_no_disagreement(tmp_path):
    """Linux `arch/x86/kvm/mmu/mmu.c`, kvm_faultin_pfn_private() (v6.12): no guest_memfd, or no page in it."""
    for flags, way in (("0x8", TO_PRIVATE), ("0x0", TO_SHARED)):
        traced = recorded(tmp_path, [QEMU.format(flags=flags), way])
        told = page(traced)
        assert "disagree" not in told.lower()
        assert "allowed:" not in told
        steps = told.split("\nNext\n")[1]
        assert "KVM_SET_USER_MEMORY_REGION2" in steps
        assert "kvm_convert_memory" not in steps
        assert "log of conversions" not in steps


def test_what_is_in_the_trace_is_not_asked_for_again(tmp_path):
    """Every event of the list, and those of an SNP guest."""
    turn = [
        exit_("npf", 0x580000007, 0x4000000, "0x0"), fault(0x4000000, 0x2000580000007, "0x0"),
        "kvm_rmp_fault: vcpu 0 gpa 0000000004000000 pfn 0x12 error_code 0x580000007 rmp_level 1 psmash_ret 0",
        "kvm_entry: vcpu 0, rip 0x0",
    ]  # fmt: skip
    others = [
        "kvm_userspace_exit: reason KVM_EXIT_INTR (10)", "kvm_mmio: mmio read len 4 gpa 0xfedc0000 val 0x0",
        "kvm_emulate_insn: 0:ffffffff81000010: 8b 07 (prot64)", "kvm_inj_exception: #PF (0x9)",
        "kvm_hypercall: nr 0x5 a0 0x0 a1 0x0 a2 0x0 a3 0x0",
        "kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0012345000 -- 0x7f0012346000",
        "kvm_vmgexit_enter: vcpu 0, exit_reason 80000010, exit_info1 0, exit_info2 0",
    ]  # fmt: skip
    mapping = "kvm_tdp_mmu_spte_changed: as id 0 gfn 1 level 1 old_spte 0 new_spte 0"
    path = tmp_path / "trace"

    def steps(texts):
        path.write_text("".join(event(100 + n / 1000, text) for n, text in enumerate(texts)))
        return page(load(path)).split("\nNext\n")[1]

    assert "record" not in steps([*others, mapping, *turn * 8])
    assert steps([*others, *turn * 8]).splitlines()[-1].endswith("beside the others: -e kvmmmu")
    assert "see kvm:kvm_rmp_fault and kvm:kvm_vmgexit_enter in the trace" in steps([*others, *turn * 8])


def test_only_a_trace_with_mappings_says_that_nothing_is_mapped(tmp_path):
    turn = [exit_("npf", 0x100000006, 0x5000), fault(0x5000, 0x100000006), ENTRY]
    assert first_storm(page(recorded(tmp_path, turn))).endswith("is resumed; mappings were not recorded")
    walk = "kvm_mmu_pagetable_walk: addr 5000 pferr 6 W|U"
    assert first_storm(page(recorded(tmp_path, [*turn[:2], walk, ENTRY]))).endswith(
        "is resumed, and nothing is mapped"
    )
    assert (
        storms(recorded(tmp_path, turn).faults)["why"][0] == "each time the guest is resumed"
    )  # nobody knows


def test_snp_storms_ask_for_the_events_of_snp(tmp_path):
    """Linux `arch/x86/kvm/trace.h`, kvm_rmp_fault, kvm_vmgexit_enter (v6.11)."""
    for end in ("kvm_userspace_exit: reason error (14)", "kvm_entry: vcpu 0, rip 0x0"):
        turn = [exit_("npf", 0x500000006, 0x4000000, "0x0"), fault(0x4000000, 0x2000500000006, "0x0"), end]
        told = page(recorded(tmp_path, turn)).splitlines()[-1]
        assert told.endswith("-e kvm:kvm_rmp_fault -e kvm:kvm_vmgexit_enter")
    plain = [exit_("npf", 0x100000006, 0x4000000), fault(0x4000000, 0x100000006), ENTRY]
    assert "kvm_rmp_fault" not in page(recorded(tmp_path, plain))


@pytest.mark.parametrize("name", STORMS)
def test_why_is_told_first_and_in_few_words(name, tmp_path):
    lines = page(recorded(tmp_path, STORMS[name][0])).splitlines()
    n = next(n for n, line in enumerate(lines) if line.strip().startswith("stuck on"))
    assert "(lines 1 to" in lines[n - 2]
    assert max(len(part.split()) for part in re.split("[;:] ", lines[n - 1])) <= 36


def test_an_instruction_that_cannot_be_emulated_asks_for_memslot_and_bytes(tmp_path):
    """Linux `include/uapi/linux/kvm.h`, emulation_failure of struct kvm_run (v5.15); 0x14: a fetch (bit 4)."""
    failed = "kvm_emulate_insn: 0:ffffffff81000010: (prot64) failed"
    end = "kvm_userspace_exit: reason KVM_EXIT_INTERNAL_ERROR (17)"
    for code, is_fetch in ((0x100000014, True), (0x100000006, False)):
        turn = [exit_("npf", code, 0xFE000000), fault(0xFE000000, code), failed, end]
        for times in (1, 8):
            steps = page(recorded(tmp_path, turn, times)).split("\nNext\n")[1]
            assert steps.count("0xfe000000: is there a memslot at that address") == 1
            assert "vcpu->run->emulation_failure" in steps
            assert ("never fetched from MMIO" in steps) == is_fetch


def test_exits_without_a_fault_are_counted_by_name(tmp_path):
    """KVM_HC_MAP_GPA_RANGE alone comes so: Linux `Documentation/virt/kvm/api.rst`, KVM_CAP_EXIT_HYPERCALL (v6.12)."""
    turn = [exit_("vmgexit"), "kvm_userspace_exit: reason KVM_EXIT_HYPERCALL (3)", ENTRY]
    told = page(recorded(tmp_path, turn))
    assert re.search(
        r"\n +8  vmgexit\n +8  to user space: KVM_EXIT_HYPERCALL: a request to convert memory", told
    )
    steps = told.split("\nNext\n")[1]
    assert "kvm_convert_memory" in steps
    assert "kvm:kvm_vmgexit_enter" in steps
    assert "no fault is here" not in steps
    other = page(recorded(tmp_path, [exit_("hlt"), ENTRY]))
    assert re.search(r"\n +8  hlt\n", other)
    assert "no fault is here" in other.split("\nNext\n")[1]
    assert "none of them a fault's" not in page(recorded(tmp_path, STORMS["TDX"][0]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[ 8.3] WARNING: CPU: 12 PID: 47 at arch/x86/kvm/svm/svm.c:2075 npf_interception+0xb1/0xd0 [kvm_amd]",
         "bit 48 or 49"),
        ("WARNING: arch/x86/kvm/svm/svm.c:1944 at npf_interception+0xb1/0xd0, CPU#12: qemu/47", "bit 48 or 49"),
        ("[ 8.3] WARNING: CPU: 1 PID: 47 at arch/x86/kvm/mmu/mmu.c:5700 kvm_mmu_page_fault+0x2b/0x6f0", "no root"),
    ],
)  # fmt: skip
def test_a_warning_about_a_fault_says_which_it_may_be(line, said, tmp_path):
    """Linux `svm.c`, npf_interception() (v6.10); `mmu.c`, kvm_mmu_page_fault() (v6.8, v6.10)."""
    path = tmp_path / "dmesg"
    path.write_text(f"------------[ cut here ]------------\n{line}\nRIP: 0010:x+0xb1/0xd0\n")
    told = page(load(path))
    assert "line 2: a WARN in " in told
    assert said in told
    with pytest.raises(InputError, match=said):
        read(path.read_text())
    path.write_text(
        line.replace("npf_interception", "foo").replace("kvm_mmu_page_fault", "foo") + f"\n{ENTRY}\n"
    )
    assert "a WARN in" not in page(load(path))


def test_the_fast_paths_code_is_read_where_nothing_else_was_recorded(tmp_path):
    """Letters, and the rest as one number: Linux `arch/x86/kvm/mmu/mmutrace.h`, fast_page_fault (v6.12)."""
    line = (
        "fast_page_fault: vcpu 0 gva 4000{n}000 error_code {code} sptep 00000000abcdef12 old 0x600 new 0x602 "
    )
    codes = {
        "P|W|U|0x2000100000000": 0x2000100000007,
        "P|W": 3,
        "F": 0x10,
        "RSVD|0x200000000": 0x200000008,
        "": 0,
    }
    path = tmp_path / "trace"
    texts = [line.format(n=n, code=code) + "spurious 0 fixed 1" for n, code in enumerate(codes)]
    path.write_text("".join(event(100 + n, text) for n, text in enumerate(texts)))
    traced = load(path)
    assert traced.faults["raw_code"].tolist() == list(codes.values())
    assert traced.faults["address"].tolist() == [0x40000000 + 0x1000 * n for n in range(5)]
    assert traced.faults["private"].tolist() == [True, False, False, False, False]
    assert set(traced.faults["encoding"]) == {"pferr"}
    assert [told.fault.raw_code for told in read_text(path.read_bytes()).faults] == list(codes.values())
    told = page(traced)
    assert told.startswith("read as:          v6_10: fast_page_fault shows bit 49 (line 1)")
    assert "line 1: fast_page_fault shows bit 49 (0x2000100000007)" in told
    assert "no fault is here" not in told


def test_the_fast_paths_code_is_no_second_fault_beside_an_exit(tmp_path):
    fast = "fast_page_fault: vcpu 0 gva 5000 error_code P|W|U|0x2000100000000 sptep 1 old 0x1 new 3 spurious 0 fixed 1"
    traced = recorded(tmp_path, [exit_("npf", 0x100000007, 0x5000), fault(0x5000, 0x100000007), fast, ENTRY])
    assert traced.faults["raw_code"].tolist() == [0x100000007] * 8
    assert set(traced.faults["outcome"]) == {"mapped"}
    assert "fast_page_fault shows bit 49" in page(traced)
    assert not traced.digest.disagreeing.count


@pytest.mark.parametrize("code", ["0x2000100000007", "562954248388615"])
def test_the_fast_paths_code_is_read_by_field(code, tmp_path):
    """As trace-cmd report -R prints it: the fields of `arch/x86/kvm/mmu/mmutrace.h`, fast_page_fault (v6.12)."""
    path = tmp_path / "trace"
    fields = f"vcpu_id=0 cr2_or_gpa=0x5000 error_code={code} sptep=0xabc old_spte=0x600 new_spte=0x602 ret=5"
    path.write_text(event(100, f"fast_page_fault: {fields}"))
    (row,) = load(path).faults.itertuples()
    assert (row.raw_code, row.address) == (0x2000100000007, 0x5000)
