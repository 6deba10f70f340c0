# SPDX-License-Identifier: GPL-2.0-only
"""From bytes to events: open a file, undo what mail and pasting did to its lines, and read each event.

Formats are told by their shape, never by a kernel's or tool's version.  Every line is looked at once, with
bounded length, by patterns that need no backtracking.
"""

from __future__ import annotations

import functools
import io
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from kvm_pf.bits import PFERR_LETTERS, encode
from kvm_pf.common.errors import InputError
from kvm_pf.common.files import archive_of, as_path
from kvm_pf.run.refusals import MESSAGE, WARNED, kernel_named
from kvm_pf.trace.dumps import dumped

LONGEST = 8192
"""The most bytes of a line that are read; the rest is passed over, and the line counted as cut."""

WRAPPED = 8
"""The most physical lines that one event may be spread over."""


SEARCHED = 4_000_000
"""In so many lines an event must stand, for the rest to be read."""


class Line(NamedTuple):
    """A line as the file has it: its number from 1, its text, and whether it was longer than LONGEST."""

    number: int
    text: str
    cut: bool = False


class Event(NamedTuple):
    """One event.  `fields` holds numbers (int) and words (str) under the names that this module uses.

    `time` is in seconds, None where the line shows none; likewise `cpu`, `task` and `pid`.  `whole` is False if
    the kernel printed only the low 32 bits of codes.
    """

    line: int
    time: float | None
    cpu: int | None
    task: str | None
    pid: int | None
    name: str
    fields: dict[str, Any]
    whole: bool = True


FOREIGN = Event(0, None, None, None, None, "", {})
"""An event that is none of those that are read."""


class Unread(NamedTuple):
    """A line that looks like one of ours and cannot be read: its number, its text, and why."""

    line: int
    text: str
    why: str


# --- opening ---

_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


UNPACKED = 1 << 32
"""The most bytes that a packed file may hold, unless somebody says otherwise."""

FILES = 10_000
"""So many traces are read at once, unless somebody says otherwise: more take minutes, and may be a wrong folder."""


class Pace:
    """How far the reading of a file is: `done` of `size` bytes (0: nobody knows); `stopped` ends it as if it ended.

    `tick` is called after each piece that was read, and four times a second while there is nothing to read.
    `limit` is the most bytes that a packed file may hold.
    """

    def __init__(self, limit: int = UNPACKED) -> None:
        self.done = self.size = 0
        self.stopped = False
        self.limit = limit

    def tick(self) -> None:
        """Do what is to be done meanwhile: here, nothing."""


class _Paced(io.RawIOBase):
    """A raw stream that is read at a pace."""

    def __init__(self, raw: Any, pace: Pace) -> None:
        self.raw, self.pace = raw, pace
        try:
            found = os.fstat(raw.fileno())
            self.waits = not stat.S_ISREG(found.st_mode) or not found.st_size  # trace_pipe is called regular
            pace.size = 0 if self.waits else found.st_size
        except (OSError, AttributeError):
            self.waits = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self.raw is not getattr(sys.stdin, "buffer", None):
            self.raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while self.waits and not self.pace.stopped and not select.select([self.raw], [], [], 0.25)[0]:
            self.pace.tick()  # there may be nothing to read for long, and a signal to be heeded
        if self.pace.stopped:
            return 0
        count: int = self.raw.readinto(buffer) or 0
        if not count and self.pace.size and os.fstat(self.raw.fileno()).st_size < self.pace.size:
            raise OSError("it became shorter while it was read")
        self.pace.done += count
        self.pace.tick()
        return count


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to the limit of a pace, and until that is stopped."""

    def __init__(self, stream: Any, name: str, pace: Pace) -> None:
        self.stream, self.name, self.pace, self.done = stream, name, pace, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import lzma
        import zlib

        if self.pace.stopped:  # much may be packed in the little that was read
            return 0
        try:
            count: int = self.stream.readinto(buffer)
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise OSError(str(error)) from error
        self.done += count
        limit = self.pace.limit
        if self.done > limit:
            raise InputError(f"{self.name}: it unpacks to more than {limit:,} bytes; --limit raises that")
        self.pace.tick()
        return count


def _open_raw(file: str | Path) -> Any:
    """Open a file or standard input unbuffered; a FIFO that nobody writes to yet is not waited for here."""
    if str(file) == "-":
        if sys.stdin is None:
            raise InputError("standard input: it is closed")
        raw = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    else:
        path, flags = as_path(file, "a trace"), getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            raw = os.fdopen(os.open(path, os.O_RDONLY | flags), "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
        if hasattr(os, "set_blocking"):
            os.set_blocking(raw.fileno(), True)
    try:
        mode = os.fstat(raw.fileno()).st_mode
    except (OSError, AttributeError):  # no file of the system's, as in tests
        return raw
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not raw.isatty() and str(file) != os.devnull):
        raise InputError(f"{'standard input' if str(file) == '-' else file}: this is a device, no trace")
    return raw


def open_bytes(file: str | Path, pace: Pace | None = None) -> IO[bytes]:
    """Open a file, or standard input for "-", and unpack gzip, bzip2, xz and zstd by their first bytes.

    Raises InputError if it cannot be opened or is a device; so does reading more than `pace.limit` unpacked bytes.
    """
    pace = pace or Pace()
    raw: io.RawIOBase = _Paced(_open_raw(file), pace)
    stream = io.BufferedReader(raw, 1 << 16)
    try:
        head = stream.peek(6)[:6]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    packing = next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)
    name = "standard input" if str(file) == "-" else str(file)
    if packing is not None:
        raw = _Unpacked(_unpacking(stream, packing), name, pace)
        stream = io.BufferedReader(raw, 1 << 16)
    with suppress(OSError):
        if archive := archive_of(stream.peek(512)[:512]):
            raise InputError(f"{name}: this is {archive}; unpack it, and give the traces in it")
    return stream


def _unpacking(stream: Any, packing: str) -> Any:
    if packing == "gzip":
        import gzip

        return gzip.open(stream)
    if packing == "bz2":
        import bz2

        return bz2.open(stream)
    if packing == "xz":
        import lzma

        return lzma.open(stream)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")


def physical_lines(
    stream: IO[bytes], quick: Callable[[int, bytes], Event | None] = lambda number, data: None
) -> Iterator[Line | Event]:
    """Read lines of bounded length; a longer one is cut, and said to be.

    What `quick` makes an event of is handed on as that, unless a soft line break may stand before it.
    """
    number = 0
    goes_on = False
    while data := stream.readline(LONGEST):
        number += 1
        if data == b"\n" and not goes_on:
            yield Line(number, "", False)
            continue
        if not goes_on and (event := quick(number, data)) is not None:
            yield event
            continue
        goes_on = (
            not data.isascii()
            or b"\0" in data
            or data.rstrip(b"\r\n").endswith(b"=")
            or (goes_on and not data.strip(b" >\t\r\n"))
        )
        cut = len(data) == LONGEST and not data.endswith(b"\n")
        rest = data
        while cut and rest and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST)
        yield Line(number, data.decode(errors="replace"), cut)


# --- undoing mail and pasting ---

_PASTED = str.maketrans(
    {"\u00a0": " ", "\ufffd": " ", "\u200b": "", "\ufeff": "", "\r": "", "\n": "", "\0": ""}
)
_QUOTE = re.compile(r"(?:[ ]?>){1,20}[ ]?")
_QUOTED_BYTE = re.compile(r"=([0-9A-F]{2})")
_GAPS = re.compile(r"CAN'?T FIND FIELD \"\w{1,40}\"|<CAN'?T FIND FIELD \w{1,40}>")


def unpasted(lines: Iterable[Line | Event]) -> Iterator[Line | Event]:
    """Undo quoting, soft line breaks of quoted-printable, foreign blanks, and perf's complaints."""
    soft: Line | None = None
    joined = 0
    for line in lines:
        if isinstance(line, Event) or (soft is None and not line.text):
            yield line
            continue
        number, text, cut = line
        text = text.rstrip("\r\n") if text.isascii() and "\0" not in text else text.translate(_PASTED)
        if ">" in text[:40] and (quote := _QUOTE.match(text)):
            text = text[quote.end() :]
        if "FIND FIELD" in text:
            text = _GAPS.sub(" ", text)
        if soft is not None:
            text, number, cut = soft.text + text, soft.number, soft.cut or cut
            soft = None
        joined += 1
        if text.endswith("=") and len(text) < LONGEST and joined < WRAPPED:
            soft = Line(number, text[:-1], cut)
            continue
        joined = 0
        if "=3D" in text or text.endswith("=20"):
            text = _QUOTED_BYTE.sub(lambda m: chr(int(m[1], 16)), text)
        yield Line(number, text[:LONGEST], cut)
    if soft is not None:
        yield soft


# --- what an event's line begins with ---

ENDS: dict[str, tuple[str, ...]] = {
    "kvm_page_fault": ("error_code",),
    "kvm_exit": ("error_code", "info"),
    "kvm_nested_vmexit": ("error_code", "int_info_err"),
    "kvm_nested_vmexit_inject": ("error_code", "int_info_err"),
    "kvm_entry": ("rip", "vcpu"),
    "kvm_userspace_exit": ("reason",),
    "kvm_mmio": ("val",),
    "kvm_fast_mmio": ("gpa",),
    "kvm_emulate_insn": (),
    "kvm_inj_exception": (),
    "kvm_hypercall": ("a3",),
    "kvm_rmp_fault": ("psmash_ret",),
    "kvm_vmgexit_enter": (),
    "kvm_async_pf_completed": (),
    "fast_page_fault": ("fixed",),
    "handle_mmio_page_fault": ("access",),
    "mark_mmio_spte": ("gen",),
    "check_mmio_spte": ("valid",),
    "kvm_try_async_get_page": ("gfn",),
    "vcpu_match_mmio": ("gpa",),
    "kvm_mmu_pagetable_walk": ("pferr",),
    "kvm_mmu_walker_error": ("pferr",),
    "kvm_mmu_paging_element": ("level",),
    "kvm_mmu_set_spte": ("level",),
    "kvm_mmu_spte_requested": ("level",),
    "kvm_tdp_mmu_spte_changed": ("new_spte",),
    "kvm_mmu_prepare_zap_page": (),
    "kvm_unmap_hva_range": (),
    "tracing_mark_write": (),
    "print": (),
    "bprint": (),
    "pf": (),
}
"""The events that are read, each with the words of which the last value ends it; () takes what the line has.

Source: the events' `print fmt` in Linux v5.4, v6.1, v6.12 and v7.3; older forms as in mails of the kvm list.
"""

_NAMES = "|".join(sorted(ENDS, key=len, reverse=True))
_SYSTEMS = ("kvm", "kvmmmu", "ftrace", "kprobes", "probe")
_PARTS = ("kvm_", "page_fault", "mmio", "tracing_mark", "print", "pf")
"""Each name in ENDS holds one of these."""

_EVENT = re.compile(rf"(?<![\w./:])(?:(?:{'|'.join(_SYSTEMS)}):)?({_NAMES})(:|\()(?!\S*\+0x)")
_FRAME = re.compile(
    r"\[(\d{1,5})\]\s{1,40}(?:[^\s:\d][^\s:]{0,7}\s{1,40})?(\d{1,16}(?:\.\d{1,9})?):(?:\s{1,200}\d{1,12}(?=\s))?\s{0,200}"
)
_CUT_FRAME = re.compile(r"-\d{1,10}\s{1,40}\[\d{1,5}\](?:\s{1,40}[^\s:]{1,8})?\s{0,40}$")
_ONLY_TIME = re.compile(r"(\d{1,12}\.\d{1,9}):?\s*$")
_PERF_TRACE = re.compile(r"\s*(\d{1,12}\.\d{3})\s{1,40}(?:\([^)]{0,40}\):\s{1,40})?(.{1,100})/(\d{1,10})\s*$")
_TGID = re.compile(r"\s{1,40}\(\s{0,8}[\d-]{1,8}\)\s*$")
_DECIMAL = ("vcpu", "len", "level", "as_id", "spurious", "fixed", "rmp_level", "psmash_ret", "valid")
_ALIASES = {
    "vcpu_id": "vcpu", "cr2_or_gpa": "gva", "guest_rip": "rip", "fault_address": "address", "exit_reason": "reason",
    "exit_info1": "info1", "exit_info2": "info2", "exit_int_info": "int_info",
    "exit_int_info_err": "int_info_err", "ext_inf1": "info1", "ext_inf2": "info2", "ext_int": "int_info",
    "ext_int_err": "int_info_err",
}  # fmt: skip
_SEPARATORS = str.maketrans({",": " ", "=": " ", "(": " ", ")": " ", ";": " "})


_ERRNO = re.compile(r"\((\d{1,5})\)")
_FRAMED = ("tracing_mark_write", "print", "bprint", "pf")
"""Names that are common words, and so count only behind a task, a CPU and a time."""


def _named(text: str) -> re.Match[str] | None:
    """Find the first name of an event that is read, which most lines of other events are soon seen not to hold."""
    return _EVENT.search(text) if any(part in text for part in _PARTS) else None


class _Who(NamedTuple):
    time: float | None = None
    cpu: int | None = None
    task: str | None = None
    pid: int | None = None


def _who(prefix: str) -> _Who:
    """Read what stands before an event's name: task, pid, cpu and time, in any tool's order."""
    if frame := _FRAME.search(prefix):
        task, pid = _task(prefix[: frame.start()])
        return _Who(float(frame[2]), int(frame[1]), task, pid)
    if found := _PERF_TRACE.match(prefix):
        return _Who(float(found[1]) / 1000, None, found[2].strip(), int(found[3]))
    if found := _ONLY_TIME.search(prefix):
        return _Who(float(found[1]))
    return _Who()


def _task(text: str) -> tuple[str | None, int | None]:
    if "(" in text:
        text = _TGID.sub("", text)
    text = text.strip()
    for separator in ("-", " "):
        task, found, pid = text.rpartition(separator)
        pid = pid.split("/")[-1] if separator == " " else pid
        if found and pid.isascii() and pid.isdigit() and len(pid) <= 10:
            return task.strip() or None, int(pid)
    return text or None, None


def number(text: str, base: int = 16) -> int | None:
    """Read an unsigned 64-bit number; None if it is none."""
    if text[:2] in ("0x", "0X"):
        text, base = text[2:], 16
    if not text.isascii() or not text.isalnum() or len(text) > 20:
        return None
    try:
        value = int(text, base)
    except ValueError:
        return None
    return value if value < 1 << 64 else None


def _keyed(payload: str, decimal: bool = False) -> tuple[dict[str, Any], bool]:
    """Read "word value word value"; say as well whether the codes were printed whole."""
    fields: dict[str, Any] = {}
    whole = True
    words = payload.translate(_SEPARATORS).split()
    for n, word in enumerate(words[:-1]):
        key = word.rstrip(":")
        key = _ALIASES.get(key, key)
        if key == "reason":
            fields.setdefault(key, words[n + 1])
            after = words[n + 2] if n + 2 < len(words) else ""
            if words[n + 1] == "UNKNOWN" and after.isdigit():
                fields["reason"] = after
            if after in ("excp", "FAILED_VMENTRY"):
                fields["reason"] = f"{words[n + 1]} {after}"
        elif key == "info" and n + 2 < len(words):
            one, two = number(words[n + 1]), number(words[n + 2])
            if one is not None and two is not None:
                fields["info1"], fields["info2"] = one, two
        elif key in _KEYS and key not in fields:
            base = 10 if key in _DECIMAL or decimal else 16
            value = number(words[n + 1], base)
            if value is not None:
                fields[key] = value
                if key == "error_code" and words[n + 1][:2] != "0x":
                    whole = decimal
    return fields, whole


_KEYS = {
    "vcpu", "rip", "address", "error_code", "info1", "info2", "intr_info", "int_info", "int_info_err", "gpa",
    "val", "len", "nr", "a0", "a1", "a2", "a3", "gfn", "spte", "old_spte", "new_spte", "level", "pfn",
    "pferr", "pte", "addr", "access", "gen", "err", "spurious", "fixed", "gva", "sptep", "rmp_level",
    "valid",
}  # fmt: skip


_RAW = re.compile(r"\b(?:vcpu_id|guest_rip|fault_address|error_code|exit_reason)=")


def payload_fields(name: str, payload: str, decimal: bool = False) -> tuple[dict[str, Any], bool] | None:
    """Read an event's payload; None if it lacks what the event is about.

    By field, as `trace-cmd report -R` and perfetto print it, numbers are decimal unless they begin with 0x.
    """
    decimal = decimal or ("=" in payload and _RAW.search(payload) is not None)
    if name == "kvm_emulate_insn":
        parts = payload.split(":", 2)
        if len(parts) < 3 or number(parts[0].strip()) is None or (rip := number(parts[1].strip())) is None:
            return None
        insn = parts[2].split("(")[0].replace("FAIL", "").strip()
        return {"rip": rip, "insn": insn, "failed": payload.rstrip().endswith(("FAIL", "failed"))}, True
    if name == "kvm_inj_exception":
        words = payload.translate(_SEPARATORS).split()
        if not words:
            return None
        code = number(words[1]) if len(words) > 1 else None
        return {"exception": words[0], "error_code": code, "again": "reinjected" in payload}, True
    if name in ("tracing_mark_write", "print", "bprint"):
        return {"text": payload.strip()}, True
    if name == "fast_page_fault" or name == "kvm_mmio":
        fields, whole = _keyed(payload.replace("gva=", "gva "), decimal)
        if name == "fast_page_fault":
            fields["error_code"], whole = _flags(payload, decimal), True
        if name == "kvm_mmio":
            fields["type"] = payload.split(" len ")[0].strip().removeprefix("mmio ").strip()[:20]
        return fields, whole
    fields, whole = _keyed(payload.replace("addr:", "addr ").replace("sptep:", "sptep "), decimal)
    if name == "kvm_userspace_exit" and "error" in payload and (errno := _ERRNO.search(payload)):
        fields["errno"] = int(errno[1])
    needed = {"kvm_page_fault": ("address", "error_code"), "kvm_exit": ("reason",), "pf": ("err",)}.get(
        name, ()
    )
    if any(key not in fields for key in needed) or (ENDS[name] and not fields):
        return None
    return fields, whole


_HEX = "0x([0-9a-f]{1,16})"
_USUAL: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "kvm_page_fault": (
        rf" *vcpu (\d{{1,10}}) rip {_HEX} address {_HEX} error_code {_HEX} *",
        lambda vcpu, rip, address, code: {
            "vcpu": int(vcpu), "rip": int(rip, 16), "address": int(address, 16), "error_code": int(code, 16),
        },
    ),
    "kvm_entry": (
        rf" *vcpu (\d{{1,10}}), rip {_HEX} *",
        lambda vcpu, rip: {"vcpu": int(vcpu), "rip": int(rip, 16)},
    ),
    "kvm_exit": (
        rf" *vcpu (\d{{1,10}}) reason (\w{{1,40}}) rip {_HEX} info1 {_HEX} info2 {_HEX} intr_info {_HEX} "
        rf"error_code {_HEX} *",
        lambda vcpu, reason, rip, info1, info2, intr, code: {
            "vcpu": int(vcpu), "reason": reason, "rip": int(rip, 16), "info1": int(info1, 16),
            "info2": int(info2, 16), "intr_info": int(intr, 16), "error_code": int(code, 16),
        },
    ),
}  # fmt: skip
"""The commonest events as today's kernels print them, for speed: the same values as by `payload_fields`."""

_PAYLOADS = {name: re.compile(shape, re.ASCII) for name, (shape, _) in _USUAL.items()}
_QUICK = re.compile(
    r"([ -<>-Z\\-~]{1,80}\[\d{1,5}\]) {1,40}(?:[!-'*-/;-~][!-'*-9;-~]{0,7} {1,40})?(\d{1,16}(?:\.\d{1,9})?): {1,40}"
    rf"(?:(\w{{1,20}}):)?(?:{'|'.join(f'{name}: {shape}' for name, (shape, _) in _USUAL.items())}"
    r"|(\w{1,60}):( [ -~]*))\r?\n",
    re.ASCII,
)
"""A whole line as ftrace, trace-cmd and perf print it: task and pid, CPU, time, system, event and its values.

The commonest events come first, with a group for each value; then any, with its name and payload.
"""


def _groups() -> Iterator[tuple[int, tuple[str, slice, Callable[..., dict[str, Any]]]]]:
    """Say for each of the commonest events, by its last group: its name, its groups, what makes fields of them."""
    first = 3
    for name, (_, fields) in _USUAL.items():
        last = first + _PAYLOADS[name].groups
        yield last, (name, slice(first, last), fields)
        first = last


_COMMONEST = dict(_groups())


@functools.lru_cache(maxsize=4096)
def _quick_who(head: str) -> tuple[int, str | None, int | None] | None:
    """Read the CPU, task and pid that a whole line begins with; None if it may be quoted, a comment or other."""
    task, _, cpu = head[:-1].rpartition("[")
    if _QUOTE.match(task) or task.lstrip().startswith("#") or _EVENT.search(task) or "FIND FIELD" in task:
        return None
    return int(cpu), *_task(task)


_FLAGS_SHOWN = re.compile(r"\berror_code (\S{0,80}) ?\bsptep\b")


def _flags(payload: str, decimal: bool = False) -> int | None:
    """Read the error code of fast_page_fault: letters, and the rest as one number; None if it cannot be read.

    By field it is one number, as said of `payload_fields`.

    Source: Linux `arch/x86/kvm/mmu/mmutrace.h`, fast_page_fault: __print_flags() (v6.12).
    """
    if (found := _FLAGS_SHOWN.search(payload.replace("=", " "))) is None:
        return None
    code = 0
    for part in filter(None, found[1].split("|")):
        value = encode(PFERR_LETTERS[part]) if part in PFERR_LETTERS else number(part, 10 if decimal else 16)
        if value is None:
            return None
        code |= value
    return code


def _usual(name: str, payload: str) -> dict[str, Any] | None:
    if name not in _USUAL:
        return None
    found = _PAYLOADS[name].fullmatch(payload)
    return None if found is None else _USUAL[name][1](*found.groups())


def _ended(name: str, payload: str) -> bool:
    """Say whether a payload has all of its values, so that the next line is no continuation of it."""
    ends = ENDS[name]
    if not ends:
        return bool(payload.strip())
    words = payload.translate(_SEPARATORS).split()
    for n, word in enumerate(words):
        if word.rstrip(":") in ends or _ALIASES.get(word.rstrip(":")) in ends:
            return len(words) > n + (2 if word == "info" else 1)
    return False


# --- what is no event of the kernel's ---

_VALUE = r"[\s:=(]{1,4}(0x[0-9a-fA-F]{1,16}|\d{1,20})"
_FLAGS = re.compile(rf"\bflags{_VALUE}")
_GPA = re.compile(rf"\b(?:gpa|GPA|start|address){_VALUE}")
_SIZE = re.compile(rf"\bsize{_VALUE}")
_MEMORY_FAULT = re.compile(r"memory[ _-]?fault|MemoryFault", re.IGNORECASE)
_CONVERT = re.compile(
    r"kvm_convert_memory:?\s{1,8}start (0x[0-9a-f]{1,16}) size (0x[0-9a-f]{1,16}) (shared_to_private|private_to_shared)"
)
_ATTRIBUTES = re.compile(r"KVM_SET_MEMORY_ATTRIBUTES[^{]{0,40}\{([^}]{1,300})\}")
_GUEST_PF = re.compile(r"#PF:? error_code[\s:(=]{1,3}(0x[0-9a-f]{1,8})")
_MMIO_SPTES = re.compile(
    r"(?:reserved bits set on MMU-present|detect reserved bits on) spte, addr 0x([0-9a-f]{1,16})"
)
_SPTE = re.compile(
    r"-{2,10} spte(?: =)? 0x([0-9a-f]{1,16}),? level(?: =)? (\d{1,2})(?:, rsvd bits(?: =)? 0x([0-9a-f]{1,16}))?"
)
_COUNT = re.compile(r"^\s*@(\w{0,60})\[([^\]]{1,200})\]:\s{1,8}(\d{1,18})\s*$")
_HVF = re.compile(
    r"(guest-physical address|exit[ _]qualification|guest linear address)\s{0,4}[=:]\s{0,4}(0x[0-9a-fA-F]{1,16})",
    re.IGNORECASE,
)
_RUN_FAILED = re.compile(
    r"\bioctl\(\d{1,5}(?:<[^>]{0,80}>)?, KVM_RUN\b[^=]{0,40}=\s{0,4}-1 (EFAULT|EHWPOISON|EIO|ENOMEM|EINVAL)\b"
)
"""What strace prints of a KVM_RUN that a fault can end."""
_UNKNOWN_EXIT = re.compile(r"unknown exit reason (\d{1,5})\b")
_LOG_TIME = re.compile(r"\[\s{0,8}(\d{1,9}\.\d{1,9})\]")
_LOST = re.compile(
    r"CPU:\d{1,5} \[(?:LOST )?(\d{1,18}) EVENTS(?: DROPPED)?\]|LOST (\d{1,18}) (?:EVENTS|events)"
)
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})")
_OURS = re.compile(
    r"(?<![\w/])(?:kvm_page_fault|kvm_exit|kvm_nested_vmexit|error_code|memory[ _]fault|MemoryFault|get_mmio_spte"
    r"|kvm_mmio\b|kvm_emulate_insn)"
)


def _stated(text: str) -> int | None:
    """Read a number as user space prints it: hexadecimal with 0x, else decimal; None if it has over 64 bits."""
    return number(text, 10)


_DUMPED = (
    "hitcount", "exit_", "exitcode", "exitinfo", "qual", "Qual", "IDTVectoring", "Suberror", "extra data[",
    "MemoryFault(", "error_code", "EPT violation", "gpa",
)  # fmt: skip
"""What lines of dumps hold, one of them at least."""

_SIGNS = (
    "memory", "#PF", "reserved bits", "spte", "exit reason", "@", "guest", "WARNING", "KVM_RUN",
    *_DUMPED,
)  # fmt: skip
_LOWER = frozenset(sign.lower() for sign in _SIGNS)
_LOWER_FRAMED = _LOWER - {"gpa"}
"""The same where a task, a CPU and a time stand before it: there "gpa" by itself tells nothing."""


def _may_be_loose(text: str, signs: frozenset[str] = _LOWER) -> bool:
    """Say whether a line holds what every line holds in which `_loose` finds anything."""
    lower = text.lower()
    return any(sign in lower for sign in signs)


def _loose(line: Line) -> list[Event]:
    """Read what a line holds besides the kernel's own events: user space's, bpftrace's and dmesg's."""
    text = line.text
    if not _may_be_loose(text):
        return []
    found: list[Event] = []
    when = _LOG_TIME.search(text)
    time = float(when[1]) if when else None

    def add(name: str, **fields: Any) -> None:
        found.append(Event(line.number, time, None, None, None, name, fields))

    if _MEMORY_FAULT.search(text) and (flags := _FLAGS.search(text)) and (gpa := _GPA.search(text)):
        size = _SIZE.search(text)
        values = {"flags": _stated(flags[1]), "gpa": _stated(gpa[1])}
        if None not in values.values():
            add("memory_fault", **values, size=_stated(size[1]) if size else None)
    if "kvm_convert_memory" in text and (done := _CONVERT.search(text)):
        add("conversion", gpa=int(done[1], 16), size=int(done[2], 16), private=done[3] == "shared_to_private")
    if "KVM_SET_MEMORY_ATTRIBUTES" in text and (done := _ATTRIBUTES.search(text)):
        gpa, size = _GPA.search(done[1]), _SIZE.search(done[1])
        if gpa and size and None not in (_stated(gpa[1]), _stated(size[1])):
            private = "PRIVATE" in done[1] or re.search(r"attributes=(?:0x)?8\b", done[1]) is not None
            add("conversion", gpa=_stated(gpa[1]), size=_stated(size[1]), private=private)
    if "#PF" in text and (code := _GUEST_PF.search(text)):
        add("guest_pf", error_code=int(code[1], 16))
    if "reserved bits" in text and (address := _MMIO_SPTES.search(text)):
        add("mmio_sptes", address=int(address[1], 16))
    if "spte" in text and (spte := _SPTE.search(text)):
        rsvd = int(spte[3], 16) if spte[3] else None
        add("spte", spte=int(spte[1], 16), level=int(spte[2]), rsvd=rsvd)
    if "WARNING" in text and (warned := WARNED.search(text)):
        add("warning", function=warned[1])
    if "KVM_RUN" in text and (failed := _RUN_FAILED.search(text)):
        add("run_failed", errno=failed[1])
    if message := MESSAGE.search(text):
        add("message", text=message[0])
    if "exit reason" in text and (reason := _UNKNOWN_EXIT.search(text)):
        add("unknown_exit", reason=int(reason[1]))
    if "@" in text and (count := _COUNT.match(text)):
        add("count", map=count[1], key=count[2], count=int(count[3]))
    if ("qualification" in text or "guest" in text) and (value := _HVF.search(text)):
        add(
            "hvf",
            **{value[1].lower().replace("-", " ").replace("_", " ").replace(" ", "_"): int(value[2], 16)},
        )
    if not found and any(sign in text for sign in _DUMPED) and not _FRAME.search(text):
        for name, fields in dumped(text):
            add(name, **fields)
    return found


class Reader:
    """Read events from lines, one pass, and remember what could not be read.

    `unread` holds the lines that look like ours and cannot be read (the first KEPT of them; `unread_count` counts
    all), `other` counts the lines that are none of ours, `lost` the events that the trace says were dropped,
    `entries` how many the header promises (None without one), `cut` the lines that were too long, `kernel` is the
    release of the kernel that was named first ("": none); `head` keeps the first HEAD of the lines that are none of
    ours.
    """

    KEPT, HEAD = 1000, 50

    def __init__(self) -> None:
        self.unread: list[Unread] = []
        self.head: list[str] = []
        self.unread_count = 0
        self.lines = self.other = self.lost = self.cut = self.foreign = 0
        self.entries: int | None = None
        self.kernel = ""
        self.shapes: set[str] = set()

    def refuse(self, number: int, text: str, why: str) -> None:
        """Keep a line that cannot be read."""
        self.unread_count += 1
        if len(self.unread) < self.KEPT:
            self.unread.append(Unread(number, text[:500], why))

    def read(self, stream: IO[bytes]) -> Iterator[Event]:
        """Yield the events of a text in its order."""
        pending: tuple[int, str, str, str, int] | None = None  # line, prefix, name, payload, lines it spans
        carry: str = ""
        open_record: list[str] = []  # a memory fault spread over lines
        start = 0
        for line in unpasted(physical_lines(stream, functools.partial(self._quick, open_record))):
            if self.other == SEARCHED and self.lines == SEARCHED:
                raise OSError(f"no event of a trace stands in its first {SEARCHED:,} lines")
            self.lines += 1
            if isinstance(line, Event):
                if pending:
                    yield from self._event(*pending[:4])
                    pending = None
                carry = ""
                if line is FOREIGN:
                    self.foreign += 1
                else:
                    yield line
                continue
            text = line.text
            if line.cut:
                self.cut += 1
                self.refuse(line.number, text, f"longer than {LONGEST} bytes")
                continue
            if not text and not pending and not open_record:
                carry = ""
                self.other += 1
                continue
            match = _named(text)
            if match is not None and match[1] in _FRAMED and not _FRAME.search(text[: match.start()]):
                match = None
            if match is not None:
                if pending:
                    yield from self._event(*pending[:4])
                prefix = text[: match.start()]
                if carry and not _FRAME.search(prefix):
                    prefix = f"{carry} {prefix.strip()}"
                name, payload = match[1], text[match.end() :]
                carry = ""
                if match[2] == ":" and (usual := _usual(name, payload)) is not None:
                    pending = None
                    yield Event(line.number, *_who(prefix), name, usual)
                    continue
                pending = (line.number, prefix, name + match[2], payload, 1)
                if _ended(name, payload):
                    yield from self._event(*pending[:4])
                    pending = None
                if "memory" in text or "kvm_convert" in text:
                    yield from _loose(line)
                continue
            if pending and text.strip() and pending[4] < WRAPPED and not _FRAME.search(text):
                number_, prefix, name, payload, span = pending
                payload = f"{payload} {text.strip()}"
                pending = (number_, prefix, name, payload, span + 1)
                if _ended(name[:-1], payload):
                    yield from self._event(*pending[:4])
                    pending = None
                continue
            if pending:
                yield from self._event(*pending[:4])
                pending = None
            carry = (
                text.strip()
                if _CUT_FRAME.search(text) or (_FRAME.search(text + " ") and text.rstrip().endswith(":"))
                else ""
            )
            if open_record:
                open_record.append(text.strip())
                if "}" in text or len(open_record) >= WRAPPED:
                    joined = _loose(Line(start, " ".join(open_record)))
                    if not joined:
                        self.refuse(start, " ".join(open_record), "a memory fault without flags or gpa")
                    yield from joined
                    open_record.clear()
                continue
            self.kernel = self.kernel or kernel_named(text)
            loose = _loose(line)
            yield from loose
            if loose or carry:
                continue
            if text.lstrip().startswith("#") and (entries := _ENTRIES.search(text)):
                self.entries = int(entries[1])
                self.lost += max(0, int(entries[2]) - int(entries[1]))
            elif "LOST" in text.upper() and (lost := _LOST.search(text.upper())):
                self.lost += int(lost[1] or lost[2])
            elif text.rstrip().endswith("{") and _MEMORY_FAULT.search(text):
                open_record.append(text)
                start = line.number
            elif _FRAME.search(text):
                self.foreign += 1  # an event that is none of ours
            elif _OURS.search(text) and not text.lstrip().startswith("#"):
                self.refuse(line.number, text, "it names one of our events, in no form that is known")
            else:
                self.other += 1
                if len(self.head) < self.HEAD:
                    self.head.append(text)
        if pending:
            yield from self._event(*pending[:4])
        if open_record:
            self.refuse(start, " ".join(open_record), "the file ends within it")

    @staticmethod
    def _quick(open_record: list[str], number: int, data: bytes) -> Event | None:
        """Read a whole line as tools print it, for speed: what `read` would make of it, or None if that must look."""
        if not data.isascii() or (found := _QUICK.fullmatch(text := data.decode())) is None:
            return None
        groups = found.groups()
        if (who := _quick_who(groups[0])) is None:
            return None
        cpu, task, pid = who
        time, system = float(groups[1]), groups[2]
        usual = _COMMONEST.get(found.lastindex or 0)
        if usual is not None:
            if system is not None and system not in _SYSTEMS:
                return None
            name, values, fields = usual
            return Event(number, time, cpu, task, pid, name, fields(*groups[values]))
        name, payload = groups[-2:]
        if payload.endswith(("=", "=20")) or "=3D" in payload or "FIND FIELD" in payload:
            return None
        if name not in ENDS:
            may_say_more = open_record or "[" in payload or text.rstrip().endswith(":") or system in ENDS
            if (
                may_say_more
                or _named(payload)
                or _may_be_loose(text, _LOWER_FRAMED)
                or "lost" in text.lower()
            ):
                return None
            return FOREIGN
        if system is not None and system not in _SYSTEMS:
            return None
        if "memory" in text or "kvm_convert" in text or not _ended(name, payload):
            return None
        read = payload_fields(name, payload, "[FAILED TO PARSE]" in payload)
        return None if read is None else Event(number, time, cpu, task, pid, name, *read)

    def _event(self, line: int, prefix: str, name: str, payload: str) -> Iterator[Event]:
        decimal, name = name.endswith("("), name[:-1]
        read = payload_fields(name, payload, decimal or "[FAILED TO PARSE]" in payload)
        if read is None:
            self.refuse(line, f"{prefix}{name}:{payload}", f"{name} without its values")
            return
        yield Event(line, *_who(prefix), name, *read)
