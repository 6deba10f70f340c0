# SPDX-License-Identifier: GPL-2.0-only
"""The curated cases: read from data/cases, run, and held against what they expect.

It all needs nothing but the standard library, so that cases can judge a change wherever Python runs.
`kvm_pf.conformance.corpus` has the same cases as a table, checked as a whole.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.common.text import bit_names
from kvm_pf.exits import SOURCE_WARN_NAMES
from kvm_pf.revisions import Revision, get
from kvm_pf.run.inputs import brief, number, results, row_values, run_row
from kvm_pf.state import KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM, KVM_X86_TDX_VM, PAGE_SIZE

CASE_FIELDS = {
    "id": str, "kind": str, "why": str, "flags": list, "source": str, "input": dict, "expect": dict,
}  # fmt: skip
"""What a case in data/cases has, and as what; one of kind call has a `function`, too."""

NO_OUTPUT = "no such output"
"""What a difference has got where the model has no output of that name."""

CASE_COLUMNS = {
    "id": "the case's name, a slug that names the property of its input",
    "topic": "the file it stands in",
    "kind": "cases, sources, faultin (a table of kvm_pf.run.tables) or call (one function)",
    "function": 'kind call: the function\'s name; otherwise ""',
    "revision": "the revision that this expectation is for",
    "why": "what the case shows, in a sentence",
    "flags": "properties of the input, a tuple of words",
    "source": "where the expectation comes from: Linux path and commit, or message-id",
    "input": "the inputs that differ from the defaults, by column",
    "expect": "the outputs that the case fixes, by column; None: not reached",
}
"""What a row has, in order: text, but for flags (tuple), input and expect (dicts of int, str or None)."""


class CaseDifference(NamedTuple):
    """One value in which the model differs from a curated case."""

    id: str
    revision: str
    column: str
    expected: Any
    got: Any


def _values(given: Any, place: str) -> dict[str, Any]:
    """Turn "0x…" into a number and "" into None; leave words alone."""
    if not isinstance(given, dict):
        raise InputError(f"{place}: {brief(given)} is no table of values")
    values = {}
    for name, value in given.items():
        values[name] = value
        if type(value) is not int and not isinstance(value, str):
            raise InputError(f"{place}: {name} is {brief(value)}; it takes a number or text")
        if isinstance(value, str) and value.startswith("0x"):
            values[name] = number(value)
            if values[name] is None:
                raise InputError(f"{place}: {name} is {brief(value)}, which is no number")
        elif value == "" and name != "warns":  # no warning is the empty text, not a blank
            values[name] = None
    return values


def case_files(folder: Path) -> list[Path]:
    """List the files of cases; flags.toml beside them explains the flags."""
    return sorted(path for path in (folder / "cases").glob("*.toml") if path.name != "flags.toml")


def changed_at(file: Path) -> int:
    """Return the time of a file's last change in nanoseconds; 0 for a link that leads nowhere."""
    return file.stat().st_mtime_ns if file.exists() else 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        cases = tomllib.loads(path.read_text(encoding="utf-8"))["case"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a file of cases ({error})") from None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise InputError(f"{path}: not a file of cases (case is no array of tables)")
    for count, case in enumerate(cases, 1):
        place = f"{path}, case {count} ({brief(case.get('id', 'no id'))})"
        fields = {**CASE_FIELDS, "function": str} if "function" in case else CASE_FIELDS
        wrong = set(case) ^ set(fields) or {f for f, kind in fields.items() if not isinstance(case[f], kind)}
        if wrong:
            right = ", ".join(f"{field} ({kind.__name__})" for field, kind in fields.items())
            raise InputError(f"{place}: {', '.join(sorted(wrong))}: a case has {right}")
        common = {key: case[key] for key in ("id", "kind", "why", "source")}
        common |= {"topic": path.stem, "function": case.get("function", ""), "flags": tuple(case["flags"])}
        common["input"] = _values(case["input"], place)
        for revisions, expect in case["expect"].items():
            if isinstance(expect, dict) and isinstance(expect.get("result"), dict):
                expect = expect["result"]  # a call with several results
            for revision in revisions.split():
                yield {**common, "revision": revision, "expect": _values(expect, f"{place}, {revision}")}


def read_cases(folder: Path | None = None) -> list[dict[str, Any]]:
    """Return the curated cases in `folder`/cases (without it: the package's own), one row a case and revision.

    A row has what CASE_COLUMNS names, and is the caller's to change.
    Raises InputError naming the file, and the case in it, if one cannot be read.
    """
    files = case_files(data_dir() if folder is None else folder)
    known = tuple((file, changed_at(file)) for file in files)
    return [{**row, "input": {**row["input"]}, "expect": {**row["expect"]}} for row in _rows(known)]


@lru_cache(maxsize=4)
def _rows(files: tuple[tuple[Path, int], ...]) -> tuple[dict[str, Any], ...]:
    """The rows of files as they are, with the time of each one's last change."""
    return tuple({name: row[name] for name in CASE_COLUMNS} for file, _ in files for row in _read(file))


# Running them


def run_case(row: Mapping[str, Any], revision: str | Revision | None = None) -> dict[str, Any]:
    """Run one row and return the model's outputs by name, on its own revision or on another.

    Raises InputError if the revision does not take the row's inputs.
    """
    run_on = get(row["revision"] if revision is None else revision)
    if row["kind"] == "call":
        return call(row["function"], row["input"], run_on)
    return results(row["kind"], run_on, row["input"])


def differences(
    rows: Iterable[Mapping[str, Any]], revision: str | Revision | None = None
) -> list[CaseDifference]:
    """Run rows and list every expected value that the model does not give.

    `revision` runs them all on one revision (a name, or one that was derived) whatever they are for.
    """
    found = []
    for row in rows:
        got = run_case(row, revision)
        for column, expected in row["expect"].items():
            value = got.get(column, NO_OUTPUT)
            if value != expected:
                found.append(CaseDifference(row["id"], row["revision"], column, expected, value))
    return found


def _result(function: str) -> Callable[..., dict[str, Any]]:
    def called(revision: Any, **given: int) -> dict[str, Any]:
        return {"result": int(revision.link(function)(**given))}

    return called


def _with_format(function: str) -> Callable[..., dict[str, Any]]:
    def called(revision: Any, mmio_cfg: int, **given: int) -> dict[str, Any]:
        return {"result": revision.link(function)(revision.link("mmio_format")(mmio_cfg, True), **given)}

    return called


def _page_ready(revision: Any, error_code: int = 0, **given: Any) -> dict[str, Any]:
    given = {"cr2_or_gpa": PAGE_SIZE, "put_off_code": error_code, **given}
    ready = run_row("page_ready", row_values("page_ready", revision, **given), revision)
    fault = ready.handled.fault if ready.handled.called else None
    return {
        "mmu_called": int(ready.handled.called),
        "mmu_addr": fault and fault.addr,
        "mmu_error_code": fault and fault.error_code,
        "prefetch": fault and int(fault.prefetch),
        "is_private": fault and int(fault.is_private),
        "attr_lookups": ready.handled.lookups.count,
        "warns": bit_names(ready.warns, SOURCE_WARN_NAMES),
        **{name: getattr(ready.handled.stats, name) + count for name, count in ready.stats._asdict().items()},
    }


def _pre_fault(
    revision: Any, gpa: int, has_private_mem: int, attrs: int, direct_bits: int, **given: Any
) -> dict[str, Any]:
    private = KVM_X86_TDX_VM if direct_bits else KVM_X86_SW_PROTECTED_VM
    vm_type = private if has_private_mem else KVM_X86_DEFAULT_VM
    given |= {"cr2_or_gpa": gpa, "vm_type": vm_type, "attrs": attrs, "direct_bits": direct_bits}
    done = run_row("pre_fault", row_values("pre_fault", revision, **given), revision)
    return {
        "result": done.ret,
        "error_code": done.error_code,
        "addr": done.addr,
        "calls": done.calls,
        "prefetch": int(done.handled.fault.prefetch) if done.handled.called else None,
        "attr_lookups": done.lookups.count,
        "warns": bit_names(done.warns, SOURCE_WARN_NAMES),
    }


def _pfec(revision: Any, access: int) -> dict[str, Any]:
    pfec, warned = revision.link("permission_pfec")(access)
    return {"result": pfec, "warned": int(warned)}


CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "get_mmio_spte_generation": _result("get_mmio_spte_generation"),
    "get_mmio_spte_gfn": _with_format("get_mmio_spte_gfn"),
    "kvm_arch_async_page_ready": _page_ready,
    "kvm_arch_vcpu_pre_fault_memory": _pre_fault,
    "kvm_vm_ioctl_set_mem_attributes": _result("kvm_vm_ioctl_set_mem_attributes"),
    "make_mmio_spte": _with_format("make_mmio_spte"),
    "nested_ept_inject_page_fault": _result("nested_ept_inject_page_fault"),
    "nested_svm_inject_npf_exit": _result("nested_svm_inject_npf_exit"),
    "permission_pfec": _pfec,
    "smap_applies": _result("smap_applies"),
}
"""What a case of kind `call` calls: from revision and inputs to results by name; one without a name is "result"."""


def call(function: str, given: Mapping[str, Any], revision: Any) -> dict[str, Any]:
    """Call one function of the path as a case of kind `call` asks for it.

    Raises InputError if cases cannot call that function, or not with these inputs.
    """
    if function not in CALLS:
        raise InputError(f"a case cannot call {function!r}; it can call {', '.join(CALLS)}")
    try:
        return CALLS[function](revision, **given)
    except TypeError as error:
        raise InputError(f"{function}: {error}") from None
