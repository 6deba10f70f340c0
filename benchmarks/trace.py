# SPDX-License-Identifier: GPL-2.0-only
"""How fast traces are read, beside the readers that one would write oneself, in one run.

    python benchmarks/trace.py [MEGABYTES] [--rows MILLIONS]

The trace is made up, from a fixed seed, for this purpose only.  The simple readers give vcpu, rip, address and code of
the faults as today's kernels print them, and drop other lines unseen.  `scan` gives those, checked here to be the same,
and each fault's time, place in the file, encoding, error code and access; it reads older forms too, and counts what it
cannot read.  `read` also joins each fault with the events around it.  Of several runs the fastest counts, the same
number for the readers that are compared.  On a machine that others use, the speeds by CPU time tell more.

With --rows, a Parquet table of that many million faults is classified into another, and one of four times as many: how
long it takes, and the most memory that it takes.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kvm_pf.trace import load
from kvm_pf.trace.fast import scan
from kvm_pf.trace.reading import Stream

TIMES = 3
"""How often each reader is run."""

CODES = (0x181, 0x182, 0x184, 0x1AA, 0x683, 0x83, 0x582)


def write(path: Path, megabytes: int, seed: int = 5) -> None:
    """Write made-up ftrace text: faults, each between an exit and an entry."""
    chance = random.Random(seed)
    block = []
    for n in range(20_000):
        cpu, rip, gpa = n % 4, chance.getrandbits(64), chance.getrandbits(36)
        head = f"       CPU {cpu}/KVM-{4145 + cpu}    [{cpu:03}] .....  {1000 + n * 1e-5:.6f}:"
        code = chance.choice(CODES)
        block += [
            f"{head} kvm_exit: vcpu {cpu} reason EPT_VIOLATION rip {rip:#x} info1 {code:#018x} info2 {0:#018x} "
            f"intr_info 0x00000000 error_code 0x00000000",
            f"{head} kvm_page_fault: vcpu {cpu} rip {rip:#x} address {gpa:#018x} error_code {code:#x}",
            f"{head} kvm_entry: vcpu {cpu}, rip {rip:#x}",
        ]
    text = ("\n".join(block) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(max(1, megabytes * 1_000_000 // len(text))):
            file.write(text)


_FAULT = re.compile(
    r"kvm_page_fault: vcpu (\d+) rip 0x([0-9a-f]+) address 0x([0-9a-f]+) error_code 0x([0-9a-f]+)"
)


def with_re(path: Path) -> list[np.ndarray]:
    """Read with a regular expression, line by line."""
    columns: list[list[int]] = [[], [], [], []]
    with path.open(encoding="utf-8") as file:
        for line in file:
            if "kvm_page_fault" in line and (found := _FAULT.search(line)):
                for column, text, base in zip(columns, found.groups(), (10, 16, 16, 16), strict=True):
                    column.append(int(text, base))
    return [np.array(column, dtype=np.uint64) for column in columns]


_BARE = re.compile(_FAULT.pattern.encode())


def with_re_whole(path: Path) -> list[np.ndarray]:
    """Read with a regular expression, the whole file at once: faster, and it takes the memory of the file."""
    columns: list[list[int]] = [[], [], [], []]
    for found in _BARE.finditer(path.read_bytes()):
        for column, text, base in zip(columns, found.groups(), (10, 16, 16, 16), strict=True):
            column.append(int(text, base))
    return [np.array(column, dtype=np.uint64) for column in columns]


def with_pandas(path: Path) -> list[np.ndarray]:
    """Read with pandas' string methods."""
    lines = pd.Series(path.read_text(encoding="utf-8").split("\n"), dtype="str")
    found = lines[lines.str.contains("kvm_page_fault", regex=False)].str.extract(_FAULT.pattern)
    bases = (10, 16, 16, 16)
    return [
        np.array([int(v, base) for v in found[n]], dtype=np.uint64)
        for n, base in zip(found, bases, strict=True)
    ]


def with_polars(path: Path) -> list[np.ndarray]:
    """Read with polars."""
    import polars as pl

    names = ("vcpu", "rip", "address", "code")
    lines = pl.scan_csv(path, has_header=False, separator="\x01", quote_char=None, new_columns=["line"])
    groups = pl.col("line").str.extract_groups(_FAULT.pattern).struct.rename_fields(list(names)).alias("f")
    found = (
        lines.filter(pl.col("line").str.contains("kvm_page_fault", literal=True)).select(groups).unnest("f")
    )
    table = found.select(
        pl.col(name).str.to_integer(base=base, dtype=pl.UInt64)
        for name, base in zip(names, (10, 16, 16, 16), strict=True)
    ).collect()
    return [table[name].to_numpy() for name in names]


def with_duckdb(path: Path) -> list[np.ndarray]:
    """Read with DuckDB."""
    import duckdb

    groups = ", ".join(f"regexp_extract(line, '{_FAULT.pattern}', {n})" for n in (1, 2, 3, 4))
    query = (
        f"SELECT {groups} FROM read_csv('{path}', header=false, sep='\x01', quote='', escape='', "
        "columns={'line': 'VARCHAR'}) WHERE contains(line, 'kvm_page_fault')"
    )
    found = duckdb.sql("SET preserve_insertion_order=true; " + query).fetchnumpy()
    return [
        np.array([int(v, base) for v in column], dtype=np.uint64)
        for column, base in zip(found.values(), (10, 16, 16, 16), strict=True)
    ]


def with_scan(path: Path, threads: int) -> list[np.ndarray]:
    """Read with this package's compiled scanner, codes classified."""
    parts = list(scan(path, threads=threads))
    names = ("vcpu", "rip", "address", "raw_code")
    return [np.concatenate([part[name].to_numpy(dtype=np.uint64) for part in parts]) for name in names]


def with_read(path: Path) -> list[np.ndarray]:
    """Read everything: exits joined with faults, outcomes."""
    table = load(path).faults
    return [table[name].to_numpy(dtype=np.uint64) for name in ("vcpu", "rip", "address", "raw_code")]


def with_stream(path: Path) -> list[np.ndarray]:
    """Read in parts, as the command does: everything is counted, and what should have followed is asked."""
    stream = Stream(path)
    names = ("vcpu", "rip", "address", "raw_code")
    parts = [part[list(names)] for part in stream.parts()]
    return [np.concatenate([part[name].to_numpy(dtype=np.uint64) for part in parts]) for name in names]


_ROWS = 1 << 18

_CONVERT = """
import resource, sys, time
from kvm_pf.trace import convert
start, cpu = time.perf_counter(), time.process_time()
rows = convert(sys.argv[1], sys.argv[2]).digest.rows
print(rows, time.perf_counter() - start, time.process_time() - cpu)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_table(path: Path, rows: int, seed: int = 5) -> None:
    """Write a made-up Parquet table of faults: time, vcpu, rip, address, raw_code."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(seed)
    codes = np.array(CODES, dtype=np.uint64)
    u64 = pa.uint64()
    kinds = {"time": pa.float64(), "vcpu": pa.int64(), "rip": u64, "address": u64, "raw_code": u64}
    with pq.ParquetWriter(path, pa.schema(kinds.items())) as writer:
        for start in range(0, rows, _ROWS):
            count = min(_ROWS, rows - start)
            columns = (
                np.arange(start, start + count) * 1e-6, chance.integers(0, 8, count),
                chance.integers(0, 1 << 20, count).astype(np.uint64) << np.uint64(4),
                chance.integers(0, 1 << 20, count).astype(np.uint64) << np.uint64(12),
                codes[chance.integers(0, len(codes), count)],
            )  # fmt: skip
            writer.write_table(pa.table(dict(zip(kinds, columns, strict=True)), schema=writer.schema))


def measure_tables(millions: float) -> None:
    """Classify a table and one four times as long, each in a process of its own; print time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 4):
            source, target = Path(folder) / "faults.parquet", Path(folder) / "classified.parquet"
            write_table(source, int(millions * 1e6) * times)
            command = [sys.executable, "-c", _CONVERT, source, target]
            said = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
            rows, seconds, cpu, peak = (float(word) for word in said)
            name = f"Parquet to Parquet, {rows / 1e6:.1f} M rows"
            print(
                f"{name:<34} {rows / seconds / 1e6:9.2f} M rows/s, {seconds:.1f} s ({cpu:.1f} s of CPU), "
                f"peak {peak:.0f} MiB"
            )


class Speed(NamedTuple):
    """How fast a file was read, in MB a second, of the clock and of CPU time."""

    wall: float
    cpu: float


def measure(
    name: str, function: Callable[[Path], list[np.ndarray]], path: Path, times: int = 1
) -> tuple[Speed, list[np.ndarray]] | None:
    """Run a reader so many times; print its best speed."""
    size, best = path.stat().st_size / 1e6, Speed(0, 0)
    for _ in range(times):
        start, cpu = time.perf_counter(), time.process_time()
        try:
            table = function(path)
        except ImportError as error:
            print(f"{name:<34} not measured: {error}")
            return None
        took = time.perf_counter() - start, time.process_time() - cpu
        best = Speed(max(best.wall, size / took[0]), max(best.cpu, size / took[1]))
    print(f"{name:<34} {best.wall:9.1f} MB/s  {best.cpu:9.1f} MB a second of CPU   {len(table[0])} faults")
    return best, table


def measure_grep(path: Path, at_once: int) -> int:
    """Count the lines with `grep -c`, so many times at once; print the speed of all together, return the count."""
    best = 0.0
    for _ in range(TIMES):
        start = time.perf_counter()
        runs = [
            subprocess.Popen(["grep", "-c", "kvm_page_fault", path], stdout=subprocess.PIPE, text=True)
            for _ in range(at_once)
        ]
        counts = {int(run.communicate()[0]) for run in runs}
        best = max(best, at_once * path.stat().st_size / (time.perf_counter() - start) / 1e6)
    (count,) = counts
    print(f"{f'grep -c kvm_page_fault, {at_once} at once':<34} {best:9.1f} MB/s   {count} lines")
    return count


def main() -> None:
    """Measure, and print the ratios."""
    arguments = sys.argv[1:]
    if "--rows" in arguments:
        at = arguments.index("--rows")
        measure_tables(float(arguments[at + 1]))
        del arguments[at : at + 2]
        if not arguments:
            return
    megabytes = int(arguments[0]) if arguments else 200
    print(f"other load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        write(small, max(20, megabytes // 10))
        write(large, megabytes)
        with_scan(small, 1)  # compiles
        expected = with_re(small)
        simple = {}
        for name, function in (
            ("re, line by line", with_re), ("re, whole file", with_re_whole), ("pandas", with_pandas),
            ("polars", with_polars), ("DuckDB", with_duckdb),
        ):  # fmt: skip
            if done := measure(name, function, small, TIMES):
                assert all(np.array_equal(a, b) for a, b in zip(done[1], expected, strict=True)), name
        if done := measure("kvm_pf.trace.read, exits joined", with_read, small):
            assert all(np.array_equal(a, b) for a, b in zip(done[1], expected, strict=True))
        if done := measure("kvm_pf.trace, as the command does", with_stream, small):
            assert all(np.array_equal(a, b) for a, b in zip(done[1], expected, strict=True))
        large.read_bytes()  # into the page cache
        for name, function in (("re, whole file", with_re_whole), ("polars", with_polars)):
            if done := measure(f"{name}, the large one", function, large, TIMES):
                simple[name] = done[0]
        one = measure("kvm_pf.trace.scan, 1 thread", lambda path: with_scan(path, 1), large, TIMES)
        two = measure("kvm_pf.trace.scan, 2 threads", lambda path: with_scan(path, 2), large, TIMES)
        count = measure_grep(large, 1)
        measure_grep(large, 2)
        assert one is not None
        assert two is not None
        assert len(one[1][0]) == len(two[1][0]) == count
        for name, speed in simple.items():
            wall, cpu = (
                [getattr(fast[0], of) / getattr(speed, of) for fast in (one, two)] for of in Speed._fields
            )
            print(
                f"scan beside {name}: {wall[0]:.1f} x on one thread, {wall[1]:.1f} x on two; by CPU time {cpu[0]:.1f} "
                f"and {cpu[1]:.1f} x"
            )


if __name__ == "__main__":
    main()
