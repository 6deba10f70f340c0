# SPDX-License-Identifier: GPL-2.0-only
"""Read trace-cmd's binary trace.dat, versions 6 and 7, zlib- and zstd-compressed sections included.

Source: the manual pages trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5); the ring buffer's pages as in Linux
`include/linux/ring_buffer.h` and `kernel/trace/ring_buffer.c` (v6.1).
"""

from __future__ import annotations

import heapq
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.run.refusals import kernel_named
from kvm_pf.trace.lines import _ALIASES, _KEYS, ENDS, UNPACKED, Event, Reader

MAGIC = b"\x17\x08\x44tracing"
_OPTION_DONE, _OPTION_BUFFER, _OPTION_UNAME = 0, 3, 5
_HEADER_INFO, _FTRACE, _FORMATS, _CMDLINES = 16, 17, 18, 21
_LARGEST = 1 << 30
"""The most bytes that a compressed section may unpack to."""


class _Field(NamedTuple):
    name: str
    offset: int
    size: int
    signed: bool
    kind: str


class _Format(NamedTuple):
    name: str
    fields: dict[str, _Field]
    symbols: dict[str, dict[int, str]]
    results: dict[str, int]  # what fast_page_fault's "spurious" and "fixed" compare its result with


class _Bytes:
    """Bytes read in order; every step beyond the end is an InputError that names the place."""

    def __init__(self, name: str, data: Any, order: str, at: int = 0) -> None:
        self.name, self.data, self.order, self.at = name, data, order, at

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise InputError(
                f"{self.name}: byte {self.at}: {size} bytes are wanted, the file ends: it was cut"
            )
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little" if self.order == "<" else "big")

    def text(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise InputError(f"{self.name}: byte {self.at}: a text without an end")
        found = bytes(self.data[self.at : end]).decode(errors="replace")
        self.at = end + 1
        return found


def _unpack(name: str, packing: str, data: bytes, size: int) -> bytes:
    if size > _LARGEST:
        raise InputError(f"{name}: a compressed section of {size} bytes; {_LARGEST} is the most")
    try:
        if packing == "zstd":
            import pyarrow as pa

            return bytes(pa.Codec("zstd").decompress(data, size, asbytes=True))
        if packing == "zlib":
            unpacking = zlib.decompressobj()
            content = unpacking.decompress(data, size) if size else b""
            if len(content) == size and not unpacking.decompress(unpacking.unconsumed_tail, 1):
                return content
            raise zlib.error(f"it does not hold the {size} bytes that it declares")
    except (OSError, zlib.error) as error:
        raise InputError(f"{name}: a compressed section cannot be unpacked: {error}") from error
    raise InputError(f"{name}: compression {packing!r:.40} is not known; zlib and zstd are")


_FIELD = re.compile(r"\s*field:(.{1,200}?);\s*offset:(\d{1,6});\s*size:(\d{1,6});(?:\s*signed:(\d);)?")
_SYMBOLS = re.compile(r"__print_symbolic\(REC->(\w{1,40})(?: & \w{1,10})?,((?:\s?\{[^}]{1,80}\},?)+)\)")
_PAIR = re.compile(r"\{\s*([^,}]{1,40}),\s*(\"[^}]{1,80})\}")


def _value(text: str) -> int | None:
    """Evaluate "0x040 + 14", the sums that formats hold; None for anything else."""
    total = 0
    for part in text.split("+"):
        try:
            total += int(part.strip().strip("()"), 0)
        except ValueError:
            return None
    return total


def _format(text: str) -> tuple[int, _Format] | None:
    name = re.search(r"^name: (\S{1,100})", text, re.MULTILINE)
    number = re.search(r"^ID: (\d{1,6})", text, re.MULTILINE)
    if not name or not number:
        return None
    fields = {}
    for line in text.splitlines():
        if found := _FIELD.match(line):
            what = found[1].split()[-1].split("[")[0].lstrip("*")
            fields[what] = _Field(what, int(found[2]), int(found[3]), found[4] == "1", found[1])
    symbols: dict[str, dict[int, str]] = {}
    if name[1] in ENDS:
        printed = text.partition("print fmt:")[2]
        for n, found in enumerate(_SYMBOLS.finditer(printed)):
            pairs = {
                v: "".join(re.findall(r'"([^"]*)"', s))
                for value, s in _PAIR.findall(found[2])
                if (v := _value(value)) is not None
            }
            symbols[found[1] if found[1] not in symbols else f"{found[1]} {n}"] = pairs
    results = re.findall(r"REC->ret == (\d{1,3})", text)
    named = dict(zip(("spurious", "fixed"), map(int, results), strict=False))
    return int(number[1]), _Format(name[1], fields, symbols, named)


class TraceDat:
    """A trace.dat, its formats and buffers found; `events` reads them in the order of time.

    Takes the whole file as bytes or a memory map, and its name for messages.  `limit` is the most bytes that its
    compressed sections may hold together.  Raises InputError for a file that is none, is cut, holds more, or is of a
    version or compression that is not known.
    """

    def __init__(self, name: str, data: Any, reader: Reader | None = None, limit: int = UNPACKED) -> None:
        self.name, self.data, self.limit, self.left = name, data, limit, limit
        self.reader = reader or Reader()
        self.formats: dict[int, _Format] = {}
        self.tasks: dict[int, str] = {}
        self.cpus: list[tuple[int, int, int, bool]] = []  # number, offset, size, compressed
        self.page_size, self.packing = 4096, "none"
        head = _Bytes(name, data, "<")
        if head.take(len(MAGIC)) != MAGIC:
            raise InputError(f"{name}: no trace.dat: it begins with other bytes")
        version = head.text()
        self.order = "<" if head.number(1) == 0 else ">"
        head.order = self.order
        self.long = head.number(1)
        self.page_size = head.number(4)
        if version not in ("6", "7") or self.long not in (4, 8) or not 512 <= self.page_size <= 1 << 26:
            raise InputError(f"{name}: trace.dat of version {version!r:.20}: 6 and 7 are read")
        self.commit_at, self.commit_size, self.data_at = 8, self.long, 8 + self.long
        if version == "6":
            self._version_6(head)
        else:
            self.packing = head.text()
            head.text()
            self._options(head.number(8))
        if sum(size for _, _, size, _ in self.cpus) > len(data):
            raise InputError(f"{name}: its CPUs have more bytes than the file: it was cut, or they overlap")

    def _at(self, offset: int) -> _Bytes:
        return _Bytes(self.name, self.data, self.order, offset)

    # --- version 6: everything in a row ---

    def _version_6(self, head: _Bytes) -> None:
        self._header_info(head)
        self._ftrace_formats(head)
        self._formats(head)
        head.take(head.number(4))  # kallsyms
        head.take(head.number(4))  # printk
        self._cmdlines(head.take(head.number(8)))
        cpus = head.number(4)
        kind = head.take(10)
        if kind == b"options  \0":
            while option := head.number(2):
                self._uname(option, head.take(head.number(4)))
            kind = head.take(10)
        if kind != b"flyrecord\0":
            raise InputError(f"{self.name}: byte {head.at - 10}: no flyrecord section: {kind!r}")
        for cpu in range(cpus):
            self.cpus.append((cpu, head.number(8), head.number(8), False))

    # --- version 7: sections, found through options ---

    def _section(self, offset: int) -> tuple[int, _Bytes, bool]:
        at = self._at(offset)
        kind, flags, _, size = at.number(2), at.number(2), at.number(4), at.number(8)
        return kind, _Bytes(self.name, at.take(size), self.order), bool(flags & 1)

    def _unpacked(self, section: _Bytes, packed: bool) -> _Bytes:
        return _Bytes(self.name, self._unpack(section), self.order) if packed else section

    def _unpack(self, at: _Bytes) -> bytes:
        """Unpack what stands here: its packed size, its whole size, its bytes."""
        size, whole = at.number(4), at.number(4)
        self.left -= whole
        if self.left < 0:
            raise InputError(
                f"{self.name}: it unpacks to more than {self.limit:,} bytes; --limit raises that"
            )
        return _unpack(self.name, self.packing, at.take(size), whole)

    def _options(self, offset: int) -> None:
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            _, body, packed = self._section(offset)
            options = self._unpacked(body, packed)
            offset = 0
            while options.at + 6 <= len(options.data):
                kind, size = options.number(2), options.number(4)
                option = _Bytes(self.name, options.take(size), self.order)
                if kind == _OPTION_DONE:
                    offset = option.number(8) if size >= 8 else 0
                    break
                self._uname(kind, option.data)
                if kind == _OPTION_BUFFER:
                    self._buffer(option)
                elif kind in (_HEADER_INFO, _FTRACE, _FORMATS, _CMDLINES) and size >= 8:
                    _, body, packed = self._section(option.number(8))
                    section = self._unpacked(body, packed)
                    if kind == _HEADER_INFO:
                        self._header_info(section)
                    elif kind == _FTRACE:
                        self._ftrace_formats(section)
                    elif kind == _FORMATS:
                        self._formats(section)
                    else:
                        self._cmdlines(section.take(section.number(8)))

    def _uname(self, kind: int, data: bytes) -> None:
        if kind == _OPTION_UNAME:
            self.reader.kernel = kernel_named(data.decode(errors="replace"))

    def _buffer(self, option: _Bytes) -> None:
        at = self._at(option.number(8))
        at.number(2)
        packed = bool(at.number(2) & 1)
        option.text()
        option.text()
        self.page_size = option.number(4) or self.page_size
        if not 512 <= self.page_size <= 1 << 26:
            raise InputError(f"{self.name}: pages of {self.page_size} bytes; 512 to {1 << 26} are read")
        for _ in range(option.number(4)):
            cpu, offset, size = option.number(4), option.number(8), option.number(8)
            if size:
                self.cpus.append((cpu, offset, size, packed))

    # --- what both hold ---

    def _header_info(self, at: _Bytes) -> None:
        at.text()
        page = at.take(at.number(8)).decode(errors="replace")
        for line in page.splitlines():
            if (found := _FIELD.match(line)) and found[1].split()[-1] == "commit":
                self.commit_at, self.commit_size = int(found[2]), int(found[3])
            elif found and found[1].split()[-1].split("[")[0] == "data":
                self.data_at = int(found[2])
        at.text()
        at.take(at.number(8))

    def _ftrace_formats(self, at: _Bytes) -> None:
        for _ in range(at.number(4)):
            form = _format(at.take(at.number(8)).decode(errors="replace"))
            if form:
                self.formats[form[0]] = form[1]

    def _formats(self, at: _Bytes) -> None:
        for _ in range(at.number(4)):
            at.text()
            self._ftrace_formats(at)

    def _cmdlines(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            pid, _, task = line.partition(" ")
            if pid.isascii() and pid.isdigit() and len(pid) <= 10:
                self.tasks[int(pid)] = task

    # --- events ---

    def _pages(self, offset: int, size: int, packed: bool) -> Iterator[bytes]:
        at = self._at(offset)
        if not packed:
            for _ in range(size // self.page_size):
                yield at.take(self.page_size)
            return
        for _ in range(at.number(4)):
            chunk = self._unpack(at)
            for start in range(0, len(chunk), self.page_size):
                yield chunk[start : start + self.page_size]

    def _records(self, cpu: int, offset: int, size: int, packed: bool) -> Iterator[tuple[int, int, bytes]]:
        """Yield time in ns, CPU and bytes of each record of a CPU."""
        u32 = struct.Struct(self.order + "I")
        for page in self._pages(offset, size, packed):
            time = int.from_bytes(page[:8], "little" if self.order == "<" else "big")
            commit = int.from_bytes(
                page[self.commit_at : self.commit_at + self.commit_size],
                "little" if self.order == "<" else "big",
            )
            at, end = self.data_at, self.data_at + (commit & 0xFFFFFFF)
            if commit >> 31 & 1:  # events were missed before this page; bit 30: their number follows the data
                after = page[end : end + self.long]
                self.reader.lost += (
                    int.from_bytes(after, "little") if commit >> 30 & 1 and len(after) == self.long else 1
                )
            end = min(end, len(page))
            while at + 4 <= end:
                (word,) = u32.unpack_from(page, at)
                kind, delta = (word & 31, word >> 5) if self.order == "<" else (word >> 27, word & 0x7FFFFFF)
                at += 4
                if 1 <= kind <= 28:
                    time += delta
                    yield time, cpu, page[at : at + kind * 4]
                    at += kind * 4
                    continue
                if kind == 29 and not delta:
                    break
                if at + 4 > end:
                    break
                (extra,) = u32.unpack_from(page, at)
                if kind == 0:
                    time += delta
                    if extra < 4:
                        break
                    yield time, cpu, page[at + 4 : at + extra]
                    at += (extra + 3) // 4 * 4
                elif kind == 29:
                    time += delta
                    at += max(4, (extra + 3) // 4 * 4)
                elif kind == 30:
                    time += (extra << 27) + delta
                    at += 4
                else:
                    time = (time >> 59 << 59) | (extra << 27) + delta
                    at += 4

    def events(self) -> Iterator[Event]:
        """Yield the events that this package reads, in the order of time; others are counted in `reader.foreign`."""
        streams = [self._records(*cpu) for cpu in self.cpus]
        for n, (time, cpu, data) in enumerate(heapq.merge(*streams, key=lambda record: record[0]), 1):
            self.reader.lines += 1
            event = self._event(n, time, cpu, data)
            if event is None:
                self.reader.foreign += 1
            else:
                yield event

    def _event(self, n: int, time: int, cpu: int, data: bytes) -> Event | None:
        order = "little" if self.order == "<" else "big"
        form = self.formats.get(int.from_bytes(data[:2], order))  # type: ignore[arg-type]
        if form is None or form.name not in ENDS:
            return None
        pid = int.from_bytes(data[4:8], order, signed=True)  # type: ignore[arg-type]
        raw: dict[str, Any] = {}
        for name, spec in form.fields.items():
            if name.startswith("common_"):
                continue
            part = data[spec.offset : spec.offset + spec.size]
            if ("char" in spec.kind and "[" in spec.kind) or name == "insn":
                raw[name] = part if spec.size else data[spec.offset :]
            elif spec.size <= 8:  # what is wider is no number
                raw[name] = int.from_bytes(part, order, signed=spec.signed)  # type: ignore[arg-type]
        fields = self._named(form, raw)
        task = self.tasks.get(pid, "<idle>" if pid == 0 else "<...>")
        if fields is None:
            self.reader.refuse(n, f"{form.name}: {raw}", "its format has other fields than are known")
            return None
        name = "tracing_mark_write" if form.name == "print" else form.name
        return Event(n, time / 1e9, cpu, task, pid, name, fields)

    def _named(self, form: _Format, raw: dict[str, Any]) -> dict[str, Any] | None:
        """Call the fields as the text does."""
        fields = {key: value for name, value in raw.items() if (key := _ALIASES.get(name, name)) in _KEYS}
        if form.name == "kvm_page_fault" and not {"address", "error_code"} <= fields.keys():
            return None
        if form.name == "kvm_exit" and "exit_reason" not in raw:
            return None
        if "exit_reason" in raw:
            tables = [pairs for key, pairs in form.symbols.items() if key.startswith("exit_reason")]
            svm = raw.get("isa", 1) != 1 and len(tables) > 1
            reason = raw["exit_reason"] if svm else raw["exit_reason"] & 0xFFFF
            table = tables[1] if svm else tables[0] if tables else {}
            fields["reason"] = table.get(reason, f"{reason:#x}")
        if form.name == "kvm_userspace_exit":
            table = form.symbols.get("reason", {})
            errno = raw.get("errno", 0)
            reason = raw.get("reason", 0)
            names = {-4: "restart"} if errno < 0 else {errno: table.get(reason, str(reason))}
            fields |= {"reason": names.get(errno, "error"), "exit": reason}
            if errno < 0:
                fields["errno"] = -errno
        if form.name == "check_mmio_spte":
            fields["valid"] = int(raw.get("kvm_gen") == raw.get("spte_gen"))
        if form.name == "kvm_mmio":
            fields["type"] = form.symbols.get("type", {}).get(raw.get("type", -1), "")
        if form.name == "kvm_emulate_insn":
            fields["insn"] = bytes(raw.get("insn", b""))[: raw.get("len", 15)].hex(" ")
            fields["failed"] = bool(raw.get("failed"))
        if form.name == "kvm_inj_exception":
            table = form.symbols.get("exception", {})
            fields["exception"] = table.get(raw.get("exception", -1), str(raw.get("exception")))
            fields["again"] = bool(raw.get("reinjected", 0))
        if form.name == "fast_page_fault" and "ret" in raw:
            fields = {key: fields[key] for key in ("vcpu", "sptep") if key in fields}
            fields |= {"gva": raw.get("cr2_or_gpa", 0), "error_code": raw.get("error_code")}
            fields |= {word: int(raw["ret"] == value) for word, value in form.results.items()}
        if form.name in ("print", "bprint"):
            text = raw.get("buf", b"")
            fields["text"] = (
                (text if isinstance(text, bytes) else b"").split(b"\0")[0].decode(errors="replace").strip()
            )
        if form.name == "pf":
            return fields if "err" in fields else None
        return fields
