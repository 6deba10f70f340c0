# SPDX-License-Identifier: GPL-2.0-only
"""Reading inputs: one value of one column, and one fault given by name."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from kvm_pf.bits import encode
from kvm_pf.common.errors import InputError
from kvm_pf.revisions import Revision, get
from kvm_pf.run import tables
from kvm_pf.run.tables import CASE_INPUTS, MODE_COLUMNS, MODES, VM_TYPES, Input
from kvm_pf.state import GFN_MASK, KVM_MEMORY_ATTRIBUTE_PRIVATE, Vcpu

U64_MAX = (1 << 64) - 1

_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|[0-9]{1,40})")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def number(text: str) -> int | None:
    """Read a whole number, decimal or hexadecimal with 0x; None if `text` is none.

    >>> number("0x1F"), number("031"), number("31 ")
    (31, 31, None)
    """
    if not _NUMBER.fullmatch(text):
        return None
    return int(text, 16 if text.lstrip("-")[:2] in ("0x", "0X") else 10)


def brief(value: object) -> str:
    """Show a value that is wrong, on one line and not too long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return " ".join(_REPR.repr(value).split())


def limits(column: Input) -> tuple[int, int, str]:
    """Return the least and the greatest number that a column takes, and that in words."""
    if column.column == "gfn":
        return 0, GFN_MASK, "a frame number of 52 bits"
    if column.kind == "u64":
        return 0, U64_MAX, "an unsigned 64-bit number"
    if column.kind == "bool":
        return 0, 1, "0 or 1"
    if column.kind == "label":
        return 0, len(column.labels) - 1, f"one of {', '.join(column.labels)}"
    low, high = column.span
    return low, high, f"a whole number from {low} to {high}"


def ret_pf_names(revision: Revision) -> dict[str, int]:
    """The handler's possible answers by name, with this revision's numbers."""
    words = ("CONTINUE", "RETRY", "EMULATE", "INVALID", "FIXED", "SPURIOUS")
    names: dict[str, int] = {word: revision.step(f"RET_PF_{word}") for word in words}
    if "RET_PF_WRITE_PROTECTED" in revision.names:
        names["WRITE_PROTECTED"] = revision.names["RET_PF_WRITE_PROTECTED"]
    return {**names, "EFAULT": -14, "EIO": -5}


def words(column: Input, revision: Revision) -> Mapping[str, int]:
    """The words that a column takes besides numbers."""
    if column.kind == "label":
        return {label: code for code, label in enumerate(column.labels)}
    if column.column == "pf_ret":
        return ret_pf_names(revision)
    if column.column == "access":
        return {"ACC_ALL": revision.step("ACC_ALL")}
    if column.column == "vm_type":
        return {name: number for number, name in enumerate(VM_TYPES)}
    return {}


def parse(value: object, column: Input, known: Mapping[str, int]) -> int | None:
    """Read one value: a whole number, text (decimal, or hexadecimal with 0x), or a known word; None if it is none.

    A label is given by its word, not by its number.
    """
    if isinstance(value, str):
        if value in known:
            return known[value]
        return None if column.kind == "label" else number(value)
    if type(value) is bool or type(value).__name__ in ("bool_", "bool"):
        return int(bool(value)) if column.kind == "bool" else None
    return int(value) if column.kind != "label" and isinstance(value, Integral) else None


def takes(column: Input, known: Mapping[str, int]) -> str:
    """Say what a column takes."""
    right = limits(column)[2]
    return f"{right}, or one of {', '.join(known)}" if known and column.kind != "label" else right


def case_values(revision: str | Revision = "posted", **given: object) -> dict[str, int]:
    """Return every input of the cases tables by name: those given, and the defaults of the others.

    Values are numbers or text as in a table; `error_code` also takes names of bits ("WRITE|USER"), `vm_type`
    the VM's kind ("sw-protected"), `pf_ret` (or `pf_ret_name`) the answer's name, `mode` a paging mode,
    `private=True` is short for `attrs=8`.  Raises InputError naming the input and what it takes.
    """
    revision = get(revision)
    if "mode" in given:
        mode = given.pop("mode")
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"mode={brief(mode)}: it takes one of {', '.join(MODES)}")
        given = {**dict(zip(MODE_COLUMNS, MODES[mode], strict=True)), **given}
    if "pf_ret_name" in given:
        given.setdefault("pf_ret", given.pop("pf_ret_name"))
    if "private" in given:
        private = given.pop("private")
        bit = parse(private, Input("private", "bool", 0, ""), {})
        if bit not in (0, 1) or "attrs" in given:
            raise InputError(f"private={brief(private)}: it takes 0 or 1, and not beside attrs")
        given["attrs"] = bit * KVM_MEMORY_ATTRIBUTE_PRIVATE
    columns = {column.column: column for column in CASE_INPUTS}
    for name in given:
        if name not in columns:
            raise InputError(f"a fault has no {name!r}; it has {', '.join(columns)}, mode, private")
    values = {}
    for name, column in columns.items():
        value, known = given.get(name, column.default), words(column, revision)
        number = parse(value, column, known)
        if number is None and name == "error_code" and isinstance(value, str):
            try:
                number = encode(value)
            except ValueError as error:
                raise InputError(f"error_code={brief(value)}: {error}") from None
        low, high, _ = limits(column)
        if number is None or not low <= number <= high:
            raise InputError(f"{name}={brief(value)}: it takes {takes(column, known)}")
        values[name] = number
    return values


def case_state(values: Mapping[str, int], revision: Revision) -> Vcpu:
    """Build the state that `values` (as `case_values` returns them) describe."""
    typed: dict[str, Any] = {
        c.column: bool(values[c.column]) if c.kind == "bool" else values[c.column] for c in CASE_INPUTS
    }
    for argument in ("error_code", "cr2_or_gpa", "insn_len"):
        del typed[argument]
    vcpu: Vcpu = revision.link(tables.case_vcpu)(**typed)
    return vcpu
