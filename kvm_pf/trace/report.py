# SPDX-License-Identifier: GPL-2.0-only
"""What a trace tells: the parts as tables, and all of them on one page of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvm_pf.common.text import visible
from kvm_pf.trace.faults import sense, table
from kvm_pf.trace.reading import Traced

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LONGEST_CYCLE = 8
"""The most faults that one turn of a storm may have."""


def summary(traced: Traced) -> pd.DataFrame:
    """Say what the trace is: a table of `item` and `value`, both text."""
    import pandas as pd

    f, joiner, reader = traced.faults, traced.joiner, traced.reader
    shape = []
    if f["cut"].any():
        shape.append("codes cut to 32 bits: a kernel before 6.1")
    elif (f["source"].isin(["", "npf", "ept"]) & f["raw_code"].notna() & f["vcpu"].notna()).any():
        shape.append("codes whole, vCPU shown: a kernel from 6.1 on")
    encodings = f["encoding"].dropna().value_counts()
    span = "" if joiner.first is None or joiner.last is None else f"{joiner.last - joiner.first:.6f} s"
    rows = {
        "input": f"{traced.name} ({traced.kind})",
        "CPU": {"amd": "AMD", "intel": "Intel", "both": "AMD and Intel"}.get(
            traced.vendor or "", "not shown"
        ),
        "codes": ", ".join(f"{_TITLES.get(str(name), name)} {n}" for name, n in encodings.items()) or "none",
        "kernel": "; ".join(shape) or "not shown",
        "faults": str(len(f)),
        "vCPUs": str(f["vcpu"].nunique()) if f["vcpu"].notna().any() else "not shown",
        "in nested guests": str(int(f["nested"].sum())),
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
    "pf": "#PF error codes", "memfault": "memory-fault flags",
}  # fmt: skip


def meanings(faults: pd.DataFrame) -> pd.DataFrame:
    """Count the faults by code: `encoding`, `raw_code`, `error_code`, `faults`, `meaning`, the most frequent first."""
    by = ["encoding", "raw_code", "error_code", "meaning"]
    counted = faults.groupby(by, dropna=False, sort=False).size().rename("faults").reset_index()
    return counted.sort_values("faults", ascending=False, kind="stable").reset_index(drop=True)


def top_addresses(faults: pd.DataFrame, most: int = 10) -> pd.DataFrame:
    """List the pages with the most faults: `gfn`, `faults`, `codes` (how many different), `first` and `last` (s)."""
    known = faults[faults["gfn"].notna()]
    pages = known.groupby("gfn").agg(
        faults=("line", "size"), codes=("raw_code", "nunique"), mmio=("mmio", "any"),
        first=("time", "min"), last=("time", "max"),
    )  # fmt: skip
    return pages.sort_values("faults", ascending=False, kind="stable").head(most).reset_index()


def _repeats(signature: np.ndarray[Any, Any], at_least: int) -> list[tuple[int, int, int]]:
    """Find where a sequence repeats itself: (start, end, period), the shortest period first, no overlaps."""
    import numpy as np

    found: list[tuple[int, int, int]] = []
    taken = np.zeros(len(signature), dtype=bool)
    for period in range(1, min(LONGEST_CYCLE, len(signature) // 3) + 1):
        same = np.concatenate(([False], signature[period:] == signature[:-period], [False]))
        edges = np.flatnonzero(np.diff(same.astype(np.int8)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            end = int(stop) + period
            enough = end - start >= max(at_least, 3 * period)
            if enough and not taken[start:end].any():
                taken[start:end] = True
                found.append((int(start), end, period))
    return sorted(found)


def storms(faults: pd.DataFrame, at_least: int = 5) -> pd.DataFrame:
    """Find the same faults again and again: cycles of up to 8 with the same rip, address and code on one vCPU.

    `faults` is a table from `read`, `at_least` the fewest faults that count.  Returns a row for each storm, the
    longest first: `vcpu`, `pid`, `faults`, `cycle` (faults in a turn), `first_line`, `last_line`, `start`, `span`
    (s), `rate` (faults a second, NA without times), `rip`, `address`, `raw_code` of the turn's first fault,
    `stuck_on` in words.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    who = faults["vcpu"].astype("string").fillna("?") + "/" + faults["pid"].astype("string").fillna("?")
    keys = faults[["rip", "address", "raw_code", "source"]]
    signature = keys.groupby(list(keys), dropna=False, sort=False).ngroup().to_numpy()
    for _, places in faults.groupby(who, sort=False).indices.items():
        for start, end, period in _repeats(signature[places], at_least):
            part = faults.iloc[places[start:end]]
            turn = part.iloc[:period]
            begun, ended = part["time"].iloc[0], part["time"].iloc[-1]
            span = ended - begun if pd.notna(begun) and pd.notna(ended) else None
            rows.append({
                "vcpu": turn["vcpu"].iloc[0], "pid": turn["pid"].iloc[0], "faults": len(part), "cycle": period,
                "first_line": part["line"].iloc[0], "last_line": part["line"].iloc[-1], "start": begun, "span": span,
                "rate": (len(part) - 1) / span if span else None, "rip": turn["rip"].iloc[0],
                "address": turn["address"].iloc[0], "raw_code": turn["raw_code"].iloc[0],
                "stuck_on": _stuck_on(turn, part),
            })  # fmt: skip
    dtypes = {
        "vcpu": "Int64", "pid": "Int64", "faults": "Int64", "cycle": "Int64", "first_line": "Int64",
        "last_line": "Int64", "start": "Float64", "span": "Float64", "rate": "Float64", "rip": "UInt64",
        "address": "UInt64", "raw_code": "UInt64", "stuck_on": "string",
    }  # fmt: skip
    found = table({name: [row[name] for row in rows] for name in dtypes}, dtypes)
    return found.sort_values("faults", ascending=False, kind="stable").reset_index(drop=True)


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, values as attributes."""
    yield from frame.itertuples()


def _hex(value: Any) -> str:
    import pandas as pd

    return "?" if pd.isna(value) else f"{int(value):#x}"


def _stuck_on(turn: pd.DataFrame, part: pd.DataFrame) -> str:
    """Say in words what a storm's faults are about, and why they come again as far as the outcomes tell."""
    deeds = [f"{row.meaning}, at {_hex(row.address)}" for row in _rows(turn)]
    what = "; then ".join(dict.fromkeys(deeds))
    ends = part["outcome"].value_counts()
    end = ends.index[0]
    why = {
        "resumed": "each time the guest is resumed with nothing mapped that this trace shows",
        "mapped": "each time it is mapped, and the mapping is gone or does not suffice when the guest comes back",
        "emulated": "each time the instruction is emulated, and the guest executes it again",
        "not shown": "how each ends was not recorded",
    }.get(end, f"each ends so: {end}")
    if end == "mapped" and part["zapped"].any():
        why = "each time it is mapped, and entries are taken away again meanwhile"
    if end.startswith("emulation failed"):
        why = f"KVM cannot emulate the instruction ({end})"
    if "KVM_EXIT_MEMORY_FAULT" in end:
        why = "user space is told of a wrong private or shared access each time and does not convert the page"
    more = f" ({ends.iloc[0]} of {len(part)})" if ends.iloc[0] < len(part) else ""
    return f"{what}; {why}{more}"


def conversions(traced: Traced) -> pd.DataFrame:
    """List the conversions of memory in the order of the trace, and what each range met until its next one.

    One row a conversion: `line`, `time`, `gpa`, `size`, `private`, `how`, `turn` (the how-manieth of this very
    range), `faults` in the range until the range is converted again, `memory_faults` among them.
    """
    rows: list[dict[str, Any]] = []
    spans = traced.joiner.conversions
    turns: dict[tuple[int, int], int] = {}
    after: dict[tuple[int, int], int] = {}
    last = (1 << 62) - 1
    f = traced.faults[traced.faults["gpa"].notna()]
    gpa, line = f["gpa"].to_numpy(dtype="uint64"), f["line"].to_numpy(dtype="int64")
    left = (f["outcome"] == "to user space: KVM_EXIT_MEMORY_FAULT").to_numpy()
    ends = []
    for span in reversed(spans):
        ends.append(after.get((span.gpa, span.size), last))
        after[span.gpa, span.size] = span.line
    for span, end in zip(spans, reversed(ends), strict=True):
        turn = turns[span.gpa, span.size] = turns.get((span.gpa, span.size), 0) + 1
        met = (gpa >= span.gpa) & (gpa - span.gpa < span.size) & (line > span.line) & (line < end)
        rows.append(
            {
                **span._asdict(),
                "turn": turn,
                "faults": int(met.sum()),
                "memory_faults": int((met & left).sum()),
            }
        )
    dtypes = {
        "line": "Int64", "time": "Float64", "gpa": "UInt64", "size": "UInt64", "private": "boolean", "how": "string",
        "turn": "Int64", "faults": "Int64", "memory_faults": "Int64",
    }  # fmt: skip
    return table({name: [row[name] for row in rows] for name in dtypes}, dtypes)


def declared(traced: Traced) -> pd.Series[Any]:
    """Say for each fault whether its page was private by the last conversion before it; NA if none was seen."""
    import pandas as pd

    f = traced.faults
    state = pd.Series(pd.NA, index=f.index, dtype="boolean")
    gpa = f["gpa"]
    for span in traced.joiner.conversions:
        inside = (gpa >= span.gpa) & (gpa - span.gpa < span.size) & (f["line"] > span.line)
        state[inside.fillna(False)] = span.private
    return state


def disagreements(traced: Traced) -> pd.DataFrame:
    """List the faults after which something else followed than the model says: `line`, `what` in words.

    Compared are the error code that reached kvm_mmu_page_fault(), where a probe recorded it; that a reserved-bit
    fault is emulated as MMIO and maps nothing; and that a memory fault is about a page declared otherwise.
    """
    import pandas as pd

    f = traced.faults
    state = declared(traced)
    found: list[tuple[int, str]] = []
    differ = (
        f["handler_code"].notna() & f["error_code"].notna() & (f["handler_code"] != f["error_code"])
    ).fillna(False)
    for row in _rows(f[differ]):
        found.append(
            (
                row.line,
                f"the MMU got {_hex(row.handler_code)}; of {_hex(row.raw_code)} follows {_hex(row.error_code)}",
            )
        )
    flags = f["flags"].fillna("").str.split("|").map(lambda names: "RSVD" in names).astype(bool)
    for row in _rows(f[flags & (f["encoding"] == "npf") & (f["outcome"] == "resumed")]):
        found.append(
            (row.line, f"a reserved-bit fault at {_hex(row.address)} should be emulated; nothing was")
        )
    for row in _rows(f[((f["encoding"] == "memfault") & (f["private"] == state)).fillna(False)]):
        kind = "private" if row.private else "shared"
        found.append(
            (row.line, f"a memory fault says {kind} at {_hex(row.address)}, which was {kind} already")
        )
    found.sort()
    return pd.DataFrame({"line": [n for n, _ in found], "what": [what for _, what in found]})


_PLACES = ((0xFEE00, "the local APIC"), (0xFEC00, "the I/O APIC"), (0xFED00, "the HPET"))
_APIC = {0x80: "TPR", 0xB0: "EOI", 0x300: "ICR", 0x310: "ICR, high half", 0x380: "timer's initial count"}
"""Where PCs have their interrupt controllers, and the APIC's registers that guests use most.

Source: Intel SDM vol. 3, table 12-1 (local APIC register address map); the I/O APIC and HPET by custom.
"""


def notes(traced: Traced) -> list[str]:
    """Say what somebody who debugs should know about what this trace shows: a sentence each."""
    import pandas as pd

    f, joiner = traced.faults, traced.joiner
    said = []
    first = f[f["mmio"] & (f["encoding"] == "ept")]
    if len(first):
        said.append(
            f"line {first['line'].iloc[0]}: an access to emulated MMIO. Only the first one at a page is an EPT "
            "violation: KVM marks the page with an MMIO entry, and later ones are EPT misconfigurations, which "
            "kvm_page_fault does not show"
        )
    for gfn, what in _PLACES:
        for row in _rows(f[(f["gfn"] == gfn).fillna(False)].head(1)):
            register = _APIC.get(row.gpa & 0xFFF)
            said.append(f"line {row.line}: {_hex(row.gpa)} is {what}{f' ({register})' if register else ''}")
    caught = f[(f["vectoring"].fillna(0) & 1 << 31) != 0]
    if len(caught):
        said.append(
            f"{len(caught)} faults came while an event was being delivered to the guest (IDT vectoring "
            f"{_hex(caught['vectoring'].iloc[0])}): it is injected again, and if "
            "its delivery faults again, that goes on"
        )
    for line, gfn, level in joiner.collapses[:3]:
        pages = 1 << 9 * (level - 1)
        said.append(
            f"line {line}: a large page (level {level}) took the place of a table: what was mapped in gfn {gfn:#x} to "
            f"{gfn + pages - 1:#x} by smaller entries, private pages too, is mapped no more"
        )
    for row in _rows(f[f["outcome"].str.startswith("emulation failed")].head(3)):
        insn = "" if pd.isna(row.insn) else f" ({row.insn})"
        said.append(
            f"line {row.line}: KVM cannot emulate the instruction{insn} at rip {_hex(row.rip)}: {row.outcome}"
        )
    own = f[f["outcome"] == "#PF injected"]
    if len(own):
        said.append(
            f"{len(own)} faults are the guest's own: KVM hands it the #PF, its page tables are to blame"
        )
    if (f["encoding"] == "memfault").any():
        said.append(
            "a memory fault is answered by user space with KVM_SET_MEMORY_ATTRIBUTES on the range, then KVM_RUN again; "
            "one that does not know the exit ends the guest"
        )
    refused = f[f["outcome"] == "to user space: error 14"]
    if len(refused):
        said.append(
            f"{len(refused)} faults end with EFAULT: with private memory that is KVM_EXIT_MEMORY_FAULT, which ftrace's "
            "text hides behind the error (trace.dat shows it); else the host has no page there for such an access"
        )
    for line, reason in joiner.ends[:3]:
        name = {17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT (shutdown, reset, or an SEV guest that ends itself)"}
        said.append(f"line {line}: user space met KVM_EXIT {reason}, {name.get(reason, 'see linux/kvm.h')}")
    return said


_RECORD = "trace-cmd record -e kvm:kvm_page_fault -e kvm:kvm_exit -e kvm:kvm_entry -e kvm:kvm_userspace_exit"


def next_steps(traced: Traced) -> list[str]:
    """Say what to record to know more, the last being a line to copy."""
    f, joiner = traced.faults, traced.joiner
    steps, events = [], ""
    if not len(f):
        steps.append("no fault is here: record the events below while the guest misbehaves")
    kernel = f[~f["source"].isin(["memory_fault", "guest_pf", "hvf"])]
    if len(kernel) and not joiner.exits:
        steps.append(
            "record exits and entries: they tell the vendor, the whole code, and how long a fault took"
        )
    if f["cut"].any():
        steps.append("this kernel prints 32 bits of a code: info1 of kvm_exit has all of them")
    if len(kernel) and (kernel["outcome"].isin(["not shown", "resumed"])).mean() > 0.5:
        steps.append("how faults end is not shown: record kvm_mmio, kvm_emulate_insn and the kvmmmu events")
        events += " -e kvm:kvm_mmio -e kvm:kvm_emulate_insn -e kvm:kvm_inj_exception -e kvmmmu"
    if (f["encoding"] == "memfault").any() or joiner.conversions:
        steps.append("conversions: record kvm_hypercall, and with QEMU -trace 'kvm_convert_memory'")
        events += " -e kvm:kvm_hypercall"
    if (f["source"] == "guest_pf").any():
        steps.append(
            "a guest's own #PF with a reserved bit is no fault of KVM's: compare the guest's physical-address width "
            "(CPUID 0x80000008) with its page-table entry"
        )
    if traced.reader.lost:
        steps.append("events were lost: record fewer, or with a larger buffer (-b)")
        events += " -b 65536"
    return [*steps, _RECORD + events]


def _ranges(mask: int) -> str:
    bits = [n for n in range(64) if mask >> n & 1]
    parts: list[list[int]] = []
    for bit in bits:
        if parts and parts[-1][-1] == bit - 1:
            parts[-1].append(bit)
        else:
            parts.append([bit])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _table(title: str, lines: list[str], total: int | None = None) -> list[str]:
    more = [f"  … and {total - len(lines)} more"] if total is not None and total > len(lines) else []
    return ["", title, *(f"  {line}" for line in lines), *more] if lines else []


def page(traced: Traced, most: int = 8) -> str:
    """Tell everything on one page of plain text; nothing that the file holds reaches it with control characters."""
    import pandas as pd

    f = traced.faults
    out = [f"{row.item + ':':<18}{row.value}" for row in _rows(summary(traced))]
    by = meanings(f)
    out += _table(
        "Faults by meaning",
        [f"{row.faults:>7}  {_hex(row.raw_code):>13}  {row.meaning}" for row in _rows(by.head(most))], len(by),
    )  # fmt: skip
    ends = f["outcome"].value_counts()
    out += _table("How they ended", [f"{n:>7}  {name}" for name, n in ends.head(most).items()], len(ends))
    told, state = f["private"], declared(traced)
    split = {
        "private, says the code": int((told == True).sum()),  # noqa: E712
        "shared, or not told by the code": int((told == False).sum()),  # noqa: E712
        "in memory last made private": int((state == True).sum()),  # noqa: E712
        "in memory last made shared": int((state == False).sum()),  # noqa: E712
        "MMIO": int(f["mmio"].sum()),
    }
    out += _table("Private, shared, MMIO", [f"{n:>7}  {name}" for name, n in split.items() if n])
    pages = top_addresses(f, most)
    out += _table(
        "Pages with the most faults",
        [
            f"{row.faults:>7}  gfn {_hex(row.gfn)}{', MMIO' if row.mmio else ''}, different codes: {row.codes}"
            for row in _rows(pages)
        ],
    )
    found = storms(f)
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
            f"{row.faults:>7}  {who}, rip {_hex(row.rip)}{turn}{rate} (lines {row.first_line} to {row.last_line})"
        )
        lines.append(f"         stuck on {row.stuck_on}")
    out += _table("Storms: the same again and again", lines)
    changed = conversions(traced)
    out += _table(
        "Conversions",
        [
            f"line {row.line}: {_hex(row.gpa)} + {_hex(row.size)} to {'private' if row.private else 'shared'} by "
            f"{row.how}; then {row.faults} faults, {row.memory_faults} of them memory faults"
            for row in _rows(changed.head(most))
        ],
        len(changed),
    )  # fmt: skip
    entries = []
    for spte in traced.joiner.sptes[:most]:
        hit = spte["reserved"]
        said = "not said" if hit is None else f"bits {_ranges(hit)}" if hit else "none"
        entries.append(
            f"level {spte['level']}: SPTE {_hex(spte['spte'])}, reserved bits that are set: {said}"
        )
    out += _table("Entries that KVM finds reserved bits in", entries, len(traced.joiner.sptes))
    out += _table(
        "Counts (bpftrace)", [_count(c) for c in traced.joiner.counts[:most]], len(traced.joiner.counts)
    )
    wrong = disagreements(traced)
    out += _table(
        "Where the trace and the model disagree",
        [f"line {r.line}: {r.what}" for r in _rows(wrong.head(most))],
        len(wrong),
    )
    unread = traced.reader.unread
    out += _table(
        "Not read", [f"line {u.line}: {u.why}: {u.text[:80]}" for u in unread[:3]], traced.reader.unread_count
    )
    out += _table("To know", notes(traced))
    out += _table("Next", next_steps(traced))
    return "\n".join(visible(line) for line in out)


def _count(count: dict[str, Any]) -> str:
    """Show a row of a bpftrace map; a key that is a number is a code in decimal, as bpftrace prints it."""
    key = count["key"].split(",")[-1].strip()
    said = ""
    if key.isascii() and key.isdigit() and len(key) <= 19:
        what = sense("", int(key), True, None, False)
        said = f"  if a code, {int(key):#x}: {what.meaning} ({what.encoding})"
    return f"{count['count']:>7}  @{count['map']}[{count['key']}]{said}"
