# SPDX-License-Identifier: GPL-2.0-only
"""Say what a code is and what it says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from kvm_pf.cli.common import OK, PLAIN
from kvm_pf.run.codes import Answer, Reading, read
from kvm_pf.run.meanings import ENCODINGS
from kvm_pf.run.notation import HEX
from kvm_pf.run.places import Sure


def _written(reading: Reading) -> str:
    return f"{reading.code:#x}" + ("" if reading.spelled == HEX else f" (from {reading.spelled})")


def _lines(answer: Answer) -> Iterator[str]:
    best, said = answer.best, answer.best.meaning
    yield ("probably no fault's code; if it is one: " if best.sure <= Sure.HARDLY else "") + said.sentence
    yield f"{_written(best)}: {best.title}; {best.sure.words}: {best.why}"
    for part in said.parts:
        yield f"  {part.bit.bit:>2}  {part.bit.label:<24} {part.bit.set_by.value:<10} {part.means}"
    yield from (f"  {text}" for text in said.clear)
    yield from (f"  note: {text}" for text in said.notes)
    for other in answer.others:
        says = f": {other.meaning.sentence}" if other.sure > Sure.HARDLY else ""
        yield f"or {_written(other)}, {other.title}{says} ({other.sure.words}: {other.why})"
    if answer.exit:
        yield f"or {answer.exit}"


def _as_dict(reading: Reading) -> dict[str, Any]:
    said = reading.meaning
    return {
        "code": f"{reading.code:#x}",
        "encoding": reading.encoding,
        "title": reading.title,
        "spelled": reading.spelled,
        "sure": reading.sure.words,
        "why": reading.why,
        "sentence": said.sentence,
        "bits": [
            {
                "bit": p.bit.bit,
                "name": p.bit.name,
                "set_by": p.bit.set_by.value,
                "means": p.means,
                "counts": p.counts,
            }
            for p in said.parts
        ],
        "clear": list(said.clear),
        "notes": list(said.notes),
        "source": ENCODINGS[reading.encoding].source,
    }


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    answer = read(args.code, args.encoding, args.base)
    answers = (answer, *answer.more)
    if args.json:
        told = [
            {**_as_dict(a.best), "others": [_as_dict(r) for r in a.others], "exit": a.exit} for a in answers
        ]
        print(json.dumps({**told[0], "more": told[1:]}, indent=1))
        return OK
    print("\n\n".join("\n".join(_lines(a)) for a in answers))
    return OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "decode",
        help="say what a code is and what it says",
        formatter_class=PLAIN,
        epilog="examples:\n  kvm-pf decode 0x683\n  kvm-pf decode 14\n  kvm-pf decode 'P|RSVD' --as pferr\n"
        "  kvm-pf decode 'WRITE|USER' --json\n"
        "  kvm-pf decode 'kvm_page_fault: address febd0000 error_code 181'\n\nencodings:\n"
        + "\n".join(f"  {name:<10} {encoding.title}" for name, encoding in ENCODINGS.items()),
    )
    p.add_argument(
        "code",
        help="a number (hexadecimal with or without 0x, or decimal), names joined by |, or a pasted line",
    )
    p.add_argument("--as", dest="encoding", choices=tuple(ENCODINGS), help="which encoding it is")
    p.add_argument("--base", type=int, choices=(10, 16), default=0, help="how the digits are to be read")
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=run)
