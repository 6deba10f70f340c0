# SPDX-License-Identifier: GPL-2.0-only
"""The bits: page-fault error code, EPT exit qualification and their neighbours, each written once.

`PFERR`, `EPT`, `MEMORY_FAULT` and `EVENT` are the tables.  Masks, decoding, pictures, prose and tests derive from
them; no other place of the project says where a bit stands.

A page-fault error code is 64 bits wide.  Bits 0-15 are the CPU's own #PF bits, 31-36 are what AMD adds for
nested page faults (some of which Intel's exit handler borrows), 48 and 49 are KVM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from operator import index
from typing import NamedTuple

from kvm_pf.common.errors import InputError

__all__ = (
    "AMD",
    "CPU",
    "EPT",
    "EVENT",
    "INTEL",
    "KVM",
    "MEMORY_FAULT",
    "NOBODY",
    "PFERR",
    "Bit",
    "Origin",
    "decode",
    "describe",
    "encode",
)

U64_MASK = (1 << 64) - 1


class Origin(Enum):
    """Who sets a bit."""

    CPU = "CPU"
    AMD = "AMD CPU"
    INTEL = "Intel CPU"
    KVM = "KVM"
    NOBODY = "nobody"


CPU, AMD, INTEL, KVM, NOBODY = Origin.CPU, Origin.AMD, Origin.INTEL, Origin.KVM, Origin.NOBODY


class Bit(NamedTuple):
    """One bit of a code.

    `bit` is its position (0-63), `name` the kernel's short name ("" if the kernel has none), `set_by` who
    sets it first hand, `since` the first revision of this project that names it ("" if none does), `means`
    one sentence, `source` where that was read.
    """

    bit: int
    name: str
    set_by: Origin
    since: str
    means: str
    source: str

    @property
    def mask(self) -> int:
        """The bit as a 64-bit mask."""
        return 1 << self.bit

    @property
    def label(self) -> str:
        """The name, or `bit N` for a bit without one."""
        return self.name or f"bit {self.bit}"


_HOST_H = "Linux `arch/x86/include/asm/kvm_host.h`"
_BASE = f"{_HOST_H}, blob 1e69743ef0fb (base of the posted patch)"
_SEV = f'{_HOST_H}, commit `9b62e03e192c` ("KVM: x86: Define more SEV+ page fault error bits/flags for #NPF") (v6.10)'
_SSS = "mail <20240228024147.41573-4-seanjc@google.com>, 2024-02-28 (not in the second version, nor merged)"
_POSTED = "mail <20240228024147.41573-6-seanjc@google.com>, hunk 1"
_V73 = f"{_HOST_H}, Linux 7.3.4"

PFERR: tuple[Bit, ...] = (
    Bit(0, "PRESENT", CPU, "before", "a translation was there: a protection fault", _BASE),
    Bit(1, "WRITE", CPU, "before", "the access was a write", _BASE),
    Bit(2, "USER", CPU, "before", "user-mode access (for EPT, before 7.3: a read)", _BASE),
    Bit(3, "RSVD", CPU, "before", "a reserved bit was set in the SPTE, which is how KVM marks MMIO", _BASE),
    Bit(4, "FETCH", CPU, "before", "the access was an instruction fetch", _BASE),
    Bit(5, "PK", CPU, "before", "a protection key forbade the access", _BASE),
    Bit(6, "SS", CPU, "v7_3", "shadow-stack access", _V73),
    Bit(15, "SGX", INTEL, "before", "SGX access control", _BASE),
    Bit(31, "GUEST_RMP", AMD, "before", "the RMP check or a VMPL check failed", _SEV),
    Bit(32, "GUEST_FINAL", AMD, "before", "fault on the final guest-physical address", _BASE),
    Bit(33, "GUEST_PAGE", AMD, "before", "fault while walking the guest's page tables", _BASE),
    Bit(34, "GUEST_ENC", AMD, "before", "the guest's effective C-bit was 1: the access was encrypted", _SEV),
    Bit(35, "GUEST_SIZEM", AMD, "before", "size mismatch between PVALIDATE or RMPADJUST and the RMP", _SEV),
    Bit(36, "GUEST_VMPL", AMD, "before", "a VMPL permission check failed", _SEV),
    Bit(37, "", AMD, "", "a copy of the VMPL mask's SSS bit; no kernel of these revisions names it", _SSS),
    Bit(48, "IMPLICIT_ACCESS", KVM, "before", "the emulator's own access for the guest: SMAP is not overridden", _BASE),
    Bit(49, "PRIVATE_ACCESS", KVM, "posted", "the guest was accessing private memory", _POSTED),
)  # fmt: skip

_SDM = "Intel SDM vol. 3, table of exit qualifications for EPT violations"

EPT: tuple[Bit, ...] = (
    Bit(0, "READ", INTEL, "before", "the access was a read", _SDM),
    Bit(1, "WRITE", INTEL, "before", "the access was a write", _SDM),
    Bit(2, "FETCH", INTEL, "before", "the access was an instruction fetch", _SDM),
    Bit(3, "READABLE", INTEL, "before", "the EPT entries allow reading", _SDM),
    Bit(4, "WRITABLE", INTEL, "before", "the EPT entries allow writing", _SDM),
    Bit(5, "EXECUTABLE", INTEL, "before", "the EPT entries allow execution (with MBEC: in supervisor mode)", _SDM),
    Bit(6, "USER_EXECUTABLE", INTEL, "v7_3", "with MBEC, the EPT entries allow execution in user mode", _SDM),
    Bit(7, "GVA_VALID", INTEL, "before", "the guest-linear address is valid", _SDM),
    Bit(8, "GVA_TRANSLATED", INTEL, "before", "fault on the translated address, not on a page-table walk", _SDM),
    Bit(9, "GVA_USER", INTEL, "v7_3", "the linear address is a user-mode address", _SDM),
    Bit(10, "GVA_WRITABLE", INTEL, "", "the linear address is writable", _SDM),
    Bit(11, "GVA_NX", INTEL, "", "the linear address is execute-disable", _SDM),
    Bit(12, "NMI_UNBLOCKING", INTEL, "", "NMI unblocking due to IRET", _SDM),
    Bit(13, "SHADOW_STACK", INTEL, "", "shadow-stack access", _SDM),
    Bit(14, "SUPERVISOR_SHADOW_STACK", INTEL, "", "the EPT entries allow supervisor shadow-stack access", _SDM),
    Bit(15, "GUEST_PAGING", INTEL, "", "guest-paging verification failed", _SDM),
    Bit(16, "ASYNC", INTEL, "", "the access was asynchronous to instruction execution", _SDM),
)  # fmt: skip

_EXIT_39 = (
    "Linux `include/uapi/linux/kvm.h`, commit `16f95f3b95ca` "
    '("KVM: Add KVM_EXIT_MEMORY_FAULT exit to report faults to userspace") (v6.8)'
)

MEMORY_FAULT: tuple[Bit, ...] = (
    Bit(3, "PRIVATE", KVM, "before", "the access was to private memory", _EXIT_39),
)  # fmt: skip
"""The flags of KVM_EXIT_MEMORY_FAULT."""

_INTR = "Intel SDM vol. 3, format of the VM-exit interruption-information field; AMD APM vol. 2, EXITINTINFO"

EVENT: tuple[Bit, ...] = (
    Bit(11, "ERROR_CODE", CPU, "", "the event has an error code", _INTR),
    Bit(12, "NMI_UNBLOCKING", INTEL, "", "NMI unblocking due to IRET", _INTR),
    Bit(31, "VALID", CPU, "", "there is an event", _INTR),
)  # fmt: skip
"""The flags of IDT-vectoring and exit-interruption information; a vector and a type stand below them."""

EVENT_VECTOR_MASK = 0xFF
EVENT_TYPE_SHIFT = 8
EVENT_TYPE_MASK = 7 << EVENT_TYPE_SHIFT
EVENT_TYPES = (
    "external interrupt", "", "NMI", "hardware exception", "software interrupt", "privileged software exception",
    "software exception", "other event",
)  # fmt: skip
"""Names of the types 0 to 7; 1 is reserved.  AMD has 0, 2, 3 and 4, with the same numbers."""

TABLES: dict[str, tuple[Bit, ...]] = {"pferr": PFERR, "ept": EPT, "memfault": MEMORY_FAULT, "event": EVENT}

PFERR_LETTERS = {
    "P": "PRESENT", "W": "WRITE", "U": "USER", "RSVD": "RSVD", "F": "FETCH", "PK": "PK", "SS": "SS", "SGX": "SGX",
}  # fmt: skip
"""The kernel's own letters.  Source: Linux `arch/x86/kvm/mmu/mmutrace.h`, kvm_mmu_trace_pferr_flags (v6.8) for the
first five; mail <20250919223258.1604852-23-seanjc@google.com> for the last three."""


def _mask(table: tuple[Bit, ...], name: str) -> int:
    return next(row.mask for row in table if row.name == name)


PFERR_PRESENT_MASK = _mask(PFERR, "PRESENT")
PFERR_WRITE_MASK = _mask(PFERR, "WRITE")
PFERR_USER_MASK = _mask(PFERR, "USER")
PFERR_RSVD_MASK = _mask(PFERR, "RSVD")
PFERR_FETCH_MASK = _mask(PFERR, "FETCH")
PFERR_PK_MASK = _mask(PFERR, "PK")
PFERR_SS_MASK = _mask(PFERR, "SS")
PFERR_SGX_MASK = _mask(PFERR, "SGX")
PFERR_GUEST_RMP_MASK = _mask(PFERR, "GUEST_RMP")
PFERR_GUEST_FINAL_MASK = _mask(PFERR, "GUEST_FINAL")
PFERR_GUEST_PAGE_MASK = _mask(PFERR, "GUEST_PAGE")
PFERR_GUEST_ENC_MASK = _mask(PFERR, "GUEST_ENC")
PFERR_GUEST_SIZEM_MASK = _mask(PFERR, "GUEST_SIZEM")
PFERR_GUEST_VMPL_MASK = _mask(PFERR, "GUEST_VMPL")
PFERR_IMPLICIT_ACCESS = _mask(PFERR, "IMPLICIT_ACCESS")
PFERR_PRIVATE_ACCESS = _mask(PFERR, "PRIVATE_ACCESS")

PFERR_SYNTHETIC_MASK = PFERR_IMPLICIT_ACCESS | PFERR_PRIVATE_ACCESS
"""The bits that only KVM may set.  Source: mail <20240228024147.41573-6-seanjc@google.com>, hunk 1."""

PFERR_NESTED_GUEST_PAGE = PFERR_GUEST_PAGE_MASK | PFERR_WRITE_MASK | PFERR_PRESENT_MASK
"""A write to a present page table of the guest.  Source: `arch/x86/include/asm/kvm_host.h`, blob 1e69743ef0fb."""

EPT_VIOLATION_ACC_READ = _mask(EPT, "READ")
EPT_VIOLATION_ACC_WRITE = _mask(EPT, "WRITE")
EPT_VIOLATION_ACC_INSTR = _mask(EPT, "FETCH")
EPT_VIOLATION_RWX_MASK = _mask(EPT, "READABLE") | _mask(EPT, "WRITABLE") | _mask(EPT, "EXECUTABLE")
EPT_VIOLATION_USER_EXEC = _mask(EPT, "USER_EXECUTABLE")
EPT_VIOLATION_PROT_MASK = EPT_VIOLATION_RWX_MASK | EPT_VIOLATION_USER_EXEC
EPT_VIOLATION_GVA_IS_VALID = _mask(EPT, "GVA_VALID")
EPT_VIOLATION_GVA_TRANSLATED = _mask(EPT, "GVA_TRANSLATED")
EPT_VIOLATION_GVA_USER = _mask(EPT, "GVA_USER")


def _table(table: object) -> None:
    if (
        not isinstance(table, Sequence)
        or isinstance(table, str)
        or not all(isinstance(r, Bit) for r in table)
    ):
        raise InputError(f"table={table!r:.60}: it takes a table of bits, such as kvm_pf.bits.PFERR")


def _u64(code: object) -> int:
    try:
        number = None if isinstance(code, bool) else index(code)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise InputError(f"code={code!r:.60}: it takes an unsigned 64-bit number, of type int")
    if not 0 <= number <= U64_MASK:
        shown = f"{number:#x}" if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"
        raise InputError(f"{shown} is no unsigned 64-bit number")
    return number


def decode(code: int, table: Sequence[Bit] = PFERR) -> list[Bit]:
    """List the bits that are set in `code`, lowest first; a bit that `table` does not have stays visible.

    Raises InputError if `code` is no unsigned 64-bit number (text is for `encode`).

    >>> [row.label for row in decode(0x2000100000006)]
    ['WRITE', 'USER', 'GUEST_FINAL', 'PRIVATE_ACCESS']
    >>> [row.label for row in decode(1 << 50 | 1)]
    ['PRESENT', 'bit 50']
    """
    _table(table)
    number = _u64(code)
    known = {row.bit: row for row in table}
    unknown = "no meaning in any of these revisions; passes through untouched"
    return [known.get(n, Bit(n, "", NOBODY, "", unknown, "")) for n in range(64) if number >> n & 1]


def describe(code: int, table: Sequence[Bit] = PFERR) -> str:
    """Name the set bits of `code`, joined by "|"; "0" if there are none.

    Raises InputError if `code` is no unsigned 64-bit number.

    >>> describe(0x10000000C)
    'USER|RSVD|GUEST_FINAL'
    >>> describe(0)
    '0'
    """
    return "|".join(row.label.replace("bit ", "bit") for row in decode(code, table)) or "0"


def encode(names: str, table: Sequence[Bit] = PFERR) -> int:
    """Turn "WRITE|USER|bit50" into a code; the inverse of `describe`.

    Raises InputError naming the word that is no bit of the table.
    """
    _table(table)
    if not isinstance(names, str):
        raise InputError(f"names={names!r:.60}: it takes text, such as 'WRITE|USER'")
    code = 0
    known = {row.name: row.mask for row in table if row.name}
    if names.strip() == "0":
        return code
    for word in (part.strip() for part in names.split("|")):
        digits = word.removeprefix("bit")
        if word in known:
            code |= known[word]
        elif (
            word != digits and digits.isascii() and digits.isdigit() and len(digits) < 9 and int(digits) < 64
        ):
            code |= 1 << int(digits)
        else:
            raise InputError(
                f"no bit is called {word[:80]!r}; the names are {', '.join(known)}, or bit0 … bit63"
            )
    return code
