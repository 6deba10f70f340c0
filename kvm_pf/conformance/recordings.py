# SPDX-License-Identifier: GPL-2.0-only
"""Read recordings of a running KVM: one boot, its scenarios and their steps, both sides of each.

A recording is a directory: one boot of one kernel, in which a small program drove throw-away guests
through scenarios while ftrace recorded.  `N-NAME.trace` is ftrace's text of scenario NAME, `N-NAME.json` the
program's own side of it; either may be gzipped.  `dmesg.txt` and `console.log` name the kernel, its module
parameters and its warnings.

    ftrace        read_trace(path)      -> Trace, a list of TraceEvent: one line each, its fields as integers
    recordings    read_recording(path)  -> Recording: kernel, parameters, vendor, mode, warnings, scenarios
    vm_state      VmState               what the operations and events so far tell of the VM
    fault_rows    FaultRow, columns()   one fault as a row; fault_frame(rows) -> DataFrame; as a file
    join          faults(recording)     -> list of FaultRow, one per entry into KVM's page-fault handling
                  walk(recording)       -> the same rows, each with the VmState that the fault met

What has no known form is kept, counted, and named by `Recording.gaps()`.

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
                           the function, nothing is changed.  `dly AT CPU US COUNT` arms a delay: CPU is held
                           COUNT times for US microseconds at 1 (kvm_mmu_page_fault() begins), 2
                           (kvm_faultin_pfn() begins), 3 (it has returned) or 4 (fast_page_fault() begins)
    par OP A [V] | OP A [V]
                           two parties at once, each marked `party N: OP A` when it begins.  OP is r, w, x or i:
                           vCPU N touches guest address A; or user space acts on the page at A: zap, ro
                           (mprotro), rw (writable again), priv, shared (the attribute).  If a delay is armed, the
                           second party begins when the first is held.  `vcpuN`, `hostN`: results, `stats`: of both

A guest of the guest (L2).  X is a page of L2's, Y one of L1's, the guest that user space made; L2's first 2M are
mapped to L1's own, its code and page tables with them.

    nest [np0|noad]        L1 becomes a hypervisor: it keeps a nested page table for L2, or none (np0), or one
                           without accessed and dirty bits (noad, Intel)
    l2map X Y [RIGHTS]     L1 maps X to Y, by stores of its own to its nested page table (`pdpt_run0`, `pde_run0`,
                           `pte_run0`: a KVM_RUN each).  RIGHTS: w writable, r not, n not executable, L 2M
    l2unmap X [L]          L1 clears its entry for X
    l2r|l2w|l2x|l2i X [V]  L1 runs L2, which reads, writes, fetches, or does a locked read-modify-write; then it
                           halts, which L1 sees.  `guest_mode`: the exit to user space came while L2 ran;
                           `vmcb12`, `vmcs12`: L1's control block afterwards
    l2cr3 X                where L2's own page table is, in L2's memory
    run                    KVM_RUN again, nothing changed: L2 goes on; `skipped` if its access was over
    l2leave                user space takes the vCPU out of L2

An op with rc -1 changed nothing.  A step without a JSON line is taken to have succeeded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read
from kvm_pf.common.text import one_line
from kvm_pf.common.typed import typed
from kvm_pf.conformance.fault_rows import columns
from kvm_pf.conformance.ftrace import LIMIT, Trace, TraceEvent, read_events

__all__ = (
    "L2_BLOCKS",
    "OPS",
    "Recording",
    "Scenario",
    "Step",
    "Warn",
    "ends_step",
    "exit_source",
    "number",
    "read_recording",
    "runs_of",
)

OPS = (
    "vm", "slot", "attr", "r", "w", "x", "i", "e", "s", "smap", "efer", "pde", "poke", "mprotro", "unmap",
    "zap", "punch", "closegmem", "cleardirty", "prefault", "ioeventfd", "evread", "sh", "nest", "l2map", "l2unmap",
    "l2r", "l2w", "l2x", "l2i", "l2cr3", "run", "l2leave", "par",
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
                for _, told in runs_of(step.result):
                    for name in told.get("stats", {}):
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


def exit_source(event: TraceEvent) -> str | None:
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
    sources = {exit_source(event) for event in exits}
    value = parameters.get(f"kvm_{vendor}.{name}")
    if value is not None:
        return vendor, name if value in ("Y", "y", "1") else "shadow"
    return vendor, name if sources & nested else "shadow" if "pf" in sources else None


L2_BLOCKS = {
    "vmcb12": ("exit_code", "exit_info_1", "exit_info_2"),
    "vmcs12": ("exit_reason", "qualification", "gpa"),
}
"""What the JSON shows of L1's control block after L2's exit: its name and the fields compared, AMD's and Intel's."""
_RUN = re.compile(r"(?:[a-z]{1,10}_)?run\d+")


_PARTY = re.compile(r"(?:vcpu|host)\d+")


def runs_of(result: Mapping[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the KVM_RUNs of a step by name, in order: run0, run1, …; of an op that runs L1 several times pte_run0."""
    return [(name, told) for name, told in (result or {}).items() if _RUN.fullmatch(name)]


def _is_step(value: object) -> bool:
    """Say whether a JSON value has the form of a step's line."""
    if not isinstance(value, dict):
        return False
    if type(value.get("step")) is not int or not isinstance(value.get("op"), str):
        return False
    runs = [run for _, run in runs_of(value)] + [
        told for name, told in value.items() if _PARTY.fullmatch(name)
    ]
    parts = [run.get(key, {}) if isinstance(run, dict) else None for run in runs
             for key in ("stats", "mmio", "memory_fault")]  # fmt: skip
    parts += [value.get(block, {}) for block in (*L2_BLOCKS, "stats")]
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


def number(value: object, where: str) -> int:
    """Read a number of an op or of a JSON line.  Raises InputError, which begins with `where`, if it is none."""
    try:
        return int(str(value), 0)
    except ValueError:
        raise InputError(f"{where}: {one_line(repr(value), 80)} is no number") from None


def ends_step(event: TraceEvent) -> bool:
    """Say whether an event is a mark that ends a step; that of a party does not."""
    return event.name == "tracing_mark_write" and "party" not in event.fields


def _scenario(name: str, trace: Trace, caps: dict[str, Any], results: dict[int, dict[str, Any]]) -> Scenario:
    """Cut a trace at its marks and put user space's side to each step."""
    starts = [at for at, event in enumerate(trace) if ends_step(event)]
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
    seen = {event.fields["vcpu"] for event in trace if isinstance(event.fields.get("vcpu"), int)}
    if seen and not trace.lost and (absent := min(set(range(len(seen))) - seen, default=None)) is not None:
        yield f"{name}: the trace shows vCPU {max(seen)} and no vCPU {absent}; the recorder counts them from 0"
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
    try:
        paths = sorted(directory.glob(f"*.{end}*"))
    except OSError as error:
        raise InputError(f"{one_line(directory, 200)}: cannot be read: {error.strerror}") from None
    found = {
        name: path
        for path in paths
        if (name := path.name.removesuffix(".gz").removesuffix(f".{end}")) + f".{end}"
        == path.name.removesuffix(".gz")
    }
    parts = {name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)] for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: parts[name])}


@typed()
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
        read_events(trace, text(path))
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
