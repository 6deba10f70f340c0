# SPDX-License-Identifier: GPL-2.0-only
"""Traces that come through a pipe while they are recorded: shown while they run, ended by Ctrl-C, bounded in memory."""

import gzip
import json
import lzma
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from kvm_pf.trace.lines import Pace
from kvm_pf.trace.reading import ROWS, Stream

COMMAND = [sys.executable, "-m", "kvm_pf", "trace"]
LINE = "CPU 5/KVM-4145    [002] .....    {:.6f}: kvm_page_fault: vcpu 5 rip 0x1000 address 0x{:016x} error_code 0x181\n"
PATIENCE = 60


def lines(first, end, address=0x5000):
    return "".join(LINE.format(80 + n * 0.001, address) for n in range(first, end)).encode()


def until(file, text):
    """Read from a descriptor until a text has come; return what was read."""
    seen, end = b"", time.monotonic() + PATIENCE
    while text not in seen:
        assert time.monotonic() < end, seen[-2000:]
        if select.select([file], [], [], 0.2)[0]:
            seen += os.read(file, 1 << 16)
    return seen


@pytest.fixture
def started():
    """Start the command on a pipe, which stays open."""
    processes = []

    def start(*arguments, **how):
        process = subprocess.Popen(
            [*COMMAND, "-", *arguments], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & hands on that it is ignored
            **{"stdout": subprocess.PIPE, **how},
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.wait()


def test_the_page_so_far_is_shown_while_the_trace_goes_on(started):
    process = started("--every", "0.2")
    process.stdin.write(lines(0, 20))
    process.stdin.flush()
    seen = until(process.stdout.fileno(), b"so far, after")
    assert b"faults:           20" in seen or b"faults:           19" in seen
    process.stdin.write(lines(20, 50))
    process.stdin.close()
    assert b"faults:           50" in until(process.stdout.fileno(), b"Next")
    assert process.wait(PATIENCE) == 0


def test_on_a_terminal_the_page_is_drawn_anew(started):
    ours, theirs = pty.openpty()
    process = started(stdout=theirs)
    os.close(theirs)
    process.stdin.write(lines(0, 20))
    process.stdin.flush()
    assert b"\x1b[H\x1b[2J" in until(ours, b"Next")
    process.stdin.close()
    until(ours, b"faults:           20")
    assert process.wait(PATIENCE) == 0
    os.close(ours)


def test_the_first_interrupt_gives_what_was_read_so_far(started, tmp_path):
    out = tmp_path / "faults.parquet"
    process = started("--every", "0.2", "--out", str(out))
    process.stdin.write(lines(0, 30))
    process.stdin.flush()
    until(process.stdout.fileno(), b"so far, after")
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=PATIENCE)
    assert re.search(rb"interrupted after 30 lines.*faults: +30\n", said, re.DOTALL)
    assert process.returncode == 130
    assert complaint == b"kvm-pf: interrupted\n"
    assert len(pd.read_parquet(out)) == 30


class Ended(Pace):
    """The reading of a file that is stopped after its first piece."""

    def tick(self):
        self.stopped = self.done > 0


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lzma.compress])
def test_a_reading_that_is_stopped_gives_what_came_until_then(packed, tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(packed(b"".join(lines(n, n + 1, n * 2654435761 % 2**40) for n in range(20_000))))
    stream = Stream(path, pace=Ended())
    rows = sum(len(part) for part in stream.parts())
    assert rows == stream.digest.rows
    assert rows < 20_000


def test_json_of_a_live_trace_is_whole_after_an_interrupt(started):
    process = started("--json")
    process.stdin.write(lines(0, 10))
    process.stdin.flush()
    until(process.stdout.fileno(), b'"raw_code": "0x181"')
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert rest.rstrip().endswith(b"}")


def test_json_is_one_document_with_every_fault(started):
    process = started("--json")
    said, _ = process.communicate(lines(0, 10), timeout=PATIENCE)
    told = json.loads(said)
    assert [row["line"] for row in told["faults"]] == list(range(1, 11))
    assert told["storms"][0]["faults"] == 10


def peak(count):
    """The most memory that a child takes for so many times the same fault, in MiB."""
    code = (
        "import resource, sys\nfrom kvm_pf.cli import main\nmain(['trace', '-'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        block = lines(0, 1000)
        for _ in range(count // 1000):
            process.stdin.write(block)
        said = process.communicate()[0]
    assert f"faults:           {count}\n".encode() in said
    return int(said.split()[-1])


def test_a_storm_does_not_grow_memory():
    small, large = peak(20_000), peak(80_000)
    assert ROWS < 20_000  # both are read in several parts
    assert large < small + 25
