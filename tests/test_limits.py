# SPDX-License-Identifier: GPL-2.0-only
"""What a stranger sends is read in bounded memory and time, and what is not whole is never called right."""

import gzip
import os
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import refused, run

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read
from kvm_pf.common.paths import data_dir
from kvm_pf.conformance import vectors
from kvm_pf.conformance.ftrace import read_trace
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay
from kvm_pf.conformance.vectors import check_table
from kvm_pf.run import batch
from kvm_pf.run.batch import evaluate_parquet

RECORDING = data_dir() / "recordings" / "6.12"


class TestReading:
    def test_no_more_is_unpacked_than_is_allowed(self, tmp_path):
        bomb = tmp_path / "a.gz"
        bomb.write_bytes(gzip.compress(bytes(50_000_000)))
        start = time.process_time()
        with pytest.raises(InputError, match=r"a\.gz: there are more than 1,000 bytes in it"):
            read(bomb, 1000)
        assert time.process_time() < start + 0.2
        (tmp_path / "b").write_bytes(bytes(1000))
        assert read(tmp_path / "b", 1000) == bytes(1000)
        with pytest.raises(InputError, match="more than 999 bytes"):
            read(tmp_path / "b", 999)

    @pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
    def test_nothing_is_waited_for(self, tmp_path, kind):
        def make(path):
            if kind == "FIFO":
                os.mkfifo(path)
            elif kind == "device":
                path.symlink_to("/dev/zero")
            else:
                path.mkdir()
            return path

        for name in ("1-x.trace", "1-x.trace.gz"):
            with pytest.raises(InputError, match=f"this is a {kind}"):
                read_trace(make(tmp_path / name))
        assert f"this is a {kind}" in refused("replay", str(tmp_path))
        for name in ("cases_posted.csv", "cases_posted.csv.gz", "cases_posted.parquet"):
            assert f"this is a {kind}" in refused("check", str(make(tmp_path / name)))
        with pytest.raises(InputError, match=f"this is a {kind}"):
            evaluate_parquet(tmp_path / "cases_posted.parquet", tmp_path / "out")


class TestTables:
    def test_a_table_is_checked_in_pieces_however_well_it_was_packed(self, tmp_path, monkeypatch):
        assert vectors.CHUNK_ROWS <= 125_000
        monkeypatch.setattr(vectors, "CHUNK_ROWS", 12_500)  # less than what is compiled for
        path = tmp_path / "cases_posted.csv.gz"
        path.write_bytes(gzip.compress(b"error_code,f_addr\n" + b"6,4294967296\n" * 60_000))
        assert path.stat().st_size < 3_000
        with pytest.raises(
            InputError, match=r"cases_posted\.csv\.gz: there are more than 100,000 bytes in it"
        ):
            check_table(path, limit=100_000)
        seen = []
        with pytest.raises(InputError, match="more than 900,000 bytes"):
            check_table(path, limit=900_000, progress=seen.append)
        assert seen[0] == 12_500

    def test_parquet_that_would_unpack_to_too_much_is_not_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(batch, "GROUP_BYTES", 10_000_000)
        path = tmp_path / "cases_posted.parquet"
        text = pa.array(["y" * 1_000_000] * 11)
        pq.write_table(pa.table({"case_id": text}), path, compression="zstd", use_dictionary=False)
        assert path.stat().st_size < 5_000
        assert "unpacks to more than 10,000,000 bytes" in refused("check", str(path))
        assert "smaller row groups" in refused("evaluate", str(path), str(tmp_path / "out"))

    def test_any_number_of_rows_fits_in_a_small_file_and_is_not_evaluated_unasked(self, tmp_path):
        path, out = tmp_path / "rows.parquet", tmp_path / "out"
        rows = pa.table({"error_code": pa.array([6] * 1_100_000, pa.uint64())})
        pq.write_table(rows, path)
        assert path.stat().st_size < 10_000
        said = refused("evaluate", str(path), str(out), "--limit", "1")
        assert "there are 1,100,000 rows in it, and 1,000,000 are the most" in said
        assert not out.exists()
        assert "a whole number of millions" in refused("evaluate", str(path), str(out), "--limit", "-1")

    def test_the_limit_is_an_option(self, tmp_path):
        path = tmp_path / "cases_posted.parquet"
        rows = {"case_id": ["y" * 1000], "error_code": ["6"], "f_addr": [1 << 32]}
        pd.DataFrame(rows).loc[[0] * 2000].to_parquet(path, index=False)
        assert "--limit: 0: a whole number of MiB is wanted" in refused("check", str(path), "--limit", "0")
        assert "more than 1,048,576 bytes" in refused("check", str(path), "--limit", "1")
        assert run("check", str(path))[0] == 0


@pytest.fixture
def copy(tmp_path):
    """A recording to be damaged, its files unpacked."""
    folder = tmp_path / "boot"
    folder.mkdir()
    for path in RECORDING.iterdir():
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (folder / path.name.removesuffix(".gz")).write_bytes(content)
    return folder


def lines(path):
    return path.read_text().splitlines(keepends=True)


class TestDamage:
    @pytest.mark.parametrize("folder", sorted(data_dir().glob("recordings/*/")), ids=lambda path: path.name)
    def test_what_is_carried_is_whole(self, folder):
        assert read_recording(folder).damage == ()

    def cut_trace(folder):
        path = folder / "1-default.trace"
        path.write_text("".join(lines(path)[:620]))
        return "1-default: the trace's header promises 1216 entries, 608 are there"

    def cut_trace_without_header(folder):
        path = folder / "1-default.trace"
        path.write_text("".join(line for line in lines(path)[:620] if line[0] != "#"))
        return "1-default: the trace does not come to its end mark"

    def no_trace(folder):
        (folder / "1-default.trace").unlink()
        return "1-default: there is a JSON, and no trace beside it"

    def empty_json(folder):
        (folder / "2-swprot.json").write_text("")
        return "2-swprot: the JSON has no line for"

    def no_json(folder):
        (folder / "2-swprot.json").unlink()
        return "2-swprot: the JSON has no line for"

    def cut_json(folder):
        path = folder / "2-swprot.json"
        path.write_text("".join(lines(path)[:5]))
        return "2-swprot: the JSON has no line for"

    def no_marks(folder):
        path = folder / "3-inject.trace"
        path.write_text("".join(line for line in lines(path) if "step 7:" not in line and line[0] != "#"))
        return "3-inject: the trace has no mark for 1 steps of the JSON, from step 7 on"

    def foreign_lines(folder):
        path = folder / "3-inject.trace"
        path.write_text("".join([*lines(path), "and\x1b[2J more\n"]))
        return "3-inject: line "

    @pytest.mark.parametrize(
        "damage",
        [
            cut_trace,
            cut_trace_without_header,
            no_trace,
            empty_json,
            no_json,
            cut_json,
            no_marks,
            foreign_lines,
        ],
        ids=lambda damage: damage.__name__,
    )
    def test_what_is_not_whole_is_said_and_no_success(self, copy, damage):
        what = damage(copy)
        report = replay(copy)
        assert [said for said in report.damage if said.startswith(what)], report.damage
        status, out, _ = run("replay", str(copy))
        assert status == (1 if report.differing else 2)
        assert f"  damaged: {what}" in out
        assert "\x1b" not in out

    def test_a_whole_copy_is_a_success(self, copy):
        assert run("replay", str(copy))[0] == 0

    def test_files_together_have_a_limit(self, copy):
        with pytest.raises(InputError, match="more than"):
            replay(copy, limit=300_000)
        (copy / "1-default.json").write_bytes(b"\n" * (1 << 20) + (copy / "1-default.json").read_bytes())
        assert "more than" in refused("replay", str(copy), "--limit", "1")
        assert run("replay", str(copy))[0] == 0


def hostile_lines():
    """Lines that kept a pattern busy, or could."""
    n = 50_000
    start = "a-1 [000] ..... 1.5: "
    yield from (" " * n, "a-1 (" * n, "-1" * n, "a-1 [0] " * n, "1." * n, start + "=" * n, start + "a" * n)
    yield from (f"{start}p: ({'a <- ' * n})", f"{start}p: ({'a' * n}", f"{start}p: (f+0x1/0x2) " + "a" * n)
    yield from (f"{start}p: (f) {'a=' * n}", f"{start}kvm_exit: reason {' rip 0x1 info1' * n}")
    yield from (f"{start}kvm_emulate_insn: 0:1:{' (' * n}", f"{start}kvm_inj_exception: {'(' * n}")
    yield f"{start}fast_page_fault: vcpu 0 gva 1 error_code {' sptep 1 old 2 new' * n}"
    yield "WARNING: " * n
    yield "WARNING: " + "a/" * n
    yield "WARNING: " + "a.c:1 f+0x1 " + " CPU#1: /" * n


@pytest.mark.parametrize("line", list(hostile_lines()), ids=lambda line: line[:40].strip()[-12:])
def test_no_line_keeps_a_pattern_busy(tmp_path, line):
    good = "          a-42      [000] .....     3.693872: tracing_mark_write: step 1: vm default\n"
    (tmp_path / "1-x.trace").write_text(f"{good}{line}\n{good.replace('step 1: vm default', 'end')}")
    (tmp_path / "dmesg.txt").write_text(f"Linux version 6.12\n{line}\n" * 2)
    start = time.process_time()
    read_recording(tmp_path)
    assert time.process_time() < start + 1


def test_deep_or_endless_json_is_refused_by_line(copy):
    for value in (
        "[" * 100_000,
        '{"step": 1, "op": "vm default", "rc": ' + "9" * 10_000 + "}",
        '{"a":' * 5_000,
    ):
        (copy / "1-default.json").write_text(value)
        with pytest.raises(InputError, match=r"1-default\.json:1: not JSON"):
            read_recording(copy)


def test_a_release_of_many_digits_is_refused(copy):
    (copy / "dmesg.txt").write_text("Linux version " + "9" * 5000 + ".1\n")
    with pytest.raises(InputError, match="can be replayed"):
        replay(copy)
    assert len(refused("replay", str(copy))) < 300
