# SPDX-License-Identifier: GPL-2.0-only
"""Read ftrace's text, or that of `trace-cmd report`: one event a line, its fields as integers.

Formats are told by their shape, never by the kernel's version.  What has no known form is kept as an event
without fields, and counted.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read
from kvm_pf.common.typed import typed

__all__ = ("FORMATS", "LIMIT", "Trace", "TraceEvent", "read_events", "read_trace")


class TraceEvent(NamedTuple):
    """One line of a trace; `fields` holds what its payload says, under the words that it uses."""

    line: int
    """Line number in the file, from 1."""
    task: str
    pid: int
    cpu: int
    timestamp: str
    name: str
    payload: str
    fields: dict[str, int | str]


class Trace(list[TraceEvent]):
    """A list of events that remembers what it could not read.

    `unparsed` holds (line number, text) of lines that are no event, `unread` counts the events by name whose
    payload has no known form, `lost` is the number of events that the ring buffer dropped, `entries` how many
    the file's header promises (None without one).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.unparsed: list[tuple[int, str]] = []
        self.unread: Counter[str] = Counter()
        self.lost = 0
        self.entries: int | None = None

    @property
    def missing(self) -> int:
        """How many of the promised events the file does not hold: more than 0 means that it was cut."""
        return 0 if self.entries is None else max(0, self.entries - len(self) - len(self.unparsed))


# What a stranger sent must not keep a pattern busy: what may repeat is bounded, or can end in one place only.
_LINE = re.compile(
    r"(?P<task>\S.*?)-(?P<pid>\d{1,10})\s+"
    r"(?:\([^)]{0,20}\)\s+)?"  # thread group
    r"\[(?P<cpu>\d{1,5})\]\s+"
    r"(?:[^\s:]{4,6}\s+)?"  # four or five flags; trace-cmd report prints none
    r"(?P<timestamp>\d{1,20}\.\d{1,9}):\s+"
    r"(?P<name>[^\s:]+):(?:\s+(?P<payload>.*))?",
    re.ASCII,
)
_BY_THE_WAY = re.compile(r"#.*|\s*|cpus=\d+|version = \d+|CPU \d+ is empty")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\b.*")
_DROPPED = re.compile(r"CPU:\d+ \[(?:LOST )?(\d{1,18}) EVENTS(?: DROPPED)?\]")

_SHADOW_PAGE = "sp gen {gen:d} gfn {gfn:x} l{level:d} {role:s}"

FORMATS: dict[str, tuple[str, ...]] = {
    "tracing_mark_write": ("step {step:d}: {op:s}", "party {party:d}: {act:s}", "{text:s}"),
    "kvm_entry": (
        "vcpu {vcpu:d}[,] rip {rip:x}[ intr_info {intr_info:x} error_code {error_code:x}]{rest:s}",
    ),
    "kvm_exit": (
        "[vcpu {vcpu:d} ]reason {reason:s} rip {rip:x} info1 {info1:x} info2 {info2:x}"
        "[ intr_info {intr_info:x} error_code {error_code:x}][ requests {requests:x}]",
        "[vcpu {vcpu:d} ]reason {reason:s} rip {rip:x} info {info1:x} {info2:x}",
    ),
    "kvm_nested_vmenter": (
        "rip: {rip:x} {block:w}: {address:x} nested_rip: {nested_rip:x} int_ctl: {int_ctl:x} "
        "event_inj: {event_inj:x} nested_{table:w}={nested:w} {root:w}: {cr3:x}",
    ),
    "kvm_nested_vmenter_failed": ("{text:s}",),
    "kvm_nested_intercepts": (
        "cr_read: {cr_read:x} cr_write: {cr_write:x} excp: {excp:x} "
        "intercepts: {intercepts3:x} {intercepts4:x} {intercepts5:x}",
    ),
    "kvm_nested_vmexit": (
        "[vcpu {vcpu:d} ]reason {reason:s} rip {rip:x} info1 {info1:x} info2 {info2:x}"
        "[ intr_info {intr_info:x} error_code {error_code:x}][ requests {requests:x}]",
        "rip: {rip:x} reason: {reason:s} ext_inf1: {info1:x} ext_inf2: {info2:x} "
        "ext_int: {intr_info:x} ext_int_err: {error_code:x}",
    ),
    "kvm_nested_vmexit_inject": (
        "reason: {reason:s} ext_inf1: {info1:x} ext_inf2: {info2:x} "
        "ext_int: {intr_info:x} ext_int_err: {error_code:x}",
    ),
    "kvm_nested_intr_vmexit": ("rip: {rip:x}",),
    "kvm_userspace_exit": ("reason {reason:s} ({number:d})",),
    "kvm_page_fault": ("[vcpu {vcpu:d} ][rip {rip:x} ]address {address:x} error_code {error_code:x}",),
    "kvm_fast_mmio": ("fast mmio at gpa {gpa:x}",),
    "kvm_rmp_fault": (
        "vcpu {vcpu:d} gpa {gpa:x} pfn {pfn:x} error_code {error_code:x} "
        "rmp_level {rmp_level:d} psmash_ret {psmash_ret:d}",
    ),
    "kvm_mmio": ("mmio {type:w} len {len:d} gpa {gpa:x} val {val:x}",),
    "kvm_emulate_insn": ("{csbase:x}:{rip:x}:{insn:s} ({mode:w}){failed:s}",),
    "kvm_inj_exception": ("{exception:w}[ ({error_code:x})]{rest:s}",),
    "kvm_unmap_hva_range": ("mmu notifier unmap range: {start:x} -- {end:x}",),
    "kvm_age_hva": ("mmu notifier age hva: {start:x} -- {end:x}[ fast_only: {fast_only:d}]",),
    "kvm_test_age_hva": ("mmu notifier test age hva: {hva:x}[ fast_only: {fast_only:d}]",),
    "kvm_try_async_get_page": ("gva = {gva:x}, gfn = {gfn:x}",),
    "kvm_async_pf_not_present": ("token {token:x} gva {gva:x}",),
    "kvm_async_pf_ready": ("token {token:x} gva {gva:x}",),
    "kvm_async_pf_completed": ("gva {gva:x} address {address:x}",),
    "fast_page_fault": (
        "vcpu {vcpu:d} gva {gva:x} error_code {error_code:s} sptep {sptep:x} old {old:x} new {new:x} "
        "spurious {spurious:d} fixed {fixed:d}",
    ),
    "handle_mmio_page_fault": ("addr:{addr:x} gfn {gfn:x} access {access:x}",),
    "mark_mmio_spte": ("sptep:{sptep:x} gfn {gfn:x} access {access:x} gen {gen:x}",),
    "check_mmio_spte": ("spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {valid:d}",),
    "kvm_mmu_spte_requested": ("gfn {gfn:x} pfn {pfn:x} level {level:d}[ access {access:x}]",),
    "kvm_mmu_set_spte": ("gfn {gfn:x} spte {spte:x} ({access:s}) level {level:d} at {at:x}",),
    "kvm_tdp_mmu_spte_changed": (
        "as id {as_id:d} gfn {gfn:x} level {level:d} old_spte {old_spte:x} new_spte {new_spte:x}",
    ),
    "kvm_mmu_split_huge_page": ("gfn {gfn:x} spte {spte:x} level {level:d} errno {errno:d}",),
    "kvm_mmu_zap_all_fast": ("kvm-mmu-valid-gen {gen:d} used_pages {used_pages:x}",),
    "kvm_mmu_get_page": (_SHADOW_PAGE,),
    "kvm_mmu_sync_page": (_SHADOW_PAGE,),
    "kvm_mmu_unsync_page": (_SHADOW_PAGE,),
    "kvm_mmu_prepare_zap_page": (_SHADOW_PAGE,),
    "kvm_mmu_pagetable_walk": ("addr {addr:x} pferr {pferr:x}[ {flags:s}]",),
    "kvm_mmu_paging_element": ("pte {pte:x} level {level:d}",),
    "kvm_mmu_walker_error": ("pferr {pferr:x}[ {flags:s}]",),
    "kvm_mmu_set_accessed_bit": ("gpa {gpa:x}",),
    "kvm_mmu_set_dirty_bit": ("gpa {gpa:x}",),
}
"""The kernel's worded formats: `{x}` hexadecimal with or without 0x, `{d}` decimal, `{w}` a word, `{s}` any
text, `[…]` optional.  Probes (`(function+0x4/0xb0) name=value …`) need no entry.

Source: the events' `print fmt` in Linux v6.1, v6.12 and v7.3; plugin_kvm.c of libtraceevent 1.7.1.
"""

_PRINTED = (
    "pfinject: {function:w} gpa {gpa:x} {name:w} {old:x} -> {new:x}",
    "pfdelay: held at {place:d} on CPU {held_cpu:d} for {us:d} us",
    "pfdelay: goes on at {place:d}",
)
"""What the recorders' own modules print: a code that was changed on purpose, a CPU that was held."""
_KINDS = {"x": r"(?:0x)?([0-9a-fA-F]{1,16})", "d": r"(-?\d{1,20})", "w": r"(\S+)", "s": r"(.*?)"}
_TOKEN = re.compile(r"\{(?P<name>\w+):(?P<kind>\w)\}|(?P<open>\[)|(?P<close>\])|(?P<text>[^{\[\]]+)")


class _Format(NamedTuple):
    """A worded format as a pattern, with the name and kind of each of its groups."""

    pattern: re.Pattern[str]
    fields: tuple[tuple[str, str], ...]

    def read(self, payload: str) -> dict[str, int | str] | None:
        found = self.pattern.fullmatch(payload)
        if found is None:
            return None
        base = {"x": 16, "d": 10}
        return {
            name: int(text, base[kind]) if kind in base else text
            for (name, kind), text in zip(self.fields, found.groups(), strict=True)
            if text is not None
        }


@functools.cache
def _format(template: str) -> _Format:
    """Turn a format of `FORMATS` into a pattern."""
    pattern, fields = "", []
    for token in _TOKEN.finditer(template):
        if token["name"]:
            pattern += _KINDS[token["kind"]]
            fields.append((token["name"], token["kind"]))
        else:
            pattern += "(?:" if token["open"] else ")?" if token["close"] else re.escape(token["text"])
    return _Format(re.compile(pattern, re.ASCII), tuple(fields))


_PROBE = re.compile(r"\((?:(?P<caller>[^<)]+?) <- )?(?P<function>[^<)]+)\)(?P<rest>(?: .*)?)")
_VALUE = re.compile(r"\b(\w{1,100})=(?:(-?\d{1,20})(?!\S)|0x([0-9a-fA-F]{1,16})(?!\S)|(\S*))", re.ASCII)


def _probe(payload: str) -> dict[str, int | str] | None:
    """Read a function probe's payload: where it sits, who called it (return probes), and its values."""
    found = _PROBE.fullmatch(payload)
    if found is None:
        return None
    fields: dict[str, int | str] = {
        key: re.split(r"[+ ]", text)[0] for key in ("function", "caller") if (text := found[key]) is not None
    }
    for name, decimal, hexadecimal, text in _VALUE.findall(found["rest"]):
        fields[name] = int(decimal) if decimal else int(hexadecimal, 16) if hexadecimal else text
    return fields


def _fields(name: str, payload: str) -> dict[str, int | str] | None:
    """Read a payload; None if its form is unknown."""
    printed = payload.startswith(("pfinject:", "pfdelay:"))
    if name not in FORMATS and not printed:
        return _probe(payload)
    readings = (_format(form).read(payload) for form in (_PRINTED if printed else FORMATS[name]))
    return next((fields for fields in readings if fields is not None), None)


LIMIT = 1 << 26
"""How many bytes of text one recording has at most, unpacked: 64 MiB, some 600,000 events, unless told otherwise."""


@typed()
def read_trace(path: str | Path, limit: int = LIMIT) -> Trace:
    """Read ftrace's text, or that of `trace-cmd report`.

    Takes the path of a text file (`.gz` allowed).  Returns its events in the file's order, and what could not
    be read (see Trace); a last line without its newline counts as cut.  Raises InputError if the file cannot
    be read, has more than `limit` bytes, or holds no line of a trace.
    """
    trace = Trace(Path(path))
    read_events(trace, read(Path(path), limit).decode(errors="replace"))
    return trace


@typed()
def read_events(trace: Trace, content: str) -> None:
    """Read the text of a trace file into `trace`.  Raises InputError if it holds no line of a trace."""
    lines = content.split("\n")
    if cut := lines.pop():
        trace.unparsed.append((len(lines) + 1, cut))
    for number, text in enumerate(lines, 1):
        text = text.rstrip("\r")
        if header := _ENTRIES.fullmatch(text):
            trace.entries = int(header[1])
            trace.lost += int(header[2]) - int(header[1])
        elif dropped := _DROPPED.fullmatch(text):
            trace.lost += int(dropped[1])
        elif found := _LINE.fullmatch(text.strip()):
            name, payload = found["name"], (found["payload"] or "").strip()
            if name in ("print", "bprint") and ": " in payload:  # trace-cmd, of marks and trace_printk
                name, payload = payload.split(": ", 1)
            fields = _fields(name, payload)
            if fields is None:
                trace.unread[name] += 1
            who = (found["task"], int(found["pid"]), int(found["cpu"]), found["timestamp"])
            trace.append(TraceEvent(number, *who, name, payload, fields or {}))
        elif not _BY_THE_WAY.fullmatch(text):
            trace.unparsed.append((number, text))
    trace.unparsed.sort()
    if not trace and (trace.unparsed or trace.entries is None):
        where, what = trace.unparsed[0] if trace.unparsed else (1, "")
        raise InputError(
            f"{trace.path}:{where}: {what[:80]!r} is no line of a trace; ftrace's text is wanted"
        )
