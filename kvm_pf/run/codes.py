# SPDX-License-Identifier: GPL-2.0-only
"""What a number can be, and what it says: error codes as kernels, tools and people write them.

`read` takes a number, names of bits or a pasted line, finds out which encodings the number can be, and picks the
likeliest; what a code says in an encoding stands in `meanings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from kvm_pf.bits import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EVENT_TYPES,
    MEMORY_FAULT,
    PFERR,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_GUEST_RMP_MASK,
    PFERR_LETTERS,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_SGX_MASK,
    PFERR_SYNTHETIC_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    encode,
)
from kvm_pf.common.errors import InputError
from kvm_pf.run.meanings import (
    ENCODINGS,
    EVENT_EXCEPTIONS,
    EVENT_VALID,
    Meaning,
    event,
    meaning,
)


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
    of bits that were printed, `base` that of the digits (0: not known).
    """

    encodings: tuple[str, ...] = tuple(ENCODINGS)
    sure: Sure = Sure.NO
    why: str = ""
    width: int = 0
    base: int = 0
    notes: tuple[str, ...] = ()


class Reading(NamedTuple):
    """A number, read in one way: `spelled` says how (hexadecimal, decimal, names)."""

    code: int
    encoding: str
    spelled: str
    sure: Sure
    why: str
    place: Place

    @property
    def title(self) -> str:
        """What the encoding is called."""
        return ENCODINGS[self.encoding].title

    @property
    def meaning(self) -> Meaning:
        """What the code says in this encoding."""
        said = meaning(self.code, self.encoding)
        cut = cut_codes(self.code) if self.encoding == "npf" else ()
        if cut and self.place.width != 64:
            whole = " or ".join(f"{code:#x}" for code in cut)
            note = f"kernels before 6.1 print only 32 bits: the whole code was {whole} ({CUT_SOURCE})"
            said = said._replace(notes=(note, *said.notes))
        return said._replace(notes=(*said.notes, *self.place.notes))


class Answer(NamedTuple):
    """Everything that a number can be, the likeliest reading first, and the other codes of a pasted line."""

    readings: tuple[Reading, ...]
    more: tuple[Answer, ...] = ()

    @property
    def best(self) -> Reading:
        """The likeliest reading."""
        return self.readings[0]

    @property
    def others(self) -> tuple[Reading, ...]:
        """The other readings that are worth a line: the possible ones, and the best of the digits' other reading.

        That the number is no error code is among them, because it will be taken for one.
        """
        best, kept, spelled = self.best, [], {self.best.spelled}
        for reading in self.readings[1:]:
            mistaken = reading.encoding == "pferr" and reading.code == best.code and reading.sure
            if reading.spelled not in spelled and reading.sure:
                spelled.add(reading.spelled)
                kept.append(reading)
            elif reading.spelled == best.spelled and (reading.sure >= Sure.POSSIBLE or mistaken):
                kept.append(reading)
        return tuple(kept)


CUT_SOURCE = (
    'Linux commit `bff0adc40c00` ("KVM: x86: Use u64 for address and error code in page fault tracepoint")'
)


def cut_codes(code: int) -> tuple[int, ...]:
    """The #NPF codes (u64) of which only the low 32 bits may have been printed; none if `code` is whole.

    #NPF sets bit 32 or 33.  A walk of the guest's page tables counts as a write, so bit 33 needs bit 1.

    Source: AMD APM vol. 2, section 15.25.6; Linux commit `bff0adc40c00` (v6.1).
    """
    if code >> 32:
        return ()
    walk = code & PFERR_WRITE_MASK and not code & PFERR_FETCH_MASK
    return (code | PFERR_GUEST_FINAL_MASK, *((code | PFERR_GUEST_PAGE_MASK,) if walk else ()))


# --- which encodings a number can be ---


def _bits(mask: int) -> str:
    """Name the bits of a mask: "bit 7", "bits 7, 8"."""
    numbers = [str(n) for n in range(64) if mask >> n & 1]
    return f"bit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _have(mask: int) -> str:
    return f"{_bits(mask)} {'have' if mask & mask - 1 else 'has'}"


_NAMED = sum(row.mask for row in PFERR)
_PF_BITS = 0x7F | PFERR_SGX_MASK | PFERR_GUEST_RMP_MASK
_NPF_BITS = _NAMED & ~(PFERR_SYNTHETIC_MASK | PFERR_PK_MASK | PFERR_SGX_MASK)
_STAGE = PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK


def _judge_npf(code: int, place: Place) -> tuple[Sure, str]:
    foreign = code & ~_NPF_BITS
    if foreign & PFERR_SYNTHETIC_MASK:
        return Sure.NO, f"{_bits(foreign & PFERR_SYNTHETIC_MASK)}: KVM's, not the CPU's"
    if foreign:
        return Sure.NO, f"{_have(foreign)} no meaning in it"
    if code & PFERR_WRITE_MASK and code & PFERR_FETCH_MASK:
        return Sure.HARDLY, "a write and a fetch at once"
    if not code & _STAGE:
        if place.width == 64:
            return Sure.NO, "bits 32 and 33 are clear in a code that was printed whole"
        usual = place.width == 32 and code & PFERR_USER_MASK  # nested accesses count as user accesses
        why = "only if a kernel before 6.1 cut it to 32 bits: #NPF sets bit 32 or 33"
        return Sure.LIKELY if usual else Sure.POSSIBLE, why
    if code & _STAGE == _STAGE:
        return Sure.POSSIBLE, "bits 32 and 33 are both set"
    return Sure.VERY_LIKELY, f"{_bits(code & _STAGE)} is set, and no bit is without a meaning"


def _judge_ept(code: int, place: Place) -> tuple[Sure, str]:
    if code >> 17:
        return Sure.NO, f"{_have(code & ~0x1FFFF)} no meaning in it"
    access = code & 7
    if not access:
        return Sure.NO, "neither a read nor a write nor a fetch (bits 0-2)"
    if not code & EPT_VIOLATION_GVA_IS_VALID:
        if code & EPT_VIOLATION_GVA_TRANSLATED:
            return Sure.NO, "bit 8 is set without bit 7"
        return Sure.HARDLY, "bit 7 is clear: only a load of PDPTEs, or a TDX guest"
    if access & EPT_VIOLATION_ACC_INSTR and access != EPT_VIOLATION_ACC_INSTR:
        return Sure.HARDLY, "a fetch and another access at once"
    return Sure.VERY_LIKELY, "bit 7 is set, which no error code has, and the rest fits"


def _judge_pf(code: int, place: Place) -> tuple[Sure, str]:
    if code >> 32:
        return Sure.NO, "a #PF has 32 bits"
    foreign = code & ~_PF_BITS
    if foreign:
        return Sure.NO, f"{_have(foreign)} no meaning in it"
    if not code & PFERR_PRESENT_MASK and code & (PFERR_RSVD_MASK | PFERR_PK_MASK):
        return Sure.NO, "bits 3 and 5 come only with bit 0"
    if code & PFERR_WRITE_MASK and code & PFERR_FETCH_MASK:
        return Sure.NO, "a write and a fetch at once"
    if place.width == 64 and place.encodings == _TRACED:
        return Sure.VERY_LIKELY, "printed whole, with neither bit 7 nor 32 nor 33: shadow paging"
    return Sure.LIKELY, "a small code: the guest's own #PF, or shadow paging"


def _judge_pferr(code: int, place: Place) -> tuple[Sure, str]:
    foreign = code & ~_NAMED
    if foreign:
        return Sure.HARDLY, f"{_have(foreign)} no meaning in an error code"
    if code & PFERR_SYNTHETIC_MASK:
        return Sure.VERY_LIKELY, f"{_bits(code & PFERR_SYNTHETIC_MASK)}: only KVM sets that"
    return Sure.POSSIBLE, "what the exit handler makes of it looks like that"


def _judge_memory_fault(code: int, place: Place) -> tuple[Sure, str]:
    if code & ~MEMORY_FAULT[0].mask:
        return Sure.NO, f"{_have(code & ~MEMORY_FAULT[0].mask)} no meaning in them"
    if code:
        return Sure.LIKELY, "8 alone is their only value but 0; no fault is traced with that code"
    return Sure.HARDLY, "0 says: shared"


def _judge_event(code: int, place: Place, bits: int) -> tuple[Sure, str]:
    kind, vector, _ = event(code)
    low = code & (1 << 32) - 1
    if code >> bits or (code >> 32 and not code >> 11 & 1):
        return Sure.NO, "such an event has 32 bits"
    if not low & EVENT_VALID:
        return (Sure.HARDLY, "0 says: no event") if not code else (Sure.NO, "bit 31 is clear: no event")
    if low & 0x7FFFE000:
        return Sure.NO, f"{_have(low & 0x7FFFE000)} no meaning in it"
    if kind == 1:
        return Sure.NO, "type 1 is reserved"
    if (kind in EVENT_EXCEPTIONS and vector > 31) or (kind == 2 and vector != 2):
        return Sure.NO, f"vector {vector} is no {EVENT_TYPES[kind]}"
    return (
        Sure.LIKELY,
        "bit 31 is set, type and vector fit; both kinds of event look alike, the field's name decides",
    )


_JUDGES: dict[str, Callable[[int, Place], tuple[Sure, str]]] = {
    "npf": _judge_npf,
    "ept": _judge_ept,
    "pf": _judge_pf,
    "pferr": _judge_pferr,
    "memfault": _judge_memory_fault,
    "vectoring": lambda code, place: _judge_event(code, place, 64),
    "intr": lambda code, place: _judge_event(code, place, 32),
}


def judge(code: int, encoding: str, spelled: str, place: Place) -> Reading:
    """Say how sure it is that `code` (u64) is of `encoding`, from its bits and from where it stood."""
    sure, why = _JUDGES[encoding](code, place)
    if encoding not in place.encodings:
        sure, why = Sure.NO, place.why
    elif place.sure == Sure.CERTAIN:
        doubt = f", though {why}" if sure == Sure.NO else ""
        sure, why = Sure.CERTAIN, place.why + doubt
    elif place.why and sure > Sure.NO:
        why = f"{place.why}; {why}"
    return Reading(code, encoding, spelled, sure, why, place)


def _ranked(candidates: Sequence[Reading]) -> tuple[Reading, ...]:
    return tuple(sorted(candidates, key=lambda reading: -reading.sure))


# --- how people write a code ---

HEX, DECIMAL, NAMES = "hexadecimal", "decimal", "names"

_HEX = re.compile(r"0[xX]([0-9a-fA-F]+)[uU]?[lL]{0,2}|([0-9a-fA-F]+)")
_KERNEL_NAMES = {
    "ACC_READ": "READ", "ACC_WRITE": "WRITE", "ACC_INSTR": "FETCH", "PROT_READ": "READABLE",
    "PROT_WRITE": "WRITABLE", "PROT_EXEC": "EXECUTABLE", "PROT_USER_EXEC": "USER_EXECUTABLE",
    "GVA_IS_VALID": "GVA_VALID",
}  # fmt: skip
"""EPT_VIOLATION_* of Linux `arch/x86/include/asm/vmx.h` that are called otherwise here."""


def _number(digits: str, base: int, said: str) -> int:
    value = int(digits, base) if len(digits) <= 40 else 1 << 64
    if value >> 64:
        raise InputError(f"{said[:60]}: a code has at most 64 bits")
    return value


def _spellings(text: str, base: int = 0) -> list[tuple[int, str]]:
    """Read a number: hexadecimal first; decimal too, if the digits allow both; [] if it is none."""
    found = _HEX.fullmatch(text)
    if not found:
        return []
    digits = found[1] or found[2]
    if base == 10 and found[2] and digits.isdigit():
        return [(_number(digits, 10, text), DECIMAL)]
    if base == 10:
        raise InputError(f"{text[:60]!r} is no decimal number")
    code = _number(digits, 16, text)
    if base or found[1] or not digits.isdigit() or digits[0] == "0" or len(digits) == 1:
        return [(code, HEX)]
    return [(code, HEX), (int(digits), DECIMAL)]


def _named(text: str) -> dict[str, int]:
    """Read names of bits, the kernel's letters, and the rest in hexadecimal that it prints beside them.

    Returns the code for each table that has all the names, {} if none has.
    """
    words = [word.strip() for word in re.split(r"[|,]", text)]
    numbers = [int(word, 16) for word in words if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", word)]
    names = [
        re.sub(r"^(PFERR|EPT_VIOLATION)_|_MASK$", "", word) for word in words if word[:2] not in ("0x", "0X")
    ]
    names = [name if name.startswith("bit") else name.upper() if len(name) > 1 else name for name in names]
    if len(names) + len(numbers) != len(words) or not names or text.strip().isdigit():
        return {}
    codes = {}
    for encoding, others in (("pferr", PFERR_LETTERS), ("ept", _KERNEL_NAMES), ("memfault", {})):
        try:
            code = encode("|".join(others.get(name, name) for name in names), ENCODINGS[encoding].table)
        except InputError:
            continue
        for number in numbers:
            code |= number
        codes[encoding] = code
    return codes


def _from_names(text: str, place: Place) -> list[Reading]:
    codes = _named(text)
    readings = [
        judge(codes[table], encoding, NAMES, place)
        for encoding in ENCODINGS
        if (table := "pferr" if ENCODINGS[encoding].table is PFERR else encoding) in codes
    ]
    if place.sure == Sure.CERTAIN or not readings:
        return readings
    letters = all(word.strip() in PFERR_LETTERS for word in text.split("|"))
    guest = letters and any(r.encoding == "pf" and r.sure for r in readings)
    first = "pf" if guest else next(iter(codes))
    why = "the kernel's letters" if letters else "these are the names of its bits"
    return [
        r._replace(sure=Sure.VERY_LIKELY, why=why)
        if r.encoding == first
        else r._replace(sure=min(r.sure, Sure.LIKELY))
        for r in readings
    ]


_SPELLED = {HEX: "in hexadecimal, as the kernel prints", DECIMAL: "in decimal, as bpftrace and Rust print"}


def _from_number(text: str, place: Place, base: int) -> list[Reading]:
    readings = []
    spellings = _spellings(text, base)
    bare = text[:2].lower() != "0x"
    for code, spelled in spellings:
        if not place.width and bare and spelled == HEX and not code >> 32:
            stood = place._replace(width=32)
        else:
            stood = place
        for encoding in ENCODINGS:
            reading = judge(code, encoding, spelled, stood)
            if len(spellings) > 1 and reading.sure > Sure.NO:
                reading = reading._replace(why=f"{reading.why}; {_SPELLED[spelled]}")
            readings.append(reading)
    return readings


def _readings(text: str, place: Place, base: int = 0) -> list[Reading]:
    readings = _from_number(text, place, base)
    if not base:
        named = _from_names(text, place)
        # A lone capital F is the kernel's letter for a fetch; other letters are no digits.
        readings = named + readings if text.isupper() or not readings else readings + named
    return readings


ANYWHERE = Place()
LONGEST = 65536
"""The longest text that is read, in characters."""


def read(text: str, encoding: str | None = None, base: int = 0) -> Answer:
    """Find out what a code can be: a number, names of bits, or a pasted line that holds one or more.

    `encoding`, one of ENCODINGS, decides instead; `base` 10 or 16 decides how digits are read.  Numbers are
    hexadecimal with or without 0x, or decimal; where digits allow both, both are judged.  Raises InputError if
    there is no code in `text`, or it is too wide.

    >>> read("385").best.code == 0x181, read("14").best.encoding
    (True, 'npf')
    """
    if not isinstance(text, str):
        raise InputError(f"text={text!r:.60}: it takes text; a number is given to kvm_pf.decode")
    if encoding is not None and encoding not in ENCODINGS:
        raise InputError(f"encoding={encoding!r:.60}: it takes one of {', '.join(ENCODINGS)}")
    if base not in (0, 10, 16):
        raise InputError(f"base={base!r:.60}: it takes 10 or 16")
    if len(text) > LONGEST:
        raise InputError(f"a text of {len(text)} characters: too long for a code or a few lines")
    short = text.strip()
    place = ANYWHERE
    if encoding:
        place = Place((encoding,), Sure.CERTAIN, "asked for", 64 if short[:2].lower() == "0x" else 0)
    found = _readings(short, place, base)
    if found:
        return Answer(_fitting(found, encoding, short))
    if re.search(r"[\s:=(\[]", short):
        answers = [
            Answer(_fitting(readings, encoding, token))
            for token, stood in _places(text)
            if (readings := _readings(token, place if encoding else stood, base or stood.base))
        ]
        if answers:
            return _line(answers)
        raise InputError(
            f"{' '.join(short.split())[:80]!r}: no code in this line; one stands after error_code, info1, pferr, "
            "flags, exit qualification, intr_info or a name like these"
        )
    try:
        encode(short, ENCODINGS[encoding or "pferr"].table)
    except InputError as error:
        raise InputError(f"{short[:80]!r} is no number, and {error}") from None
    raise InputError(f"{short[:80]!r} is no number")


def _fitting(readings: Sequence[Reading], encoding: str | None, text: str) -> tuple[Reading, ...]:
    """Rank readings; with an encoding given, only those that fit into its bits, and hexadecimal before decimal."""
    if not encoding:
        return _ranked(readings)
    fitting = [r for r in readings if r.encoding == encoding and not r.code >> ENCODINGS[encoding].bits]
    sure = {reading: _JUDGES[encoding](reading.code, reading.place)[0] for reading in fitting}
    fitting.sort(key=lambda reading: -sure[reading])
    if not fitting or (
        len(readings) > len(ENCODINGS) > 1 and sure[fitting[0]] == Sure.NO and fitting[0].spelled == DECIMAL
    ):
        bits = ENCODINGS[encoding].bits
        if not any(r.encoding == encoding for r in readings):
            encode(text, ENCODINGS[encoding].table)
        raise InputError(f"{text[:80]}: such a code has {bits} bits, 0 to {(1 << bits) - 1:#x}")
    return tuple(fitting)


_FAULT_CODES = ("ept", "npf", "pf", "memfault", "pferr")


def _line(answers: Sequence[Answer]) -> Answer:
    """Put the codes of a line together: the fault first, each code once."""
    whole = {a.best.code & (1 << 32) - 1 for a in answers if a.best.encoding == "npf" and a.best.code >> 32}
    distinct: dict[tuple[int, str], Answer] = {}
    for answer in answers:
        if answer.best.encoding == "npf" and answer.best.code in whole:
            continue  # the same code, cut to 32 bits, beside the whole one
        distinct.setdefault((answer.best.code, answer.best.encoding), answer)
    ordered = sorted(distinct.values(), key=lambda a: a.best.encoding not in _FAULT_CODES)
    return Answer(ordered[0].readings, tuple(ordered[1:]))


# --- a pasted line ---

_NUMBER = r"(0[xX][0-9a-fA-F]+|[0-9a-fA-F]+)\b"
_EVENTS = re.compile(
    r"\b(kvm_page_fault|kvm_exit|kvm_nested_vmexit(?:_inject)?|kvm_mmu_pagetable_walk|kvm_mmu_walker_error"
    r"|fast_page_fault|kvm_inj_exception)\s*:(.*?)(?=\b(?:kvm_\w+|fast_page_fault|handle_mmio_page_fault)\s*:|\Z)",
    re.DOTALL,
)
_TRACED = ("npf", "ept", "pf")
_INTEL, _AMD = "an Intel exit", "an AMD exit"


def _unwrapped(text: str) -> str:
    """Undo what mail does to a line: quoting, wrapping, quoted-printable."""
    text = re.sub(r"=\r?\n", "", text)
    return re.sub(r"\s+", " ", re.sub(r"\r?\n[> ]*", " ", text))


def _certain(encoding: str, why: str, *notes: str, base: int = 16) -> Place:
    return Place((encoding,), Sure.CERTAIN, why, 0, base, notes)


def _value(key: str, text: str) -> str:
    found = re.search(rf"\b{key}\s*{_NUMBER}", text)
    return found[1] if found else ""


def _exit_places(name: str, text: str) -> list[tuple[str, Place]]:
    """Find the codes of kvm_exit and its nested relatives.

    Up to 5.9 kvm_exit had two infos, on VMX the qualification and the interruption information.

    Source: Linux commit `235ba74f008d` ("KVM: x86: Add intr/vectoring info and error code to kvm_exit tracepoint")
    (v5.10).
    """
    reason = (_reason(text) or "").upper().removeprefix("EXIT_")
    old = re.search(rf"\binfo\s+{_NUMBER}\s+{_NUMBER}", text)
    info1, info2 = (old[1], old[2]) if old else (_value("info1", text), _value("info2", text))
    event = _value("(?:intr_info|int_info)", text)
    places: list[tuple[str, Place]] = []
    if reason == "EPT_VIOLATION":
        places.append((info1, _certain("ept", f"info of {name}, reason EPT_VIOLATION")))
        places.append((info2, _certain("intr" if old else "vectoring", f"second info of {name}, Intel")))
    elif reason == "NPF":
        places.append((info1, _certain("npf", f"first info of {name}, reason npf: EXITINFO1")))
        places.append((event, _certain("vectoring", f"intr_info of {name}, AMD: EXITINTINFO")))
        return places
    elif reason == "EPT_MISCONFIG":
        why = f"{name}, reason EPT_MISCONFIG: it has no qualification, KVM hands in RSVD alone"
        places.append(("0x8", _certain("pferr", why)))
    elif re.fullmatch(r"(PF[ _]?EXCP|EXCP_?PF|EXCP14)", reason):
        places.append((info1, _certain("pf", f"first info of {name}, an intercepted #PF")))
    elif reason == "EXCEPTION_NMI":
        if old:
            event = info2
        elif info2:
            places.append((info2, _certain("vectoring", f"info2 of {name}, Intel")))
        number = _spellings(event)
        error = _value("error_code", text)
        if error and number and number[0][0] & 0x7FF == 0x30E:
            places.append((error, _certain("pf", f"error_code of {name}, an intercepted #PF")))
    if event:
        places.append((event, _certain("intr", f"interruption information of {name}")))
    return places


def _reason(text: str) -> str:
    found = re.search(r"\breason[ :=]+(PF excp|[A-Za-z_]\w*)", text)
    return found[1] if found else ""


def _traced_place(text: str, number: str, whole: str) -> Place:
    """Say what kvm_page_fault's code can be: EXITINFO1, an exit qualification, or a #PF error code.

    Source: Linux `arch/x86/kvm/vmx/vmx.c`, `arch/x86/kvm/svm/svm.c`, `arch/x86/kvm/mmu/mmu.c` (v6.9).
    """
    width = 64 if number[:2].lower() == "0x" else 32
    reasons = {reason.upper().removeprefix("EXIT_") for reason in re.findall(r"\breason[ :=]+(\w+)", whole)}
    why = "error_code of kvm_page_fault"
    encodings: tuple[str, ...] = _TRACED
    if reasons & {"EPT_VIOLATION", "EPT_MISCONFIG"}:
        encodings, why = ("ept", "pf"), f"{why}, beside {_INTEL}"
    elif "NPF" in reasons:
        encodings, why = ("npf", "pf", "pferr"), f"{why}, beside {_AMD}"
    code = _spellings(number)[0][0]
    if code & PFERR_SYNTHETIC_MASK and "npf" in encodings:
        encodings = (*encodings, "pferr")
    return Place(encodings, Sure.LIKELY, why, width, 16)


_KEYED: tuple[tuple[str, Callable[[re.Match[str]], Place]], ...] = (
    (rf"#PF:? error_code\(\s*{_NUMBER}", lambda m: _certain("pf", "Linux's own report of a #PF")),
    (r"\bOops: ([0-9a-f]{4})\b", lambda m: _certain("pf", "Linux's own oops")),
    (
        rf"\bsegfault at .{{0,200}}?\berror {_NUMBER}",
        lambda m: _certain("pf", "Linux's own report of a segfault"),
    ),
    (
        rf"\b(?:exit[ _-]?)?qual(?:ification)?\s*[=:(]?\s*{_NUMBER}",
        lambda m: _certain("ept", "an exit qualification", base=0),
    ),
    (rf"\bexit_?info_?1\s*[=:(]?\s*{_NUMBER}", lambda m: _certain("npf", "EXITINFO1", base=0)),
    (
        rf"(?:memory[ _-]?fault|MemoryFault)\b.{{0,200}}?\bflags\s*[=:(]?\s*{_NUMBER}",
        lambda m: _certain(
            "memfault", "flags of a memory-fault exit", base=16 if m[1][:2].lower() == "0x" else 10
        ),
    ),
    (
        rf"\A\s*flags\s*[=:]\s*{_NUMBER}\s*\Z",
        lambda m: Place(
            ("memfault",),
            Sure.LIKELY,
            "flags alone, as a memory-fault exit has them",
            0,
            16 if "x" in m[1].lower() else 10,
        ),
    ),
    (
        rf"\bidt[ _-]?vectoring(?:[ _-]?info\w*)?\s*[=:(]*\s*(?:info\s*=\s*)?{_NUMBER}",
        lambda m: _certain("vectoring", "IDT-vectoring information"),
    ),
    (rf"\bexit_?int_?info\s*[=:(]?\s*{_NUMBER}", lambda m: _certain("vectoring", "EXITINTINFO")),
    (rf"\bintr?_info\s*[=:(]?\s*{_NUMBER}", lambda m: _certain("intr", "interruption information")),
)


def _places(text: str) -> list[tuple[str, Place]]:
    """Find the numbers of a pasted line that may be codes, each with what its place says; zero events are left out."""
    whole = _unwrapped(text)
    places: list[tuple[str, Place]] = []
    rest = whole
    for found in _EVENTS.finditer(whole):
        name, body = found[1], found[2]
        rest = rest.replace(found[0], " ")
        if name.startswith(("kvm_exit", "kvm_nested")):
            places += _exit_places(name, body)
        elif name == "kvm_page_fault":
            if number := _value("error_code", body):
                places.append((number, _traced_place(body, number, whole)))
        elif name == "fast_page_fault":
            if letters := re.search(r"\berror_code ([A-Z0-9a-fx|]+)", body):
                places.append((letters[1], _certain("pferr", "error_code of fast_page_fault")))
        elif injected := re.search(rf"#PF \({_NUMBER}", body):
            places.append((injected[1], _certain("pf", "a #PF that KVM injects into the guest")))
    for found in re.finditer(r"\bpferr ([0-9a-f]+)\b", whole):
        walk = "kvm_mmu_pagetable_walk" in whole[max(0, found.start() - 60) : found.start()]
        why = "pferr of KVM's walk of the guest's own page tables"
        notes = ("no fault yet: it says which access the walk is for",) if walk else ()
        places.append((f"0x{found[1]}", _certain("pf", why, *notes)))
    for pattern, place in _KEYED:
        places += [(found[1], place(found)) for found in re.finditer(pattern, rest, re.I)]
    if not places:
        for found in re.finditer(rf"\berror[ _]code\s*[=:(]?\s*{_NUMBER}", rest, re.I):
            width = 0 if found[1][:2].lower() == "0x" else 32
            places.append(
                (found[1], Place((*_TRACED, "pferr"), Sure.POSSIBLE, "called an error code", width))
            )
    if not places:
        places += [
            (
                f"{int(found[1]):#x}",
                Place((*_TRACED, "pferr"), Sure.POSSIBLE, "a key of bpftrace, in decimal"),
            )
            for found in re.finditer(r"@\w*\[(?:[^\]]*, ?)?([0-9]{1,19})\]", rest)
        ]
    if not places and (pair := re.fullmatch(r"\s*(?:0x)?([0-9a-f]+) ([A-Z]+(?:\|[A-Z]+)*)\s*", whole)):
        places.append((f"0x{pair[1]}", _certain("pf", f"with the kernel's letters {pair[2]}")))
    events = ("vectoring", "intr")
    return [
        (number, place)
        for number, place in places
        if number and (place.encodings[0] not in events or int(number, 16) & EVENT_VALID)
    ]
