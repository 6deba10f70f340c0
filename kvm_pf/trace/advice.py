# SPDX-License-Identifier: GPL-2.0-only
"""What went wrong beside the faults of a trace, and what to look at and record next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise

from kvm_pf.common.typed import typed
from kvm_pf.run.refusals import MESSAGES, WARNING_LOOKS, warning
from kvm_pf.trace.digest import LONG, Digest
from kvm_pf.trace.events import EVENTS, MAPPINGS, SNP, missing, options, trace_cmd
from kvm_pf.trace.faults import Joiner
from kvm_pf.trace.reading import Survey
from kvm_pf.trace.release import ReadAs
from kvm_pf.trace.storms import alone
from kvm_pf.trace.stuck import BEFORE_6_3, GUEST_MEMFD, hexadecimal, look_next, unemulated

HYPERCALL = "KVM_EXIT_HYPERCALL"

_SEE = "see linux/kvm.h"

_EXITS = {
    17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT (shutdown, reset, or an SEV guest that ends itself)",
    39: "MEMORY_FAULT, which it does not know: it cannot convert memory as private memory takes",
}  # fmt: skip
"""What KVM_RUN came back for.  Source: Linux `include/uapi/linux/kvm.h` (v6.12)."""

_ERRORS = {
    1: "it had to emulate an instruction and could not",
    2: "two exceptions came at once",
    3: "it cannot handle such an exit while it delivers an event: a table or stack that this takes is no memory",
    4: "it does not know the exit",
}
"""Why KVM gives up.  Source: Linux `include/uapi/linux/kvm.h`, KVM_INTERNAL_ERROR_* (v6.12)."""


def ended(joiner: Joiner, read_as: ReadAs | None = None) -> list[str]:
    """Say why KVM gave up and what user space did not know: a sentence each, of the kernel that the trace names."""
    row = read_as.revision.row if read_as is not None and read_as.known else None
    release = row.kernel if row is not None else None
    errors = [
        f"line {line}: KVM gives up (internal error {n}): {_ERRORS.get(n, _SEE)}"
        for line, n in joiner.errors[:3]
    ]
    exits = [
        f"line {line}: user space met KVM_EXIT {n}, {_EXITS.get(n, _SEE)}" for line, n in joiner.ends[:3]
    ]
    warned = [
        f"line {line}: a WARN in {name}(): {warning(name, release)}" for line, name in joiner.warnings[:3]
    ]
    warned += _failures(joiner)
    said = [f"line {line}: {MESSAGES[text][0]}" for line, text in joiner.messages[:3]]
    return errors + exits + warned + said


def _failures(joiner: Joiner) -> list[str]:
    """Say how often KVM_RUN failed, as strace shows it, and whether conversions helped."""
    told = []
    for name, count in Counter(name for _, name, _ in joiner.failures).items():
        lines = [str(line) for line, each, _ in joiner.failures if each == name]
        where = f"{', '.join(lines[:3])}{' …' if len(lines) > 3 else ''}"
        told.append(f"KVM_RUN fails with {name} {count} time{'s' if count > 1 else ''} (line {where})")
    again = _not_helped(joiner)
    if again is not None:
        told.append(f"line {again}: it fails again after a conversion, which did not help: {_NOT_HELPED}")
    return told


def _not_helped(joiner: Joiner) -> int | None:
    """Find the line of a KVM_RUN that failed with EFAULT after another one and a conversion; None without any."""
    efaults = [(line, done) for line, name, done in joiner.failures if name == "EFAULT"]
    return next((line for (_, before), (line, done) in pairwise(efaults) if done > before), None)


_NOT_HELPED = (
    "the memslot there has no guest_memfd, or the access would have to be emulated, or it was another page than the "
    "memory fault names, or to the other kind of memory"
)


_WHICH_RANGE = (
    "KVM_EXIT_HYPERCALL: which range, and to what? vcpu->run->hypercall.args tells it (gpa, pages, bit 4: private), or "
    "QEMU with -trace 'kvm_convert_memory'"
)


@typed()
def next_steps(traced: Survey) -> list[str]:
    """Say what to look at and what to record to know more; the last line, to be copied, has what the trace lacks."""
    digest, joiner, seen = traced.digest, traced.joiner, traced.joiner.events
    converts = not digest.rows and joiner.user_exits[HYPERCALL] > 0
    steps = [*_beside_faults(traced, converts), *_of_faults(traced)]
    looks, more = _of_storms(digest, seen)
    steps += looks
    more += SNP if converts and joiner.exits["vmgexit"] else ()
    for row in digest.worth["not emulated"]:
        told = f"{hexadecimal(row.address)}: {unemulated(row.raw_code)}"
        steps += [told] if not any(told in step for step in steps) else []
    larger = ""
    if traced.reader.lost:
        steps.append("events were lost: record fewer, or with a larger buffer (-b 65536)")
        larger = " -b 65536"
    return [*steps, *_record(more, seen, larger)]


def _beside_faults(traced: Survey, converts: bool) -> Iterator[str]:
    """Say what to look at because of other lines; `converts`: of a trace without faults, in which exits ask for it."""
    joiner = traced.joiner
    yield from (WARNING_LOOKS[name] for name in dict.fromkeys(name for _, name in joiner.warnings))
    yield from (MESSAGES[text][1] for text in dict.fromkeys(text for _, text in joiner.messages))
    if joiner.failures:
        yield (
            "which page and kind it was: vcpu->run->memory_fault (flags, gpa, size), which strace does not show: "
            "record the events below, or let the VMM print it (QEMU: -trace 'kvm_memory_fault')"
        )
    if _not_helped(joiner) is not None:
        yield GUEST_MEMFD
    if not (traced.digest.rows or converts or joiner.warnings or joiner.messages or joiner.failures):
        yield "no fault is here: record the events below while the guest misbehaves"
    if converts and not joiner.declared.spans:
        yield _WHICH_RANGE


def _of_faults(traced: Survey) -> Iterator[str]:
    """Say what to look at because of faults, each by itself, and of what the trace does not show of them."""
    digest, joiner = traced.digest, traced.joiner
    kernel = digest.rows - sum(digest.sources[name] for name in ("memory_fault", "guest_pf", "hvf"))
    if kernel and not joiner.exits:
        yield "record exits and entries: they tell the vendor, the whole code, and how long a fault took"
    if digest.cut:
        yield "this kernel prints 32 bits of a code: info1 of kvm_exit has all of them"
    endings = missing(_ENDINGS, joiner.events)
    if kernel and (digest.bare["not shown"] + digest.bare["resumed"]) / kernel > 0.5 and endings:
        what = "what became of resumed faults" if digest.bare["resumed"] else "how faults end"
        yield f"{what} is not shown: record {', '.join(endings)}"
    if digest.worth["memory fault"].count and not joiner.declared.spans:
        yield "conversions: record kvm_hypercall, and with QEMU -trace 'kvm_convert_memory'"
    if digest.worth["RSVD"].count:
        yield (
            "a guest's own #PF with a reserved bit is no fault of KVM's: compare the guest's physical-address width "
            "(CPUID 0x80000008) with its page-table entry"
        )
    if digest.worth["bit 49"].count and digest.disagreeing.count:
        yield "kvm_page_fault shows bit 49 where the exit does not: a kernel from 6.11 on; --revision v6_12"
    if digest.worth["long"].count or any(wait >= LONG for _, wait in joiner.unended):
        yield "long faults: record sched:sched_switch for where the thread waits (or cat /proc/PID/task/*/stack)"
    if any(wait >= LONG for _, wait in joiner.silent):
        yield "where that vCPU's thread is (cat /proc/PID/task/*/stack), dmesg (SEAMCALL), and kvmmmu:* while it lasts"
    if digest.worth["pending"].count:
        yield MESSAGES["Guest access before accepting"][1]


def _of_storms(digest: Digest, seen: Collection[str]) -> tuple[list[str], list[str]]:
    """Say what to look at because of storms, and of single faults that failed; and which events would tell more."""
    storms = digest.finder.found[:8]
    in_storms = {(each.address, each.raw_code) for storm in storms for each in storm.turn}
    single = [
        alone(row)
        for row in digest.worth["failed"]
        if row.source != "pending" and (row.address, row.raw_code) not in in_storms
    ]
    row = digest.read_as.revision.row
    is_new = digest.read_as.known and row is not None and (row.kernel or (0,)) > (6, 2)
    return look_next([*storms, *single], seen, [BEFORE_6_3] if is_new else [])


_ENDINGS = ("kvm:kvm_mmio", "kvm:kvm_emulate_insn", MAPPINGS)


def _record(more: list[str], seen: Collection[str], larger: str) -> list[str]:
    """Give the command that records all events; of a trace that has some, only the others; nothing if none is left."""
    lacking = missing((*EVENTS, *more), seen)
    if not lacking:
        return []
    if not set(lacking) < {*EVENTS, *more} or not set(EVENTS) - set(lacking):
        also = options(event for event in more if event not in EVENTS)
        return [f"{trace_cmd()}{f' {also}' if also else ''}{larger}"]
    return [f"not in this trace, recorded or not; record them beside the others: {options(lacking)}"]
