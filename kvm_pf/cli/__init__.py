# SPDX-License-Identifier: GPL-2.0-only
"""The command line: kvm-pf decode | explain | check | replay | patch | prove | compare | evaluate | export."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kvm_pf.bits import EPT, PFERR, Bit, decode, encode
from kvm_pf.common.errors import InputError

if TYPE_CHECKING:
    from kvm_pf.proof.claims import Answer

OK, DIFFERENT, UNREADABLE = 0, 1, 2

_ENCODINGS: dict[str, tuple[tuple[Bit, ...], str]] = {
    "pferr": (PFERR, "page-fault error code (#NPF, or inside KVM)"),
    "ept": (EPT, "EPT-violation exit qualification"),
    "pf": (PFERR, "legacy #PF error code (32 bits)"),
}


def _code(text: str, table: tuple[Bit, ...], bits: int) -> int:
    """Read a code given in hexadecimal or by names."""
    code = _hexadecimal(text)
    if code is None:
        try:
            code = encode(text, table)
        except ValueError as error:
            raise InputError(f"{text[:80]!r} is no hexadecimal number, and {error}") from None
    if code >> bits:
        raise InputError(f"{text[:80]}: such a code has {bits} bits, 0 to {(1 << bits) - 1:#x}")
    return code


def _hexadecimal(text: str) -> int | None:
    return int(text, 16) if re.fullmatch(r"(0[xX])?[0-9a-fA-F]+", text) else None


def _decode(args: argparse.Namespace) -> int:
    table, title = _ENCODINGS[args.encoding]
    code = _code(args.code, table, 32 if args.encoding == "pf" else 64)
    rows = decode(code, table)
    if args.json:
        bits = [{"bit": r.bit, "name": r.name, "set_by": r.set_by.value, "means": r.means} for r in rows]
        print(json.dumps({"code": f"{code:#x}", "encoding": args.encoding, "bits": bits}, indent=1))
        return OK
    print(f"{code:#x}: {title}")
    for row in rows:
        print(f"  {row.bit:>2}  {row.label:<24} {row.set_by.value:<10} {row.means}")
    return OK


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{pair!r}: a setting has the form NAME=VALUE, such as vm_type=sw-protected")
        settings[name] = value
    return settings


def _explain(args: argparse.Namespace) -> int:
    from kvm_pf.run.watch import explain

    settings = _settings(args.setting)
    if args.private:
        settings["private"] = True
    if args.vm:
        settings["vm_type"] = args.vm
    if args.mode:
        settings["mode"] = args.mode
    code = _code(args.code, PFERR, 64)
    given = {"error_code": code, "cr2_or_gpa": args.gpa, "revision": args.revision, **settings}
    print(explain(**given))
    return OK


def _counter(name: str) -> Callable[[int], None]:
    """Show the rows done on the error stream, if somebody is looking."""

    def show(rows: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {rows} rows", end="\r", file=sys.stderr, flush=True)

    return show


def _check(args: argparse.Namespace) -> int:
    from kvm_pf.conformance.vectors import check_table

    differing = 0
    for file in args.file:
        report = check_table(
            file, args.revision, first=args.first, engine=args.engine, progress=_counter(file)
        )
        print(report, flush=True)
        differing += report.differing
    return DIFFERENT if differing else OK


def _replay(args: argparse.Namespace) -> int:
    from kvm_pf.conformance.replay import replay

    differing = 0
    for directory in args.directory:
        report = replay(directory, args.revision)
        print(report, flush=True)
        differing += report.differing
    return DIFFERENT if differing else OK


def _patch(args: argparse.Namespace) -> int:
    from kvm_pf.patch.reader import report

    text, status = report(args.file)
    if status == UNREADABLE:
        raise InputError(text)
    print(text)
    return status


class _Progress:
    """What is being done, on the error stream, if it takes over two seconds and somebody is looking."""

    def __init__(self, name: str) -> None:
        self.name, self.start, self.width = name, time.monotonic(), 0

    def show(self, what: str) -> None:
        if sys.stderr.isatty() and time.monotonic() > self.start + 2:
            line = f"{self.name}: {what}"
            print(f"\r{line:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(line)

    def done(self) -> None:
        if self.width:
            print(f"\r{'':<{self.width}}\r", end="", file=sys.stderr, flush=True)


def _prove(args: argparse.Namespace) -> int:
    from kvm_pf.proof.claims import CLAIMS, find, prove_all

    if args.list:
        for claim in map(find, args.claim or CLAIMS):
            print(claim.name, f"  {claim.statement}", sep="\n")
            for title in ("lines", "holds", "empty", "fails"):
                if words := getattr(claim, title):
                    print(f"  {title}: {' '.join(words)}")
        return OK
    progress = _Progress("prove")
    answers = prove_all(
        args.claim,
        args.revision,
        timeout_ms=round(args.timeout * 1000),
        progress=lambda done, of: progress.show(f"{done} of {of} answers"),
    )
    progress.done()
    if args.json:
        print(json.dumps([a.told() for a in answers], indent=1))
    else:
        _answers_table(answers, args.witness)
    return OK if all(a.as_expected for a in answers) else DIFFERENT


def _answers_table(answers: Sequence[Answer], witness: bool) -> None:
    head = ("", "claim", "revision", "expected", "answer", "rung", "seconds")
    rows = [
        ("" if a.as_expected else "!", a.claim.name, a.revision.name, a.expected or "–", a.said, a.rung,
         f"{a.seconds:.2f}")
        for a in answers
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row, answer in zip([head, *rows], [None, *answers], strict=True):
        print(" ".join(f"{cell:<{width}} " for cell, width in zip(row, widths, strict=True)).rstrip())
        if answer and answer.witness:
            shown = answer.witness.beside() if witness else str(answer.witness)
            print(*(f"      {line}" for line in shown.split("\n")), sep="\n")
    wrong = sum(not a.as_expected for a in answers)
    many = f"{len(answers)} answer{'s' * (len(answers) != 1)}"
    print(f"{many}, {f'{wrong} not' if wrong else 'all'} as expected")


def _compare(args: argparse.Namespace) -> int:
    from kvm_pf.proof.compare import compare
    from kvm_pf.proof.terms import Unknown

    progress = _Progress("compare")
    try:
        found = compare(args.a, args.b, reachable=not args.all_states, way=args.way, progress=progress.show)
    except Unknown as error:
        raise InputError(f"the solver gave up: {error}") from None
    finally:
        progress.done()
    print(found)
    if args.diff:
        print("", found.diff(), sep="\n")
    return DIFFERENT if found.kinds else OK


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.001 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: from 0.001 to 86400 seconds")
    return seconds


def _evaluate(args: argparse.Namespace) -> int:
    from kvm_pf.run.batch import evaluate_parquet

    def progress(done: int, rows: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {rows} rows", end="\r", file=sys.stderr, flush=True)

    rows = evaluate_parquet(args.source, args.target, args.revision, kind=args.kind, progress=progress)
    print(f"{args.target}: {rows} rows")
    return OK


def _export(args: argparse.Namespace) -> int:
    from kvm_pf.conformance.corpus import export

    def progress(table: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{table}", end="\r", file=sys.stderr, flush=True)

    for path, rows in export(args.directory, progress).items():
        print(f"{path}: {rows} rows")
    return OK


def _line(text: str) -> str:
    return " ".join(text.splitlines())


class _Parser(argparse.ArgumentParser):
    """A parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(UNREADABLE, f"{self.prog}: {_line(message)}; {self.prog} --help shows more\n")


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="kvm-pf",
        description="KVM's page-fault path: decode, follow, check.",
        epilog="examples:\n"
        "  kvm-pf decode 0x2000100000006\n"
        "  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf check cases_posted.csv.gz",
        formatter_class=plain,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = commands.add_parser(
        "decode",
        help="name the bits of a code",
        formatter_class=plain,
        epilog="examples:\n  kvm-pf decode 10000000c\n  kvm-pf decode 0x683 --as ept\n"
        "  kvm-pf decode 'WRITE|USER' --json",
    )
    p.add_argument("code", help="hexadecimal, with or without 0x, or names joined by |")
    p.add_argument(
        "--as", dest="encoding", choices=tuple(_ENCODINGS), default="pferr", help="how to read it (pferr)"
    )
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=_decode)

    p = commands.add_parser(
        "explain",
        help="follow one fault, step by step",
        formatter_class=plain,
        epilog="examples:\n  kvm-pf explain 0x100000006 --vm sw-protected --private\n"
        "  kvm-pf explain 'RSVD|USER' --revision v6_12 --set gen=0x17 --set pf_ret=EMULATE",
    )
    p.add_argument("code", help="error code: hexadecimal, or names joined by |")
    p.add_argument("--gpa", default="0x100000000", help="address of the fault (0x100000000)")
    p.add_argument("--revision", default="posted", help="revision of the kernel (posted)")
    p.add_argument("--vm", help="kind of VM: default, sw-protected, sev, sev-es, snp, tdx")
    p.add_argument("--mode", help="paging mode: tdp, nonpaging, shadow, l2_ntdp, l2_tdp, l2_shadow")
    p.add_argument("--private", action="store_true", help="user space declared the page private")
    p.add_argument(
        "--set", dest="setting", action="append", default=[], metavar="NAME=VALUE", help="any other input"
    )
    p.set_defaults(run=_explain)

    p = commands.add_parser(
        "check",
        help="compare the model with tables of the kernel's answers",
        formatter_class=plain,
        epilog="examples:\n  kvm-pf check cases_posted.csv.gz sources_v6_12.csv.gz\n"
        "  kvm-pf check cases_before.csv.gz --revision posted   # what the patch changes",
    )
    p.add_argument("file", nargs="+", help="KIND_REVISION.csv, .csv.gz or .parquet")
    p.add_argument("--revision", help="compare with this revision, whatever the name says")
    p.add_argument("--first", type=int, default=5, help="how many differences to show (5)")
    p.add_argument(
        "--engine", choices=("auto", "plain", "compiled"), default="auto", help="how to run (auto)"
    )
    p.set_defaults(run=_check)

    p = commands.add_parser(
        "replay",
        help="compare the model with recordings of a running KVM",
        formatter_class=plain,
        epilog="example:\n  kvm-pf replay recordings/6.12 recordings/7.3-intel",
    )
    p.add_argument("directory", nargs="+", help="a folder of one boot's recordings")
    p.add_argument("--revision", help="compare with this revision, whatever the kernel says")
    p.set_defaults(run=_replay)

    p = commands.add_parser(
        "patch",
        help="say what a mail or diff is: this patch, a damaged copy, or another",
        formatter_class=plain,
        epilog="example:\n  kvm-pf patch 0001-KVM-x86-mmu.patch",
    )
    p.add_argument("file", help="mail, mbox, git format-patch or git show output, or a reply that quotes it")
    p.set_defaults(run=_patch)

    p = commands.add_parser(
        "prove",
        help="ask the solver whether claims hold, for all states of all faults",
        formatter_class=plain,
        epilog="examples:\n  kvm-pf prove\n  kvm-pf prove reserved-never-private --witness\n"
        "  kvm-pf prove private-exactly-then --revision v6_12\n\n"
        "The exit status is 0 if every answer is the expected one.  Empty: it holds, for there is no state of the\n"
        "kind that the claim is about.  Unknown: the solver gave up; that is never as expected.",
    )
    p.add_argument("claim", nargs="*", metavar="CLAIM", help="names of claims (all)")
    p.add_argument(
        "--revision",
        action="append",
        default=[],
        help="ask of this revision (those expected to hold or fail)",
    )
    p.add_argument("--list", action="store_true", help="say what the claims are, and ask nothing")
    p.add_argument(
        "--witness", action="store_true", help="show refutations as steps, beside another revision"
    )
    p.add_argument("--timeout", type=_seconds, default=10.0, help="seconds to think about one question (10)")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=_prove)

    p = commands.add_parser(
        "compare",
        help="say in which states two revisions differ, in what, and what shows it",
        formatter_class=plain,
        epilog="examples:\n  kvm-pf compare before posted\n  kvm-pf compare posted v6_10 --way source --diff\n\n"
        "The exit status is 0 if there is no difference, 1 if there is one.",
    )
    p.add_argument("a", metavar="A", help="a revision")
    p.add_argument("b", metavar="B", help="another")
    p.add_argument("--all-states", action="store_true", help="also those that a fault cannot meet")
    p.add_argument("--way", help="compare this way into the path alone, such as kvm_mmu_page_fault (all)")
    p.add_argument("--diff", action="store_true", help="show the steps that are not the same, line by line")
    p.set_defaults(run=_compare)

    p = commands.add_parser(
        "evaluate",
        help="run a Parquet table of faults through the model",
        formatter_class=plain,
        epilog="example:\n  kvm-pf evaluate faults.parquet outcomes.parquet --revision v6_12",
    )
    p.add_argument("source", help="Parquet file with input columns")
    p.add_argument("target", help="Parquet file to write")
    p.add_argument("--revision", default="posted", help="revision of the kernel (posted)")
    p.add_argument(
        "--kind", choices=("cases", "sources", "faultin"), default="cases", help="kind of table (cases)"
    )
    p.set_defaults(run=_evaluate)

    p = commands.add_parser(
        "export",
        help="write the whole corpus as JSON lines, with its JSON Schema",
        formatter_class=plain,
        epilog="example:\n  kvm-pf export corpus/",
    )
    p.add_argument("directory", type=Path, help="folder to write to; it is made if absent")
    p.set_defaults(run=_export)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 fine, 1 differences found, 2 unusable input."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (InputError, OSError) as error:
        print(f"kvm-pf: {_line(str(error))}", file=sys.stderr)
        return UNREADABLE
    return status
