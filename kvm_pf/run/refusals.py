# SPDX-License-Identifier: GPL-2.0-only
"""What a pasted line is that holds no code of a fault, by its words."""

from __future__ import annotations

import re

from kvm_pf.common.errnos import ERRNO_NAMES
from kvm_pf.run.places import unwrapped

_NAMED = (
    "one stands after error_code, info1, pferr, flags, exit qualification, intr_info or a name like these"
)
_Release = tuple[int, int]
_6_10 = (6, 10)
WARNINGS: dict[str, tuple[tuple[_Release | None, _Release | None, str], ...]] = {
    "npf_interception": (
        (
            _6_10,
            None,
            "the CPU set bit 48 or 49 of EXITINFO1, which are KVM's own; KVM drops both and goes on",
        ),
    ),
    "kvm_mmu_page_fault": (
        (None, None, "the vCPU has no root, and KVM tries again"),
        (None, _6_10, "the CPU set bit 48, which KVM drops"),
        (_6_10, None, "a fault is private and reserved, and KVM_RUN fails with EFAULT, without exit 39"),
    ),
}
"""What warnings in functions of the path may be: from which release on, before which, and what.

Source: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.10); `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault()
(v6.8, v6.10).
"""

WARNED = re.compile(rf"\bWARNING: (?:\S{{1,80}} ){{0,6}}?at (?:\S{{1,80}} )?({'|'.join(WARNINGS)})\+0x")
"""A warning of the kernel's about a fault, with the function that it is in."""

WARNING_LOOKS = {
    "npf_interception": "EXITINFO1 stands in a register of the dump; which CPU and microcode report such bits? The "
    "guest goes on",
    "kvm_mmu_page_fault": "the error code stands in a register of the dump, as a rule: bits 3 and 49 together are a "
    "bug of the CPU's or of KVM's, for no guest can bring them about (an SNP guest's reserved faults become #VC in it)",
}
"""What to look at after such a warning.

Source: Linux `arch/x86/kvm/svm/sev.c`, sev_hardware_setup() (v6.12); AMD APM vol. 2, section 15.35.4 (a nested page
fault with a reserved bit is no automatic exit).
"""


def warning(function: str, release: _Release | None = None) -> str:
    """Say what a warning in a function can be, with a known release of Linux only what it can be there.

    >>> warning("npf_interception", (6, 12)).partition(",")[0]
    'the CPU set bit 48 or 49 of EXITINFO1'
    """
    said = []
    for since, until, what in WARNINGS[function]:
        if release is not None:
            said += [what] if (since or release) <= release and (until is None or release < until) else []
            continue
        when = f"before {until[0]}.{until[1]}" if until else f"from {since[0]}.{since[1]} on" if since else ""
        said.append(f"({when}) {what}" if when else what)
    return "; or ".join(said) or "what it says is not known of that release"


_KERNEL = re.compile(
    r"\bLinux version (\d{1,3}\.\d{1,3}[\w.+~-]{0,80})|# os release : (\d{1,3}\.\d{1,3}[\w.+~-]{0,80})"
    r"|\b(?:Not tainted|Tainted: [A-Z ]{1,40}?) (\d{1,3}\.\d{1,3}[\w.+~-]{0,80}) #"
    r"|^(?:uname: )?Linux \S{1,64} (\d{1,3}\.\d{1,3}[\w.+~-]{0,80}) #"
)
"""How a kernel log, perf script --header, a warning, and uname -a or trace-cmd's option UNAME name a kernel."""


def kernel_named(text: str) -> str:
    """Find the release of the kernel that a line names; "" if it names none."""
    if not any(word in text for word in ("Linux ", "ainted", "# os release")):
        return ""
    found = _KERNEL.search(text)
    return next(filter(None, found.groups())) if found else ""


def release_of(kernel: str) -> _Release | None:
    """Read the release off a kernel's name; None where that says little.

    The kernels of Red Hat keep their number while KVM in them is a newer release's.

    >>> release_of("6.12.30-amd64"), release_of("5.14.0-503.el9.x86_64")
    ((6, 12), None)
    """
    found = re.match(r"(\d{1,3})\.(\d{1,3})", kernel)
    return None if found is None or re.search(r"\.el\d", kernel) else (int(found[1]), int(found[2]))


_EFAULT = (
    "KVM_RUN failed with EFAULT: KVM could not settle a fault. With private memory that is mostly "
    "KVM_EXIT_MEMORY_FAULT, which asks for a conversion (as it should, unless it comes again and again, or ends the "
    "VM); else user space has no page there; record kvm_page_fault and kvm_userspace_exit"
)
ERRORS = {
    5: "KVM met a bug of its own, or (from 6.16 on) a TDX guest touched private memory that it had not accepted, which "
    "ends the VM; dmesg shows which",
    12: "the host has no memory left for it",
    22: "KVM found reserved bits in an entry of its own (get_mmio_spte), or refuses the vCPU's state",
    133: "the host's page is poisoned, by an error of the memory",
}
"""What errors of KVM_RUN but EFAULT say of a fault.

Source: Linux `arch/x86/kvm/mmu/mmu.c`, kvm_mmu_page_fault(), handle_mmio_page_fault(), kvm_handle_error_pfn() (v6.12);
`arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16).
"""

ERROR_LOOKS = {
    5: "dmesg: a WARN of KVM's own, or of a TDX guest: Guest access before accepting",
    12: "dmesg (out of memory), and the limit of the VMM's cgroup (memory.max)",
    22: "dmesg: get_mmio_spte (reserved bits in an entry), or of SNP: Failed to update RMP entry",
    133: "dmesg (mce, Memory failure) says which page is poisoned: what the guest had there is lost",
}
"""What to look at after such an error.

Source: as above; `arch/x86/kvm/svm/sev.c`, sev_gmem_prepare() (v6.11); `virt/kvm/guest_memfd.c`, __kvm_gmem_get_pfn()
(v6.12).
"""

MESSAGES = {
    "unexpected emulation request on private memory": (
        "a fault at private memory would have to be emulated, which KVM does not do (from 6.10 on): KVM_RUN fails with "
        "EFAULT and KVM_EXIT_MEMORY_FAULT, and making the page private does not help",
        "which page (the exit's gpa)? The local APIC's, or one whose writes KVM tracks, has to be shared: look into "
        "the guest's page-table entries for it (no C-bit, or the shared bit)",
    ),
    "Guest access before accepting": (
        "a guest under TDX touched private memory that it had not accepted; KVM ends it (from 6.16 on: KVM_RUN fails "
        "with EIO, the VM is dead), and no kvm_page_fault is printed",
        "in the guest's firmware and kernel: who accepts that memory (TDG.MEM.PAGE.ACCEPT; Linux: lazily, "
        "accept_memory=), and did user space take the page away meanwhile?",
    ),
    "Convert non guest_memfd backed memory region": (
        "QEMU was asked to make memory private, or shared, that no guest_memfd backs, and gives up (a memory fault, "
        "KVM_EXIT_MEMORY_FAULT)",
        "which memory region is there (QEMU: info mtree)? Of a device (MMIO) or a ROM the guest has to map it as "
        "shared; RAM needs a guest_memfd",
    ),
}
"""What lines of kernels and VMMs say that name a fault's cause, and what to look at.

Source: Linux `arch/x86/kvm/mmu/mmu_internal.h`, kvm_mmu_do_page_fault() (v6.10); `arch/x86/kvm/vmx/tdx.c`,
tdx_handle_ept_violation() (v6.16); QEMU `accel/kvm/kvm-all.c`, kvm_convert_memory() (v9.1).
"""

MESSAGE = re.compile("|".join(MESSAGES))


EXITS = {
    39: "KVM_EXIT_MEMORY_FAULT, why KVM_RUN came back: flags, gpa and size in vcpu->run->memory_fault say which memory "
    "is to be made private (flags 8) or shared (0), with KVM_SET_MEMORY_ATTRIBUTES; then KVM_RUN again",
    48: "EPT_VIOLATION, an exit's reason on Intel: its qualification is the code",
    49: "EPT_MISCONFIG, an exit's reason on Intel: it has no code",
    1024: "#NPF, an exit's code on AMD (0x400): EXITINFO1 is the fault's code",
}  # fmt: skip
"""What numbers can be that are no codes of faults but of exits.

Source: Linux `include/uapi/linux/kvm.h`, `arch/x86/include/uapi/asm/vmx.h`, `svm.h` (v6.12).
"""


def exit_alone(text: str) -> str | None:
    """Say which exit a number alone can be, decimal or hexadecimal with 0x; None if none.

    >>> exit_alone("0x27").partition(",")[0]
    'KVM_EXIT_MEMORY_FAULT'
    """
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,4}|[0-9]{1,4}", text.strip()) is None:
        return None
    return EXITS.get(int(text, 16 if "x" in text.lower() else 10))


_ERRNO = re.compile(
    r"\b(?:(?i:errno|error)|ret|ret(?:urn(?:ed|s)?|val)|rc)\b[\s:=(]{0,4}-?(\d{1,3})\b|(?<![\w.-])-(\d{1,3})\b|\b(E[A-Z]{2,10})\b"
    r"|(Bad address)"
)


def error_alone(text: str) -> str | None:
    """Say what an error of KVM_RUN means that a text has, as a number or by its name; None if none is known.

    >>> error_alone("-12")
    'KVM_RUN failed with ENOMEM: the host has no memory left for it'
    """
    for match in _ERRNO.finditer(text):
        number = next((int(n) for n in match.groups()[:2] if n), 0)
        name = "EFAULT" if match[4] else match[3] or ERRNO_NAMES.get(number, "")
        if name == "EFAULT":
            return _EFAULT
        for known_number, said in ERRORS.items():
            if name and ERRNO_NAMES.get(known_number) == name:
                return f"KVM_RUN failed with {name}: {said}"
    return None


_KNOWN = (
    (r"kvm[ _]run failed:? Bad address", _EFAULT),
    (r"(?:unknown exit reason|kvm_run_exit .{0,80}?reason) 39\b",
     "user space met KVM_EXIT_MEMORY_FAULT (39) and does not know it: its flags and address are not printed"),
    (r"kvm[ _:]*run failed:? ",
     "KVM_RUN failed with another error than EFAULT (bad address), which a fault would give; EIO (input/output error): "
     f"{ERRORS[5]}"),
    (r"general protection fault",
     "a #GP, whose error code is 0 or a selector: no page fault"),
    (r"\bBSOD\b", "a stop of Windows (bug check) by its name: the guest's own"),
    (r"Suberror: 1\b",
     "KVM could not emulate an instruction, and the exit that led there is not told (kernels from 5.15 on tell it)"),
    (r"Suberror: 4\b", "an exit that KVM does not know; its number is no code of a fault"),
    (r"KVM_EXIT_INTERNAL_ERROR", "KVM gave up; the data of KVM_EXIT_INTERNAL_ERROR tell the exit that led there"),
    (r"\bkvm_vmgexit", "a request of an SEV-ES or SNP guest (VMGEXIT); its numbers are no fault's"),
    (r"\b(?:STOP|bugcheck was|bug ?check code)\b:? *(?:0x)?|\bBugCheck [0-9a-f]{1,8}, \{|\bArg1: +[0-9a-f`]{8}|"
     r"(?-i:\b(?!KVM)[A-Z]{3,}(?:_[A-Z]+){2,} \([0-9a-f]{1,8}\))",
     "a stop of Windows (bug check) with its parameters: the guest's own fault in its own tables, told in Windows' own "
     "numbers, none of which is a code; for 0x50 the second says read (0), write (2) or execute (10)"),
    (r"\bfault code *= *(?:supervisor|user) ", "a guest's own #PF (FreeBSD), told in words"),
    (r"entry failed,? hardware error|unhandled exit 8000",
     "the CPU refused to enter the guest, whose state it found invalid; that is no fault, and the number is the exit's "
     "reason (0x80000021: invalid guest state) or an error of VMX"),
    (r"\b(?:SEAMCALL|TDVMCALL|TD[HGX]_\w+|tdh_\w+)\b",
     "a call of the TDX module and its status; no fault's code. Bits 63-32 of the status say what went wrong"),
    (r"\bRMP_PAGE_FAULT|\bIO_PAGE_FAULT|AMD-Vi|DMAR|\bIOMMU\b",
     "a fault of the IOMMU: a device's access, not a vCPU's; its flags are another encoding"),
    (r"Unexpected RMP fault",
     "KVM was told by the RMP of a fault that it cannot explain: the page should be the SNP guest's, and is not; "
     "no code"),
    (r"soft lockup|self-detected stall|blocked for more than \d+ seconds",
     "a thread of the host that does not go on; no fault's code: record kvm_page_fault and kvm_exit while it lasts"),
    (r"Memory failure: |hardware memory (?:error|corruption)",
     "memory of the host that is poisoned: KVM hands it on as SIGBUS; no fault's code"),
    (r"RMP ?entry|\bPFN:? 0x[0-9a-f]+, (?:unassigned|RMP|\[)|dumping (?:non-zero|all) ",
     "entries of the RMP (who owns a page of an SNP host); no fault's code"),
    (r"#VC\b|exit[-_]code:? 0x(?:40|8000)",
     "the number of an exit for which a guest of SEV-ES or SNP gets #VC; no fault's code (0x400: #NPF; 0x404: memory "
     "that was not validated)"),
    (r"npfec\b", "Xen's own flags of a nested fault; no hardware's code"),
    (r"\bKVM_EXIT_MEMORY_FAULT\b|\bexit[ _](?:reason|code)\b[^,;]{0,20}\b(?:39|0x27)\b|\breason(?: is)?:? 39\b|"
     r"\bexit[ :=]+(?:39|0x27)\b",
     f"user space met exit (39), {EXITS[39]}; they are not printed here"),
    (r"\b(?:vm)?exit(?:[ _](?:reason|code))?\b(?: is)?[ :=]+(?:48|0x30|1024|0x400)\b",
     "the number of the exit alone: an EPT violation (48) or #NPF (0x400); its qualification or EXITINFO1 is the code"),
    (r"\bKVM exit (?:reason|code)|\bexit_reason\b|KVM_EXIT_[A-Z_]+",
     "why KVM_RUN came back to user space; it tells no fault's code"),
    (r"syndrome (?:0x)?[0-9a-f]+", "a syndrome of Arm; this project is about x86"),
    (r"\bWHvRunVp|\bWHPX\b|\bmshv\b|unmapped gpa",
     "an exit of Microsoft's hypervisor: it tells an address and the access in its own numbers"),
    (r"(?:wr|rd)msr", "an access to an MSR; no fault"),
    (r"\A[0-9a-f]{6,16}:? +(?:[0-9a-f]{2,16} +){3}", "a dump of memory; give the 4 or 8 bytes of the code alone"),
    (r"\A0x[0-9a-f]+( [0-9a-f]+)+\Z", "blanks between digits; if that is one number, write it without them"),
    (r"Test Assertion Failure", "an assertion of the selftests: what was expected; the values are not printed"),
    (r"\bSW_EXIT_?INFO", "a field of the GHCB, in which a guest asks for something; it is no fault's EXITINFO1"),
    (r"guest requested termination", "an SEV-ES or SNP guest ends itself; the numbers are its reasons"),
    (r"mmio generation wrap", "KVM dropped its MMIO entries, for the memslots' generation began anew"),
    (r"RMPUPDATE|RMPADJUST|PVALIDATE|PSMASH", "an instruction that changes the RMP, and its result; no fault's code"),
    (r"async_pf|async_get_page", "an asynchronous #PF: it tells a token and an address, no code"),
    (r"KVM internal error", "its data hold no code of a fault"),
    (r"get_mmio_spte|-{2,} spte\b", "page-table entries of KVM; kvm-pf trace reads them"),
    (r"Unexpected #VE: 4[89]\b",
     "a guest under TDX reports its own #VE for an EPT violation (48) or misconfiguration (49): memory that is shared, "
     "or that it had not accepted; the qualification is not printed"),
    (r"kvm_convert_memory|KVM_SET_MEMORY_ATTRIBUTES", "a conversion of memory, no fault; kvm-pf trace reads it"),
    (r"unaccepted GPA", "Microsoft's hypervisor met memory that the guest had not accepted; it tells addresses only"),
    (r"\b(?:EPT_VIOLATION|EPT_MISCONFIG|npf)\)?[\s:]+[\d,]+(?:\s|\Z)", "how often exits came, not why"),
    (r"\b0x[0-9a-f]+:[RWP]\s+[\d,]+\s+[\d.]+%|%Total", "how often accesses or events came, not why"),
    (r"\b(?:kvm_page_fault|kvm_exit|pf_\w+)\s*\Z|\bpf_(?:fixed|taken|spurious|emulate|fast|guest|mmio)", "counts only"),
    (r"\b(?:WARNING|KASAN|UBSAN|KMSAN|KCSAN|BUG|INFO)\b.{0,80}?\b(?:in|at) "
     r"(?:__)?(?:kvm|vmx|svm|tdp|ept|npf|paging)\w*",
     "a place in the kernel's code, not a fault's code"),
    (r"WARNING: .{0,200}?\bkvm\w*\+0x|\bkvm_mmu\w*\+0x", "a place in the kernel's code, not a fault's code"),
    (r"\b(?:kvm_entry|kvm_mmio|kvm_fast_mmio|kvm_emulate_insn|kvm_userspace_exit|kvm_hypercall|kvm_mmu_\w+|"
     r"kvm_tdp_mmu_\w+|kvm_unmap_\w+|check_mmio_spte|mark_mmio_spte|handle_mmio_page_fault|vcpu_match_mmio)\b",
     "this event has none; kvm-pf trace reads it beside kvm_page_fault and kvm_exit"),
    (r"\bqualification=|\bexit_info_?1\b", "the dump of an exit that is no page fault"),
    (r"\bEPT[ _]MISCONFIG|ept_misconfig", "an EPT misconfiguration has no code: KVM hands in RSVD alone, 0x8"),
    (r"Hyper-V|HvMessage|VMware|\bvmx\||jailhouse|VirtualBox|\b18[56]\d\d\b",
     "another hypervisor's message, which tells no code"),
    (r"memory[ _-]?fault",
     "a memory-fault exit without its flags, which say whether private or shared memory was meant"),
    (r"\breason[ :=]+[A-Za-z_]", "this exit is no fault's"),
)  # fmt: skip


def known(text: str) -> str | None:
    """Say what a text is that has no code, by its words; None if they are not known."""
    whole = unwrapped(text)
    if message := MESSAGE.search(whole):
        what, look = MESSAGES[message[0]]
        return f"{what}; {look}"
    if warned := WARNED.search(whole):
        return f"a WARN in {warned[1]}(): {warning(warned[1], release_of(kernel_named(whole)))}"
    said = next((said for pattern, said in _KNOWN if re.search(pattern, whole, re.I)), None)
    if said is None or re.search(r"\bKVM_RUN\b|\bkvm_userspace_exit\b", whole):
        return error_alone(whole) or said
    return said


def refusal(text: str) -> str:
    """Say why a line has no code, or where one would stand."""
    return known(text) or _NAMED
