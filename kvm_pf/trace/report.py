# SPDX-License-Identifier: GPL-2.0-only
"""What a trace tells: the parts as tables, and all of them on one page of text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvm_pf.common.errnos import ERRNO_NAMES
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.run.codes import is_page, map_code, read
from kvm_pf.run.places import Sure, map_keys
from kvm_pf.run.refusals import ERRORS, known
from kvm_pf.trace.advice import HYPERCALL, ended, next_steps
from kvm_pf.trace.digest import LONG, Digest, storm_table
from kvm_pf.trace.faults import Joiner, of_faults, table
from kvm_pf.trace.reading import Survey, Traced
from kvm_pf.trace.storms import Finder
from kvm_pf.trace.stuck import hexadecimal

if TYPE_CHECKING:
    import pandas as pd


LOOP = 5
"""From so many times on, faults that come again are told of beside what should have followed."""


@typed()
def summary(traced: Survey) -> pd.DataFrame:
    """Say what the trace is: a table of `item` and `value`, both text."""
    import pandas as pd

    digest, joiner, reader = traced.digest, traced.joiner, traced.reader
    shape = []
    if digest.cut or joiner.narrow:
        shape.append("codes cut to 32 bits: a kernel before 6.1")
    elif joiner.wide or (traced.kind == "Parquet" and digest.has_whole):
        shape.append("codes whole, vCPU shown: a kernel from 6.1 on")
    encodings = digest.encodings.most_common()
    span = "" if joiner.first is None or joiner.last is None else f"{joiner.last - joiner.first:.6f} s"
    rows = {
        "read as": str(digest.read_as),
        "input": f"{traced.name} ({traced.kind})",
        "CPU": {"amd": "AMD", "intel": "Intel", "both": "AMD and Intel"}.get(
            traced.vendor or "", "not shown"
        ),
        "codes": ", ".join(f"{_TITLES.get(name, name)} {n}" for name, n in encodings) or "none",
        "kernel": "; ".join(shape) or "not shown",
        "faults": str(digest.rows),
        "vCPUs": str(len(digest.vcpus) or "not shown"),
        "in nested guests": str(digest.nested),
        "span": span or "no times",
        "events lost": str(reader.lost) if reader.lost else "none reported",
        "not read": str(reader.unread_count),
        "other lines": f"{reader.other} no events, {reader.foreign} other events",
    }
    if reader.entries is not None:
        here = reader.foreign + sum(joiner.events.values())
        rows["cut"] = (
            f"the header promises {reader.entries} events, {here} are here" if here < reader.entries else "no"
        )
    return pd.DataFrame({"item": list(rows), "value": list(rows.values())})


_TITLES = {
    "npf": "#NPF error codes (AMD)", "ept": "EPT exit qualifications (Intel)", "misconfig": "EPT misconfigurations",
    "tdx": "EPT exit qualifications of a TDX guest (Intel)",
    "pf": "#PF error codes", "memfault": "memory-fault flags", "pferr": "error codes inside KVM",
}  # fmt: skip


def meanings(faults: pd.DataFrame) -> pd.DataFrame:
    """Count the faults by code: `encoding`, `raw_code`, `error_code`, `meaning`, `faults`, the most frequent first."""
    with of_faults(faults):
        digest = Digest()
        digest.count_codes(faults)
        return digest.meanings()


@typed(most=32)
def top_addresses(faults: pd.DataFrame, most: int = 10) -> pd.DataFrame:
    """List the pages with the most faults: `gfn`, `faults`, `codes` (how many), `mmio`, `first`, `last` (s)."""
    with of_faults(faults):
        digest = Digest()
        digest.count_pages(faults)
        return digest.pages(most)


@typed(at_least=32)
def storms(faults: pd.DataFrame, at_least: int = 5) -> pd.DataFrame:
    """Find the same faults again and again: cycles of up to 8 with the same rip, address and code on one vCPU.

    `faults` is a table from `read`, `at_least` the fewest faults that count.  Returns a row for each storm, the
    longest first: `vcpu`, `pid`, `faults`, `cycle` (faults in a turn), `first_line`, `last_line`, `start`, `span`
    (s), `rate` (faults a second, NA without times), `rip`, `address`, `raw_code` of the turn's first fault,
    `why` they come again and `stuck_on` in words.
    """
    with of_faults(faults):
        finder = Finder(at_least)
        finder.add(faults)
        return storm_table(finder.found, together=True)


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, values as attributes."""
    yield from frame.itertuples()


@typed()
def conversions(traced: Survey) -> pd.DataFrame:
    """List the conversions of memory in the order of the trace, and what each met until its memory was converted again.

    One row a conversion: `line`, `time`, `gpa`, `size`, `private`, `how`, `turn` (the how-manieth of this very
    range), `faults` in the range until it is converted again, `memory_faults` among them.
    """
    known = traced.joiner.declared
    turns: dict[tuple[int, int], int] = {}
    rows: list[dict[str, Any]] = []
    for span, faults, memory_faults in zip(known.spans, known.faults, known.memory_faults, strict=True):
        turn = turns[span.gpa, span.size] = turns.get((span.gpa, span.size), 0) + 1
        rows.append({**span._asdict(), "turn": turn, "faults": faults, "memory_faults": memory_faults})
    dtypes = {
        "line": "Int64", "time": "Float64", "gpa": "UInt64", "size": "UInt64", "private": "boolean", "how": "string",
        "turn": "Int64", "faults": "Int64", "memory_faults": "Int64",
    }  # fmt: skip
    return table({name: [row[name] for row in rows] for name in dtypes}, dtypes)


@typed()
def declared(traced: Traced) -> pd.Series[Any]:
    """Say for each fault whether its page was private by the last conversion before it; NA if none was seen."""
    return traced.faults["declared"]


@typed()
def disagreements(traced: Survey) -> pd.DataFrame:
    """List the faults after which something else followed than the model says: `line`, `what` in words.

    Compared are the error code that reached kvm_mmu_page_fault(), where a probe recorded it, and how the fault ended,
    with every ending that the path has for it.  The first SHOWN are listed; `attrs["count"]` says how many there are.
    """
    import pandas as pd

    kept = traced.digest.disagreeing
    rows = [(row.line, f"{row.what}, at {hexadecimal(row.address)}") for row in kept]
    found = pd.DataFrame({"line": [n for n, _ in rows], "what": [what for _, what in rows]})
    found.attrs["count"] = kept.count
    return found.sort_values("line", kind="stable", ignore_index=True)


_PLACES = ("local APIC", "I/O APIC", "HPET")
_APIC = {0x80: "TPR", 0xB0: "EOI", 0x300: "ICR", 0x310: "ICR, high half", 0x380: "timer's initial count"}
"""Where PCs have their interrupt controllers, and the APIC's registers that guests use most.

Source: Intel SDM vol. 3, table 12-1 (local APIC register address map); the I/O APIC and HPET by custom.
"""


def notes(traced: Survey) -> list[str]:
    """Say what somebody who debugs should know about what this trace shows: a sentence each."""
    import pandas as pd

    digest, joiner = traced.digest, traced.joiner
    worth = digest.worth
    told: list[tuple[int, str]] = [(row.line, _FIRST_MMIO) for row in worth["first MMIO by EPT"]]
    for what in _PLACES:
        for row in worth[what]:
            register = _APIC.get(row.gpa & 0xFFF)
            named = f" ({register})" if register and what == "local APIC" else ""
            told.append((row.line, f"{hexadecimal(row.gpa)} is the {what}{named}"))
    for line, gfn, level in joiner.collapses[:3]:
        span = f"gfn {gfn:#x} to {gfn + (1 << 9 * (level - 1)) - 1:#x}"
        told.append((line, _COLLAPSE.format(level=level, span=span)))
    for row in worth["not emulated"]:
        insn = "" if pd.isna(row.insn) or not row.insn else f" ({row.insn})"
        rip = hexadecimal(row.rip)
        told.append((row.line, f"KVM cannot emulate the instruction{insn} at rip {rip}: {row.outcome}"))
    told += [(row.line, _TDX) for row in worth["TDX"]]
    told += [
        (row.line, f"this fault took {row.took:.3f} s, at {hexadecimal(row.address)}: {_WAIT}")
        for row in worth["long"]
    ]
    told += [
        (line, f"this fault has not ended when the trace does, {wait:.3f} s later: {_WAIT}")
        for line, wait in joiner.unended[:3]
        if wait >= LONG
    ]
    told += [(row.line, _RMP) for row in worth["RMP"]]
    told += [(row.line, _PENDING) for row in worth["pending"]]
    told += [
        (line, f"this vCPU never comes back from its fault in the trace, {wait:.3f} s: {_SILENT}")
        for line, wait in joiner.silent[:3]
        if wait >= LONG
    ]
    told += [
        (line, f"fast_page_fault shows bit 49 ({code:#x}): KVM took the access for one to private memory")
        for line, code in joiner.private[:1]
    ]
    said = [f"line {line}: {text}" for line, text in told] + ended(joiner, digest.read_as)
    if came := worth["vectoring"].count:
        first = next(iter(worth["vectoring"]))
        said.append(
            f"{_faults(came, 'came', 'came')} while an event was being delivered to the guest (IDT vectoring "
            f"{hexadecimal(first.vectoring)}): it is injected again, and if its delivery faults again, that goes on"
        )
    if own := worth["the guest's own"].count:
        said.append(
            f"{_faults(own, 'is', 'are')} the guest's own: KVM hands it the #PF, its page tables are to blame"
        )
    if worth["memory fault"].count:
        said.append(
            "a memory fault is answered by user space with KVM_SET_MEMORY_ATTRIBUTES on the range, then KVM_RUN again; "
            "one that does not know the exit ends the guest"
        )
    for outcome, count in digest.outcomes.items():
        number = outcome.removeprefix("to user space: error ")
        count -= worth["pending"].count if number == "5" else 0
        if count and number.isdecimal() and int(number) in ERRORS:
            name = ERRNO_NAMES.get(int(number), number)
            said.append(f"{_faults(count, 'ends', 'end')} with {name}: {ERRORS[int(number)]}")
    if refused := worth["EFAULT"].count:
        said.append(
            f"{_faults(refused, 'ends', 'end')} with EFAULT: with private memory that is KVM_EXIT_MEMORY_FAULT, which "
            "ftrace's text hides behind the error (trace.dat shows it); else the host has no page there for such an "
            "access"
        )
    return said


def _faults(n: int, one: str, more: str) -> str:
    return f"{n} fault{'s' if n != 1 else ''} {more if n != 1 else one}"


_READ = 16_000
"""How many characters of a file without a fault are looked at to say what it is."""


def what_else(traced: Survey) -> list[str]:
    """Say what a file is that holds no fault, if its first lines are known: a line each; nothing of a trace."""
    joiner, reader = traced.joiner, traced.reader
    if (
        traced.digest.rows
        or joiner.counts
        or joiner.sptes
        or joiner.declared.spans
        or sum(joiner.events.values())
    ):
        return []
    text = "\n".join([*reader.head, *(unread.text for unread in reader.unread[: reader.HEAD])])[:_READ]
    try:
        answer = read(text)
    except InputError:
        said = known(text)
        return [said] if said else []
    found = [each.best for each in (answer, *answer.more) if each.best.sure >= Sure.POSSIBLE]
    return [f"kvm-pf decode reads {one.code:#x}, {one.title}: {one.meaning.sentence}" for one in found]


_FIRST_MMIO = (
    "an access to emulated MMIO. Only the first one at a page is an EPT violation: KVM marks the page with an MMIO "
    "entry, and later ones are EPT misconfigurations, which kvm_page_fault does not show"
)
_COLLAPSE = (
    "a large page (level {level}) took the place of a table: what was mapped in {span} by smaller entries, private "
    "pages too, is mapped no more"
)
_TDX = (
    "rip 0 and no linear address: a TDX guest (kernels from 6.16 on), whose registers are hidden. Every access to "
    "private memory is traced as a write; a bit of the address (47, or 51) tells shared memory"
)
_WAIT = "the host waits for the page (swap, userfaultfd, a file, a lock), or the thread does not run"
_RMP = (
    "Linux's own #PF, refused by the RMP: it touched a page that belongs to an SNP guest, or whose size in the RMP is "
    "another"
)
_PENDING = (
    "the page is pending: the TDX guest touches private memory that it has not accepted (extended qualification 6). "
    "KVM prints no kvm_page_fault for it, but in dmesg Guest access before accepting, and ends the VM with EIO"
)
_SILENT = (
    "KVM tries a TDX guest's private faults again inside tdx_handle_ept_violation(), without another kvm_page_fault, "
    "as long as the TDX module's tables are in use or the host takes pages away"
)
"""Of TDX guests.  Source: Linux `arch/x86/kvm/vmx/tdx.c`, tdx_handle_ept_violation() (v6.16)."""

_CONVERTS = (
    "a request to convert memory (KVM_HC_MAP_GPA_RANGE), of SNP by page-state change, of TDX by MapGPA; again and "
    "again: a guest that converts much, or one range in a loop"
)
"""What exits to user space say that are no fault's.

Source: Linux `Documentation/virt/kvm/api.rst`, KVM_EXIT_HYPERCALL, KVM_CAP_EXIT_HYPERCALL (v6.12);
`arch/x86/kvm/svm/sev.c`, snp_begin_psc() (v6.11); `arch/x86/kvm/vmx/tdx.c`, tdx_map_gpa() (v6.16).
"""


def _ranges(mask: int) -> str:
    bits = [n for n in range(64) if mask >> n & 1]
    parts: list[list[int]] = []
    for bit in bits:
        if parts and parts[-1][-1] == bit - 1:
            parts[-1].append(bit)
        else:
            parts.append([bit])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def section(title: str, lines: list[str], total: int | None = None) -> list[str]:
    """Give a part of a page: a title, lines, and how many more there are; nothing if there are none."""
    more = [f"  … and {total - len(lines)} more"] if total is not None and total > len(lines) else []
    return ["", title, *(f"  {line}" for line in lines), *more] if lines else []


_SPLIT = {
    "private: yes": "private, says the code", "private: no": "shared, or not told by the code",
    "encrypted": "encrypted, not private: a guest of SEV or SEV-ES (an SNP guest's would show bit 49)",
    "undecided": "encrypted: private if it is an SNP guest, which the trace does not tell",
    "declared: yes": "in memory last made private", "declared: no": "in memory last made shared", "MMIO": "MMIO",
}  # fmt: skip


def counts(digest: Digest, most: int) -> list[str]:
    """Give the parts of a page that count faults by meaning, by outcome, and by kind of memory."""
    by = digest.meanings()
    out = section(
        "Faults by meaning",
        [f"{row.faults:>7}  {hexadecimal(row.raw_code):>13}  {row.meaning}" for row in _rows(by.head(most))], len(by),
    )  # fmt: skip
    ends = digest.outcomes.most_common(most)
    out += section("How they ended", [f"{n:>7}  {name}" for name, n in ends], len(digest.outcomes))
    out += section(
        "Private, shared, MMIO", [f"{n:>7}  {_SPLIT[name]}" for name in _SPLIT if (n := digest.split[name])]
    )
    return out


@typed()
def page(traced: Survey, most: int = 8) -> str:
    """Tell everything on one page of plain text; nothing that the file holds reaches it with control characters."""
    import pandas as pd

    digest = traced.digest
    out = [f"{row.item + ':':<18}{row.value}" for row in _rows(summary(traced))]
    else_ = what_else(traced)
    out += section("What this is", else_[:most], len(else_))
    out += counts(digest, most)
    pages = digest.pages(most)
    or_more = f" (up to {digest.dropped_pages} more)" if digest.dropped_pages else ""
    out += section(
        "Pages with the most faults",
        [
            f"{row.faults:>7}{or_more}  gfn {hexadecimal(row.gfn)}{', MMIO' if row.mmio else ''}, "
            f"different codes: {row.codes}"
            for row in _rows(pages)
        ],
    )
    found = digest.storms()
    lines = []
    for row in _rows(found.head(most)):
        who = (
            f"vCPU {row.vcpu}"
            if pd.notna(row.vcpu)
            else f"pid {row.pid}"
            if pd.notna(row.pid)
            else "one vCPU"
        )
        rate = f", {row.rate:,.0f} a second over {row.span:.6f} s" if pd.notna(row.rate) else ""
        turn = f", in a cycle of {row.cycle}" if row.cycle > 1 else ""
        lines.append(
            f"{row.faults:>7}  {who}, rip {hexadecimal(row.rip)}{turn}{rate} "
            f"(lines {row.first_line} to {row.last_line})"
        )
        lines += [f"         {row.why}", f"         stuck on {row.stuck_on}"]
    out += section("Storms: the same again and again", lines)
    for part in aside(traced.joiner, most):
        out += section(*part)
    wrong = disagreements(traced)
    alike: dict[str, list[int]] = {}
    for row in _rows(wrong):
        alike.setdefault(row.what, []).append(row.line)
    out += section(
        "Where the trace and the model disagree",
        [
            f"line {lines[0]}{f' and {len(lines) - 1} more' if len(lines) > 1 else ''}: {what}"
            for what, lines in itertools.islice(alike.items(), most)
        ],
        len(alike) + wrong.attrs["count"] - len(wrong),
    )
    out += followed(digest, most)
    unread = traced.reader.unread
    out += section(
        "Not read", [f"line {u.line}: {u.why}: {u.text[:80]}" for u in unread[:3]], traced.reader.unread_count
    )
    out += section("To know", notes(traced))
    out += section("Next", next_steps(traced))
    return "\n".join(visible(line) for line in out)


def aside(joiner: Joiner, most: int = 8) -> Iterator[tuple[str, list[str], int]]:
    """Yield what events tell that are no faults, by kind: a title, up to `most` lines, and how many there are."""
    known = joiner.declared
    spans = list(zip(known.spans, known.faults, known.memory_faults, strict=True))
    lines = [
        f"line {span.line}: {span.gpa:#x} + {span.size:#x} to "
        f"{'private' if span.private else 'shared'} by {span.how}; then {faults} faults, "
        f"{memory_faults} of them memory faults"
        for span, faults, memory_faults in spans[:most]
    ]
    yield "Conversions", lines, len(spans) + known.more
    lines = []
    for spte in joiner.sptes[:most]:
        hit = spte["reserved"]
        said = (
            "not said (kernels before 5.12 do not)"
            if hit is None
            else f"bits {_ranges(hit)}"
            if hit
            else "none"
        )
        lines.append(f"level {spte['level']}: SPTE {spte['spte']:#x}, reserved bits that are set: {said}")
    yield "Entries that KVM finds reserved bits in", lines, joiner.sptes_count
    lines = [_count(count) for count in joiner.counts[:most]]
    yield "Counts (bpftrace, ftrace's triggers)", lines, joiner.counts_count
    if not joiner.faults:
        exits = [
            *(f"{n:>7}  {name}" for name, n in joiner.exits.most_common()),
            *(
                f"{n:>7}  to user space: {name}{f': {_CONVERTS}' if name == HYPERCALL else ''}"
                for name, n in joiner.user_exits.most_common()
            ),
        ]
        yield "Exits, none of them a fault's", exits[:most], len(exits)


def followed(digest: Digest, most: int) -> list[str]:
    """Give the part of a page that says how many faults agree, and what should have followed those that do not."""
    import pandas as pd

    table = digest.follows()
    counts = {
        "agree": int(table.loc[table["agrees"].fillna(False), "faults"].sum()),
        "disagree": int(table.loc[~table["agrees"].fillna(True), "faults"].sum()),
        "do not show it": int(table.loc[table["agrees"].isna(), "faults"].sum()),
    }
    lines = [f"{n:>7}  {name}" for name, n in counts.items() if n]
    inputs = dict.fromkeys(
        name for said in table["not_in_trace"].dropna() for name in said.split(", ") if name
    )
    telling = table[~table["agrees"].fillna(True) | (table["again"] >= LOOP)]
    for row in _rows(telling.head(most)):
        again = f", {row.again} of them the very same fault again" if row.again else ""
        verdict = "" if pd.isna(row.agrees) else ", agrees" if row.agrees else ", DISAGREES"
        lines.append(f"{row.faults:>7}  {row.meaning} (first in line {row.first_line}){again}")
        lines.append(f"         seen: {row.seen}{verdict}")
        if pd.isna(row.expected):
            continue
        ends = row.expected.split("; ")
        if not pd.isna(row.agrees) and row.agrees:
            ends = [", or ".join(re.sub(r" \([^()]*\)$", "", end) for end in ends)]
        lines += [f"         {'allowed:' if not n else '        '} {end}" for n, end in enumerate(ends)]
    if inputs:
        lines.append(f"         not in the trace, so an input: {', '.join(inputs)}")
    names = " and ".join(digest.revisions or [digest.read_as.revision.name])
    return section(f"What should have followed, by the path of {names}", lines)


def _count(count: dict[str, Any]) -> str:
    """Show a row of a bpftrace map; a key that is a number is a code in decimal, as bpftrace prints it."""
    if is_page(count["key"]):
        private, gfn = (int(number, 16) for number in reversed(map_keys(count["key"])))
        said = f"  if is_private and a gfn: {'private' if private else 'not private'}, gfn {gfn:#x}"
        return f"{count['count']:>7}  @{count['map']}[{count['key']}]{said}"
    read = map_code(count["key"])
    said = "" if read is None else f"  if a code, {read.code:#x}: {read.meaning.sentence} ({read.encoding})"
    return f"{count['count']:>7}  @{count['map']}[{count['key']}]{said}"
