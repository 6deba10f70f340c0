# SPDX-License-Identifier: GPL-2.0-only
"""Where the numbers of a pasted line stand, and what that says about their encoding.

Lines are those of kernels, virtual-machine monitors and tracing tools: events, dumps of a VMCS or VMCB, QEMU's words
on an internal error, maps of bpftrace.  `places` finds the numbers, `address` the fault's address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from kvm_pf.bits import EPT_VIOLATION_GVA_IS_VALID, PFERR_LETTERS, PFERR_SYNTHETIC_MASK
from kvm_pf.run.meanings import ENCODINGS, EVENT_VALID
from kvm_pf.run.notation import alike


class Sure(IntEnum):
    """How sure a reading is."""

    NO = 0
    HARDLY = 1
    POSSIBLE = 2
    LIKELY = 3
    VERY_LIKELY = 4
    CERTAIN = 5

    @property
    def words(self) -> str:
        """The same in words."""
        return self.name.lower().replace("_", " ")


class Place(NamedTuple):
    """Where a number stood: what that says about its encoding.

    `encodings` are the possible ones, `sure` how sure that alone makes it, `why` in words.  `width` is the number
    of bits that were printed, `base` that of the digits (0: not known).  Of the numbers of one `group` (0: none) one
    only is the code.  `stood` is ASKED, TRACED_FAULT, LINUX or "".
    """

    encodings: tuple[str, ...] = tuple(ENCODINGS)
    sure: Sure = Sure.NO
    why: str = ""
    width: int = 0
    base: int = 0
    notes: tuple[str, ...] = ()
    group: int = 0
    stood: str = ""


ASKED = "asked"
"""Nowhere: somebody said which encoding it is."""

TRACED_FAULT = "kvm_page_fault"
"""In the event; a #PF error code there comes from a walk of KVM's own page tables: under shadow paging."""

LINUX = "linux"
"""In Linux's report of a page fault of its own."""

_Places = list[tuple[str, Place]]

_NUMBER = r"(0[xX][0-9a-fA-F]+|[0-9a-fA-F]+)[hH]?\b"
_EVENTS = re.compile(
    r"\b(kvm_page_fault|kvm_exit|kvm_nested_vmexit(?:_inject)?|kvm_mmu_pagetable_walk|kvm_mmu_walker_error"
    r"|fast_page_fault|kvm_inj_exception|kvm_rmp_fault)\s*:"
    r"(.*?)(?=\b(?:kvm_\w+|fast_page_fault|handle_mmio_page_fault)\s*:|\Z)",
    re.DOTALL,
)
TRACED = ("npf", "ept", "pf")
"""What the code of kvm_page_fault can be."""

_INTEL, _AMD = "an Intel exit", "an AMD exit"

CAST = re.compile(r"\((?:const )?[a-z]\w{1,20}\)(?=\d)")
"""What debuggers put before a number: its type."""


_OS_ERROR = re.compile(r"\bOs \{ code: \d{1,5}, [^{}]{0,200}\}")
"""An error of the operating system's, as programs in Rust print it."""


def unwrapped(text: str) -> str:
    """Undo what mail does to a line, quoting, wrapping, quoted-printable, and what debuggers put before a number."""
    text = re.sub(r'"(\w{1,40})":', r"\1:", re.sub(r"=\r?\n", "", alike(text)))  # the second: JSON
    text = CAST.sub("", re.sub(r"\n\$\d+ = ", " = ", text))
    return re.sub(r"\s+", " ", re.sub(r"\r?\n[> ]*", " ", text))


def _certain(encoding: str, why: str, *notes: str, base: int = 16, stood: str = "") -> Place:
    return Place((encoding,), Sure.CERTAIN, why, 0, base, notes, stood=stood)


def _value(key: str, text: str) -> str:
    found = re.search(rf"\b{key}(?:\s*[=:]\s*|\s+){_NUMBER}", text)
    return found[1] if found else ""


# --- exits ---

EXIT_NUMBERS = {
    0x30: "EPT_VIOLATION",
    0x31: "EPT_MISCONFIG",
    0x400: "NPF",
    0: "EXCEPTION_NMI",
    0x4E: "PF EXCP",
}
"""Numbers of exits that are about faults.

Source: Linux `arch/x86/include/uapi/asm/vmx.h` and `svm.h`: EXIT_REASON_EPT_VIOLATION 48, EXIT_REASON_EPT_MISCONFIG
49, EXIT_REASON_EXCEPTION_NMI 0, SVM_EXIT_NPF 0x400, SVM_EXIT_EXCP_BASE 0x40 (v6.12).
"""

FAULT_EXITS = {"NPF": "npf", "EPT_VIOLATION": "ept", "EPT_MISCONFIG": "misconfig", "PF EXCP": "pf"}
"""Which kind of fault an exit of that name is."""


def fault_exit(number: int) -> str | None:
    """Say which kind of fault an exit is by its number, npf, ept or misconfig; None for another.

    A #PF's has none: on Intel 0x4e is another exit.
    """
    kind = FAULT_EXITS.get(EXIT_NUMBERS.get(number, ""))
    return None if kind == "pf" else kind


_HIDDEN = "rip 0 and bit 7 clear: a TDX guest's registers and linear address are hidden"


def _of_exit(
    reason: str, info1: str, info2: str, event: str, error: str, name: str, hidden: bool = False
) -> _Places:
    """Find the codes of an exit, whoever reports it; `hidden`: the guest's rip is shown as 0.

    The interruption information is valid only for exits that an event caused; an EPT violation is none, so a second
    info that is valid is that on IDT vectoring, as kernels report it from 5.10 on.

    Source: Intel SDM vol. 3, section 28.2.2; Linux commit `235ba74f008d` ("KVM: x86: Add intr/vectoring info and error
    code to kvm_exit tracepoint") (v5.10).
    """
    reason = reason.upper().removeprefix("EXIT_")
    found: _Places = []
    if reason == "EPT_VIOLATION":
        if hidden and info1 and not int(info1, 16) & EPT_VIOLATION_GVA_IS_VALID:
            why = f"info of {name}, reason EPT_VIOLATION; {_HIDDEN}"
            return [(info1, Place(("tdx", "ept"), Sure.VERY_LIKELY, why, 64, 16))]
        found.append((info1, _certain("ept", f"info of {name}, reason EPT_VIOLATION")))
        found.append((info2, _certain("vectoring", f"second info of {name}, Intel")))
    elif reason == "NPF":
        found.append((info1, _certain("npf", f"first info of {name}, reason npf: EXITINFO1")))
        found.append((event, _certain("vectoring", f"intr_info of {name}, AMD: EXITINTINFO")))
        return found
    elif reason == "EPT_MISCONFIG":
        why = f"{name}, reason EPT_MISCONFIG: it has no qualification, KVM hands in RSVD alone"
        found.append(("0x8", _certain("pferr", why)))
    elif re.fullmatch(r"(PF[ _]?EXCP|EXCP_?PF|EXCP14)", reason):
        found.append((info1, _certain("pf", f"first info of {name}, an intercepted #PF")))
    elif reason == "EXCEPTION_NMI":
        if info2:
            found.append((info2, _certain("vectoring", f"info2 of {name}, Intel")))
        if error and event and int(event, 16) & 0x7FF == 0x30E:
            found.append((error, _certain("pf", f"error_code of {name}, an intercepted #PF")))
    if event:
        found.append((event, _certain("intr", f"interruption information of {name}")))
    return found


def _exit_places(name: str, text: str) -> _Places:
    """Find the codes of kvm_exit and its nested relatives.

    Up to 5.9 kvm_exit had two infos, on VMX the qualification and the interruption information.
    """
    if raw := _raw_exit(text):
        return _of_exit(*raw, "", "", name)
    reason = _reason(text)
    old = re.search(rf"\binfo\s+{_NUMBER}\s+{_NUMBER}", text)
    infos = (_value(f"(?:info{n}|ext_inf{n})", text) for n in (1, 2))
    info1, info2 = (old[1], old[2]) if old else infos
    event = _value("(?:intr_info|int_info|ext_int)", text)
    if old and reason.upper() == "EXCEPTION_NMI":
        event, info2 = info2, ""
    return _of_exit(reason, info1, info2, event, _value("error_code", text), name, _is_hidden(text))


def _is_hidden(text: str) -> bool:
    rip = _value("(?:guest_)?rip", text)
    return bool(rip) and not int(rip, 16)


def _reason(text: str) -> str:
    if number := re.search(r"\breason[ :=]+(?:UNKNOWN \()?(0x[0-9a-f]+|\d+)\b", text):
        return EXIT_NUMBERS.get(_number_of(number[1]), "")
    found = re.search(r"\breason[ :=]+(PF excp|[A-Za-z_]\w*)", text)
    return found[1] if found else ""


def _traced_place(body: str, number: str, reasons: frozenset[str], exceptions: bool) -> Place:
    """Say what kvm_page_fault's code can be: EXITINFO1, an exit qualification, or a #PF error code.

    `reasons` are those of the exits beside it, `exceptions` says whether one of them is for a #PF.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, `arch/x86/kvm/svm/svm.c`, `arch/x86/kvm/mmu/mmu.c` (v6.9).  The rip is
    shown as 0 if the guest's state is protected: mail <20250415104821.247234-2-adrian.hunter@intel.com>.
    """
    width = 64 if number[:2].lower() == "0x" else 32
    why = "error_code of kvm_page_fault"
    encodings: tuple[str, ...] = TRACED
    if reasons & {"EPT_VIOLATION", "EPT_MISCONFIG"}:
        encodings, why = ("ept", "pf"), f"{why}, beside {_INTEL}"
    elif "NPF" in reasons:
        encodings, why = ("npf", "pf", "pferr"), f"{why}, beside {_AMD}"
    elif exceptions:
        beside = f"{why}, beside an intercepted #PF"
        return Place(("pf",), Sure.VERY_LIKELY, beside, width, 16, stood=TRACED_FAULT)
    code = int(number, 16)
    if code & PFERR_SYNTHETIC_MASK and "npf" in encodings:
        encodings = (*encodings, "pferr")
    if width == 64 and "ept" in encodings and _is_hidden(body):
        encodings = ("tdx", *encodings)
    return Place(encodings, Sure.LIKELY, why, width, 16, stood=TRACED_FAULT)


def _exceptions(whole: str) -> bool:
    """Say whether an exit for a #PF is among the events."""
    return any(
        encoding == "intr" and int(number, 16) & 0x7FF == 0x30E
        for name, body in _EVENTS.findall(whole)
        if name == "kvm_exit"
        for number, place in _exit_places(name, body)
        for encoding in place.encodings
        if number
    )


# --- QEMU's words on KVM_EXIT_INTERNAL_ERROR ---

_SUBERROR = re.compile(r"KVM internal error\. Suberror: (\d{1,3})(.*?)(?=KVM internal error\. Suberror|\Z)")
EXTRA = re.compile(r"extra data\[(\d{1,2})\]: (?:0x)?([0-9a-fA-F]{1,16})\b")
_HAS_BYTES = 1
"""KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES."""


def _internal_error(number: int, data: list[str]) -> _Places:
    """Find the codes of an internal error: of the exit that KVM could not handle, and of the event it was delivering.

    1, an instruction that cannot be emulated: flags, with flag 0 two words with the instruction, then (from 5.15 on)
    the exit's reason, two infos, the interruption information and error code.  2, two exceptions at once: the one being
    delivered, the other, its error code.  3, an exit while an event was being delivered: the event, the reason, the
    qualification, from 5.0 on the address.

    Source: Linux `include/uapi/linux/kvm.h`, KVM_INTERNAL_ERROR_*; `arch/x86/kvm/x86.c`,
    prepare_emulation_failure_exit(); `arch/x86/kvm/vmx/vmx.c`, handle_exception_nmi(), __vmx_handle_exit() (v6.12).
    """
    words = [f"0x{word}" for word in data]
    name = f"KVM's internal error {number}"
    if number == 1 and words and int(words[0], 16) in (0, _HAS_BYTES):
        exit_ = words[3 if int(words[0], 16) & _HAS_BYTES else 1 :]
        if len(exit_) >= 5:
            reason = EXIT_NUMBERS.get(int(exit_[0], 16) & 0xFFFF, "")
            return _of_exit(reason, exit_[1], exit_[2], exit_[3], exit_[4], name)
    if number == 2 and len(words) >= 2:
        found = [
            (words[0], _certain("vectoring", f"first datum of {name}")),
            (words[1], _certain("intr", f"second datum of {name}")),
        ]
        if len(words) > 2 and int(words[1], 16) & 0x7FF == 0x30E:
            found.append((words[2], _certain("pf", f"third datum of {name}")))
        return found
    if number == 3 and len(words) >= 2 and int(words[0], 16) & EVENT_VALID:
        reason = EXIT_NUMBERS.get(int(words[1], 16) & 0xFFFF, "")
        info1 = words[2] if len(words) > 2 else ""
        if reason not in ("EPT_VIOLATION", "EPT_MISCONFIG") or not info1:
            return [(words[0], _certain("vectoring", f"first datum of {name}"))]
        return _of_exit(reason, info1, words[0], "", "", name) + (
            [(words[0], _certain("vectoring", f"first datum of {name}"))] if reason == "EPT_MISCONFIG" else []
        )
    return []


_RUST_ERROR = re.compile(r"\bsuberror: (\d{1,3}), ndata: \d{1,3}, data: \[([\d, ]{1,400})\]")

_ERROR_NOTES = {
    1: "KVM had to emulate the guest's instruction, as for MMIO, and could not; a fetch can never be emulated: the "
    "guest ran into memory that no memslot backs",
    3: "KVM cannot handle such an exit while it delivers an event to the guest: a table or stack that the delivery "
    "needs is not memory",
}
"""What an internal error says of the fault that it comes with."""


def _internal_errors(whole: str) -> tuple[_Places, str]:
    """Find the codes of internal errors; return what is left of the text, too."""
    found: _Places = []
    errors = []
    for number, rest in _SUBERROR.findall(whole):
        data = dict(EXTRA.findall(rest))
        errors.append((int(number), [data[n] for n in map(str, range(len(data))) if n in data]))
    for number, rest in _RUST_ERROR.findall(whole):
        values = [int(word) for word in rest.split(",") if word.strip().isdigit()]
        errors.append((int(number), [f"{value:x}" for value in values if value < 1 << 64]))
    for number, words in errors:
        codes = _internal_error(number, words)
        note = _ERROR_NOTES.get(number)
        if codes and note:
            first, place = codes[0]
            codes[0] = first, place._replace(notes=(*place.notes, note))
        found += codes
    return found, _SUBERROR.sub(lambda m: EXTRA.sub(" ", m[0]), whole)


# --- numbers with a name before them ---


def _number_of(text: str) -> int:
    """Read the number of an exit: hexadecimal with 0x or with eight digits, as in dumps; else decimal."""
    if text[:2].lower() == "0x" or len(text) >= 8 or not text.isdigit():
        return int(text, 16)
    return int(text)


def _is_exit(rest: str, end: int, *wanted: int) -> bool:
    """Say whether the dump before a place is one of a wanted exit, as far as it tells an exit's number."""
    before = rest[max(0, end - 400) : end]
    numbers = re.findall(
        r"\b(?:exit_?code|(?:exit_?)?reason)\s*[=:]?\s*(0x[0-9a-f]+|[0-9a-f]+)\b", before, re.I
    )
    return not numbers or _number_of(numbers[-1]) in wanted


_LETTER = rf"(?:{'|'.join(PFERR_LETTERS)})\b"
_QUALIFICATION = rf"\b(?:u?(?:64)?exit[ _-]?)?qual(?:ification)?['\"]?\s*[=:(]?\s*{_NUMBER}"
_INFO_1 = rf"\bexit_?info_?1\s*[=:(]?\s*{_NUMBER}"
_KEYED: tuple[tuple[str, Callable[[re.Match[str]], Place]], ...] = (
    (
        rf"\bpage_fault_(?:user|kernel): .{{0,100}}?\berror_code={_NUMBER}",
        lambda m: _certain("pf", "Linux's own page fault, of the machine that was traced", stood=LINUX),
    ),
    (
        r"Exception Type - 0E.{0,200}?\bExceptionData - ([0-9a-f]{16})\b",
        lambda m: _certain("pf", "UEFI's own report of a #PF, in the guest", stood=LINUX),
    ),
    (
        rf"\bPageFaultErrorCode\(\s*{_NUMBER}",
        lambda m: _certain("pf", "a #PF's code, as programs in Rust report it", base=_printed_base(m[1])),
    ),
    (
        r"\berror ?_?code\b[\s:=(]{0,4}((?-i:[A-Z][A-Z_0-9]{2,})(?: ?\| ?(?-i:[A-Z][A-Z_0-9]{2,}))*)",
        lambda m: Place((*TRACED, "pferr"), Sure.POSSIBLE, "called an error code, in names"),
    ),
    (
        rf"\berror ?_?code\b[\s:=(]{{0,4}}((?-i:{_LETTER})(?:\|(?:(?-i:{_LETTER})|0x[0-9a-f]+))+)",
        lambda m: Place((*TRACED, "pferr"), Sure.POSSIBLE, "called an error code, in the kernel's letters"),
    ),
    (
        rf"#PF:? error_code\(\s*{_NUMBER}",
        lambda m: _certain("pf", "Linux's own report of a #PF", stood=LINUX),
    ),
    (
        r"\bOops: ([0-9a-f]{4})\b",
        lambda m: _certain("pf", "Linux's own oops, 16 bits of the code", stood=LINUX),
    ),
    (
        rf"\bsegfault at .{{0,200}}?\berror {_NUMBER}",
        lambda m: _certain("pf", "Linux's own report of a segfault", stood=LINUX),
    ),
    (
        rf"\bEPT violation:? {_NUMBER}",
        lambda m: _certain("ept", "the qualification of an EPT violation", base=0),
    ),
    (
        rf"\bkvm_mmu_(?:do_)?page_fault\b.{{0,200}}?\b(?:error_code|arg3)=\s*{_NUMBER}",
        lambda m: _certain("pferr", "error_code of kvm_mmu_page_fault(), past the exit's handler"),
    ),
    (
        rf"\bstruct kvm_page_fault\)?\s*(?:[0-9a-f]+ struct kvm_page_fault )?"
        rf"\{{.{{0,400}}?\berror_code\s*[=:]\s*{_NUMBER}",
        lambda m: _certain("pferr", "error_code of struct kvm_page_fault", base=_printed_base(m[1])),
    ),
    (
        r"\bfault(?:->|\.)error_code\s*[=:]\s*(0x[0-9a-f]+)\b",
        lambda m: _certain("pferr", "error_code of struct kvm_page_fault"),
    ),
    (rf"\bPFEC\s*[=:]?\s*{_NUMBER}", lambda m: _certain("pf", "a page-fault error code (PFEC)")),
    (_QUALIFICATION, lambda m: _certain("ept", "an exit qualification", base=0)),
    (_INFO_1, lambda m: _certain("npf", "EXITINFO1", base=0)),
    (
        rf"(?:memory[ _-]?fault|MemoryFault)\b.{{0,200}}?\bflags\s*[=:(]?\s*{_NUMBER}",
        lambda m: _certain("memfault", "flags of a memory-fault exit", base=_printed_base(m[1])),
    ),
    (
        rf"\bexit(?:[ _](?:reason|code))?[\s:=(]{{1,3}}(?:39|0x27)\b.{{0,40}}?\bflags\s*[=:(]?\s*{_NUMBER}",
        lambda m: _certain("memfault", "flags beside exit 39", base=_printed_base(m[1])),
    ),
    (
        r"(?:memory[ _-]?fault|MemoryFault)\b(?:(?![!=]=).){0,200}?"
        r"\b(?:flags\s*[=:(]\s*)?((?-i:KVM_MEMORY_EXIT_FLAG_)?PRIVATE)\b",
        lambda m: _certain("memfault", "a memory-fault exit, in words", base=0),
    ),
    (
        r"(?<![\w.])(0x[0-9a-f]+|[0-9]+) != \S+ \([^()]{0,80}\bmemory_fault\.flags\b",
        lambda m: _certain(
            "memfault", "flags of a memory-fault exit, first what they were", base=_printed_base(m[1])
        ),
    ),
    (
        r"\bflags\s*[=:]\s*(0x[0-9a-f]+|[0-9]+),? *\bgpa\s*[=:]\s*\w+,? *\bsize\b",
        lambda m: _certain(
            "memfault", "flags beside gpa and size: a memory-fault exit", base=_printed_base(m[1])
        ),
    ),
    (
        r"\bMemoryFault\(\s*(0x[0-9a-f]+|[0-9]+)\s*,",
        lambda m: _certain(
            "memfault", "first value of a memory-fault exit: its flags", base=_printed_base(m[1])
        ),
    ),
    (
        rf"\A\s*flags(?:\s*[=:]\s*|\s+){_NUMBER}\s*\Z",
        lambda m: Place(
            ("memfault",), Sure.LIKELY, "flags alone, as a memory-fault exit has them", 0, _printed_base(m[1])
        ),
    ),
    (
        rf"\bidt[ _-]?vectoring(?:[ _-]?info\w*)?\s*[=:(]*\s*(?:info\s*=\s*)?{_NUMBER}",
        lambda m: _certain("vectoring", "IDT-vectoring information"),
    ),
    (rf"\bexit_?int_?info\s*[=:(]?\s*{_NUMBER}", lambda m: _certain("vectoring", "EXITINTINFO")),
    (
        rf"(?<!VMEntry: )\bintr?_info\s*[=:(]?\s*{_NUMBER}",  # there it is the event that the entry injects
        lambda m: _certain("intr", "interruption information"),
    ),
)


def _printed_base(text: str) -> int:
    """Say in which base user space prints a number: with 0x in 16, else in 10."""
    return 16 if text[:2].lower() == "0x" else 10


def _keyed(rest: str) -> _Places:
    """Find numbers with a name before them; of a dump of another exit than a fault's, only its events."""
    found: _Places = []
    for pattern, place in _KEYED:
        for match in re.finditer(pattern, rest, re.I):
            if pattern == _QUALIFICATION and not _is_exit(rest, match.start(), 0x30):
                if _is_exit(rest, match.start(), 0x31):
                    why = "the dump of an EPT misconfiguration: it has no qualification, KVM hands in RSVD alone"
                    found.append(("0x8", _certain("pferr", why)))
                continue
            if pattern == _INFO_1 and not _is_exit(rest, match.start(), 0x400):
                if _is_exit(rest, match.start(), 0x4E):
                    found.append((match[1], _certain("pf", "EXITINFO1 of an intercepted #PF")))
                continue
            found.append((match[1], place(match)))
    return found


_RAW_EXIT = re.compile(
    r"\bexit_reason\s*[=:]\s*(\d{1,10}),?\s.{0,120}?\binfo1\s*[=:]\s*(0x[0-9a-f]{1,16}|\d{1,20}),?\s+info2\s*[=:]\s*"
    r"(0x[0-9a-f]{1,16}|\d{1,20})"
)
"""An exit by its fields, as LTTng, perf trace and `trace-cmd report -R` print it: in decimal without 0x."""


def _raw_exit(text: str) -> tuple[str, str, str] | None:
    """Read an exit that is told by its fields: its name, and both infos in hexadecimal."""
    if (found := _RAW_EXIT.search(text)) is None:
        return None
    info1, info2 = (f"{int(each, _printed_base(each)):#x}" for each in found.groups()[1:])
    return EXIT_NUMBERS.get(int(found[1]), ""), info1, info2


def _bare_exits(rest: str) -> _Places:
    """Find exits whose event is not named, as in a table of perf: "reason EPT_VIOLATION rip … info …"."""
    found: _Places = []
    for match in re.finditer(r"\breason (?:EPT_|EXIT_NPF|npf)\w* rip .{0,120}?(?=\breason |\Z)", rest):
        found += _exit_places("kvm_exit", match[0])
    if raw := _raw_exit(rest):
        found += _of_exit(*raw, "", "", "kvm_exit, by its fields")
    return found


def map_keys(key: str) -> list[str]:
    """List the numbers of a bpftrace map's key, the last first: hexadecimal with 0x, else decimal.

    >>> map_keys("386, 0xfee000b0"), map_keys("CPU 0/KVM")
    (['0xfee000b0', '0x182'], [])
    """
    named = re.search(r"\berror_code(?:\.\w+)?: +(\S+?),?(?: |$)", key)  # a trigger of ftrace names its keys
    parts = [part.strip(" ()") for part in re.split(r"[,;]", named[1] if named else key)]
    numbers = [part for part in parts if re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,19}", part)]
    return [f"{int(part, _printed_base(part)):#x}" for part in reversed(numbers)]


MAP_KEY = "a key of bpftrace"


ERRNOS = re.compile(
    r"\b(?:os error|errno)[\s:=(]{1,3}-?\d{1,3}\b|\berror \(-?\d{1,3}\)"
    r"|(?:\b(?:error(?:[ _]code)?|code|err|ret)[\s:=(]{1,3})?-?\b\d{1,3}\b[\s():,;-]{1,4}Bad address\b"
    r"|\bBad address\b(?:[\s():,;-]{1,4}(?:error(?:[ _]code)?|code|err|ret)?[\s:=(]{0,3}-?\d{1,3}\b)?",
    re.IGNORECASE,
)
"""An error of a system call as strerror(), Rust's std::io::Error and KVM print it: no code of a fault.

Sources: Linux `include/trace/events/kvm.h`, kvm_userspace_exit (v6.12); the Rust standard library's
`std/src/io/error.rs`, Display.
"""


def _map_places(rest: str) -> _Places:
    """Find the codes among the keys of bpftrace's maps: one of each key is the code."""
    places = []
    for group, match in enumerate(re.finditer(r"@\w*\[([^\]]{1,200})\]", rest), 1):
        place = Place((*TRACED, "pferr"), Sure.POSSIBLE, MAP_KEY, 64, 16, group=group)
        places += [(number, place) for number in map_keys(match[1])]
    return places


def places(text: str) -> _Places:
    """Find the numbers of a pasted line that may be codes, each with what its place says; zero events are left out."""
    whole = unwrapped(text)
    found: _Places = []
    rest = whole
    reasons = frozenset(
        reason.upper().removeprefix("EXIT_") for reason in re.findall(r"\breason[ :=]+(\w+)", whole)
    )
    exceptions = "EXCEPTION_NMI" in reasons and _exceptions(whole)
    for match in _EVENTS.finditer(whole):
        name, body = match[1], match[2]
        rest = rest.replace(match[0], " ")
        if name.startswith(("kvm_exit", "kvm_nested")):
            found += _exit_places(name, body)
        elif name == "kvm_page_fault":
            # By field, as trace-cmd's -R prints.
            if raw := re.search(r"\berror_code=([0-9]{1,19})(?![0-9a-fx])", body):
                body, number = body.replace(raw[0], f"error_code={int(raw[1]):#x}"), f"{int(raw[1]):#x}"
                found.append((number, _traced_place(body, number, reasons, exceptions)))
            elif number := _value("error_code", body):
                found.append((number, _traced_place(body, number, reasons, exceptions)))
        elif name == "kvm_rmp_fault":
            if number := _value("error_code", body):
                found.append((number, _certain("npf", "error_code of kvm_rmp_fault: EXITINFO1")))
        elif name == "fast_page_fault":
            # The kernel prints letters for the flags that it has some for, the rest as one number, and of 0 nothing.
            if letters := re.search(r"\berror_code (?:([A-Z0-9a-fx|]+)| ?(?=sptep\b))", body):
                code = letters[1] or "0x0"
                base = 16 if set(code.split("|")).isdisjoint(PFERR_LETTERS) else 0
                found.append((code, _certain("pferr", "error_code of fast_page_fault", base=base)))
        elif injected := re.search(rf"#PF \({_NUMBER}", body):
            found.append((injected[1], _certain("pf", "a #PF that KVM injects into the guest")))
    for match in re.finditer(r"\bpferr ([0-9a-f]+)\b", whole):
        walk = "kvm_mmu_pagetable_walk" in whole[max(0, match.start() - 60) : match.start()]
        why = "pferr of KVM's walk of the guest's own page tables"
        notes = ("no fault yet: it says which access the walk is for",) if walk else ()
        found.append((f"0x{match[1]}", _certain("pf", why, *notes)))
    errors, rest = _internal_errors(_OS_ERROR.sub(" ", rest))
    found += errors + _bare_exits(rest) + _keyed(rest)
    if not found:
        rest = ERRNOS.sub(" ", rest)
        hand = (
            r"|(?:err|error|code)\b\s*[=:]?"
            if re.search(r"\bgpa\b|page.?fault|\bpf\b|\baddr", rest, re.I)
            else ""
        )
        names = (
            rf"(?:host_|guest_)?error[ _]?code_?(?:\s*[=:(]|\b)|(?:ec|err|pferr|fault_code)\s*[=:]"
            rf"|(?:ec|pferr)\b(?= 0x){hand}"
        )
        for match in re.finditer(rf"\b(?:{names})\s*{_NUMBER}", rest, re.I):
            width = 0 if match[1][:2].lower() == "0x" else 32
            found.append((match[1], Place((*TRACED, "pferr"), Sure.POSSIBLE, "called an error code", width)))
    found = found or _map_places(rest)
    if not found and (pair := re.fullmatch(r"\s*(?:0x)?([0-9a-f]+) ([A-Z]+(?:\|[A-Z]+)*)\s*", whole)):
        found.append((f"0x{pair[1]}", _certain("pf", f"with the kernel's letters {pair[2]}")))
    events = ("vectoring", "intr")
    return [
        (number, place)
        for number, place in found
        if number and (place.encodings[0] not in events or int(number, 16) & EVENT_VALID)
    ]


# --- the address ---

_ADDRESSES = (
    r"\breason[ :=]+(?:EXIT_)?npf\b.{0,80}?\binfo\s+[0-9a-fx]+\s+(?:0x)?([0-9a-f]+)\b",
    r"\breason[ :=]+(?:EXIT_)?npf\b.{0,120}?\binfo2 (?:0x)?([0-9a-f]+)\b",
    r"\b(?:fault_)?address[ =:]+(?:0x)?([0-9a-f]+)\b",
    r"\bexit_?info_?2\s*[=:]?\s*(?:0x)?([0-9a-f]+)\b",
    r"(?<!,)\b(?:fault_)?addr[ =:]+(?:0x)?([0-9a-f]+)\b",
    r"\bguest[-_ ]physical(?:[-_ ]address)?\s*[=:]\s*(?:0x)?([0-9a-f]+)\b",
    r"\b(?:gpa|GCPhys|cr2_or_gpa)[ =:]+(?:0x)?([0-9a-f]+)\b",
    r"\bkvm_mmu_page_fault\b.*?\barg2=(?:0x)?([0-9a-f]+)\b",
)


def address(text: str) -> int | None:
    """Find the address of the fault (u64) that a pasted line is about; None if it tells none."""
    whole = unwrapped(text)
    if (error := _SUBERROR.search(whole)) and error[1] == "3":
        data = dict(EXTRA.findall(error[2]))
        gpa = int(data["3"], 16) if len(data) > 4 else (1 << 64) - 1
        return gpa if gpa < 1 << 52 else None
    if (raw := _raw_exit(whole)) and raw[0] == "NPF":
        return int(raw[2], 16)
    decimal = re.search(
        r"kvm_page_fault\((?!.{0,200}0x)|\bfault_address[ =:]+\d|MemoryFault|memory_fault|\w = \d+,"
        r"|\bflags: ?\d+, ?gpa:",
        whole,
    )
    for pattern in _ADDRESSES:
        if found := re.search(pattern, whole, re.I):
            is_decimal = decimal and re.search("[=:] *[1-9][0-9]{0,19}$", found[0])
            value = int(found[1], 10 if is_decimal else 16)
            return value if value < 1 << 64 else None
    return None
