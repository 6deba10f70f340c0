# SPDX-License-Identifier: GPL-2.0-only
"""Ask the solver whether claims hold, for all states of all faults."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvm_pf.cli.common import DIFFERENT, OK, PLAIN, Progress

if TYPE_CHECKING:
    from kvm_pf.proof.ask import Answer


def _answers_table(answers: Sequence[Answer], witness: bool) -> None:
    head = ("", "claim", "revision", "expected", "answer", "strength", "seconds")
    rows = [
        ("" if a.as_expected else "!", a.claim.name, a.revision.name, a.expected or "–", a.status, a.strength,
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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.001 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: from 0.001 to 86400 seconds")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from kvm_pf.proof.ask import find, prove_all
    from kvm_pf.proof.claims import CLAIMS

    if args.list:
        for claim in map(find, args.claim or CLAIMS):
            print(claim.name, f"  {claim.statement}", sep="\n")
            for title in ("lines", "holds", "empty", "fails"):
                if words := getattr(claim, title):
                    print(f"  {title}: {' '.join(words)}")
        return OK
    progress = Progress("prove")
    answers = prove_all(
        args.claim,
        args.revision,
        timeout_ms=round(args.timeout * 1000),
        progress=lambda done, of: progress.show(f"{done} of {of} answers"),
    )
    progress.done()
    args.differing = sum(not a.as_expected for a in answers)
    if args.json:
        print(json.dumps([a.as_dict() for a in answers], indent=1))
    else:
        _answers_table(answers, args.witness)
    return DIFFERENT if args.differing else OK


def add(commands: Any) -> None:
    """Add the command's arguments to the command line."""
    p = commands.add_parser(
        "prove",
        help="ask the solver whether claims hold, for all states of all faults",
        formatter_class=PLAIN,
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
    p.set_defaults(run=run)
