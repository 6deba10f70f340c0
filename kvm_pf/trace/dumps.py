# SPDX-License-Identifier: GPL-2.0-only
"""Faults in what is no event of a trace: dumps of a VMCS or VMCB, QEMU's internal errors, lines of one's own script.

The dumps are those of KVM, bhyve and Xen.

`dumped` reads a line; `Dumps` puts the lines of one dump together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kvm_pf.run.places import CAST, EXTRA, Sure, fault_exit
from kvm_pf.trace.declared import Declared
from kvm_pf.trace.record import Fault

_VMCB = re.compile(r"\b(exit_code|exit_info1|exit_info2):\s{1,20}([0-9a-f]{1,16})\b")
_OTHERS_VMCB = re.compile(r"\bexit(code|info[12])\b\s{0,20}[:=]?\s{0,20}(?:0x)?([0-9a-f]{1,16})\b")
_BHYVE = re.compile(r"^\s{1,40}(exit_reason|qualification)\s{1,40}(0x[0-9a-f]{1,16}|[0-9]{1,5})\b")
_XEN = re.compile(r"\bEPT violation:? (0x[0-9a-f]{1,8}) .{0,40}\bgpa (0x[0-9a-f]{1,16})\b")
_VMCS = re.compile(r"\breason=([0-9a-f]{8}) qualification=([0-9a-f]{1,16})\b")
_VECTORING = re.compile(r"\bIDTVectoring: info=([0-9a-f]{8})\b")
_SUBERROR = re.compile(r"\bKVM internal error\. Suberror: (\d{1,3})\b")
_TUPLE = re.compile(r"\bMemoryFault\(\s{0,4}(0x[0-9a-f]{1,16}|\d{1,20}),\s{0,4}(0x[0-9a-f]{1,16}|\d{1,20}),")
_JSON = re.compile(r'"flags"\s?:\s?(\d{1,20}),\s?"gpa"\s?:\s?(\d{1,20}),\s?"size"\s?:\s?(\d{1,20})\b')
_HIST = re.compile(r"^\s{0,40}\{ (.{1,200}?) \} hitcount:\s{1,40}(\d{1,18})\b")
_QUALIFICATION = re.compile(
    r"\b(?:u?exit[ _]?)?qual(?:ification)?[\s:=]{1,4}(0x[0-9a-f]{1,8})\b", re.IGNORECASE
)
_SCRIPT = re.compile(
    r"\b(vcpu|vcpu_id|rip|guest_rip|gpa|GCPhys|addr|address|fault_address|error_code|ec|err|error|code)\b"
    r"[\s:=]{1,4}(0[xX][0-9a-fA-F]{1,16}|[0-9a-fA-F]{1,20})\b"
)
_CODES = ("error_code", "ec", "err", "error", "code")
_ADDRESSES = ("gpa", "GCPhys", "fault_address", "address", "addr")


def dumped(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a line of a dump: events of the names that `Dumps` and the joiner know, with their values."""
    if "hitcount" in text and (found := _HIST.search(text)):
        return [("count", {"map": "hist", "key": found[1], "count": int(found[2])})]
    if "extra data[" in text and (found := EXTRA.search(text)):
        return [("extra", {"n": int(found[1]), "value": int(found[2], 16)})]
    if "Suberror" in text and (found := _SUBERROR.search(text)):
        return [("suberror", {"number": int(found[1])})]
    if "exit_" in text and (found := _VMCB.search(text)):
        return [("vmcb", {found[1]: int(found[2], 16)})]
    if "exit" in text and (fields := _OTHERS_VMCB.findall(text)):
        return [("vmcb", {f"exit_{name}": int(value, 16)}) for name, value in fields]
    if ("exit_reason" in text or "qualification" in text) and (found := _BHYVE.match(text)):
        return [("bhyve", {found[1]: int(found[2], 16 if found[2][:2] == "0x" else 10)})]
    if "EPT violation" in text and (found := _XEN.search(text)):
        return [("script", {"error_code": int(found[1], 16), "address": int(found[2], 16)})]
    if "qualification=" in text and (found := _VMCS.search(text)):
        return [("vmcs", {"reason": int(found[1], 16), "qualification": int(found[2], 16)})]
    if "IDTVectoring" in text and (found := _VECTORING.search(text)):
        return [("vmcs_event", {"vectoring": int(found[1], 16)})]
    if "MemoryFault(" in text and (found := _TUPLE.search(text)):
        flags, gpa = (int(each, 16 if each[:2] == "0x" else 10) for each in found.groups())
        return [("memory_fault", {"flags": flags, "gpa": gpa, "size": None})] if gpa < 1 << 64 else []
    if '"gpa"' in text and (found := _JSON.search(text)):
        flags, gpa, size = (int(each) for each in found.groups())
        fits = max(flags, gpa, size) < 1 << 64
        return [("memory_fault", {"flags": flags, "gpa": gpa, "size": size})] if fits else []
    if "#PF" not in text and (
        "error_code" in text or "qual" in text.lower() or "gpa" in text or "addr" in text
    ):
        return _scripted(text)
    return []


def _scripted(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a fault as somebody's own script prints it: an address and a code, under their usual names.

    A code without 0x is hexadecimal or decimal, whichever makes sense; so is everything else on its line.
    """
    from kvm_pf.run.codes import read
    from kvm_pf.run.notation import HEX

    words = dict(_SCRIPT.findall(CAST.sub("", text).replace('"', "")))  # quotes: JSON
    code = next((words[name] for name in _CODES if name in words), None)
    if code is None and (qualification := _QUALIFICATION.search(text)):
        code = qualification[1]
    address = next((words[name] for name in _ADDRESSES if name in words), None)
    words.setdefault("rip", words.get("guest_rip", ""))
    words.setdefault("vcpu", words.get("vcpu_id", ""))
    if code is None or address is None:
        return []
    best = read(code).best
    if "error_code" not in words and "qual" not in text.lower() and best.sure < Sure.VERY_LIKELY:
        return []  # any error may be called so
    base = 16 if best.spelled == HEX else 10
    fields = {"error_code": best.code, "address": _value(address, base)}
    for name, its_base in (("rip", base), ("vcpu", 10)):
        if name in words:
            fields[name] = _value(words[name], its_base)
    known = {name: value for name, value in fields.items() if value is not None}
    return [("script", known)] if "address" in known else []


def _value(text: str, base: int) -> int | None:
    try:
        value = int(text, 16 if text[:2] in ("0x", "0X") else base)
    except ValueError:
        return None
    return value if value < 1 << 64 else None


class Dumps:
    """The dump that is being read: `row` is its fault so far, None without one."""

    def __init__(self) -> None:
        self.row: Fault | None = None
        self._exit = -1
        self._data: dict[int, int] = {}
        self._number = 0

    def take(self, name: str, line: int, time: float | None, f: dict[str, Any]) -> Iterator[Fault]:
        """Take the next line of a dump; yield the fault before, if another begins."""
        if name == "suberror":
            yield from self.done()
            self._number, self._data = f["number"], {}
        elif name == "extra" and self._number:
            self._data[f["n"]] = f["value"]
            self._internal_error(line, time)
        elif name == "vmcs":
            yield from self.done()
            kind = fault_exit(f["reason"])
            if kind:
                code = f["qualification"] if kind == "ept" else None
                self.row = Fault(line, time, raw_code=code, exit_code=code, source=kind)
        elif name == "vmcs_event" and self.row is not None:
            self.row.vectoring = f["vectoring"] or None
        elif name == "bhyve":
            yield from self._bhyve(line, time, f)
        elif name == "vmcb":
            yield from self._vmcb(line, time, f)

    def _bhyve(self, line: int, time: float | None, f: dict[str, Any]) -> Iterator[Fault]:
        """Take a line of a VMX exit as bhyve prints it: the reason, then the qualification."""
        if "exit_reason" in f:
            yield from self.done()
            self._exit = f["exit_reason"]
        elif fault_exit(self._exit) == "ept":
            code = f["qualification"]
            self.row = Fault(line, time, raw_code=code, exit_code=code, source="ept")

    def _vmcb(self, line: int, time: float | None, f: dict[str, Any]) -> Iterator[Fault]:
        if "exit_code" in f:
            yield from self.done()
            self._exit = f["exit_code"]
        elif "exit_info1" in f and fault_exit(self._exit) == "npf":
            self.row = Fault(line, time, raw_code=f["exit_info1"], exit_code=f["exit_info1"], source="npf")
        elif "exit_info2" in f and self.row is not None and self.row.source == "npf":
            self.row.address = f["exit_info2"]

    def _internal_error(self, line: int, time: float | None) -> None:
        """Note what the data so far tell.

        Source: Linux `arch/x86/kvm/x86.c`, prepare_emulation_failure_exit(), `vmx.c`, __vmx_handle_exit() (v6.12).
        """
        data, first = self._data, 1
        if self._number == 1:
            first = {0: 1, 1: 3}.get(data.get(0, -1), 99)
        elif self._number != 3:
            return
        kind = fault_exit(data.get(first, -1) & 0xFFFF)
        if kind is None or (self._number == 3 and kind == "npf"):
            return
        code = None if kind == "misconfig" else data.get(first + 1)
        if self.row is None:
            self.row = Fault(
                line, time, source=kind, user_exit="KVM_EXIT_INTERNAL_ERROR", failed=self._number == 1
            )
        row = self.row
        row.raw_code = row.exit_code = code
        if self._number == 3:
            row.vectoring = data.get(0) or None
            if 4 in data and data[3] < 1 << 52:
                row.address = data[3]
        elif kind == "npf":
            row.address = data.get(first + 2)

    def done(self) -> Iterator[Fault]:
        """Yield the fault of the dump that has ended."""
        row, self.row, self._exit, self._number = self.row, None, -1, 0
        if row is not None:
            yield row


def place(row: Fault, known: Declared) -> None:
    """Note what memory a dump's fault is in was last declared."""
    if row.address is not None and row.source != "pf":
        row.declared, row.conversion = known.at(row.address)
