# SPDX-License-Identifier: GPL-2.0-only
"""One row of a table: its inputs read, run through the path, its outputs named."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from numbers import Integral
from operator import attrgetter
from types import FunctionType, MappingProxyType
from typing import Any

from kvm_pf.bits import encode
from kvm_pf.common.errnos import ERRNO_NAMES
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import bit_names
from kvm_pf.revisions import Revision, get, logic_names
from kvm_pf.run import tables
from kvm_pf.run.tables import (
    CASE_INPUTS,
    ENTRY_POINTS,
    MODE_COLUMNS,
    MODES,
    VM_TYPES,
    EntryPoint,
    Input,
    Output,
)
from kvm_pf.state import EFAULT, EIO, GFN_MASK, KVM_MEMORY_ATTRIBUTE_PRIVATE, Vcpu, gpa_to_gfn

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


ANSWERS = ("CONTINUE", "RETRY", "EMULATE", "INVALID", "FIXED", "SPURIOUS", "WRITE_PROTECTED")
"""The page-fault handler's answers, RET_PF_*.  Inputs give them by name, for their numbers changed with 6.12."""


@cache
def answers(revision: Revision) -> Mapping[str, int]:
    """The handler's answers that `revision` knows, by name, with its numbers."""
    known = {**logic_names(), **revision.names}
    return MappingProxyType({name: known[f"RET_PF_{name}"] for name in ANSWERS if f"RET_PF_{name}" in known})


def ret_pf_names(revision: Revision) -> dict[str, int]:
    """What the handler may answer, by name, with this revision's numbers: ANSWERS, and two errors."""
    return {**answers(revision), "EFAULT": -EFAULT, "EIO": -EIO}


def answer(value: int, revision: Revision) -> str:
    """Name an answer of the page-fault handler as `revision` counts them: RET_PF_* without that, or -errno.

    >>> answer(5, get("v6_12")), answer(5, get("posted")), answer(-14, get("posted"))
    ('FIXED', 'SPURIOUS', '-EFAULT')
    """
    names = {number: name for name, number in answers(revision).items()}
    return f"-{ERRNO_NAMES.get(-value, -value)}" if value < 0 else names.get(value, str(value))


def words(column: Input, revision: Revision) -> Mapping[str, int]:
    """The words that a column takes besides numbers."""
    if column.column == "kind" and not revision.has("tdx"):
        return {label: code for code, label in enumerate(column.labels) if label != "tdx"}
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
    right = f"one of {', '.join(known)}" if column.kind == "label" else limits(column)[2]
    return f"{right}, or one of {', '.join(known)}" if known and column.kind != "label" else right


def _unfold(given: dict[str, object]) -> None:
    """Put in the inputs that `mode` and `private` stand for."""
    if "mode" in given:
        mode = given.pop("mode")
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"mode={brief(mode)}: it takes one of {', '.join(MODES)}")
        for column, flag in zip(MODE_COLUMNS, MODES[mode], strict=True):
            given.setdefault(column, flag)
    if "private" in given:
        private = given.pop("private")
        bit = parse(private, Input("private", "bool", 0, ""), {})
        if bit not in (0, 1) or "attrs" in given:
            raise InputError(f"private={brief(private)}: it takes 0 or 1, and not beside attrs")
        given["attrs"] = bit * KVM_MEMORY_ATTRIBUTE_PRIVATE


def _value(column: Input, value: object, revision: Revision) -> int:
    known = words(column, revision)
    number = parse(value, column, known)
    if number is None and column.column == "error_code" and isinstance(value, str):
        try:
            number = encode(value)
        except ValueError as error:
            raise InputError(f"error_code={brief(value)}: {error}") from None
    low, high, _ = limits(column)
    if number is None or not low <= number <= high:
        raise InputError(f"{column.column}={brief(value)}: it takes {takes(column, known)}")
    return number


def entry_point(kind: str) -> EntryPoint:
    """Return the entry point whose tables are of `kind`.  Raises InputError naming those that there are."""
    if not isinstance(kind, str) or kind not in ENTRY_POINTS:
        raise InputError(f"kind {brief(kind)}: it takes {', '.join(ENTRY_POINTS)}")
    return ENTRY_POINTS[kind]


@lru_cache(maxsize=256)
def _defaults(kind: str, revision: Revision) -> dict[str, int]:
    """Every input of one row by name, as its default's number."""
    return {c.column: _value(c, c.default, revision) for c in entry_point(kind).inputs}


def row_values(kind: str, revision: str | Revision = "posted", /, **given: object) -> dict[str, int]:
    """Return every input of one row by name, as numbers: those given, and the defaults of the others.

    `kind` is one of `kvm_pf.run.tables.ENTRY_POINTS`.  Values are numbers or text as in a table; `error_code` also
    takes names of bits ("WRITE|USER"), `vm_type` the VM's kind ("sw-protected"), `pf_ret` the answer's name.  Where
    the columns are there, `mode` gives a paging mode, and `private=True` is short for `attrs=8`.  A `gfn` that is not
    given is that of `addr`.  Raises InputError naming the input and what it takes.
    """
    entry, revision = entry_point(kind), get(revision)
    columns = {column.column: column for column in entry.inputs}
    short = {"mode": "direct", "private": "attrs"}
    if all(short[name] in columns for name in short if name in given):
        _unfold(given)
    for name in given:
        if name not in columns:
            known = [*columns, *(name for name, column in short.items() if column in columns)]
            raise InputError(f"{entry.title} has no {name!r}; it has {', '.join(known)}")
    values = {**_defaults(kind, revision)}
    for name, column in columns.items():
        if name in given:
            values[name] = _value(column, given[name], revision)
    if "gfn" in columns and "addr" in given and "gfn" not in given:
        values["gfn"] = gpa_to_gfn(values["addr"])
    return values


def case_values(revision: str | Revision = "posted", **given: object) -> dict[str, int]:
    """Return every input of the cases tables by name; see `row_values`."""
    return row_values("cases", revision, **given)


def case_state(values: Mapping[str, int], revision: Revision) -> Vcpu:
    """Build the state that `values` (as `case_values` returns them) describe."""
    parameters = tables.case_vcpu.__code__.co_varnames[: tables.case_vcpu.__code__.co_argcount]
    given = {c.column: typed(c, values[c.column]) for c in CASE_INPUTS if c.column in parameters}
    vcpu: Vcpu = revision.link(tables.case_vcpu)(**given)
    return vcpu


def typed(column: Input, value: int) -> int | bool:
    """A column's number as the path takes it: flags as bool."""
    return bool(value) if column.kind == "bool" else value


# One row: what comes out

_asked = cache(re.compile(r"(\w+)\((.*)\)").fullmatch)
_getter = cache(attrgetter)


def outputs(kind: str, revision: str | Revision) -> list[Output]:
    """List the output columns that tables of `kind` have for `revision`, in order."""
    unwanted = "before 7.3" if get(revision).has("tdx") else "from 7.3"
    return [o for o in ENTRY_POINTS[kind].outputs if o.revisions != unwanted]


def run_row(
    kind: str,
    values: Mapping[str, int],
    revision: Revision,
    bind: Callable[[FunctionType], Any] | None = None,
) -> Any:
    """Run one row, its inputs as `row_values` returns them, and return the outcome; `bind` as for Revision.link."""
    entry = ENTRY_POINTS[kind]
    return revision.link(entry.row, bind)(*(typed(c, values[c.column]) for c in entry.inputs))


def cell(
    output: Output, outcome: Any, column: Callable[[str], Any], step: Callable[[str], Any]
) -> tuple[Any, Any]:
    """Whether an output was reached, and its value.

    `column` gives an input by name and `step` a function of the path; outputs that are not in the outcome need them.
    """
    reached = _getter(output.reached)(outcome) != 0 if output.reached else True
    if asked := _asked(output.path):
        return reached, step(asked[1])(*map(column, asked[2].split(", ")))
    return reached, _getter(output.path)(outcome)


def shown(output: Output, value: int) -> int | str:
    """An output's value as tables have it: names for warnings and labels."""
    if output.kind == "warns":
        return bit_names(value, output.labels)
    return output.labels[value] if output.kind == "label" else int(value)


def read_output(
    output: Output, outcome: Any, values: Mapping[str, int], revision: Revision
) -> int | str | None:
    """One output of a row that was run on `values`; None if it was not reached."""
    reached, value = cell(output, outcome, values.__getitem__, revision.link)
    return shown(output, value) if reached else None


def results(kind: str, revision: Revision, given: Mapping[str, Any]) -> dict[str, int | str | None]:
    """Run one row and return its outputs by column: int, text, or None for what was not reached.

    `given` is as for `row_values`.
    """
    values = row_values(kind, revision, **given)
    outcome = run_row(kind, values, revision)
    return {o.column: read_output(o, outcome, values, revision) for o in outputs(kind, revision)}
