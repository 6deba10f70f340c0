# SPDX-License-Identifier: GPL-2.0-only
"""Break the logic in every small way and see whether the curated cases notice: python -m tools.mutate [MODULE…].

Without modules, all of them are broken and data/mutants is written.  The exit status is 0 if every mutant is killed
by a curated case or proved equivalent, 1 if not.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kvm_pf.cli.common import Progress
from kvm_pf.common.paths import data_dir
from kvm_pf.proof import kills
from kvm_pf.proof import mutants as mutate
from kvm_pf.proof.mutants import MODULES, Mutant, Settled
from tools.mutants import mutants

_MUTANTS: list[Mutant] = []  # what the processes share: a mutant's function cannot be sent to another


def _killers(number: int) -> list[str]:
    return mutate.killers(_MUTANTS[number])


def _settle(number: int) -> Settled:
    return mutate.settle(_MUTANTS[number])


def _map(what: str, function: Callable[[int], Any], numbers: Sequence[int]) -> list[Any]:
    """Do the work on every core; show how much is done, how fast, and how long the rest will take."""
    start, done, shown = time.monotonic(), [], Progress(what)
    with get_context("fork").Pool() as pool:
        for result in pool.imap(function, numbers, chunksize=2):
            done.append(result)
            rate = len(done) / (time.monotonic() - start)
            if len(done) % 10 == 0 or len(done) == len(numbers):
                left = (len(numbers) - len(done)) / rate
                shown.show(f"{len(done)} of {len(numbers)}, {rate:.0f} a second, {left:.0f} s left")
    shown.done()
    return done


def _count_in_readme(readme: Path, result: kills.Kills) -> None:
    """Write the numbers of killed mutants, and of those proved equivalent on each strength, into the README's table."""
    verdicts = result.mutants["proof"].where(
        result.mutants["verdict"] == kills.EQUIVALENT, result.mutants["verdict"]
    )
    counts = {**verdicts.value_counts(), "all": len(verdicts)}
    head, body = (
        "| mutants | number |\n|---|---|\n",
        "".join(f"| {what} | {n:,} |\n" for what, n in counts.items()),
    )
    text = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(f"{re.escape(head)}(\\|.*\n)*", lambda _: head + body, text), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Break, run, settle, write."""
    parser = argparse.ArgumentParser(prog="mutate", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as entry or revisions.v6_10")
    chosen = parser.parse_args(argv).modules
    ran = kills.digests()
    _MUTANTS[:] = mutants(chosen or MODULES)
    mutate.covered()
    killers = _map("killing", _killers, range(len(_MUTANTS)))
    alive = [number for number, ids in enumerate(killers) if not ids]
    settled = dict(zip(alive, _map("settling", _settle, alive), strict=True))
    result = kills.table(_MUTANTS, killers, settled)
    if not chosen:
        kills.save(result, data_dir() / "mutants", ran)
        _count_in_readme(data_dir() / "mutants" / "README.md", result)
    gaps = result.mutants[result.mutants["verdict"] == kills.GAP]
    for row in gaps.to_dict("records"):
        print(f"{row['module']}.{row['name']}, line {row['line']}: {row['change']}\n    {row['proof']}")
    killed = sum(map(bool, killers))
    print(f"{len(_MUTANTS)} mutants, {killed} killed, {len(alive) - len(gaps)} equivalent, {len(gaps)} gaps")
    for proof, number in Counter(s.proof for s in settled.values() if s.proof).most_common():
        print(f"  {number} equivalent: {proof}")
    print(f"  {len(kills.minimal(result.matrix))} of {len(result.cases)} cases would kill all that is killed")
    return int(len(gaps) > 0)


if __name__ == "__main__":
    sys.exit(main())
