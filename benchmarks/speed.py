# SPDX-License-Identifier: GPL-2.0-only
"""How fast: every figure a ratio against something run in the same session.

Run: python benchmarks/speed.py.  Needs gcc or clang.  `--rows` sets the length of the tables; the default fits into
4 GiB of memory.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd

import kvm_pf
from kvm_pf import entry
from kvm_pf.common.cores import cores
from kvm_pf.revisions import get
from kvm_pf.revisions.link import link
from kvm_pf.run import batch, tables
from kvm_pf.state import Mmu, Vm

HERE = Path(__file__).resolve().parent
REPEATS = 7


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the shortest of several times, in seconds: the one that noise disturbed least."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def routes(start, stop, code, root_valid, vm_type, attrs, way, out, warned):  # type: ignore[no-untyped-def]
    """Decide the way of every row."""
    for i in range(start, stop):
        mmu = Mmu(root_valid[i] != 0, True, True, False, False)
        vm = Vm(True, True, word(vm_type[i]), attrs[i], False, False, 0, 0)
        r = route(mmu, vm, 4096, code[i])
        way[i] = r.to
        out[i] = r.error_code
        warned[i] = r.warns


route, word = entry.route, int


def columns(rows: int) -> dict[str, Any]:
    """Random faults of every way; seeded."""
    rng = np.random.default_rng(20240227)
    code = rng.integers(0, 1 << 63, rows, dtype=np.uint64) & rng.integers(0, 1 << 63, rows, dtype=np.uint64)
    return {
        "code": code,
        "root_valid": (rng.random(rows) < 0.98).astype(np.uint8),
        "vm_type": rng.integers(0, 2, rows).astype(np.uint8),
        "attrs": rng.integers(0, 2, rows).astype(np.uint64) * np.uint64(8),
    }


def outputs(rows: int) -> tuple[Any, Any, Any]:
    """Room for the results, touched once so that no run pays for fresh memory."""
    return np.zeros(rows, np.uint8), np.zeros(rows, np.uint64), np.zeros(rows, np.uint8)


ROUTE_ROWS = 1 << 16
"""So few that they stay in the cache: the decision is measured, not the memory."""

ROUNDS = 64


C_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
"""The yardstick is built for this processor, as the compiled path is."""


def bench_route() -> None:
    """The decision from error code to way: plain Python, compiled, and C."""
    rows = ROUTE_ROWS
    given = columns(rows)
    c_out = outputs(rows)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*given.values(), *c_out)]
    c_times = {}
    for compiler in filter(shutil.which, ("gcc", "clang")):
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "route.so"
            subprocess.run([compiler, *C_FLAGS, "-o", library, HERE / "route.c"], check=True)
            c = ctypes.CDLL(str(library)).route
        run: Callable[[], object] = lambda c=c: [c(ctypes.c_long(rows), *pointers) for _ in range(ROUNDS)]  # type: ignore[misc]  # noqa: E731
        c_times[compiler] = best(run) / ROUNDS
    c_time = min(c_times.values())

    def bind(function: Any) -> Any:
        inner = function.__name__ != "routes"
        if not inner:
            function.__globals__["word"] = np.int64
        return numba.njit(
            function, nogil=True, error_model="numpy", **({"forceinline": True} if inner else {})
        )

    signed = lambda n: n - (1 << 64) if n >= 1 << 63 else n  # noqa: E731
    loop = link(routes, get("posted").names, bind, signed)
    out = outputs(rows)
    views = [a.view(np.int64) if a.dtype == np.uint64 else a for a in (*given.values(), *out)]
    span = np.uint64(0), np.uint64(rows)
    loop(*span, *views)
    one = best(lambda: [loop(*span, *views) for _ in range(ROUNDS)]) / ROUNDS
    count = cores()

    def work(share: int) -> None:
        mine = [a.copy() for a in views]
        for _ in range(share):
            loop(*span, *mine)

    with ThreadPoolExecutor(count) as threads:
        both = best(lambda: list(threads.map(work, [4 * ROUNDS] * count))) / (4 * ROUNDS * count)
    assert all(np.array_equal(a, b) for a, b in zip(out, c_out, strict=True)), "compiled and C disagree"

    few = min(rows, 20_000)
    plain_loop = link(routes, get("posted").names)
    lists = [a[:few].tolist() for a in given.values()]
    results: list[list[int]] = [[0] * few for _ in range(3)]
    plain = best(lambda: plain_loop(0, few, *lists, *results), 3) / few * rows
    assert all(a[:few].tolist() == b for a, b in zip(c_out, results, strict=True)), "plain and C disagree"

    print(f"error code to way, {rows} rows, again and again:")
    for name, seconds in (
        ("plain Python", plain),
        *((f"C, {compiler}, one thread", seconds) for compiler, seconds in c_times.items()),
        ("compiled, one thread", one),
    ):
        print(f"  {name:<28} {rows / seconds / 1e6:10.1f} M rows/s")
    print(f"  {f'compiled, {count} threads':<28} {rows / both / 1e6:10.1f} M rows/s")
    print(f"  compiled / plain Python      {plain / both:10.0f} ×    (wanted: at least 1000)")
    print(f"  compiled / best C, per core  {c_time / one:10.2f} ×    (wanted: at least 1)")


def bench_evaluate(rows: int) -> None:
    """All outputs of `evaluate`, from typed columns."""
    rng = np.random.default_rng(49)
    given = columns(rows)
    frame = pd.DataFrame(
        {
            "error_code": given["code"],
            "cr2_or_gpa": rng.integers(0, 1 << 46, rows, dtype=np.uint64),
            "root_valid": given["root_valid"],
            "vm_type": given["vm_type"],
            "attrs": given["attrs"],
            "pf_ret": rng.integers(0, 6, rows).astype(np.int16),
        }
    )
    batch.compiled_loop("cases", get("posted"))
    seconds = best(lambda: kvm_pf.evaluate(frame, engine="compiled"))
    few = frame.iloc[:20_000]
    plain = best(lambda: kvm_pf.evaluate(few, engine="plain"), 3) / len(few) * rows
    typed = best(lambda: frame.copy(deep=True))
    print(f"evaluate, {len(batch.outputs('cases', 'posted'))} outputs, {rows} rows:")
    print(f"  plain Python                 {rows / plain / 1e6:10.3f} M rows/s")
    print(f"  compiled                     {rows / seconds / 1e6:10.3f} M rows/s    (wanted: at least 5)")
    print(f"  compiled / plain             {plain / seconds:10.0f} ×")
    print(f"  against copying its input    {seconds / typed:10.1f} × the time of frame.copy()")


def bench_start() -> None:
    """How soon the package and its command answer, beside an interpreter that does nothing."""

    def run(*command: str) -> float:
        return best(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))

    nothing, imported = run("-c", "pass"), run("-c", "import kvm_pf")
    decoded = run("-m", "kvm_pf", "decode", "0x2000100000006")
    print("start:")
    print(f"  python -c pass               {nothing * 1e3:10.0f} ms")
    print(f"  import kvm_pf                {(imported - nothing) * 1e3:10.0f} ms more    (wanted: below 100)")
    print(f"  kvm-pf decode                {decoded * 1e3:10.0f} ms         (wanted: below 300)")


_MEMORY = """
import resource, sys
from kvm_pf.run.batch import evaluate_parquet
rows = evaluate_parquet(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def bench_memory(rows: int) -> None:
    """Peak memory of evaluating a Parquet file, and of one four times as long."""
    print("memory of evaluate_parquet:")
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for n in (rows, 4 * rows):
            source, target = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
            pd.DataFrame({"error_code": columns(n)["code"]}).to_parquet(source, row_group_size=1 << 19)
            command = [sys.executable, "-c", _MEMORY, str(source), str(target)]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            peaks.append(peak)
            print(f"  {n:>10} rows                {peak:8d} MiB")
        print(f"  four times the rows          {peaks[1] / peaks[0]:10.2f} × the memory")


def main() -> None:
    """Run every benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    rows = parser.parse_args().rows
    assert tables.CASE_OUTPUTS
    bench_start()
    bench_route()
    bench_evaluate(rows)
    bench_memory(rows // 2)


if __name__ == "__main__":
    main()
