# SPDX-License-Identifier: GPL-2.0-only
"""What a stranger or a careless hand does to traces and steps costs a line, and no file, hour or memory."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import refused, run

from kvm_pf.cli import main
from kvm_pf.common.errors import InputError
from kvm_pf.patch.diff import source_lines, step_diff
from kvm_pf.proof.edit import DoesNotEnd, ending, read_step
from kvm_pf.proof.verdict import verdict
from kvm_pf.revisions import get, logic_names
from kvm_pf.revisions.link import digest
from kvm_pf.trace import (
    chunks,
    conversions,
    convert,
    declared,
    disagreements,
    follows,
    load,
    meanings,
    next_steps,
    page,
    read,
    read_all,
    scan,
    storms,
    summary,
    top_addresses,
)  # fmt: skip
from kvm_pf.trace.lines import Pace, physical_lines, unpasted
from kvm_pf.trace.pasted import read_text

FAULT = (
    b"t-1 [000] ..... 1.000000: kvm_page_fault: vcpu 0 rip 0x1 address 0x0000000000001050 error_code 0x181\n"
)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.txt"
    path.write_bytes(FAULT)
    return path


class TestTraces:
    def test_the_trace_that_is_read_is_not_written_over(self, trace, tmp_path):
        said = "this is what is read; give the output another name"
        link = tmp_path / "link"
        link.symlink_to(trace)
        assert said in refused("trace", str(trace), "--out", str(trace))
        assert said in refused("trace", str(trace), "--out", str(link))
        (tmp_path / "other.txt").write_bytes(FAULT)
        table = tmp_path / "trace.txt.parquet"
        table.write_bytes(FAULT)
        files = [str(trace), str(tmp_path / "other.txt"), str(table)]
        assert said in refused("trace", *files, "--out", str(tmp_path))
        assert trace.read_bytes() == table.read_bytes() == FAULT
        assert sorted(os.listdir(tmp_path)) == ["link", "other.txt", "trace.txt", "trace.txt.parquet"]

    def test_an_empty_name_is_no_wish_for_nothing(self, trace):
        assert "no name of a file" in refused("trace", str(trace), "--out", "")

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
    def test_a_device_is_refused(self, device):
        assert f"{device}: this is a device" in refused("trace", device)

    def test_a_table_replaces_no_device_in_the_folder_of_tables(self, trace, tmp_path):
        (tmp_path / "more.txt").write_bytes(FAULT)
        out = tmp_path / "out"
        out.mkdir()
        os.mkfifo(out / "trace.txt.parquet")
        said = refused("trace", str(trace), str(tmp_path / "more.txt"), "--out", str(out))
        assert "trace.txt.parquet: this is a FIFO" in said
        assert os.listdir(out) == ["trace.txt.parquet"]

    def test_what_is_packed_is_unpacked_up_to_a_limit(self, tmp_path):
        bomb = tmp_path / "bomb.gz"
        bomb.write_bytes(gzip.compress((b" " * 999 + b"\n") * 1100))
        assert "unpacks to more than 1,048,576 bytes; --limit raises that" in refused(
            "trace", str(bomb), "--limit", "1"
        )
        with pytest.raises(InputError, match="more than 1,000 bytes"):
            load(bomb, pace=Pace(1000))
        assert "no event" in refused("trace", str(bomb), "--limit", "2")

    def test_what_was_packed_tight_is_not_unpacked_to_its_end_once_it_is_stopped(self, tmp_path):
        class Once(Pace):
            def tick(self):
                self.stopped = self.stopped or self.done > 0

        tight = tmp_path / "tight.gz"
        tight.write_bytes(gzip.compress(FAULT * 20_000))
        assert len(load(tight, pace=Once()).faults) < 2000

    def test_what_is_pasted_packed_is_unpacked_up_to_a_limit(self, monkeypatch):
        monkeypatch.setattr("kvm_pf.trace.pasted.UNPACKED", 1000)
        with pytest.raises(InputError, match="more than 1,000 bytes"):
            read_text(gzip.compress(FAULT * 20))
        assert len(read_text(gzip.compress(FAULT * 2)).faults) == 2

    def test_one_that_waits_for_its_writer_can_be_interrupted_and_written_to(self, tmp_path):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        pace = Pace()
        stop = threading.Timer(0.4, lambda: setattr(pace, "stopped", True))
        stop.start()
        start = time.monotonic()
        assert len(load(fifo, pace=pace).faults) == 0
        assert time.monotonic() < start + 5
        write = threading.Timer(0.4, lambda: Path(fifo).write_bytes(FAULT))
        write.start()
        assert len(load(fifo).faults) == 1
        write.join()

    def test_a_line_that_is_too_long_to_be_read_is_no_trace(self, tmp_path):
        path = tmp_path / "long"
        path.write_bytes(b"x" * 20_000)
        said = refused("trace", str(path))
        assert "no event of a trace in 1 lines, 1 of them too long; a trace of KVM is wanted" in said
        path.write_bytes(b"x" * 20_000 + b"\n" + FAULT)
        status, out, _ = run("trace", str(path))
        assert status == 0
        assert "longer than 8192 bytes" in out

    def test_lines_without_an_event_are_not_read_for_ever(self, tmp_path, monkeypatch):
        monkeypatch.setattr("kvm_pf.trace.lines.SEARCHED", 1000)
        path = tmp_path / "empty"
        path.write_bytes(b"\n" * 1001)
        assert "no event of a trace stands in its first 1,000 lines" in refused("trace", str(path))
        path.write_bytes(b"\n" * 999 + FAULT + b"\n" * 2000)
        assert len(load(path).faults) == 1

    def test_a_file_that_shrinks_while_it_is_read_is_said_to(self, tmp_path):
        path = tmp_path / "trace"
        path.write_bytes(FAULT * 4000)
        parts = scan(path, threads=1, chunk=100_000)
        assert len(next(parts)) > 900
        os.truncate(path, 1000)
        with pytest.raises(InputError, match="it became shorter while it was read"):
            list(parts)

        class Cut(Pace):
            def tick(self):
                os.truncate(path, 1000)

        path.write_bytes(FAULT * 4000)
        with pytest.raises(InputError, match="it became shorter while it was read"):
            load(path, pace=Cut())

    @pytest.mark.parametrize("how", ["w:", "w:gz"])
    def test_an_archive_is_no_trace(self, trace, tmp_path, how):
        archive = tmp_path / "traces"
        with tarfile.open(archive, how) as file:
            file.add(trace, "trace.txt")
        assert "this is a tar archive; unpack it" in refused("trace", str(archive))
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.write(trace, "trace.txt")
        assert "this is a zip archive; unpack it" in refused("trace", str(archive))

    def test_a_name_that_is_no_text_is_shown(self, tmp_path):
        folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
        os.mkdir(folder)
        for name in ("a", "b"):
            Path(folder, name).write_bytes(FAULT)
        for file in (folder, folder + "/a"):
            for more in ([], ["--json"]):
                status, out, _ = run("trace", file, *more)
                assert status == 0
                assert "udcff" in out or "--json" in more

    @pytest.mark.parametrize(
        "seconds", ["\u0663", "+5", "1_000", "1e3", "nan", "inf", "-0", "", "0", "0.09", "86401"]
    )
    def test_seconds_are_written_plainly(self, trace, seconds):
        assert "a number of seconds is wanted" in refused("trace", str(trace), f"--every={seconds}")

    def test_a_closed_standard_input_is_said_to_be(self):
        command = [sys.executable, "-m", "kvm_pf", "trace", "-"]
        end = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True)
        assert (end.returncode, end.stderr) == (2, "kvm-pf: standard input: it is closed\n")

    @pytest.mark.parametrize("cell", [[1], {"a": [1]}], ids=["a list", "a struct"])
    @pytest.mark.parametrize("column", ["source", "time", "raw_code"])
    def test_a_table_with_a_nested_column_is_refused(self, column, cell, tmp_path):
        path = tmp_path / "faults.parquet"
        pd.DataFrame({"raw_code": [6], column: [cell]}).to_parquet(path)
        assert f"column {column}: " in refused("trace", str(path))

    def test_words_that_are_bytes_in_a_dictionary_are_read_as_text_or_refused(self, tmp_path):
        path = tmp_path / "faults.parquet"
        pd.DataFrame({"raw_code": [6], "source": pd.Categorical([b"\xff"])}).to_parquet(path)
        assert "column source: string is wanted" in refused("trace", str(path))

    @pytest.mark.parametrize("name", ["source", "encoding"])
    def test_a_word_that_is_none_of_its_column_is_refused_with_its_row(self, name, tmp_path):
        path = tmp_path / "faults.parquet"
        pd.DataFrame({"raw_code": pd.array([6, 6], dtype="UInt64"), name: ["pf", "other"]}).to_parquet(path)
        assert f"column {name}, row 2: other is none of npf, " in refused("trace", str(path))

    def test_words_of_a_damaged_table_that_are_no_text_are_refused(self, tmp_path):
        path = tmp_path / "faults.parquet"
        words = pa.array([b"\xff"]).view(pa.string()).dictionary_encode()
        pq.write_table(pa.table({"raw_code": [6], "source": words}), path)
        assert "is damaged: " in refused("trace", str(path))

    def test_traces_that_are_not_read_are_told_of_on_the_error_stream(self, trace, tmp_path):
        (tmp_path / "empty").write_bytes(b"")
        status, out, err = run("trace", str(trace), str(tmp_path / "empty"))
        assert status == 2
        assert out.startswith("1 traces, 1 faults")
        assert err.startswith("kvm-pf: 1 not read, the first: ")


@pytest.mark.parametrize("setting", ["NUMBA_NUM_THREADS=garbage", "NUMBA_NUM_THREADS=0", "NUMBA_OPT=\x1b[2J"])
def test_a_setting_that_means_nothing_to_the_compiler_is_left_out(setting):
    name, value = setting.split("=")
    code = "from kvm_pf.run.compiler import numba\nassert numba.njit(lambda x: x + 1)(1) == 2\n"
    end = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert (end.returncode, end.stderr) == (0, "")


@pytest.mark.parametrize(("mine", "kept"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_a_library_of_numpy_reserves_no_memory_for_threads_that_are_not_used(mine, kept):
    """In an address space of 200 MB it printed a message of its own, and ended with the status of "differences"."""
    code = (
        "import os, sys\nfrom kvm_pf.cli import script\nsys.argv = ['kvm-pf', 'decode', '6']\n"
        "try:\n    script()\nfinally:\n    print(os.environ['OPENBLAS_NUM_THREADS'])\n"
    )
    others = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    end = subprocess.run([sys.executable, "-c", code], env=others | mine, capture_output=True, text=True)
    assert (end.returncode, end.stdout.splitlines()[-1], end.stderr) == (0, kept, "")


@pytest.mark.parametrize(
    "wrong",
    [None, True, 1, 1.5, b"x", [], {}, object(), pd.DataFrame({"a": [1]})],
    ids=lambda wrong: type(wrong).__name__,
)
@pytest.mark.parametrize(
    "function",
    [load, read, scan, chunks, convert, page, summary, conversions, declared, disagreements, next_steps, meanings,
     storms, top_addresses, follows, step_diff, source_lines],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_a_wrong_argument_is_named_and_opens_nothing(function, wrong):
    with pytest.raises(InputError, match=r"(?s)is wanted|has no column"):
        function(wrong, wrong) if function is convert else function(wrong)


@pytest.mark.parametrize("function", [meanings, top_addresses, follows, storms])
def test_codes_that_went_through_floats_and_columns_that_are_there_twice_are_refused(function, trace):
    table = read(trace)
    assert len(function(table)) < 2
    with pytest.raises(InputError, match="column raw_code: UInt64 is wanted, not float64"):
        function(table.astype({"raw_code": "float64"}))
    with pytest.raises(InputError, match="column address: UInt64 is wanted, not object"):
        function(table.astype({"address": "object"}))
    with pytest.raises(InputError, match="a column twice"):
        function(pd.concat([table, table[["rip"]]], axis=1))
    with pytest.raises(InputError, match="has no column"):
        function(table.set_axis(pd.MultiIndex.from_product([["a"], list(table)]), axis=1))


def called(body: str) -> None:
    step = read_step(f"def sanitize(error_code):\n{body}", "sanitize")
    with ending(get("posted").derive("hostile", "", sanitize=step), 0.3):
        step(0x100000006)


@pytest.mark.parametrize("command", ["evaluate table.parquet -", "trace trace.txt --out -", "export -"])
def test_a_dash_becomes_no_file_of_that_name(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"error_code": [6]}).to_parquet("table.parquet")
    Path("trace.txt").write_text("kvm_page_fault: address febd0000 error_code 181\n")
    assert refused(*command.split()).startswith("kvm-pf: -: this is not written to standard output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.parquet", "trace.txt"]


@pytest.mark.parametrize("command", ["patch", "trace"])
def test_a_name_that_is_empty_is_shown_as_such(command):
    assert refused(command, "") == f"kvm-pf: '': the path of a {command} is wanted\n"


def test_a_table_of_vectors_with_more_columns_than_there_are_is_refused_at_once(tmp_path):
    path = tmp_path / "cases_posted.csv"
    path.write_text(",".join(f"c{n}" for n in range(20_000)) + "\n")
    start = time.process_time()
    assert "it has 20000 columns, and no table more than 1000" in refused("check", str(path))
    assert time.process_time() < start + 20


def test_a_folder_of_more_files_than_traces_ever_are_is_refused_at_once_and_read_if_one_insists(tmp_path):
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text("hello\n")
    (tmp_path / "loop").symlink_to("loop")
    said = refused("trace", str(tmp_path), "--most", "29")
    assert said.startswith(
        f"kvm-pf: {tmp_path}: 30 files are more than 29, the most that are read at once: --most"
    )
    said = refused("trace", str(tmp_path), "--most", "30")
    assert said.startswith(
        f"kvm-pf: none of 30 files can be read, the first: {tmp_path}/0.txt: no event of a trace"
    )
    with pytest.raises(InputError, match="30 files are more than 3"):
        read_all([tmp_path], most=3)
    for wrong in ("0", "-1", "x", "1" * 10):
        assert "a whole number of files is wanted" in refused("trace", str(tmp_path), f"--most={wrong}")


class TestSteps:
    @pytest.mark.parametrize(
        "body",
        [
            "    while 1: pass\n",
            "    x = error_code\n    while 1: x = x * 9\n",
            "    x = (0, 0)\n" + "    x = x + x\n" * 60,
        ],
        ids=["a loop on one line", "a number that is multiplied", "a tuple that is doubled"],
    )
    def test_one_that_takes_for_ever_is_stopped(self, body):
        start = time.monotonic()
        with pytest.raises(DoesNotEnd, match=r"does not return|grows too far"):
            called(body)
        assert time.monotonic() < start + 5

    @pytest.mark.parametrize(
        "value",
        [
            "(0,) * 999999999",
            "error_code.to_bytes(999999999)",
            "(0,)\n    y = x\n    y *= 999999999",
            "(0, 0) if error_code else 0\n    y = (x * 9) * 999999999",
            "error_code * error_code",
        ],
    )
    def test_one_that_would_fill_the_memory_is_refused(self, value):
        with pytest.raises(InputError, match=r"\.to_bytes has no place in a step|could be too much"):
            called(f"    x = {value}\n")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("1 << 5_000_000", "<< by this could be too far"),
            ("1 << error_code", "<< by this could be too far"),
            ("1 << (error_code & 64)", "<< by this could be too far"),
            ("error_code**5000", r"\*\* has no place"),
            ("nested()", "grows too far"),
        ],
        ids=["far", "by what is not known", "masked by too much", "a power", "shared tuples"],
    )
    def test_one_that_returns_what_is_huge_is_stopped(self, value, said):
        def nested():
            shared, left = (0, 0), 60
            while left:
                shared, left = (shared, shared), left - 1
            return shared

        scope = {"nested": nested}
        exec(f"def sanitize(error_code):\n    return {value}, 0\n", scope)
        with pytest.raises(InputError, match=rf"sanitize, line \d+: .*{said}"):
            verdict(scope["sanitize"])

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("(0,) * 999999999", "could be too much"),
            ("999999999 * (error_code, 0)", "could be too much"),
            ("'x' * (1 << 40)", "could be too much"),
            ("(0,) * error_code", "could be too much"),
            ("(0,) * (999999999 if error_code else 1)", "could be too much"),
            ("(1 if error_code else 999999999) * (error_code,)", "could be too much"),
            ("(error_code,) * 4096 * 2", "could be too much: .* and in all"),
            ("1 << (999999999 if error_code else 1)", "<< by this could be too far"),
            ("[0] * 9", "a list has no place"),
            ("f'{error_code:>999999999}'", "an f-string has no place"),
            ("'%999999999d' % error_code", "text with % in it has no place"),
            ("wide % error_code", "text with % in it has no place"),
            ("str(error_code).zfill(999999999)", r"\.zfill has no place"),
            ("max(0 for x in (1,) * 250 for y in (1,) * 250)", "a generator has no place"),
            ("double((0,))", "grows too far|does not return"),
            ("double('x')", "grows too far|does not return"),
        ],
    )
    def test_one_that_is_given_as_a_function_ends_at_once_in_little_memory(self, value, said):
        scope = {"wide": "%999999999d"}
        exec("def double(x): " + "x = x + x; " * 40 + "return x\n", scope)
        exec(f"def sanitize(error_code):\n    return {value}, 0\n", scope)
        tracemalloc.start()
        start = time.monotonic()
        try:
            with pytest.raises(InputError, match=said):
                verdict(scope["sanitize"])
            assert tracemalloc.get_traced_memory()[1] < 1 << 28
        finally:
            tracemalloc.stop()
        assert time.monotonic() < start + 20

    @pytest.mark.parametrize(
        "value", ["error_code * 4096", "2 * (error_code & 7) * 3", "gpa_to_gfn(error_code) * 9"]
    )
    def test_one_may_multiply_by_what_is_small(self, value):
        scope = dict(logic_names())
        exec(f"def sanitize(error_code):\n    return {value}, 0\n", scope)
        with ending(get("posted").derive("mine", "", sanitize=scope["sanitize"])):
            assert isinstance(scope["sanitize"](7), tuple)

    def test_one_that_waits_is_refused_before_it_is_run(self):
        def sanitize(error_code):
            time.sleep(100)
            return error_code, 0

        line = sanitize.__code__.co_firstlineno + 1
        with pytest.raises(
            InputError, match=f"sanitize, line {line}: time has no place in a step: it takes names"
        ):
            verdict(sanitize)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("import time\n    time.sleep(100)", "line 2: an import has no place"),
            ("__import__('sys').settrace(None)", "line 2: __import__ has no place"),
            ("sys.setrecursionlimit(50)", "line 2: sys has no place"),
            ("shared", "line 2: shared has no place"),
            ("wait()", "line 1: sleep has no place"),
            ("max(range(10 ** 12))", "line 2: range has no place"),
            ("error_code.__class__", "line 2: .__class__ has no place"),
            ("error_code.to_bytes(999999999)", "line 2: .to_bytes has no place"),
            ("raise KeyboardInterrupt", "line 2: KeyboardInterrupt has no place"),
            ("wait.mark = 1", "line 2: what changes something outside of it has no place"),
            (
                "try:\n        wait()\n    except BaseException:\n        pass",
                r"line \d: try or with has no place",
            ),
            ("open('/dev/zero').read()", "line 2: open has no place"),
        ],
    )
    def test_one_that_reaches_for_more_than_the_path_has_is_refused(self, text, said):
        shared = ()
        for _ in range(60):
            shared = (shared, shared)
        scope = {"shared": shared, "sys": sys, "sleep": time.sleep}
        exec("def wait(): sleep(100)\n", scope)
        exec(f"def sanitize(error_code):\n    {text}\n    return error_code, 0\n", scope)
        with pytest.raises(InputError, match=f"sanitize, {said}"):
            verdict(scope["sanitize"])

    def test_a_helper_of_its_own_that_loops_is_stopped(self):
        def spin(error_code):
            while error_code:
                error_code |= 1

        def sanitize(error_code):
            spin(error_code | 1)
            return error_code, 0

        with pytest.raises(DoesNotEnd, match=r"sanitize, line .*: it does not return"):
            verdict(sanitize)

    def test_a_helper_of_its_own_that_calls_itself_without_end_is_stopped(self):
        def again(error_code):
            return again(error_code)

        def sanitize(error_code):
            return again(error_code), 0

        with pytest.raises(InputError, match="its steps call themselves, or each other, too often"):
            verdict(sanitize)

    def test_values_that_hold_one_another_twice_are_compared_at_once(self):
        def step(error_code, held=None):
            return error_code, held

        def digest_of(end):
            shared = (end,)
            for _ in range(60):
                shared = (shared, shared)
            step.__defaults__ = (shared,)
            return digest(step, {})

        assert digest_of(1) == digest_of(1) != digest_of(2)

    def test_one_that_catches_what_would_stop_it_is_refused(self):
        def sanitize(error_code):
            while True:
                with suppress(BaseException):
                    error_code += 1

        with pytest.raises(InputError, match="suppress has no place"):
            verdict(sanitize)

    def test_one_that_would_end_the_program_fails_its_cases(self):
        def sanitize(error_code):
            raise SystemExit(0)

        judged = verdict(sanitize, ["sanitiser-is-a-mask"])
        assert judged.cases
        assert "raises SystemExit" in str(judged)


def test_the_file_that_standard_output_goes_to_is_not_replaced_by_a_table(tmp_path, root):
    page = tmp_path / "page.txt"
    trace = root / "data/recordings/6.12/2-swprot.trace.gz"
    with page.open("w") as out:
        command = [sys.executable, "-m", "kvm_pf", "trace", trace, "--out", "/dev/stdout"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, page.read_text()) == (2, "")
    assert done.stderr == "kvm-pf: /dev/stdout: standard output goes there; give the output another name\n"


def test_a_name_with_a_newline_is_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x\ny.patch").write_text("--- a/a\n+++ b/a\n@@ -1 +1 @@\n-a\n+b\n")
    pd.DataFrame({"error_code": [6]}).to_parquet("table.parquet")
    assert main(["patch", "x\ny.patch"]) == 1
    assert main(["evaluate", "table.parquet", "x\ny.parquet"]) == 0
    assert capsys.readouterr().out.endswith("x\\ny.parquet: 1 rows\n")


def test_a_folder_that_is_not_there_becomes_no_file(tmp_path):
    pd.DataFrame({"error_code": [6]}).to_parquet(tmp_path / "table.parquet")
    assert "no such folder" in refused("evaluate", str(tmp_path / "table.parquet"), f"{tmp_path}/new/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.parquet"]


def test_empty_lines_are_passed_over_in_a_text_that_is_mailed():
    text = "CPU-1 [000] 1.0: kvm_page_fault: address febd0000 =\n\nerror_code 181\n\n\n"
    assert [line.text for line in unpasted(physical_lines(io.BytesIO(text.encode())))] == [
        "CPU-1 [000] 1.0: kvm_page_fault: address febd0000 ", "error_code 181", "", "",
    ]  # fmt: skip
