# SPDX-License-Identifier: GPL-2.0-only
"""Give every reader and command line what nobody should send: python -m tools.fuzz [--seconds N] [--seed S].

Case N of a seed is always the same: real inputs, damaged at random.  Whatever it is, a command must end within
seconds, with status 0, 1 or 2, without a traceback, without a control character in what it prints, and with errors
in lines of bounded length.  A run goes on where the last one of that seed ended (build/fuzz).  The exit status is 1
if a promise was broken; the cases are named, and `--case N` runs one again and shows what it printed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from kvm_pf.cli import COMMANDS, main
from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.conformance.cases import differences, read_cases
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.proof.edit import read_step, step_text, steps
from kvm_pf.revisions import REVISIONS
from kvm_pf.run.tables import CASE_INPUTS
from kvm_pf.trace.pasted import load_text, read_text

SLOW = 10.0
"""Seconds of the processor after which a case has hung, where a million additions take LOOP."""

LOOP = 0.05

MMU = "arch/x86/kvm/mmu/mmu.c"

MAIL = f"""From: "A. Reader" <reader@example.org>
Subject: Re: [PATCH 05/16] KVM: x86/mmu: a change
Message-ID: <1@example.org>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

> diff --git a/{MMU} b/{MMU}
> index 1234567..89abcde 100644
> --- a/{MMU}
> +++ b/{MMU}
> @@ -10,3 +10,4 @@ int f(void)
>  =09one();
> -=09two();
> +=09three();
> +=09four();
>  =09five();
--b--
"""

WORDS = [
    *COMMANDS,
    "--help",
    "--revision",
    "--set",
    "--vm",
    "--mode",
    "--private",
    "--json",
    "--as",
    "ept",
    "--first",
    "--kind",
    "--limit",
    "--engine",
    "plain",
    "--list",
    "--gpa",
    "-",
    "--",
    "0x6",
    "0x181",
    "WRITE|USER",
    "385",
    "14",
    "sw-protected",
    "tdp",
    "posted",
    "gen=0x17",
    "pf_ret=EMULATE",
    "٣",
    "\x1b[2J",
    "\u202e",
    "a\nb",
    "",
    "9" * 5000,
    "-1",
    "1e400",
    "nan",
    "/dev/null",
    ".",
    "/",
    "\x00",
    *REVISIONS,
    *(f"{column.column}={value}" for column in CASE_INPUTS for value in ("1", "-1", "0x10000000000000000")),
]

BITS = [
    b"\x1b[2J",
    b"\x00",
    b"\xff",
    b"\n",
    b"\r",
    b'"',
    b",",
    b"-1",
    b"9" * 300,
    b"{",
    b"[" * 2000,
    b"=?utf-8?q?=1b?=",
    b"NaN",
    b" <- ",
    b"(",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
]

PIECES = [
    b"> ", b" |\t", b"a>", b"1a\n", b"[-", b"{+", b"&lt;", b"&#1", b"<br ", b"<!--", b"@@ -1 +1 @@\n",
    b"--- a\n+++ b\n", b"=?utf-8?q?a?= ", b";", b"Content-Type: multipart/mixed; boundary=b\n\n--b\n", b"\n",
    b"vcpu 0 ", b"kvm_page_fault: ", b"***************\n*** 1 ****\n", b"{ ", b"=\n",
]  # fmt: skip
"""What patterns and parsers may look at again for each time that it stands there."""

POSTED = (
    "kvm_page_fault: vcpu 0 rip 0xffffffff81000000 address 0x0000000001234000 error_code 0x181",
    "t-1 [000] ..... 1.000000: kvm_page_fault: vcpu 0 rip 0x1 address 0x0000000000001050 error_code 0x181",
    "BUG: unable to handle page fault for address: ffffc90000000000\n#PF: error_code(0x000b) - reserved bit violation",
    "KVM: entry failed, hardware error 0x80000021\nKVM_EXIT_MEMORY_FAULT: gpa=0x1000 size=0x1000 flags=0x8",
    "MemoryFault { flags: 8, gpa: 4096, size: 4096 }",
    "exit_qualification = 0x683, IDT-vectoring info 0x80000301",
    "PRESENT|WRITE|USER",
    "0x500000004",
)
"""Lines as people post them."""

ODD: tuple[Callable[[int], list[Any]], ...] = (
    lambda n: [float(each) for each in range(n)],
    lambda n: [None] * n,
    lambda n: [-1 - each for each in range(n)],
    lambda n: [2**64 - 1] * n,
    lambda n: [f"\x1b[2J{each}" for each in range(n)],
    lambda n: [[each, each] for each in range(n)],
    lambda n: [{"a": [each]} for each in range(n)],
    lambda n: [b"\xff"] * n,
    lambda n: [float("nan"), float("inf")] * (n // 2) + [0.5] * (n % 2),
    lambda n: [True] * n,
    lambda n: [pd.Timestamp("2026-01-01")] * n,
)
"""Columns of n rows of kinds that a table of faults may not have."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes in a few places."""
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        content = _damaged(content, rng)
    return content


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, leave out, double, overwrite or insert something, or turn one bit."""
    at = rng.randrange(len(content) + 1)
    to = min(len(content), at + rng.choice((1, 8, 200, 5000)))
    before, piece, after = content[:at], content[at:to], content[to:]
    match rng.randrange(7):
        case 0:
            return before
        case 1:
            return piece + after
        case 2:
            return before + after
        case 3:
            return before + piece * rng.choice((2, 4)) + after
        case 4:
            return before + rng.randbytes(len(piece)) + after
        case 5:
            return before + rng.choice(BITS) + piece + after
        case _:
            return before + bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1]) + piece[1:] + after


class Hung(BaseException):
    """A case is not done in time; no command takes this for something that it knows."""


class Inputs:
    """Real inputs, read once: small tables, a recording, a mail."""

    def __init__(self) -> None:
        frame = load_corpus().vectors("sources", "posted").iloc[::60]
        self.csv = frame.astype(object).where(frame.notna(), "").to_csv(index=False).encode()
        packed = io.BytesIO()
        frame.to_parquet(packed)
        self.parquet = packed.getvalue()
        folder = data_dir() / "recordings" / "6.12"
        self.recording = {
            path.name.removesuffix(".gz"): gzip.decompress(path.read_bytes())
            if path.suffix == ".gz"
            else path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.name.startswith(("2-swprot.", "dmesg", "console"))
        }
        recorded = Path(__file__).parent.parent / "tests" / "trace" / "data"
        self.dat = {path.name: path.read_bytes() for path in sorted(recorded.glob("*.dat"))}
        self.faults = load_text(self.recording["2-swprot.trace"][:40_000]).faults
        self.cases = {
            path.name: path.read_bytes()
            for path in sorted((data_dir() / "cases").glob("*.toml"))
            if path.name != "flags.toml"
        }


def _maybe_packed(path: Path, content: bytes, rng: random.Random) -> Path:
    """Write a file, sometimes packed, sometimes damaged after that, and rarely something that is no file."""
    if rng.random() < 0.3:
        path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, mtime=0)
        if rng.random() < 0.3:
            content = damaged(content, rng)
    path.write_bytes(content)
    return path


def table(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Check or evaluate a damaged table."""
    if rng.random() < 0.5:
        path = _maybe_packed(folder / "sources_posted.csv", damaged(inputs.csv, rng), rng)
    else:
        path = folder / "sources_posted.parquet"
        path.write_bytes(damaged(inputs.parquet, rng))
    if rng.random() < 0.3:
        return ["evaluate", str(path), str(folder / rng.choice(("out", "no/out", "."))), "--kind", "sources"]
    return [
        "check",
        str(path),
        *rng.choice(([], ["--revision", "v7_3"], ["--first", "999"], ["--limit", "1"])),
    ]


def recording(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Replay a damaged recording."""
    boot = folder / rng.choice(("boot", "b\x1b[31mt", "b\nt"))
    boot.mkdir()
    unlucky = rng.sample(sorted(inputs.recording), rng.choice((1, 1, 2)))
    for name, content in inputs.recording.items():
        _maybe_packed(boot / name, damaged(content, rng) if name in unlucky else content, rng)
    return ["replay", str(boot), *rng.choice(([], ["--revision", "posted"]))]


def mail(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a damaged mail."""
    content = damaged(MAIL.encode() * rng.choice((1, 1, 3)), rng)
    return ["patch", str(_maybe_packed(folder / rng.choice(("a.patch", "a\x1b]0;.mbox")), content, rng))]


def text(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a trace of anybody's, where there is such a command; else a mail."""
    if "trace" not in COMMANDS:
        return mail(inputs, folder, rng)
    content = damaged(inputs.recording["2-swprot.trace"][:20_000], rng)
    return ["trace", str(_maybe_packed(folder / "a.trace", content, rng))]


def line(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Type what no command takes; nothing that asks a solver for long, or reads the whole corpus."""
    command = rng.choice([name for name in COMMANDS if name not in ("prove", "compare", "export")])
    corpus = command in ("check", "replay")  # which they read whole if they are given nothing
    return [command, *(["missing"] if corpus else []), *rng.choices(WORDS, k=rng.randrange(7))]


def binary(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a damaged trace.dat, the damage mostly where its lengths and offsets stand."""
    content = rng.choice(list(inputs.dat.values()))
    end = rng.choice((60, 300, 20_000, len(content)))
    path = _maybe_packed(folder / "trace.dat", damaged(content[:end], rng) + content[end:], rng)
    return [
        "trace",
        str(path),
        *rng.choice(([], ["--json"], ["--out", str(folder / "out.parquet")], ["--limit", "1"])),
    ]


def faults(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a table of faults with columns that are not what they should be, are not there, or are damaged."""
    frame, path = inputs.faults.copy(), folder / "faults.parquet"
    for name in rng.sample(list(frame), rng.choice((0, 1, 1, 3))):
        frame[name] = pd.Series(rng.choice(ODD)(len(frame)), index=frame.index)
    if rng.random() < 0.3:
        frame = frame.drop(columns=rng.sample(list(frame), 2))
    frame.to_parquet(path)
    if rng.random() < 0.3:
        path.write_bytes(damaged(path.read_bytes(), rng))
    return ["trace", str(path), *rng.choice(([], ["--json"], ["--out", str(folder / "out.parquet")]))]


def several(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a folder with traces of all kinds, some of them damaged."""
    for make in (text, binary, faults):
        make(inputs, folder, rng)
    return ["trace", str(folder), *rng.choice(([], ["--json"], ["--out", str(folder / "out")]))]


def code(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Decode or explain a damaged line of somebody's."""
    posted = damaged(rng.choice(POSTED).encode(), rng).decode(errors="replace")
    return [rng.choice(("decode", "explain")), *rng.choice(([], ["--"])), posted]


def repeated(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read a mail or a trace in which one short piece comes again and again: what takes the square of it is slow."""
    command, content = rng.choice(
        (("patch", MAIL.encode()), ("trace", inputs.recording["2-swprot.trace"][:20_000]))
    )
    at, size = rng.randrange(len(content)), rng.choice((1, 2, 3, 5, 9, 30))
    piece = rng.choice((content[at : at + size], rng.choice(BITS), rng.choice(PIECES)))
    piece *= 100_000 // max(1, len(piece))
    path = folder / "a.txt"
    path.write_bytes(rng.choice((content[:at] + piece + content[at:], piece)))
    return [command, str(path)]


class Asked(list[str]):
    """What a person gives to a widget or a notebook, where there is no command: its words, and what is then done."""

    def __init__(self, words: list[str], done: Callable[[], object]) -> None:
        super().__init__(words)
        self.done = done

    def answer(self) -> int:
        """Do it; say what is wrong as a command does."""
        try:
            print(repr(self.done())[:100_000].encode("ascii", "backslashreplace").decode())
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        return 0


def pasted(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Paste damaged lines, or the bytes of a damaged file, where the widgets take them."""
    choices = (
        "\n".join(rng.choices(POSTED, k=5)).encode(),
        inputs.recording["2-swprot.trace"][:9000],
        *inputs.dat.values(),
    )
    content = damaged(rng.choice(choices), rng)
    return Asked(["read_text", repr(content[:80])], lambda: read_text(content).kinds())


def step(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Edit a step of the path."""
    name = rng.choice(steps("posted"))
    content = damaged(step_text(name).encode(), rng).decode(errors="replace")
    return Asked(["read_step", name, content], lambda: read_step(content, name))


def cases(inputs: Inputs, folder: Path, rng: random.Random) -> list[str]:
    """Read and run a damaged file of curated cases."""
    name = rng.choice(list(inputs.cases))
    (folder / "cases").mkdir()
    (folder / "cases" / name).write_bytes(damaged(inputs.cases[name], rng))
    return Asked(["read_cases", name], lambda: differences(read_cases(folder)[:40]))


KINDS: tuple[Callable[[Inputs, Path, random.Random], list[str]], ...] = (
    table, recording, mail, text, line, binary, faults, several, code, pasted, step, cases, repeated,
)  # fmt: skip


@cache
def slowness() -> float:
    """How many times slower this machine is than the one on which SLOW was set; 1 for a faster one."""
    start, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return max(1.0, (time.process_time() - start) / LOOP)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Hung(f"it is not done after {seconds} seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run(inputs: Inputs, seed: str, number: int) -> tuple[list[str], str, str]:
    """Run one case; return the command line, what it printed, and which promise it broke, if any."""
    rng = random.Random(f"{seed}/{number}")
    folder = Path(tempfile.mkdtemp(prefix="kvm-pf-fuzz-"))
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    try:
        arguments = rng.choice(KINDS)(inputs, folder, rng)
        sys.stdin = io.TextIOWrapper(io.BytesIO(damaged(MAIL.encode(), rng)))
        with redirect_stdout(out), redirect_stderr(err), _ended_after(SLOW * slowness()):
            status: object = arguments.answer() if isinstance(arguments, Asked) else main(arguments)
    except BaseException as error:
        status = f"{type(error).__name__}: {error}"
    finally:
        sys.stdin = stdin
        left = [path.name for path in folder.rglob(".*.part")]
        shutil.rmtree(folder)
    printed = out.getvalue() + err.getvalue()
    broken = ""
    if status not in (0, 1, 2):
        broken = f"it ended with {status!r}"
    elif not re.sub(r"[\n\t\u00a0]", "", printed).isprintable():
        broken = "it printed a control character"
    elif "Traceback" in err.getvalue() or "a mistake in" in err.getvalue():
        broken = "it stumbled"
    elif max(map(len, err.getvalue().split("\n"))) > 1500:
        broken = "a line of its error is too long"
    elif status == 2 and not printed:
        broken = "it does not say what is wrong"
    elif left:
        broken = f"it left {left}"
    return arguments, printed, broken


def main_(argv: Sequence[str] | None = None) -> int:
    """Run cases until the time is over."""
    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--case", type=int, help="run this one and show it")
    given = parser.parse_args(argv)
    inputs = Inputs()
    if given.case is not None:
        arguments, printed, broken = run(inputs, given.seed, given.case)
        print(repr(arguments), printed, broken or "kept every promise", sep="\n")
        return int(bool(broken))
    state = Path("build") / "fuzz" / re.sub(r"\W", "_", given.seed)
    state.parent.mkdir(parents=True, exist_ok=True)
    first = number = int(state.read_text()) if state.exists() else 0
    end, found = time.monotonic() + given.seconds, 0
    while time.monotonic() < end:
        arguments, _, broken = run(inputs, given.seed, number)
        if broken:
            found += 1
            print(f"case {number} of seed {given.seed}: {broken}: {arguments!r:.300}", flush=True)
        number += 1
        if not number % 20:
            state.write_text(str(number))
    state.write_text(str(number))
    print(f"cases {first} to {number - 1} of seed {given.seed}: {found} broke a promise")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main_())
