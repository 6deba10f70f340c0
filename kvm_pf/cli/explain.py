# SPDX-License-Identifier: GPL-2.0-only
"""Follow one fault, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from kvm_pf.bits import PFERR_RSVD_MASK
from kvm_pf.cli.common import OK, PLAIN
from kvm_pf.common.errors import InputError
from kvm_pf.run.codes import Reading, cut_codes, read
from kvm_pf.run.meanings import TDX_REVISION
from kvm_pf.run.notation import NAMES
from kvm_pf.run.places import LINUX, Sure, address
from kvm_pf.run.watch import explain

MMU = "mmu"

AS = {"npf": "npf", "ept": "ept", "tdx": "tdx", "pf": "pf", "misconfig": "pferr", MMU: "pferr"}
"""Which encoding the code has that comes from there."""

OPTIONS = {
    "cr2_or_gpa": "--gpa",
    "revision": "--revision",
    "vm_type": "--vm",
    "mode": "--mode",
    "source": "--from",
}


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{pair!r:.80}: a setting has the form NAME=VALUE, such as vm_type=sw-protected")
        if name == "error_code":
            raise InputError(f"{pair!r:.80}: the error code is the argument, it is not set a second time")
        if name in settings:
            raise InputError(f"{pair!r:.80}: {name} is set twice")
        settings[name] = value
    return settings


def _no_fault(reading: Reading) -> str:
    """Say why a code is not followed: it is none of a fault's."""
    said = f"{reading.code:#x}: no fault's code but {reading.title} ({reading.sure.words})"
    if reading.encoding == "memfault":
        said += ", with which a fault ends: follow the fault's own code, as kvm_page_fault shows it"
    return f"{said}; --from decides otherwise"


def _choose(text: str, source: str | None, vm_type: object) -> tuple[Reading, str, str]:
    """Read the code and choose where it comes from: the reading, the source, and why."""
    if source == "misconfig":
        reading = read(text, "pferr").best
        if reading.code not in (0, PFERR_RSVD_MASK):
            raise InputError(
                f"{text!r:.60}: an EPT misconfiguration has no code; 0 and 8 (what KVM makes of it) will do"
            )
        return reading, source, "asked for"
    if source:
        reading = read(text, AS[source]).best
        return reading, source, reading.why
    reading = read(text).best
    if reading.encoding in AS.values():
        kind, why = reading.encoding, f"{reading.sure.words}: {reading.why}"
    elif reading.code == PFERR_RSVD_MASK and reading.sure < Sure.CERTAIN:
        kind, why = (
            "pferr",
            "the code that KVM makes of it",
        )  # or a memory fault's flags; but a fault is asked about
    else:
        raise InputError(_no_fault(reading))
    if kind == "pferr":
        return (
            reading,
            "misconfig" if reading.code == PFERR_RSVD_MASK and reading.spelled != NAMES else MMU,
            why,
        )
    return reading, "tdx" if kind == "ept" and vm_type == "tdx" else kind, why


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    settings = _settings(args.setting)
    options = {
        "vm_type": args.vm, "mode": args.mode, "cr2_or_gpa": args.gpa, "revision": args.revision,
        "source": args.source, "private": True if args.private else None,
    }  # fmt: skip
    for name, value in options.items():
        if value is not None and name in settings:
            raise InputError(
                f"{name}={settings[name]!r:.60}: given twice, once by {OPTIONS.get(name, '--private')}"
            )
        if value is not None:
            settings[name] = value
    source = settings.pop("source", None)
    if source is not None and source not in AS:
        raise InputError(f"source={source!r:.60}: it takes one of {', '.join(AS)}")
    reading, chosen, why = _choose(args.code, source, settings.get("vm_type"))
    if "cr2_or_gpa" not in settings and (gpa := address(args.code)) is not None:
        settings["cr2_or_gpa"] = gpa
    if chosen == "tdx" and not source:
        settings.setdefault("revision", TDX_REVISION)
    told = explain(reading.code, **settings, source=None if chosen == MMU else chosen)
    first, _, rest = told.report().partition("\n")
    if chosen == MMU:
        first += ", straight into kvm_mmu_page_fault()"
    print(f"{first}\nentry: {chosen}, {why}" + ("" if source else "; --from decides otherwise"))
    if chosen == "npf" and reading.place.width != 64 and (whole := cut_codes(reading.code)):
        print(
            f"note: not a whole code; it was {' or '.join(map(hex, whole))} if an old kernel cut it to 32 bits"
        )
    if reading.place.stood == LINUX:
        print("note: Linux's own page fault; KVM sees it only where it shadows the guest's page tables")
    print(rest)
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "explain",
        help="follow one fault, step by step",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf explain 0x683 --revision v6_12\n"
        "  kvm-pf explain 0x500000004 --vm snp --private --revision v6_12\n"
        "  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf explain 'RSVD|USER' --revision v6_12 --set gen=0x17 --set pf_ret=EMULATE",
    )
    p.add_argument("code", help="the code: a number, names joined by |, or a pasted line")
    p.add_argument(
        "--from", dest="source", choices=tuple(AS),
        help="where the number comes from; mmu: straight into kvm_mmu_page_fault() (what the number looks like)",
    )  # fmt: skip
    p.add_argument("--gpa", help="address of the fault (0x100000000)")
    p.add_argument("--revision", help="revision of the kernel (posted)")
    p.add_argument("--vm", help="kind of VM: default, sw-protected, sev, sev-es, snp, tdx")
    p.add_argument("--mode", help="paging mode: tdp, nonpaging, shadow, l2_ntdp, l2_tdp, l2_shadow")
    p.add_argument("--private", action="store_true", help="user space declared the page private")
    p.add_argument(
        "--set", dest="setting", action="append", default=[], metavar="NAME=VALUE", help="any other input"
    )
    p.set_defaults(run=run)
