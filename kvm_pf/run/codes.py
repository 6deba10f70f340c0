# SPDX-License-Identifier: GPL-2.0-only
"""What a number can be, and what it says: error codes as kernels, tools and people write them.

`read` takes a number, names of bits or a pasted line, finds out which encodings the number can be, and picks the
likeliest; what a code says in an encoding stands in `meanings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    TDX_CLEARED,
    Meaning,
    event,
    meaning,
    under_shadow,
)
from kvm_pf.run.notation import (
    DECIMAL,
    HEX,
    NAMES,
    SPELLED,
    alike,
    bare,
    said_base,
    several,
    spellings,
    term,
)
from kvm_pf.run.places import ASKED, TRACED, TRACED_FAULT, Place, Sure, map_keys, places
from kvm_pf.run.refusals import error_alone, exit_alone, known, refusal


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
        if self.encoding == "pf" and self.place.stood == TRACED_FAULT:
            said = under_shadow(said)
        cut = cut_codes(self.code) if self.encoding == "npf" else ()
        if cut and self.place.width != 64:
            whole = " or ".join(f"{code:#x}" for code in cut)
            note = f"kernels before 6.1 print only 32 bits: the whole code was {whole} ({CUT_SOURCE})"
            said = said._replace(notes=(note, *said.notes))
        return said._replace(notes=(*said.notes, *self.place.notes))


class Answer(NamedTuple):
    """Everything that a number can be, the likeliest reading first, and the other codes of a pasted line.

    `exit` says which exit the number can be the reason of, which is no code; "" if of none.
    """

    readings: tuple[Reading, ...]
    more: tuple[Answer, ...] = ()
    exit: str = ""

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
    return Sure.VERY_LIKELY, "bit 7 is set, which no error code of KVM's has, and the rest fits"


def _judge_tdx(code: int, place: Place) -> tuple[Sure, str]:
    if code >> 17 or code & TDX_CLEARED:
        return Sure.NO, "a TDX guest's linear address is hidden: bits 7-12 are clear, none above 16 is set"
    traced = "pf" in place.encodings  # else an exit's, as the TDX module gives it
    if not code & 7 and (code or traced):
        return Sure.NO, "neither a read nor a write nor a fetch (bits 0-2)"
    if code & EPT_VIOLATION_ACC_INSTR and traced:
        return Sure.NO, "a fetch: a TDX guest's is from private memory, and KVM traces it as a write"
    if not traced:
        return Sure.VERY_LIKELY, "such a word comes from the TDX module"
    return Sure.LIKELY if "tdx" in place.encodings and place.sure else Sure.HARDLY, _TDX_WHY


_TDX_WHY = (
    "rip 0, which a kernel from 6.16 on shows for guests whose state is protected, and bit 7 is clear: a TDX guest; "
    "an exit before it (kvm_exit) would tell"
)


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
    if "tdx" in place.encodings and place.sure and _judge_tdx(code, place)[0]:
        return Sure.POSSIBLE, "only under shadow paging, with a guest that runs at address 0"
    if place.width == 64 and place.encodings[-3:] == TRACED:
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
    "tdx": _judge_tdx,
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

_KERNEL_NAMES = {
    "ACC_READ": "READ", "ACC_WRITE": "WRITE", "ACC_INSTR": "FETCH", "PROT_READ": "READABLE",
    "PROT_WRITE": "WRITABLE", "PROT_EXEC": "EXECUTABLE", "PROT_USER_EXEC": "USER_EXECUTABLE",
    "GVA_IS_VALID": "GVA_VALID",
}  # fmt: skip
"""EPT_VIOLATION_* of Linux `arch/x86/include/asm/vmx.h` that are called otherwise here."""


_OTHERS_NAMES = {
    "PROT": "PRESENT", "INSTR": "FETCH", "SHSTK": "SS", "RMP": "GUEST_RMP",
    "PROTECTION_VIOLATION": "PRESENT", "CAUSED_BY_WRITE": "WRITE", "USER_MODE": "USER", "MALFORMED_TABLE": "RSVD",
    "INSTRUCTION_FETCH": "FETCH", "PROTECTION_KEY": "PK", "SHADOW_STACK": "SS",
}  # fmt: skip
"""Other names of the bits: X86_PF_* of Linux `arch/x86/include/asm/trap_pf.h`, PageFaultErrorCode of Rust's x86_64."""


def _named(text: str) -> dict[str, int]:
    """Read names of bits, the kernel's letters, and the rest in hexadecimal that it prints beside them.

    Returns the code for each table that has all the names, {} if none has.
    """
    words = _words(bare(text))
    terms = {word: term(word) for word in words}
    numbers = [value for value in terms.values() if value is not None]
    names = [
        re.sub(r"^(PFERR|EPT_VIOLATION|KVM_MEMORY_EXIT_FLAG|X86_PF)_|_MASK$", "", word)
        for word in words
        if terms[word] is None
    ]
    names = [name if name.startswith("bit") else name.upper() if len(name) > 1 else name for name in names]
    if not names or text.strip().isdigit():
        return {}
    codes = {}
    for encoding, others in (
        ("pferr", PFERR_LETTERS | _OTHERS_NAMES),
        ("ept", _KERNEL_NAMES),
        ("memfault", {}),
    ):
        try:
            code = encode("|".join(others.get(name, name) for name in names), ENCODINGS[encoding].table)
        except InputError:
            continue
        for number in numbers:
            code |= number
        codes[encoding] = code
    return codes


def _words(text: str) -> list[str]:
    """Take names apart: joined by |, by commas, or the kernel's letters by anything; "bits 0, 33" names two."""
    if found := re.fullmatch(r"bits? ([0-9]{1,2}(?:(?:, ?| and | )[0-9]{1,2}){0,63})", text):
        return [f"bit{number}" for number in re.findall("[0-9]+", found[1])]
    letters = re.split(r"[ +/&]+", text)
    if len(letters) > 1 and all(letter in PFERR_LETTERS for letter in letters):
        return letters
    return [word.strip() for word in re.split(r"[|,]", text)]


def _from_names(text: str, place: Place) -> list[Reading]:
    codes = _named(text)
    readings = [
        judge(codes[table], encoding, NAMES, place)
        for encoding in ENCODINGS
        if (table := "pferr" if ENCODINGS[encoding].table is PFERR else encoding) in codes
    ]
    if place.sure == Sure.CERTAIN or not readings:
        return readings
    words = _words(bare(text))
    letters = all(word in PFERR_LETTERS for word in words)
    theirs = any(word.startswith("X86_PF_") or word in _OTHERS_NAMES for word in words)
    guest = (letters or theirs) and any(r.encoding == "pf" and r.sure for r in readings)
    first = "pf" if guest else next(iter(codes))
    why = "the kernel's letters" if letters else "these are the names of its bits"
    return [
        r._replace(sure=Sure.VERY_LIKELY, why=why)
        if r.encoding == first
        else r._replace(sure=min(r.sure, Sure.LIKELY))
        for r in readings
    ]


def _from_number(text: str, place: Place, base: int) -> list[Reading]:
    readings = []
    ways = spellings(text, base)
    without = text[:2].lower() != "0x"
    for code, spelled in ways:
        if not place.width and without and spelled == HEX and not code >> 32:
            stood = place._replace(width=32)
        else:
            stood = place
        for encoding in ENCODINGS:
            reading = judge(code, encoding, spelled, stood)
            if len(ways) > 1 and reading.sure > Sure.NO:
                reading = reading._replace(why=f"{reading.why}; {SPELLED[spelled]}")
            readings.append(reading)
    if place.sure == Sure.CERTAIN and place.stood != ASKED:
        return _without_doubt(readings)
    return readings


def _without_doubt(readings: list[Reading]) -> list[Reading]:
    """Of readings that their place makes certain, keep those that fit the encoding, if any does."""
    fitting = {r.code for r in readings if r.sure and _JUDGES[r.encoding](r.code, r.place)[0] > Sure.HARDLY}
    return [r for r in readings if not fitting or r.code in fitting]


def _readings(text: str, place: Place, base: int = 0) -> list[Reading]:
    readings = _from_number(text, place, base)
    if not base:
        named = _from_names(text, place)
        if named and place.sure == Sure.CERTAIN and place.stood != ASKED:
            return named
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
    text = alike(text)
    short, base = text.strip(), base or said_base(text)
    place = ANYWHERE
    if encoding:
        width = 64 if short[:2].lower() == "0x" else 0
        place = Place((encoding,), Sure.CERTAIN, "asked for", width, stood=ASKED)
    if re.fullmatch(r"-[0-9]{1,3}", short) and (said := error_alone(short)):
        raise InputError(f"{short}: no code, but an error; {said}")
    found = _readings(short, place, base)
    if found:
        return Answer(_fitting(found, encoding, short), exit="" if encoding else exit_alone(short) or "")
    if (keys := re.findall(r"@\w{0,60}\[([^\]]{1,200})\]", text)) and all(map(is_page, keys)):
        raise InputError(
            f"{' '.join(short.split())[:80]!r}: no code; a count by is_private and gfn (kvm-pf trace)"
        )
    if numbers := several(text):
        return _line([Answer(_fitting(_readings(each, place, base), encoding, each)) for each in numbers])
    if re.search(r"[\s:=(\[]", short):
        answers = [
            Answer(_fitting(readings, encoding, token))
            for token, stood in places(text)
            if (
                readings := _readings(
                    token, place._replace(group=stood.group) if encoding else stood, base or stood.base
                )
            )
        ]
        if answers:
            return _line(answers)
        raise InputError(f"{' '.join(short.split())[:80]!r}: no code in this line; {refusal(text)}")
    if said := error_alone(short):
        raise InputError(f"{short[:80]!r}: no code, but an error; {said}")
    if short.startswith("KVM_EXIT_") and (said := known(short)):
        raise InputError(f"{short[:80]!r}: no code, but an exit; {said}")
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


def _one_of_each_group(answers: Sequence[Answer]) -> list[Answer]:
    """Of the numbers of which one only is the code, keep the likeliest; the first of equally likely ones."""
    kept: list[Answer] = []
    for answer in answers:
        group = answer.best.place.group
        rival = next((n for n, a in enumerate(kept) if group and a.best.place.group == group), None)
        if rival is None:
            kept.append(answer)
        elif answer.best.sure > kept[rival].best.sure:
            kept[rival] = answer
    return kept


def is_page(key: str) -> bool:
    """Say whether a bpftrace map's key is a flag and a gfn, private or not and which page: 0 or 1, and no code.

    >>> is_page("1, 524193"), is_page("0, 386")
    (True, False)
    """
    numbers = map_keys(key)
    if len(numbers) != 2 or numbers[1] not in ("0x0", "0x1") or int(numbers[0], 16) < 0x100:
        return False
    return all(judge(int(numbers[0], 16), name, HEX, ANYWHERE)[3] < Sure.LIKELY for name in TRACED)


def map_code(key: str) -> Reading | None:
    """Read the code in the key of a bpftrace map; None if it has no number that can be one.

    >>> hex(map_code("386, 0xfee000b0").code), map_code("CPU 0/KVM")
    ('0x182', None)
    """
    numbers = map_keys(key)
    if is_page(key):
        return None
    readings = [read(f"@[{number}]").best for number in numbers]
    best = max(readings, key=lambda reading: reading.sure, default=None)
    return best if best is not None and best.sure >= Sure.POSSIBLE else None


def _line(answers: Sequence[Answer]) -> Answer:
    """Put the codes of a line together: the fault first, each code once."""
    answers = _one_of_each_group(answers)
    whole = {a.best.code & (1 << 32) - 1 for a in answers if a.best.encoding == "npf" and a.best.code >> 32}
    longer = {a.best.code & 0xFFFF for a in answers if a.best.encoding == "pf" and a.best.code >> 16}
    distinct: dict[tuple[int, str], Answer] = {}
    for answer in answers:
        if answer.best.encoding == "npf" and answer.best.code in whole:
            continue  # the same code, cut to 32 bits, beside the whole one
        if answer.best.encoding == "pf" and answer.best.code in longer:
            continue  # likewise, cut to 16 bits in an oops
        distinct.setdefault((answer.best.code, answer.best.encoding), answer)
    ordered = sorted(distinct.values(), key=lambda a: a.best.encoding not in _FAULT_CODES)
    return Answer(ordered[0].readings, tuple(ordered[1:]))
