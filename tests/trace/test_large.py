# SPDX-License-Identifier: GPL-2.0-only
"""Traces in parts, tables in Parquet, many traces on workers: the same answers as from the whole, in bounded memory."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.cli import main
from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.trace import chunks, cluster, convert, load, page, read, read_all, scan, storms
from kvm_pf.trace import digest as digests
from kvm_pf.trace.declared import Declared, Span
from kvm_pf.trace.digest import Digest
from kvm_pf.trace.faults import COLUMNS
from kvm_pf.trace.fleet import fleet_page
from kvm_pf.trace.pasted import load_text
from kvm_pf.trace.reading import Stream
from kvm_pf.trace.storms import COMPILED_ROWS, Finder, _compiled
from kvm_pf.trace.tables import TableStream, writing

RECORDINGS = data_dir() / "recordings"
TRACE = RECORDINGS / "6.12" / "2-swprot.trace.gz"
FORM = (
    "A{pid}-{pid} [000] ..... {time:.6f}: kvm_page_fault: vcpu {vcpu} rip {rip:#x} address {address:#x} "
    "error_code {code:#x}\n"
)


def text(count, seed=3):
    """Faults of three vCPUs: storms, cycles and others, from a seed."""
    chance = random.Random(seed)
    rows, n = [], 0
    while n < count:
        vcpu, length = chance.randrange(3), chance.choice((1, 1, 2, 7, 30))
        turn = [(chance.randrange(4), chance.choice((0x181, 0x182))) for _ in range(chance.randint(1, 4))]
        for place in range(length):
            page_, code = turn[place % len(turn)]
            rows.append(
                FORM.format(
                    pid=100 + vcpu,
                    time=1 + n / 1e6,
                    vcpu=vcpu,
                    rip=0x1000 + page_,
                    address=page_ << 12,
                    code=code,
                )
            )
            n += 1
    return "".join(rows[:count])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "mixed"
    path.write_text(text(600))
    return path


def told(digest):
    """Everything that a digest says, to compare."""
    return {
        "meanings": digest.meanings(), "pages": digest.pages(50), "storms": digest.storms(),
        "follows": digest.follows(),
        "outcomes": pd.Series(dict(sorted(digest.outcomes.items()))),
        "split": pd.Series(dict(sorted(digest.split.items()))),
        "worth": pd.Series({name: kept.count for name, kept in digest.worth.items()}),
    }  # fmt: skip


def assert_same(one, other):
    for name, table in told(one).items():
        compare = (
            pd.testing.assert_frame_equal
            if isinstance(table, pd.DataFrame)
            else pd.testing.assert_series_equal
        )
        compare(table, told(other)[name], check_dtype=False)


@pytest.mark.parametrize("rows", [13, 100, 599, 600])
def test_parts_amount_to_the_whole(mixed, rows):
    stream = Stream(mixed)
    parts = list(stream.parts(rows))
    whole = load(mixed)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole.faults)
    assert_same(stream.digest, whole.digest)
    assert page(stream) == page(whole)


@pytest.mark.parametrize(
    "path", sorted(RECORDINGS.glob("6.12*/2-*.trace.gz")), ids=lambda path: path.parent.name
)
def test_recordings_in_parts_amount_to_the_whole(path):
    stream, whole = Stream(path), load(path)
    for _ in stream.parts(5):
        pass
    assert page(stream) == page(whole)


# --- storms ---


def by_hand(sequence, least):
    """Find storms in one vCPU's faults by the definition: the first cycle, the shortest, that holds long enough."""
    found, start, n = [], 0, 0
    while n < len(sequence):
        n += 1
        fits = [
            c for c in range(1, 9)
            if (length := max(least, 3 * c)) <= n - start
            and all(sequence[m] == sequence[m - c] for m in range(n - length + c, n))
        ]  # fmt: skip
        if fits:
            cycle, begin = fits[0], n - max(least, 3 * fits[0])
            while n < len(sequence) and sequence[n] == sequence[n - cycle]:
                n += 1
            found.append((begin, n, cycle))
            start = n
    return found


def as_table(sequence, vcpus=None):
    count = len(sequence)
    codes = pd.array([0x181] * count, dtype="UInt64")
    return pd.DataFrame({
        "vcpu": pd.array(vcpus or [0] * count, dtype="Int64"), "pid": pd.array([None] * count, dtype="Int64"),
        "line": pd.array(range(1, count + 1), dtype="Int64"), "time": pd.array([None] * count, dtype="Float64"),
        "rip": pd.array(sequence, dtype="UInt64"), "address": codes, "raw_code": codes,
        "source": [""] * count, "meaning": ["x"] * count, "outcome": ["mapped"] * count, "zapped": [False] * count,
    })  # fmt: skip


def found(finder):
    storms_ = [(s.first_line - 1, s.last_line, s.cycle) for s in finder.found]
    assert all(
        s.faults == s.last_line - s.first_line + 1 == sum(sum(counts.values()) for counts in s.ends)
        for s in finder.found
    )
    return sorted(storms_)


@given(st.lists(st.integers(0, 2), max_size=80), st.integers(1, 20), st.integers(5, 9))
@settings(max_examples=60, deadline=None)
def test_storms_are_those_of_the_definition_in_parts_of_any_size(sequence, size, least):
    table = as_table(sequence)
    finder = Finder(least)
    for start in range(0, len(sequence), size):
        finder.add(table.iloc[start : start + size])
    assert found(finder) == by_hand(sequence, least)


def test_compiled_and_plain_search_give_the_same_storms():
    chance = np.random.default_rng(4)
    sequence = np.repeat(chance.integers(0, 1000, 15_000), chance.integers(1, 22, 15_000))
    table = as_table(sequence)
    assert len(sequence) > COMPILED_ROWS
    finder = Finder(most=100_000)
    for start in range(0, len(table), 50_000):
        finder.add(table.iloc[start : start + 50_000])
    assert finder._is_compiled
    assert len(_compiled().signatures) == 1  # nothing was compiled anew
    assert found(finder) == by_hand(sequence.tolist(), 5)


# --- memory that was declared ---


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.booleans()), max_size=25))
@settings(max_examples=100, deadline=None)
def test_an_address_is_what_it_was_last_declared(conversions_):
    declared, state = Declared(), {}
    for n, (start, size, private) in enumerate(conversions_):
        declared.convert(Span(n, None, start, size, private, "a test"))
        state.update(dict.fromkeys(range(start, start + size), (private, n)))
    assert [declared.at(address) for address in range(50)] == [
        state.get(address, (None, None)) for address in range(50)
    ]


# --- memory ---


def test_counts_that_have_no_room_are_dropped_and_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(digests, "MOST_PAGES", 100)
    path = tmp_path / "many"
    rows = [FORM.format(pid=1, time=n, vcpu=0, rip=n, address=n << 12, code=0x181) for n in range(1000)]
    often = [FORM.format(pid=1, time=n, vcpu=0, rip=n, address=0x123 << 12, code=0x181) for n in range(50)]
    path.write_text("".join(often + rows))
    stream = Stream(path)
    for _ in stream.parts(200):
        pass
    pages = stream.digest.pages(1)
    least, dropped = pages["faults"].item(), pages.attrs["dropped"]
    assert pages["gfn"].item() == 0x123
    assert least <= 51 <= least + dropped
    assert f"(up to {dropped} more)" in page(stream)


# --- Parquet ---


RAW = {"time": "float64", "vcpu": "int64", "rip": "uint64", "address": "uint64", "raw_code": "uint64"}


def write_raw(path, count, start=0, seed=1):
    chance = np.random.default_rng(seed)
    codes = np.array([0x181, 0x182, 0x683, 0x83, 0x100000004], dtype=np.uint64)
    columns = {
        "time": np.arange(start, start + count) * 1e-6, "vcpu": chance.integers(0, 4, count),
        "rip": chance.integers(0, 1 << 16, count).astype(np.uint64) | np.uint64(0xFFFFFFFF80000000),
        "address": chance.integers(0, 1 << 12, count).astype(np.uint64) << np.uint64(12),
        "raw_code": codes[chance.integers(0, 5, count)],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path, row_group_size=10_000)
    return path


def test_what_is_written_is_what_is_read(mixed, tmp_path):
    out = tmp_path / "faults.parquet"
    with writing(out) as add:
        for part in chunks(mixed, rows=130):
            add(part)
    whole = read(mixed)
    assert pq.ParquetFile(out).metadata.num_row_groups == 5
    again = pd.read_parquet(out).astype(whole.dtypes.to_dict())
    pd.testing.assert_frame_equal(again, whole, check_column_type=False)


def test_a_table_tells_what_its_trace_told(tmp_path):
    out = tmp_path / "faults.parquet"
    assert main(["trace", str(TRACE), "--out", str(out)]) == 0
    stream = TableStream(out)
    for _ in stream.parts(7):
        pass
    assert_same(stream.digest, load(TRACE).digest)


def test_a_trace_without_faults_is_a_table_without_rows(tmp_path):
    path, out = tmp_path / "trace", tmp_path / "faults.parquet"
    path.write_text("A-1 [000] ..... 1.000000: kvm_entry: vcpu 0, rip 0x1\n")
    assert main(["trace", str(path), "--out", str(out)]) == 0
    assert len(pd.read_parquet(out)) == 0
    assert main(["trace", str(out)]) == 0


def test_a_table_of_bare_codes_is_classified_as_the_text_is(tmp_path):
    source, target, trace = (
        write_raw(tmp_path / "raw.parquet", 2000),
        tmp_path / "out.parquet",
        tmp_path / "trace",
    )
    given_ = pd.read_parquet(source)
    trace.write_text("".join(
        FORM.format(pid=1, time=row.time, vcpu=row.vcpu, rip=row.rip, address=row.address, code=row.raw_code)
        for row in given_.itertuples()
    ))  # fmt: skip
    convert(source, target, rows=300)
    classified, whole = pd.read_parquet(target), read(trace)
    for name in (
        "raw_code",
        "encoding",
        "error_code",
        "flags",
        "access",
        "mapped",
        "private",
        "meaning",
        "gpa",
        "gfn",
    ):
        assert (
            classified[name].astype(object).fillna(0).tolist()
            == whole[name].astype(object).fillna(0).tolist()
        ), name


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"code": [1]}, "has a column raw_code"),
        ({"raw_code": [1.5]}, "raw_code: UInt64 is wanted"),
        ({"raw_code": [-1]}, "raw_code: UInt64 is wanted"),
        ({"raw_code": ["x"]}, "raw_code: UInt64 is wanted"),
        ({"raw_code": [1], "address": [2.0**53]}, "address: UInt64 is wanted"),
    ],
)
def test_what_is_no_table_of_faults_is_refused(columns, why, tmp_path):
    pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=why):
        convert(tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert not (tmp_path / "y.parquet").exists()


def peak(source, target):
    code = (
        "import resource, sys\nfrom kvm_pf.trace import convert\n"
        "digest = convert(sys.argv[1], sys.argv[2], rows=50_000).digest\n"
        "print(digest.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    command = [sys.executable, "-c", code, source, target]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=True).stdout.split()]


@pytest.fixture(scope="module")
def recorded():
    return read(data_dir() / "recordings" / "6.12" / "2-swprot.trace.gz")


@pytest.mark.parametrize("gap", [[0], slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("column", sorted(set(COLUMNS) - {"raw_code"}))
def test_gaps_in_any_column_of_a_table_of_others_leave_the_rest_readable(
    column, gap, recorded, tmp_path, capsys
):
    values = recorded[column].array.copy()
    values[gap] = None
    recorded.assign(**{column: values}).to_parquet(tmp_path / "x.parquet")
    assert main(["trace", str(tmp_path / "x.parquet")]) == 0
    assert re.search(rf"^faults: +{len(recorded)}\b", capsys.readouterr().out, re.MULTILINE)


TURN = """\
CPU-1 [000] 5.{n:06}: kvm_exit: reason EPT_VIOLATION rip 0x10 info 181 0
CPU-1 [000] 5.{n:06}: kvm_page_fault: vcpu 0 rip 0x10 address 0x12345000 error_code 0x181
CPU-1 [000] 5.{n:06}: kvm_userspace_exit: reason error (14)
"""


@pytest.fixture(scope="module")
def stuck():
    return load_text("".join(TURN.format(n=n) for n in range(20)), "stuck").faults


@pytest.mark.parametrize("column", sorted(set(COLUMNS) - {"raw_code"}))
def test_a_storm_is_told_whatever_column_of_a_table_of_others_is_empty(column, stuck, tmp_path, capsys):
    empty = stuck[column].array.copy()
    empty[:] = None
    stuck.assign(**{column: empty}).to_parquet(tmp_path / "x.parquet")
    assert main(["trace", str(tmp_path / "x.parquet")]) == 0
    assert re.search(r"^ +20 +(vCPU|pid|all)", capsys.readouterr().out, re.MULTILINE)


def test_memory_does_not_grow_with_a_tables_rows(tmp_path):
    sizes = 150_000, 350_000  # both more than is searched uncompiled
    found_ = [peak(write_raw(tmp_path / f"{rows}", rows), tmp_path / f"{rows}.out") for rows in sizes]
    assert [rows for rows, _ in found_] == list(sizes)
    assert found_[1][1] < found_[0][1] + 30


# --- many traces ---


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    for n in range(6):
        (folder / f"host{n}.txt").write_text(text(700, seed=n))
    (folder / "host6.txt.gz").write_bytes(TRACE.read_bytes())
    return folder


def test_a_file_that_cannot_be_read_is_named_beside_the_others(traces, tmp_path, capsys):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(TRACE.read_bytes()[:-50])
    assert main(["trace", str(traces / "host0.txt"), str(broken)]) == 2
    said = capsys.readouterr().out
    assert "1 traces, 700 faults" in said
    assert "broken.gz: cannot be read" in said


def test_the_sum_of_traces_is_the_sum(traces):
    fleet = read_all([traces])
    assert fleet.files()["faults"].tolist() == [700] * 6 + [34]
    total = sum(
        (load(path).digest.outcomes for path in sorted(traces.iterdir())), start=type(Digest().outcomes)()
    )
    assert fleet.digest().outcomes == total
    assert fleet.digest().meanings()["faults"].sum() == 4_234
    whole = load(traces / "host0.txt").faults
    assert fleet.storms()["faults"].max() >= storms(whole)["faults"].max()


def test_workers_give_the_same_and_a_killed_one_is_survived(traces, tmp_path):
    alone = read_all([traces], out=tmp_path / "alone")
    with cluster(workers=2) as client:
        pids = client.run(os.getpid)
        seen = threading.Event()

        def kill():
            seen.wait(30)
            os.kill(next(iter(pids.values())), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        fleet = read_all([traces], out=tmp_path / "together", client=client, progress=lambda said: seen.set())
        thread.join()
        pids_after = client.run(os.getpid)
    assert not set(pids.values()) <= set(pids_after.values())
    assert fleet_page(fleet) == fleet_page(alone)
    for name in ("files", "storms", "disagreements"):
        pd.testing.assert_frame_equal(getattr(fleet, name)(), getattr(alone, name)())
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "together").iterdir())
    assert len(names) == 7
    for name in names:
        assert pq.read_table(tmp_path / "alone" / name).equals(pq.read_table(tmp_path / "together" / name))


def test_one_file_split_among_workers_gives_the_same(traces):
    from distributed import Client

    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        split = list(scan(traces / "host0.txt", chunk=1001, client=client))
    (unsplit,) = scan(traces / "host0.txt")
    assert len(split) > 50
    assert sum(part.attrs["unread"] for part in split) == 0
    plain = dict.fromkeys(("encoding", "access"), "object")
    pd.testing.assert_frame_equal(
        pd.concat([part.astype(plain) for part in split], ignore_index=True), unsplit.astype(plain)
    )


def test_a_file_that_kills_its_workers_is_named_beside_the_others(traces):
    from distributed import KilledWorker

    class Killed(KilledWorker):
        def __init__(self):
            """Take nothing: which task, and whose, does not matter."""

    class Deadly:
        def map(self, function, *columns, **options):
            return [(function, *values) for values in zip(*columns, strict=True)]

        def gather(self, future):
            function, file, *rest = future
            if "host2" in file:
                raise Killed
            return function(file, *rest)

    fleet = read_all([traces], client=Deadly())
    assert [Path(one.name).name for one in fleet.refused] == ["host2.txt"]
    assert "died" in fleet.refused[0].why
    assert len(fleet.surveys) == 6


def started(traces, out, count):
    """Start reading with workers; give the process, and the numbers of the workers once they are at work."""
    command = [sys.executable, "-m", "kvm_pf", "trace", traces, "--workers", str(count), "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not out.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return process, [pid for pid in children.split() if b"dask worker" in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def long_trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text(text(700) * 40)
    return path


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_killed_parent_leaves_no_workers(long_trace, tmp_path):
    process, workers = started(long_trace, tmp_path / "out", 2)
    with process:
        process.kill()
        process.communicate(timeout=30)
    assert len(workers) == 2
    until = time.monotonic() + 30
    while any(b"dask worker" in command_of(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(b"dask worker" in command_of(pid) for pid in workers)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_of_a_killed_worker_one_line_is_said(long_trace, tmp_path):
    process, workers = started(long_trace, tmp_path / "out", 1)
    with process:
        os.kill(int(workers[0]), signal.SIGKILL)
        said, error = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"28000 faults" in said
    assert error.decode() == (
        "kvm-pf: a worker died; another takes its place, and the file that it was reading is read again\n"
    )


def test_workers_that_die_while_they_start_are_one_line(traces, tmp_path, capsys):
    import dask

    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with dask.config.set({"distributed.worker.preload": [str(deadly)]}):
        assert main(["trace", str(traces), "--workers", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch("kvm-pf: so many workers could not be started: 1 .*\n", shown.err)


def test_a_scheduler_that_is_not_there_is_named(capsys, traces, monkeypatch):
    assert main(["trace", str(traces), "--scheduler", "nonsense://x"]) == 2
    assert "nonsense://x: no Dask scheduler answers" in capsys.readouterr().err


def test_nothing_of_a_table_is_kept_that_was_read(tmp_path):
    path = write_raw(tmp_path / "raw.parquet", 300_000)
    before = pa.total_allocated_bytes()
    taken = [pa.total_allocated_bytes() - before for _ in TableStream(path).parts(10_000)]
    assert len(taken) == 30
    assert max(taken) < path.stat().st_size / 3


def test_an_interrupt_leaves_no_process_and_no_file(traces, tmp_path):
    command = [sys.executable, "-m", "kvm_pf", "trace", traces, "--workers", "1", "--out", tmp_path / "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & hands on that it is ignored
    ) as process:  # fmt: skip
        until = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < until:  # the workers are there by then
            time.sleep(0.05)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith(b"kvm-pf: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    until = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert workers
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
