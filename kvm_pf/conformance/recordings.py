# SPDX-License-Identifier: GPL-2.0-only
"""Read recordings of a running KVM and join them into one row per fault.

A recording is a directory: one boot of one kernel, in which a small program drove throw-away guests
through scenarios while ftrace recorded.  `N-NAME.trace` is ftrace's text of scenario NAME, `N-NAME.json` the
program's own side of it; either may be gzipped.  `dmesg.txt` and `console.log` name the kernel, its module
parameters and its warnings.

    read_trace(path)      -> Trace, a list of TraceEvent: one line each, its fields as integers
    read_recording(path)  -> Recording: kernel, parameters, vendor, mode, warnings, scenarios with their steps
    faults(recording)     -> list of FaultRow, one per entry into KVM's page-fault handling
    walk(recording)       -> the same rows, each with the VmState that the fault met
    fault_frame(...)      -> the rows as a DataFrame; 64-bit values never pass through floats

Formats are told by their shape, never by the kernel's version.  What has no known form is kept as an event
without fields, counted, and named by `Recording.gaps()`.

What makes a row
----------------
A row begins at a `kvm_exit` for a nested page fault, an EPT violation or misconfiguration or a #PF, and ends
at the next `kvm_entry` or `kvm_userspace_exit` of the same task.  It needs nothing in between: an exit that
fast MMIO or async #PF answered is a row without a call of kvm_mmu_page_fault().  A trace without exits begins
a row at the first stage that it shows.  A handler called on its own (pre-fault, async page ready) is a row
that ends when the handler returns.

    source      begins with                               `cpu_code`, `cpu_address` of the row
    npf         kvm_exit npf                              EXITINFO1, EXITINFO2
    ept         kvm_exit EPT_VIOLATION                    exit qualification, none printed
    miscfg      kvm_exit EPT_MISCONFIG                    none, none printed
    pf          kvm_exit PF excp (AMD)                    EXITINFO1, EXITINFO2
                kvm_exit EXCEPTION_NMI, vector 14 (Intel) exception error code, exit qualification
    prefault    the handler, in a step whose op is `prefault`
    async       the handler with prefetch set, elsewhere (async page ready)
    call        kvm_mmu_page_fault() or the handler with nothing before it

The steps' ops
--------------
`tracing_mark_write: step K: OP` opens step K; `end` closes the last.  The JSON line of step K has the same
`op` and the results.  Addresses and sizes are bytes, numbers 0x… or decimal.  "1 update" means that the
memslots' generation grows once (by the number of address spaces: 1, or 2 with SMM); nothing else moves it.

    vm KIND                create a VM and its vCPU.  KIND is default (type 0) or swprot (type 1; rc -1 where
                           the kernel has no such type).  A base slot at gpa 0 for code, page tables and
                           descriptor tables comes with it: 1 update.  The guest maps gva = gpa, 2M pages
    slot ID GPA SIZE FLAGS set a memslot: 1 update, also when only flags change.  FLAGS is `-` or a list of
                           touch (user space writes to it first; else reads meet the zero page), thp (huge
                           host pages), small (never those; else the host decides), ro (read-only slot), log
                           (dirty logging), gmem (bind a guest_memfd)
    attr GPA SIZE KIND     set the memory attribute of a range to private or shared; no update
    r|w|x|i GPA [VALUE]    run the guest: read, write VALUE, fetch, locked read-modify-write.  `run0`,
                           `run1`, … are the KVM_RUNs that it took
    e GPA | s GPA          run the guest with an access that KVM emulates: explicit, or implicit (a segment
                           load that reads the descriptor table)
    smap SMAP AC           the guest's CR4.SMAP and EFLAGS.AC (inferred from what the accesses then do)
    efer VALUE             the guest's EFER
    pde GPA FLAGS          the flags of the guest's 2M page-directory entry for GPA; it goes on mapping gva = gpa
    poke GPA VALUE         user space writes a byte of guest memory through its own mapping
    mprotro GPA SIZE       host mapping read-only; no update, SPTEs are dropped (kvm_unmap_hva_range)
    unmap GPA SIZE         host mapping removed; likewise
    zap GPA SIZE           host pages thrown away, the next access finds zeroes; likewise
    punch ID OFFSET SIZE   hole in the slot's guest_memfd; later private accesses find zeroes
    closegmem ID           close the slot's guest_memfd; later look-ups in it fail
    cleardirty ID          fetch and clear the slot's dirty log (`dirty0`: first word); writes fault again
    prefault GPA SIZE      KVM_PRE_FAULT_MEMORY: calls the handler for each page (`left`: bytes not done)
    ioeventfd GPA LEN      event on a write of LEN bytes; LEN 0 is the fast-MMIO bus
    evread                 read that event's counter (`count`)
    sh COMMAND             run a command.  `inj AT SET CLEAR GPA COUNT` arms a change of the next COUNT
                           faults on GPA: bits SET on, bits CLEAR off, at `npf` (EXITINFO1 before KVM reads
                           it), `ept` (exit qualification) or `pf` (argument of kvm_mmu_page_fault()).  What
                           was changed stands in `pre_npf`, `pre_ept`, `pre_pf` events.  Where nothing calls
                           the function, nothing is changed

An op with rc -1 changed nothing.  A step without a JSON line is taken to have succeeded.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints
from typing import Annotated as A

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read
from kvm_pf.common.text import one_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = (
    "Column", "FaultRow", "RecordedSlot", "Recording", "Scenario", "Step", "Trace", "TraceEvent", "VmState", "Warn",
    "columns", "dump_faults", "fault_frame", "faults", "load_faults", "read_recording", "read_trace", "walk",
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------
# Lines and events


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
    "tracing_mark_write": ("step {step:d}: {op:s}", "{text:s}"),
    "kvm_entry": (
        "vcpu {vcpu:d}[,] rip {rip:x}[ intr_info {intr_info:x} error_code {error_code:x}]{rest:s}",
    ),
    "kvm_exit": (
        "[vcpu {vcpu:d} ]reason {reason:s} rip {rip:x} info1 {info1:x} info2 {info2:x}"
        "[ intr_info {intr_info:x} error_code {error_code:x}][ requests {requests:x}]",
        "[vcpu {vcpu:d} ]reason {reason:s} rip {rip:x} info {info1:x} {info2:x}",
    ),
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

_INJECTED = "pfinject: {function:w} gpa {gpa:x} {name:w} {old:x} -> {new:x}"
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
    if payload.startswith("pfinject:"):
        return _format(_INJECTED).read(payload)
    if name not in FORMATS:
        return _probe(payload)
    readings = (_format(form).read(payload) for form in FORMATS[name])
    return next((fields for fields in readings if fields is not None), None)


LIMIT = 1 << 26
"""How many bytes of text one recording has at most, unpacked: 64 MiB, some 600,000 events, unless told otherwise."""


def _read_text(path: Path, limit: int = LIMIT) -> str:
    return read(path, limit).decode(errors="replace")


def read_trace(path: str | Path, limit: int = LIMIT) -> Trace:
    """Read ftrace's text, or that of `trace-cmd report`.

    Takes the path of a text file (`.gz` allowed).  Returns its events in the file's order, and what could not
    be read (see Trace); a last line without its newline counts as cut.  Raises InputError if the file cannot
    be read, has more than `limit` bytes, or holds no line of a trace.
    """
    trace = Trace(Path(path))
    _read_events(trace, _read_text(Path(path), limit))
    return trace


def _read_events(trace: Trace, content: str) -> None:
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


# ----------------------------------------------------------------------------------------------------
# Recordings


OPS = (
    "vm", "slot", "attr", "r", "w", "x", "i", "e", "s", "smap", "efer", "pde", "poke", "mprotro", "unmap",
    "zap", "punch", "closegmem", "cleardirty", "prefault", "ioeventfd", "evread", "sh",
)  # fmt: skip
"""The verbs of user space's ops; the module's list says what each does."""


class Step(NamedTuple):
    """One operation of user space: its mark, its JSON line, and the events up to the next mark."""

    number: int
    op: str
    result: dict[str, Any] | None
    events: tuple[TraceEvent, ...]


class Scenario(NamedTuple):
    """One guest's life: what user space may ask for (`caps`), the steps, and the whole trace."""

    name: str
    caps: dict[str, Any]
    steps: tuple[Step, ...]
    trace: Trace


class Warn(NamedTuple):
    """One WARN in the kernel log; `order` counts from 0, `pid` is the task it fired in."""

    order: int
    function: str
    file: str
    line: int
    pid: int | None


class Recording(NamedTuple):
    """One boot: which kernel, how it was set up, what it warned of, and its scenarios in order.

    `parameters` maps `module.name` to text.  `vendor` is "amd", "intel" or None if no trace shows an exit;
    `mode` is "npt", "ept", "shadow" or None.
    """

    name: str
    kernel: str | None
    vendor: str | None
    mode: str | None
    parameters: dict[str, str]
    warnings: tuple[Warn, ...]
    scenarios: tuple[Scenario, ...]
    damage: tuple[str, ...] = ()
    """What shows that files were cut or are missing, one sentence each: nothing can be concluded from the rest."""

    def gaps(self) -> list[str]:
        """Name what was not understood, one sentence each."""
        gaps = []
        for scenario in self.scenarios:
            trace, where = scenario.trace, f"{self.name}/{scenario.name}"
            for step in scenario.steps:
                if step.op.split()[0] not in OPS:
                    gaps.append(f"{where}, step {step.number}: unknown op {step.op!r} is not followed")
                for run, told in (step.result or {}).items():
                    for name in told.get("stats", {}) if _RUN.fullmatch(run) else ():
                        if f"stat_{name}" not in columns():
                            gaps.append(f"{where}, step {step.number}: no column for the statistic {name!r}")
            for number, text in trace.unparsed:
                gaps.append(f"{where}, line {number}: not an event: {text[:60]!r}")
            for name, count in sorted(trace.unread.items()):
                gaps.append(f"{where}: {count} {name} events have a payload of unknown form")
            if trace.lost:
                gaps.append(f"{where}: {trace.lost} events were lost while recording")
            if trace.missing:
                gaps.append(f"{where}: {trace.missing} of the {trace.entries} events are not in the file")
        return gaps


_RELEASE = re.compile(r"(?:Linux version|LAB boot \S+) (\S+)")
_PARAMETER = re.compile(r"(?:^| )(kvm\w*)\.(\w+)=(\S*)|/sys/module/(\w+)/parameters/(\w+)=(.*)")
_WARNING = re.compile(
    r"WARNING: (?:CPU: \d{1,9} PID: (?P<pid>\d{1,9}) at )?(?:\S+ ){0,40}?"
    r"(?P<file>[\w./-]{1,200}\.[chS]):(?P<line>\d{1,9}) (?:at )?"
    r"(?P<function>[\w.]{1,200})\+0x\S+(?:[^#\n]*CPU#\d{1,9}: .{0,80}/(?P<task>\d{1,9}))?"
)


def _warnings(log: str) -> Iterator[Warn]:
    """Yield the WARNs of a kernel log, in order, in the forms of before and after v6.19."""
    lines = (line[line.find("WARNING: ") :][:1024] for line in log.split("\n") if "WARNING: " in line)
    for order, found in enumerate(filter(None, map(_WARNING.match, lines))):
        pid = found["pid"] or found["task"]
        yield Warn(order, found["function"], found["file"], int(found["line"]), int(pid) if pid else None)


def _parameters(text: str) -> dict[str, str]:
    """Collect module parameters from a kernel command line and from /sys/module lines, the latter winning."""
    given: dict[str, str] = {}
    actual: dict[str, str] = {}
    for module, name, value, sys_module, sys_name, sys_value in _PARAMETER.findall(text):
        if module:
            given[f"{module}.{name}"] = value
        else:
            actual[f"{sys_module}.{sys_name}"] = sys_value.strip()
    return given | actual


_SOURCES = {
    "npf": "npf", "EXIT_NPF": "npf", "PF excp": "pf", "EXIT_EXCP_PF": "pf",
    "EPT_VIOLATION": "ept", "EPT_MISCONFIG": "miscfg",
}  # fmt: skip
"""Exit reasons as the kernel names them, and as trace-cmd's plugin does."""

_PF_VECTOR = 0x8000030E
"""Interruption information of a #PF: valid, hardware exception, vector 14."""


def _exit_source(event: TraceEvent) -> str | None:
    """Return the source of the fault that a kvm_exit announces, or None."""
    reason, info = event.fields.get("reason"), event.fields.get("intr_info")
    if reason == "EXCEPTION_NMI" and isinstance(info, int) and info & 0x800007FF == _PF_VECTOR:
        return "pf"
    return _SOURCES.get(str(reason))


def _vendor_and_mode(parameters: Mapping[str, str], exits: list[TraceEvent]) -> tuple[str | None, str | None]:
    """Tell AMD from Intel by how exits are named, then nested paging from shadow paging."""
    reasons = {str(event.fields["reason"]) for event in exits if "reason" in event.fields}
    if not reasons:
        return None, None
    intel = any(reason.isupper() and not reason.startswith("EXIT_") for reason in reasons)
    vendor, name, nested = ("intel", "ept", {"ept", "miscfg"}) if intel else ("amd", "npt", {"npf"})
    sources = {_exit_source(event) for event in exits}
    value = parameters.get(f"kvm_{vendor}.{name}")
    if value is not None:
        return vendor, name if value in ("Y", "y", "1") else "shadow"
    return vendor, name if sources & nested else "shadow" if "pf" in sources else None


_RUN = re.compile(r"run\d+")


def _is_step(value: object) -> bool:
    """Say whether a JSON value has the form of a step's line."""
    if not isinstance(value, dict):
        return False
    if type(value.get("step")) is not int or not isinstance(value.get("op"), str):
        return False
    runs = [run for key, run in value.items() if _RUN.fullmatch(key)]
    parts = [run.get(key, {}) if isinstance(run, dict) else None for run in runs
             for key in ("stats", "mmio", "memory_fault")]  # fmt: skip
    return all(isinstance(part, dict) for part in parts)


def _read_json(path: Path, content: str) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Read user space's side: the capabilities, and the object of each step."""
    caps: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); one object a line is wanted") from error
        if isinstance(value, dict) and isinstance(value.get("caps"), dict):
            caps = value["caps"]
        elif _is_step(value):
            if value["step"] in steps:
                raise InputError(f"{path}:{number}: step {value['step']} stands twice; once is wanted")
            steps[value["step"]] = value
        else:
            what = "an object with a number `step`, a text `op` and objects `runN` is wanted"
            raise InputError(f"{path}:{number}: {text[:60]!r} is no step; {what}")
    return caps, steps


def _scenario(name: str, trace: Trace, caps: dict[str, Any], results: dict[int, dict[str, Any]]) -> Scenario:
    """Cut a trace at its marks and put user space's side to each step."""
    starts = [at for at, event in enumerate(trace) if event.name == "tracing_mark_write"]
    steps = []
    for at, end in pairwise([*starts, len(trace)]):
        number, op = trace[at].fields.get("step"), trace[at].fields.get("op")
        if not isinstance(number, int) or not isinstance(op, str):
            continue
        result = results.get(number)
        if result is not None and result["op"] != op:
            raise InputError(
                f"{trace.path}:{trace[at].line}: step {number} is {op!r}, but {result['op']!r} in the JSON; "
                "the two files must be of one run"
            )
        steps.append(Step(number, op, result, tuple(trace[at + 1 : end])))
    return Scenario(name, caps, tuple(steps), trace)


def _find(path: Path) -> Path | None:
    """Return the file of that name, or its gzipped form, or None."""
    packed = path.with_name(path.name + ".gz")
    return path if path.exists() else packed if packed.exists() else None


def _damage(scenario: Scenario, results: Mapping[int, Any], wanted: bool) -> Iterator[str]:
    """Say what shows that a scenario's files are not whole; `wanted`: there should be a JSON."""
    name, trace, steps = scenario.name, scenario.trace, scenario.steps
    if trace.missing:
        there = trace.entries - trace.missing if trace.entries else 0
        yield f"{name}: the trace's header promises {trace.entries} entries, {there} are there"
    for number, text in trace.unparsed[:1]:
        others = f", nor are {len(trace.unparsed) - 1} others" if trace.unparsed[1:] else ""
        yield f"{name}: line {number} of the trace is no event ({one_line(text, 60)}){others}"
    marks = [event.payload for event in trace if event.name == "tracing_mark_write"]
    refused = bool(steps) and (steps[-1].result or {}).get("rc", 0) != 0  # nothing could follow
    if marks and marks[-1] != "end" and not refused and not trace.lost:
        yield f"{name}: the trace does not come to its end mark; the last is {one_line(marks[-1], 60)}"
    numbers = [step.number for step in steps]
    for number in (n for n, count in Counter(numbers).items() if count > 1):
        yield f"{name}: the trace marks step {number} twice"
    without = [number for number in numbers if number not in results] if wanted else []
    if without:
        yield f"{name}: the JSON has no line for {len(without)} of {len(steps)} steps, from step {without[0]} on"
    untraced = sorted(set(results) - set(numbers))
    if untraced and not trace.lost:
        yield f"{name}: the trace has no mark for {len(untraced)} steps of the JSON, from step {untraced[0]} on"


def _named(directory: Path, end: str) -> dict[str, Path]:
    """The files `NAME.end` of a folder, or `NAME.end.gz`, by name; numbers in names count as such."""
    found = {
        name: path
        for path in sorted(directory.glob(f"*.{end}*"))
        if (name := path.name.removesuffix(".gz").removesuffix(f".{end}")) + f".{end}"
        == path.name.removesuffix(".gz")
    }
    parts = {name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)] for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: parts[name])}


def read_recording(directory: str | Path, limit: int = LIMIT) -> Recording:
    """Read a recordings directory, raw or with gzipped files.

    Files that were cut or are missing are told in `damage`.  Raises InputError if it holds no trace, if a file is
    malformed (it names file and line), or if the files have more than `limit` bytes together, unpacked.
    """
    directory = Path(directory)
    traces, told = _named(directory, "trace"), _named(directory, "json")
    told.pop("provenance", None)  # what the recording was made from, no scenario
    if not traces:
        raise InputError(f"{directory}: no N-NAME.trace here; a directory of one boot's recordings is wanted")
    left = limit

    def text(path: Path) -> str:
        nonlocal left
        content = read(path, left)
        left -= len(content)
        return content.decode(errors="replace")

    scenarios, damage = (
        [],
        [f"{name}: there is a JSON, and no trace beside it" for name in told if name not in traces],
    )
    for name, path in traces.items():
        trace = Trace(path)
        caps, results = _read_json(told[name], text(told[name])) if name in told else ({}, {})
        _read_events(trace, text(path))
        scenarios.append(_scenario(name, trace, caps, results))
        damage += _damage(scenarios[-1], results, wanted=bool(told))
    dmesg, console = (_find(directory / name) for name in ("dmesg.txt", "console.log"))
    log, said = text(dmesg) if dmesg else "", text(console) if console else ""
    release = _RELEASE.search(log) or _RELEASE.search(said)
    parameters = _parameters(f"{log}\n{said}")
    exits = [event for scenario in scenarios for event in scenario.trace if event.name == "kvm_exit"]
    vendor, mode = _vendor_and_mode(parameters, exits)
    return Recording(
        directory.name, release[1] if release else None, vendor, mode, parameters,
        tuple(_warnings(log if dmesg else said)), tuple(scenarios), tuple(damage),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------
# What the VM was


class RecordedSlot(NamedTuple):
    """A memslot that user space set: bytes, and the flags of its op."""

    id: int
    gpa: int
    size: int
    flags: tuple[str, ...]


_SPTE_MMU_PRESENT = 1 << 11
_PT_PAGE_SIZE = 1 << 7


@dataclass
class VmState:
    """What user space's operations and the events so far tell of the VM.

    `slots` are the user's slots (not the base slot that comes with the VM: its size is not told).
    `attributes` and `host` are (gpa, size, what) in the order of the ops: the last one that covers an address
    counts.  `updates` counts changes of the memslots; `generations` maps such counts to the generation seen
    then, also later ones.  `sptes` are the last traced entries by (gfn, level): exact for the TDP MMU, which
    traces every change; other page tables also lose entries without a trace.  `mmio_gens` are the generations
    of the MMIO SPTEs by gfn.  `cached` is what the vCPU was last seen to keep of an MMIO fault: gva (0 if
    direct), gfn, and `updates` then.
    """

    vm: str = ""
    updates: int = 0
    slots: dict[int, RecordedSlot] = field(default_factory=dict)
    attributes: list[tuple[int, int, str]] = field(default_factory=list)
    host: list[tuple[int, int, str]] = field(default_factory=list)
    gmem_closed: set[int] = field(default_factory=set)
    generations: dict[int, int] = field(default_factory=dict)
    tdp_mmu: bool = False
    sptes: dict[tuple[int, int], int] = field(default_factory=dict)
    mmio_gens: dict[int, int] = field(default_factory=dict)
    cached: tuple[int, int, int] | None = None

    def copy(self) -> VmState:
        """Return a copy that later steps and events do not touch, but for the generations seen."""
        return replace(
            self, slots=dict(self.slots), attributes=list(self.attributes), host=list(self.host),
            gmem_closed=set(self.gmem_closed), sptes=dict(self.sptes), mmio_gens=dict(self.mmio_gens),
        )  # fmt: skip

    @property
    def generation(self) -> int | None:
        """The memslots' generation (low bits): seen, or reckoned from two that were seen; None if neither."""
        if self.updates in self.generations or len(self.generations) < 2:
            return self.generations.get(self.updates)
        (first, low), *_, (last, high) = sorted(self.generations.items())
        reckoned = low + (high - low) // (last - first) * (self.updates - first)
        return reckoned if reckoned >= 0 else None

    def slot(self, gfn: int) -> RecordedSlot | None:
        """Return the user's slot that holds a gfn."""
        return next((s for s in self.slots.values() if s.gpa <= gfn << 12 < s.gpa + s.size), None)

    def private(self, gfn: int) -> bool:
        """Say whether user space declared the page private."""
        return _last(self.attributes, gfn) == "private"

    def host_page(self, gfn: int) -> str | None:
        """Return the last host operation on the page (mprotro, unmap, zap), or None."""
        return _last(self.host, gfn)

    def spte(self, gfn: int) -> tuple[int, int] | None:
        """Return the traced entry that maps a gfn, or ends the walk to it, and its level."""
        for level in (3, 2, 1):
            span = 9 * (level - 1)
            value = self.sptes.get((gfn >> span << span, level))
            if value is not None and (level == 1 or value & _PT_PAGE_SIZE or not value & _SPTE_MMU_PRESENT):
                return value, level
        return None

    def after(self, step: Step, where: str) -> VmState:
        """Return the state after a step's op: changed in place, or a new one for a new VM.

        Raises InputError, which begins with `where`, if the op lacks a word or number.
        """
        verb, *words = step.op.split()
        if step.result is not None and step.result.get("rc") == -1:
            return self
        try:
            match verb:
                case "vm":
                    return VmState(vm=words[0], updates=1)
                case "slot":
                    slot, gpa, size = (int(word, 0) for word in words[:3])
                    flags = tuple(flag for flag in words[3].split(",") if flag != "-")
                    self.slots[slot] = RecordedSlot(slot, gpa, size, flags)
                    self.updates += 1
                case "attr" if words[2] in ("private", "shared"):
                    self.attributes.append((int(words[0], 0), int(words[1], 0), words[2]))
                case "mprotro" | "unmap" | "zap":
                    self.host.append((int(words[0], 0), int(words[1], 0), verb))
                case "closegmem":
                    self.gmem_closed.add(int(words[0], 0))
                case "attr":
                    raise ValueError(words[2])
        except (ValueError, IndexError) as error:
            what = "lacks a word or number; see the ops in kvm_pf.trace"
            raise InputError(f"{where}: step {step.number}: {step.op!r} {what}") from error
        return self

    def see(self, event: TraceEvent) -> None:
        """Take over what an event tells of page tables and generations."""
        match event.name, event.fields:
            case "kvm_tdp_mmu_spte_changed", {"gfn": int(gfn), "level": int(level), "new_spte": int(spte)}:
                self.tdp_mmu = True
                self.sptes[gfn, level] = spte
                self.mmio_gens.pop(gfn, None)
            case "kvm_mmu_set_spte", {"gfn": int(gfn), "level": int(level), "spte": int(spte)}:
                self.sptes[gfn, level] = spte
                self.mmio_gens.pop(gfn, None)
            case "mark_mmio_spte", {"gfn": int(gfn), "gen": int(gen)}:
                if not self.tdp_mmu:  # the value is not traced
                    self.sptes.pop((gfn, 1), None)
                self.mmio_gens[gfn] = self.generations[self.updates] = gen
            case "check_mmio_spte", {"kvm_gen": int(gen)}:
                self.generations[self.updates] = gen


def _last(ranges: list[tuple[int, int, str]], gfn: int) -> str | None:
    """Return what the last range that covers a gfn says."""
    return next((what for gpa, size, what in reversed(ranges) if gpa <= gfn << 12 < gpa + size), None)


# ----------------------------------------------------------------------------------------------------
# Rows


class Column(NamedTuple):
    """What a cell of a FaultRow holds.

    `kind` is the column's dtype in a DataFrame, `means` says what it is, `source` names where the cell comes
    from: `EVENT.FIELD`, a field of the fault's first such event ("" if it is reckoned).
    """

    kind: str
    means: str
    source: str = ""


def _u64(means: str = "", source: str = "") -> Column:
    return Column("UInt64", means, source)


def _i32(means: str = "", source: str = "") -> Column:
    return Column("Int32", means, source)


def _bool(means: str = "", source: str = "") -> Column:
    return Column("boolean", means, source)


def _text(means: str, source: str = "") -> Column:
    return Column("string", means, source)


Num = int | None
Flag = bool | None
Str = str | None


class FaultRow(NamedTuple):
    """One entry into KVM's page-fault handling; a cell is None where nothing was traced.

    Events that several probes can report have one name here: `entry` is npf, eptv, eptm or khpf, `handler` is
    tdp or p64, and so on for their returns.  Struct fields have the kernel's names, `in_` as the handler was
    entered, `out_` as it was left.
    """

    recording: A[str, _text("directory of the recording")]
    kernel: A[Str, _text("kernel release")]
    vendor: A[Str, _text("amd or intel")]
    mode: A[Str, _text("npt, ept or shadow")]
    scenario: A[str, _text("scenario, N-NAME")]
    step: A[Num, _i32("number of the step")]
    op: A[Str, _text("what user space did in the step")]
    fault: A[int, _i32("number of the fault in its scenario, from 0")]
    source: A[str, _text("npf, ept, miscfg, pf, prefault, async or call")]
    first_line: A[int, _i32("first line of the fault in the trace file")]
    last_line: A[int, _i32("last line of the fault in the trace file")]
    pid: A[int, _i32("task that ran the vCPU")]
    complete: A[bool, _bool("the trace shows how the fault ended")]
    address: A[Num, _u64("address that was handled: as passed, else as traced")]

    exit_reason: A[Str, _text("why the guest was left", "kvm_exit.reason")] = None
    exit_rip: A[Num, _u64("guest rip", "kvm_exit.rip")] = None
    info1: A[Num, _u64("EXITINFO1, or exit qualification", "kvm_exit.info1")] = None
    info2: A[Num, _u64("EXITINFO2, or vectoring info", "kvm_exit.info2")] = None
    intr_info: A[Num, _u64("interruption or vectoring info", "kvm_exit.intr_info")] = None
    intr_error_code: A[Num, _u64("its 32-bit exception code", "kvm_exit.error_code")] = None
    cpu_code: A[Num, _u64("code as the CPU reported it (see the table of sources)")] = None
    cpu_address: A[Num, _u64("address as the CPU reported it, where kvm_exit shows it")] = None
    inject_at: A[Str, _text("where the code was changed on purpose: npf, ept, pf, joined by +")] = None
    inject_cpu_from: A[Num, _u64("code before a change at npf or ept", "pre_cpu.old")] = None
    inject_cpu_to: A[Num, _u64("code after a change at npf or ept", "pre_cpu.new")] = None
    inject_pf_from: A[Num, _u64("argument before a change at pf", "pre_pf.old")] = None
    inject_pf_to: A[Num, _u64("argument after a change at pf", "pre_pf.new")] = None
    khpf_err: A[Num, _u64("argument of kvm_handle_page_fault()", "khpf.err")] = None
    khpf_addr: A[Num, _u64("argument of kvm_handle_page_fault()", "khpf.addr")] = None
    fast_mmio_gpa: A[Num, _u64("fast MMIO took the fault", "kvm_fast_mmio.gpa")] = None
    trace_address: A[Num, _u64("tracepoint kvm_page_fault", "kvm_page_fault.address")] = None
    trace_error_code: A[Num, _u64("the same", "kvm_page_fault.error_code")] = None

    pf_gpa: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.gpa")] = None
    pf_err: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.err")] = None
    pf_insn: A[Num, _u64("argument of kvm_mmu_page_fault()", "pf.insn")] = None
    pf_insn_len: A[Num, _i32("argument of kvm_mmu_page_fault()", "pf.insn_len")] = None
    mmio_addr: A[Num, _u64("an MMIO SPTE was used: gva", "handle_mmio_page_fault.addr")] = None
    mmio_gfn: A[Num, _u64("the same: its gfn", "handle_mmio_page_fault.gfn")] = None
    mmio_access: A[Num, _u64("the same: its access", "handle_mmio_page_fault.access")] = None
    check_spte: A[Num, _u64("MMIO SPTE that was checked", "check_mmio_spte.spte")] = None
    check_kvm_gen: A[Num, _u64("memslots' generation", "check_mmio_spte.kvm_gen")] = None
    check_spte_gen: A[Num, _u64("the SPTE's generation", "check_mmio_spte.spte_gen")] = None
    check_valid: A[Flag, _bool("they agree", "check_mmio_spte.valid")] = None

    handler: A[Str, _text("handler: kvm_tdp_page_fault or paging64_page_fault")] = None
    in_addr: A[Num, _u64()] = None
    in_error_code: A[Num, _u64()] = None
    in_prefetch: A[Flag, _bool()] = None
    in_exec: A[Flag, _bool()] = None
    in_write: A[Flag, _bool()] = None
    in_present: A[Flag, _bool()] = None
    in_rsvd: A[Flag, _bool()] = None
    in_user: A[Flag, _bool()] = None
    in_is_tdp: A[Flag, _bool()] = None
    in_is_private: A[Flag, _bool()] = None
    in_nx_huge_page_workaround_enabled: A[Flag, _bool()] = None
    in_huge_page_disallowed: A[Flag, _bool()] = None
    in_max_level: A[Num, _i32()] = None
    in_req_level: A[Num, _i32()] = None
    in_goal_level: A[Num, _i32()] = None
    in_gfn: A[Num, _u64()] = None
    in_slot: A[Num, _u64("fault->slot, a kernel address, 0 for none")] = None
    in_pfn: A[Num, _u64()] = None
    in_hva: A[Num, _u64()] = None
    in_map_writable: A[Flag, _bool()] = None
    in_write_fault_to_shadow_pgtable: A[Flag, _bool()] = None

    fast_ret: A[Num, _i32("fast_page_fault() returned", "fast_ret.ret")] = None
    fast_gva: A[Num, _u64("tracepoint fast_page_fault", "fast_page_fault.gva")] = None
    fast_error_code: A[Num, _u64("the same, its letters put back into bits")] = None
    fast_sptep: A[Num, _u64("the same", "fast_page_fault.sptep")] = None
    fast_old: A[Num, _u64("the same: SPTE before", "fast_page_fault.old")] = None
    fast_new: A[Num, _u64("the same: SPTE after", "fast_page_fault.new")] = None
    fast_spurious: A[Flag, _bool("the same", "fast_page_fault.spurious")] = None
    fast_fixed: A[Flag, _bool("the same", "fast_page_fault.fixed")] = None
    walk_addr: A[Num, _u64("guest walk in the handler: gva", "walk.addr")] = None
    walk_pferr: A[Num, _u64("the same: its access", "walk.pferr")] = None
    noslot_addr: A[Num, _u64("fault->addr at kvm_handle_noslot_fault()", "noslot.addr")] = None
    noslot_err: A[Num, _u64("fault->error_code there", "noslot.err")] = None
    noslot_ret: A[Num, _i32("kvm_handle_noslot_fault() returned", "noslot_ret.ret")] = None
    gmem_gfn: A[Num, _u64("argument of kvm_gmem_get_pfn()", "gmem.gfn")] = None
    gmem_ret: A[Num, _i32("kvm_gmem_get_pfn() returned", "gmem_ret.ret")] = None
    faultin_ret: A[Num, _i32("kvm_faultin_pfn() returned", "faultin_ret.ret")] = None
    invalidated: A[bool, _bool("host mappings were invalidated meanwhile (kvm_unmap_hva_range)")] = False
    requested_gfn: A[Num, _u64("mapping asked for", "kvm_mmu_spte_requested.gfn")] = None
    requested_pfn: A[Num, _u64("the same", "kvm_mmu_spte_requested.pfn")] = None
    requested_level: A[Num, _i32("the same: goal level", "kvm_mmu_spte_requested.level")] = None
    requested_access: A[Num, _u64("the same, v7.3", "kvm_mmu_spte_requested.access")] = None
    changed_gfn: A[Num, _u64("last change by the TDP MMU", "kvm_tdp_mmu_spte_changed.gfn")] = None
    changed_level: A[Num, _i32("the same", "kvm_tdp_mmu_spte_changed.level")] = None
    changed_old: A[Num, _u64("the same: SPTE before", "kvm_tdp_mmu_spte_changed.old_spte")] = None
    changed_new: A[Num, _u64("the same: SPTE after", "kvm_tdp_mmu_spte_changed.new_spte")] = None
    set_gfn: A[Num, _u64("first SPTE that was set", "kvm_mmu_set_spte.gfn")] = None
    set_spte: A[Num, _u64("the same", "kvm_mmu_set_spte.spte")] = None
    set_access: A[Str, _text("the same: r, w, x, u or -", "kvm_mmu_set_spte.access")] = None
    set_level: A[Num, _i32("the same", "kvm_mmu_set_spte.level")] = None
    set_count: A[int, _i32("how many were set: the first is the fault's own, the rest are prefetched")] = 0
    mark_sptep: A[Num, _u64("MMIO SPTE that was made", "mark_mmio_spte.sptep")] = None
    mark_gfn: A[Num, _u64("the same", "mark_mmio_spte.gfn")] = None
    mark_access: A[Num, _u64("the same: low bits of the SPTE", "mark_mmio_spte.access")] = None
    mark_gen: A[Num, _u64("the same: its generation", "mark_mmio_spte.gen")] = None

    out_addr: A[Num, _u64()] = None
    out_error_code: A[Num, _u64()] = None
    out_is_private: A[Flag, _bool()] = None
    out_max_level: A[Num, _i32()] = None
    out_req_level: A[Num, _i32()] = None
    out_goal_level: A[Num, _i32()] = None
    out_gfn: A[Num, _u64()] = None
    out_mmu_seq: A[Num, _u64()] = None
    out_pfn: A[Num, _u64()] = None
    out_hva: A[Num, _u64()] = None
    out_map_writable: A[Flag, _bool()] = None
    out_write_fault_to_shadow_pgtable: A[Flag, _bool()] = None
    handler_ret: A[Num, _i32("the handler returned (RET_PF_*, or -errno)", "handler_ret.ret")] = None

    emul_in_pf: A[Flag, _bool("x86_emulate_instruction() was called from the fault path")] = None
    emul_gpa: A[Num, _u64("argument of x86_emulate_instruction()", "emul.gpa")] = None
    emul_type: A[Num, _u64("the same: emulation_type", "emul.emulation_type")] = None
    emul_insn: A[Str, _text("instruction bytes", "kvm_emulate_insn.insn")] = None
    emul_failed: A[Flag, _bool("it could not be emulated")] = None
    emul_ret: A[Num, _i32("x86_emulate_instruction() returned", "emul_ret.ret")] = None
    emul_mmio: A[Str, _text("emulated access: unsatisfied-read, read or write", "kvm_mmio.type")] = None
    pf_ret: A[Num, _i32("kvm_mmu_page_fault() returned", "pf_ret.ret")] = None
    entry_ret: A[Num, _i32("npf_interception(), handle_ept_* returned", "entry_ret.ret")] = None
    exception: A[Str, _text("exception injected before re-entry", "kvm_inj_exception.exception")] = None

    run: A[Num, _i32("KVM_RUN of the step, from 0; none for prefault")] = None
    last_of_run: A[Flag, _bool("no later fault in that KVM_RUN")] = None
    user_exit: A[Str, _text("exit to user space that followed directly: KVM_EXIT_*, error")] = None
    user_exit_number: A[Num, _i32("its number, or errno")] = None
    rc: A[Num, _i32("result of the KVM_RUN or KVM_PRE_FAULT_MEMORY that the fault is part of")] = None
    errno: A[Num, _i32("its errno")] = None
    exit: A[Num, _i32("exit_reason that this KVM_RUN left")] = None
    exit_name: A[Str, _text("its name")] = None
    memory_fault_flags: A[Num, _u64("memory_fault exit; last fault of the run only")] = None
    memory_fault_gpa: A[Num, _u64("the same")] = None
    memory_fault_size: A[Num, _u64("the same")] = None
    exit_mmio_gpa: A[Num, _u64("mmio exit; last fault of the run only")] = None
    exit_mmio_len: A[Num, _i32("the same")] = None
    exit_mmio_is_write: A[Flag, _bool("the same")] = None
    exit_mmio_data: A[Num, _u64("the same")] = None
    suberror: A[Num, _i32("internal error exit; last fault of the run only")] = None
    stat_pf_taken: A[Num, _i32("statistic's growth over the KVM_RUN; last fault of the run only")] = None
    stat_pf_fixed: A[Num, _i32("the same")] = None
    stat_pf_emulate: A[Num, _i32("the same")] = None
    stat_pf_spurious: A[Num, _i32("the same")] = None
    stat_pf_fast: A[Num, _i32("the same")] = None
    stat_pf_mmio_spte_created: A[Num, _i32("the same")] = None
    stat_pf_guest: A[Num, _i32("the same")] = None

    state_gfn: A[Num, _u64("page that the following describe, if known")] = None
    state_vm: A[Str, _text("kind of VM: default or swprot")] = None
    state_updates: A[Num, _i32("changes of the memslots since the VM was created")] = None
    state_generation: A[Num, _u64("memslots' generation (low bits), seen or reckoned")] = None
    state_slot: A[Num, _i32("user's slot that holds the page")] = None
    state_slot_flags: A[Str, _text("its flags, as in the op")] = None
    state_private: A[Flag, _bool("user space declared the page private")] = None
    state_host: A[Str, _text("last host operation on the page: mprotro, unmap, zap")] = None
    state_spte: A[Num, _u64("traced entry that maps the page or ends the walk to it")] = None
    state_spte_level: A[Num, _i32("its level")] = None
    state_mmio_gen: A[Num, _u64("generation of the page's MMIO SPTE")] = None
    state_cached_gfn: A[Num, _u64("gfn of the last MMIO fault that the vCPU kept")] = None
    state_cached_gva: A[Num, _u64("its gva, 0 if direct")] = None
    state_cached_age: A[Num, _i32("changes of the memslots since")] = None


@functools.cache
def columns() -> dict[str, Column]:
    """Return what each column of a FaultRow is, in order."""
    table = {}
    for name, hint in get_type_hints(FaultRow, include_extras=True).items():
        column: Column = hint.__metadata__[0]
        side, _, member = name.partition("_")
        if side in ("in", "out"):
            event = "handler" if side == "in" else "handler_ret"
            column = column._replace(means=column.means or f"fault->{member}", source=f"{event}.{member}")
        table[name] = column
    return table


_SAME = {
    "npf": "entry", "eptv": "entry", "eptm": "entry", "khpf": "khpf",
    "npf_ret": "entry_ret", "eptv_ret": "entry_ret", "eptm_ret": "entry_ret", "khpf_ret": "entry_ret",
    "tdp": "handler", "p64": "handler", "tdp_ret": "handler_ret", "p64_ret": "handler_ret",
    "pre_npf": "pre_cpu", "pre_ept": "pre_cpu",
}  # fmt: skip
"""Events that one column reads, whichever the kernel shows."""

_HANDLERS = {"tdp": "kvm_tdp_page_fault", "p64": "paging64_page_fault"}
_FIELDS = {"err": "error_code", "nxw": "nx_huge_page_workaround_enabled", "hpd": "huge_page_disallowed",
           "wfsp": "write_fault_to_shadow_pgtable"}  # fmt: skip
"""Short names of struct kvm_page_fault's fields in the handlers' probes."""

_EXIT, _ENTRY, _TRACED, _CALLED, _HANDLED, _RETURNED = range(6)
_STAGES = {"entry": _ENTRY, "khpf": _ENTRY, "kvm_page_fault": _TRACED, "pf": _CALLED, "handler": _HANDLED}
"""How far a fault has come: an event of an earlier or the same stage belongs to the next fault."""

_KVM_PFN_NOSLOT = 1 << 63
_INJECTIONS = ("pre_npf", "pre_ept", "pre_pf")
_BEGINS = {"npf": "npf", "eptv": "ept", "eptm": "miscfg", "khpf": "pf"}
"""Source of a fault in a trace without exits, by the probe that it begins with."""


@dataclass
class _Fault:
    """A fault while its lines are collected: `first` holds the event that each column reads."""

    step: Step | None
    run: int
    state: VmState
    alone: bool
    stage: int = _EXIT
    events: list[TraceEvent] = field(default_factory=list)
    first: dict[str, TraceEvent] = field(default_factory=dict)
    user_exit: TraceEvent | None = None
    complete: bool = False
    in_handler: bool = False
    invalidated: bool = False
    emul_in_pf: bool | None = None
    set_count: int = 0

    def add(self, name: str, event: TraceEvent) -> None:
        """Take an event in, under the name that the columns use."""
        self.events.append(event)
        match name:
            case "handler" | "handler_ret":
                self.in_handler = name == "handler"
                fields = {_FIELDS.get(key, key): value for key, value in event.fields.items()}
                event = event._replace(fields=fields)
            case "kvm_mmu_pagetable_walk" if self.in_handler:
                name = "walk"
            case "kvm_unmap_hva_range" if self.in_handler:
                self.invalidated = True
            case "kvm_mmu_set_spte":
                self.set_count += 1
            case "kvm_tdp_mmu_spte_changed":
                self.first[name] = event  # the last one is the leaf
            case "emul" if self.emul_in_pf is None:
                self.emul_in_pf = self.stage in (_CALLED, _HANDLED) and not self.alone
            case "pf_ret":
                self.stage = _RETURNED
        self.first.setdefault(name, event)

    def get(self, name: str, key: str) -> int | None:
        """Return an integer field of an event of this fault, or None."""
        event = self.first.get(name)
        value = event.fields.get(key) if event else None
        return value if isinstance(value, int) else None

    @property
    def prefaulting(self) -> bool:
        """Whether user space asked for this fault."""
        return self.alone and self.step is not None and self.step.op.split()[0] == "prefault"

    @property
    def source(self) -> str:
        """Where the fault came from, as in the module's table."""
        event = self.events[0]
        if event.name == "kvm_exit":
            return str(_exit_source(event))
        if self.prefaulting:
            return "prefault"
        if self.alone:
            return "async" if self.get("handler", "prefetch") else "call"
        return _BEGINS.get(event.name, "call")

    def cpu(self) -> tuple[int | None, int | None]:
        """Return code and address as the CPU reported them."""
        info1, info2 = self.get("kvm_exit", "info1"), self.get("kvm_exit", "info2")
        event = self.first.get("kvm_exit")
        match event and event.fields.get("reason"):
            case "npf" | "EXIT_NPF" | "PF excp" | "EXIT_EXCP_PF":
                return info1, info2
            case "EPT_VIOLATION":
                return info1, None
            case "EXCEPTION_NMI":
                return self.get("kvm_exit", "error_code"), info1
        return None, None

    def address(self) -> int | None:
        """Return the address that was handled, from the innermost place that shows it."""
        values = (
            self.get("pf", "gpa"), self.get("kvm_page_fault", "address"), self.get("kvm_fast_mmio", "gpa"),
            self.get("handler", "addr"), self.get("khpf", "addr"), self.cpu()[1],
        )  # fmt: skip
        return next((value for value in values if value is not None), None)

    def gfn(self, mode: str | None) -> int | None:
        """Return the guest page, if the trace shows it."""
        if mode != "shadow":
            address = self.address()
            return None if address is None else address >> 12
        if "faultin_ret" in self.first:  # the guest's tables were walked
            return self.get("handler_ret", "gfn")
        return self.get("handle_mmio_page_fault", "gfn")

    def kept(self) -> tuple[int, int] | None:
        """Return gva and gfn if the vCPU kept them as those of an MMIO page while the handler ran."""
        noslot_ret, pfn = self.get("noslot_ret", "ret"), self.get("kvm_mmu_spte_requested", "pfn")
        addr, gfn = self.get("handler", "addr"), self.get("handler_ret", "gfn")
        if gfn is None:
            gfn = self.get("kvm_mmu_spte_requested", "gfn")
        kept = pfn == _KVM_PFN_NOSLOT if noslot_ret is None else noslot_ret >= 0
        if not kept or addr is None or gfn is None:
            return None
        return 0 if self.get("handler", "is_tdp") else addr & ~0xFFF, gfn


def _collect(scenario: Scenario) -> list[_Fault]:
    """Cut a trace into faults, following the VM's state and the KVM_RUNs."""
    found: list[_Fault] = []
    open_: dict[int, list[_Fault]] = {}
    state, step, steps = VmState(), None, iter(scenario.steps)
    runs: Counter[int] = Counter()

    def begin(event: TraceEvent, alone: bool) -> None:
        fault = _Fault(step, runs[event.pid], state.copy(), alone)
        found.append(fault)
        open_[event.pid] = [*open_.get(event.pid, []), fault] if alone else [fault]

    for event in scenario.trace:
        name = _SAME.get(event.name, event.name)
        stack = open_.get(event.pid, [])
        if name == "tracing_mark_write":
            open_.clear()
            runs.clear()
            step = next(steps) if "step" in event.fields else None
            state = state.after(step, f"{scenario.trace.path}:{event.line}") if step else state
            continue
        if name in ("kvm_entry", "kvm_userspace_exit"):
            if stack and not stack[0].alone:
                stack[0].complete = True
                stack[0].user_exit = event if name == "kvm_userspace_exit" else None
            open_.pop(event.pid, None)
            runs[event.pid] += name == "kvm_userspace_exit"
            continue
        if name == "kvm_exit":
            open_.pop(event.pid, None)
            if _exit_source(event):
                begin(event, alone=False)
        elif name in _STAGES:
            if not stack or _STAGES[name] <= stack[-1].stage:
                begin(event, alone=name == "handler")
            open_[event.pid][-1].stage = _STAGES[name]
        if stack := open_.get(event.pid, []):
            fault = stack[-1]
            fault.add(name, event)
            if name == "handler_ret":
                if kept := fault.kept():
                    state.cached = (*kept, state.updates)
                if fault.alone:
                    fault.complete = True
                    stack.pop()
            elif name == "handle_mmio_page_fault" and event.fields:
                state.cached = (fault.get(name, "addr") or 0, fault.get(name, "gfn") or 0, state.updates)
        state.see(event)
    return found


_RANGES = {"UInt64": (0, (1 << 64) - 1), "Int32": (-(1 << 31), (1 << 31) - 1), "boolean": (0, 1)}


def _cell(column: Column, value: object, where: str) -> Any:
    """Check a value against its column; text that holds a number becomes one."""
    if value is None:
        return None
    if column.kind == "string":
        return str(value) or None
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    low, high = _RANGES[column.kind]
    if not isinstance(number, int) or not low <= number <= high:
        raise InputError(f"{where} is {value!r}; a number from {low:#x} to {high:#x} is wanted")
    return bool(number) if column.kind == "boolean" else int(number)


_LETTERS = {"P": 0, "W": 1, "U": 2, "RSVD": 3, "F": 4, "PK": 5, "SS": 6, "SGX": 15}


def _letters(text: str, where: str) -> int:
    """Put the letters of fast_page_fault's error_code back into bits."""
    code = 0
    for part in filter(None, text.split("|")):
        try:
            code |= 1 << _LETTERS[part] if part in _LETTERS else int(part, 16)
        except ValueError:
            raise InputError(f"{where} has {part!r}; {', '.join(_LETTERS)} or a number are known") from None
    return code


def _row(recording: Recording, scenario: Scenario, number: int, fault: _Fault, last: bool) -> FaultRow:
    """Join a fault's lines, user space's side and the state that it met."""
    table, path = columns(), scenario.trace.path
    cells: dict[str, Any] = {}
    for name, column in table.items():
        event_name, _, key = column.source.partition(".")
        if event := fault.first.get(event_name):
            cells[name] = _cell(column, event.fields.get(key), f"{path}:{event.line}: {key} of {event.name}")
    cells["cpu_code"], cells["cpu_address"] = fault.cpu()
    if changes := [event.name.removeprefix("pre_") for event in fault.events if event.name in _INJECTIONS]:
        cells["inject_at"] = "+".join(changes)
    if handler := next((event for event in fault.events if event.name in _HANDLERS), None):
        cells["handler"] = _HANDLERS[handler.name]
    if fast := fault.first.get("fast_page_fault"):
        where = f"{path}:{fast.line}: error_code of fast_page_fault"
        cells["fast_error_code"] = _letters(str(fast.fields.get("error_code", "")), where)
    if fault.emul_in_pf is not None:
        cells["emul_in_pf"] = fault.emul_in_pf
    if "kvm_emulate_insn" in fault.first:
        cells["emul_failed"] = any(event.fields.get("failed") for event in fault.events)
    if fault.user_exit:
        cells["user_exit"] = fault.user_exit.fields.get("reason")
        cells["user_exit_number"] = fault.user_exit.fields.get("number")

    run = None if fault.prefaulting or fault.step is None else fault.run
    result = (fault.step.result if fault.step else None) or {}
    if run is not None:
        cells |= {"run": run, "last_of_run": last}
        result = result.get(f"run{run}") or {}
    told = {"rc": "rc", "errno": "errno", "exit": "exit", "exit_name": "name"}
    sides = {name: result.get(key) for name, key in told.items()}
    if last:
        sides["suberror"] = result.get("suberror")
        sides |= {f"memory_fault_{key}": value for key, value in result.get("memory_fault", {}).items()}
        sides |= {f"exit_mmio_{key}": value for key, value in result.get("mmio", {}).items()}
        for name in table if "stats" in result else ():
            if name.startswith("stat_"):
                sides[name] = result["stats"].get(name.removeprefix("stat_"), 0)
    cells |= {name: value for name, value in sides.items() if name in table}

    state, gfn = fault.state, fault.gfn(recording.mode)
    if state.vm:
        cells |= {"state_vm": state.vm, "state_updates": state.updates, "state_generation": state.generation}
        if gfn is not None:
            slot, spte = state.slot(gfn), state.spte(gfn)
            cells |= {
                "state_gfn": gfn, "state_private": state.private(gfn), "state_host": state.host_page(gfn),
                "state_slot": slot and slot.id, "state_slot_flags": slot and (",".join(slot.flags) or "-"),
                "state_spte": spte and spte[0], "state_spte_level": spte and spte[1],
                "state_mmio_gen": state.mmio_gens.get(gfn),
            }  # fmt: skip
        if state.cached:
            gva, cached_gfn, then = state.cached
            cells |= {"state_cached_gva": gva, "state_cached_gfn": cached_gfn}
            cells["state_cached_age"] = state.updates - then
    begin, step = fault.events[0], fault.step
    cells |= {
        "recording": recording.name, "kernel": recording.kernel, "vendor": recording.vendor,
        "mode": recording.mode, "scenario": scenario.name, "step": step and step.number,
        "op": step and step.op, "fault": number, "source": fault.source, "first_line": begin.line,
        "last_line": fault.events[-1].line, "pid": begin.pid, "complete": fault.complete,
        "address": fault.address(), "invalidated": fault.invalidated, "set_count": fault.set_count,
    }  # fmt: skip
    where = f"{path}:{begin.line}: step {step.number if step else '-'}"
    checked = {name: _cell(table[name], value, f"{where}: {name}") for name, value in cells.items()}
    return FaultRow(**checked)


def walk(recording: Recording) -> Iterator[tuple[FaultRow, VmState]]:
    """Yield each fault of a recording, in order, with what the VM was when it came.

    Raises InputError if a value does not fit its column or an op lacks a word.
    """
    for scenario in recording.scenarios:
        found = _collect(scenario)
        asked = (fault for fault in found if not fault.prefaulting)
        last = {(id(fault.step), fault.events[0].pid, fault.run): fault for fault in asked}
        lasts = {id(fault) for fault in last.values()}
        for number, fault in enumerate(found):
            yield _row(recording, scenario, number, fault, id(fault) in lasts), fault.state


def faults(recording: Recording) -> list[FaultRow]:
    """Return one row per entry into KVM's page-fault handling, in the order of the traces."""
    return [row for row, _ in walk(recording)]


def fault_frame(rows: Recording | Iterable[FaultRow]) -> pd.DataFrame:
    """Return the rows as a DataFrame with nullable columns of the kinds that `columns()` names."""
    import numpy as np
    import pandas as pd

    rows = faults(rows) if isinstance(rows, Recording) else list(rows)
    arrays: dict[str, Any] = {}
    for index, (name, column) in enumerate(columns().items()):
        values: list[Any] = [row[index] for row in rows]
        if column.kind == "string":
            arrays[name] = pd.array(values, dtype="string")
            continue
        missing = np.array([value is None for value in values], dtype="bool")
        dtype = np.dtype("bool" if column.kind == "boolean" else column.kind.lower())
        array = pd.arrays.BooleanArray if column.kind == "boolean" else pd.arrays.IntegerArray
        arrays[name] = array(np.array([value or 0 for value in values], dtype=dtype), missing)
    return pd.DataFrame(arrays)


# ----------------------------------------------------------------------------------------------------
# The joined table as a file


def dump_faults(rows: Iterable[FaultRow]) -> str:
    """Return rows as CSV: 64-bit values in hexadecimal, booleans as 0 and 1, None as nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns())
    write: dict[str, Callable[[Any], object]] = {"UInt64": hex, "Int32": int, "boolean": int, "string": str}
    kinds = [column.kind for column in columns().values()]
    for row in rows:
        writer.writerow(
            None if value is None else write[kind](value) for kind, value in zip(kinds, row, strict=True)
        )
    return out.getvalue()


def load_faults(path: str | Path) -> list[FaultRow]:
    """Read rows that `dump_faults` wrote; the file may be gzipped.

    Raises InputError if the columns are not those of FaultRow or a value does not fit its column.
    """
    path, table = Path(path), columns()
    try:
        header, *lines = csv.reader(io.StringIO(_read_text(path)))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: no CSV ({error}); what dump_faults wrote is wanted") from error
    if header != list(table):
        raise InputError(f"{path}:1: the columns are {header[:4]}…; those of FaultRow are wanted, in order")
    rows = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(table):
            raise InputError(f"{path}:{number}: {len(line)} values; {len(table)} are wanted")
        rows.append(FaultRow(*(
            _cell(column, text or None, f"{path}:{number}: {name}")
            for (name, column), text in zip(table.items(), line, strict=True)
        )))  # fmt: skip
    return rows
