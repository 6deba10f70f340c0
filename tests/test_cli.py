# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what each command prints, how it ends, and that nothing makes it stumble."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.bits import PFERR, decode
from kvm_pf.cli import main
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.run.tables import CASE_INPUTS

fixed = settings(derandomize=True, deadline=None)

COMMANDS = ("decode", "explain", "check", "replay", "patch", "prove", "compare", "evaluate", "export")


def run(*arguments):
    """Run a command; give its exit status and what it printed where."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def refused(*arguments):
    """Run a command that must complain in one line; give the line."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert err.startswith("kvm-pf")
    return err


KVM_PF = (sys.executable, "-m", "kvm_pf")


def process(*arguments, **more):
    return subprocess.run([*KVM_PF, *arguments], capture_output=True, text=True, timeout=60, **more)


def to_nobody(*arguments):
    """Run a command whose output nobody reads; give its exit status and what it says on the error stream."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*KVM_PF, *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A small table of kernel vectors."""
    path = tmp_path_factory.mktemp("tables") / "cases_before.csv"
    frame = load_corpus().vectors("cases", "before").iloc[::200]
    frame.astype(object).where(frame.notna(), "").to_csv(path, index=False)
    return path


class TestDecode:
    def test_it_says_what_the_code_says_then_names_the_bits(self):
        status, out, err = run("decode", "0x2000100000006", "--as", "pferr")
        assert (status, err) == (0, "")
        sentence, title, *rows = out.splitlines()
        assert sentence == "a write (private memory), on a page that is not mapped"
        assert title.startswith("0x2000100000006: page-fault error code inside KVM")
        bits = [row.split()[:2] for row in rows if row.lstrip()[:1].isdigit()]
        assert bits == [["1", "WRITE"], ["2", "USER"], ["32", "GUEST_FINAL"], ["49", "PRIVATE_ACCESS"]]
        for row, bit in zip(rows, decode(0x2000100000006), strict=False):
            assert bit.set_by.value in row

    def test_the_other_readings_have_a_line_each(self):
        _, out, _ = run("decode", "683")
        others = [line for line in out.splitlines() if line.startswith("or ")]
        assert [line.split(",")[0] for line in others] == ["or 0x2ab (from decimal)", "or 0x683"]
        assert "hardly: bits 7, 9, 10 have no meaning in an error code" in others[1]

    @pytest.mark.parametrize("code", ["10000000c", "0x10000000C", "0X10000000c"])
    def test_a_code_is_hexadecimal(self, code):
        assert run("decode", code) == run("decode", "0x10000000c")

    @pytest.mark.parametrize("code", ["USER|RSVD|GUEST_FINAL", "bit2|bit3|bit32"])
    def test_or_names(self, code):
        told = json.loads(run("decode", code, "--json")[1])
        assert (told["code"], told["encoding"], told["spelled"]) == ("0x10000000c", "pferr", "names")

    def test_the_encoding_and_the_base_can_be_given(self):
        _, out, _ = run("decode", "0x683", "--as", "ept")
        assert [row.split()[1] for row in out.splitlines() if row.lstrip()[:1].isdigit() and row[0] == " "] == [
            "READ", "WRITE", "GVA_VALID", "GVA_USER", "GVA_WRITABLE",
        ]  # fmt: skip
        assert "or " not in out.splitlines()[-1][:3]
        assert run("decode", "ffffffff", "--as", "pf")[0] == 0
        assert "32 bits" in refused("decode", "100000000", "--as", "pf")
        assert run("decode", "683", "--base", "10")[1].splitlines()[1].startswith("0x2ab")

    def test_a_bit_without_a_name_stays_visible(self):
        _, out, _ = run("decode", "8000000000000000")
        assert "63  bit 63" in out

    def test_a_line_with_several_codes_shows_them_all(self):
        line = "kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x1 info1 0x1aa info2 0x80000301 intr_info 0x0 error_code 0x0"
        first, second = run("decode", line)[1].split("\n\n")
        assert first.startswith("a write, on a page that is not mapped for writing\n")
        assert second.startswith("#DB (hardware exception, vector 1) was being delivered")
        told = json.loads(run("decode", line, "--json")[1])
        assert [told["code"], *(more["code"] for more in told["more"])] == ["0x1aa", "0x80000301"]

    @given(st.integers(0, 2**64 - 1))
    @fixed
    def test_json_says_the_same(self, code):
        status, out, _ = run("decode", hex(code), "--json", "--as", "pferr")
        told = json.loads(out)
        assert (status, int(told["code"], 16), told["encoding"]) == (0, code, "pferr")
        assert sum(1 << bit["bit"] for bit in told["bits"]) == code
        names = {row.bit: row.name for row in PFERR}
        assert all(bit["name"] == names.get(bit["bit"], "") for bit in told["bits"])

    @pytest.mark.parametrize(
        "code", ["", "-5", "0x", "0x_1", "1_0", "٣", "WRIT", "WRITE|", "6.0", "bit64", "f" * 99, "0xg"]
    )
    def test_anything_else_is_refused(self, code):
        assert len(refused("decode", "--", code)) < 500


class TestExplain:
    def test_it_prints_the_steps(self):
        status, out, err = run("explain", "0x100000006", "--vm", "sw-protected", "--private")
        assert (status, err) == (0, "")
        assert out.startswith(
            "posted: sw-protected VM, through npf_interception() with EXITINFO1 0x100000006 (WRITE|USER|GUEST_FINAL), "
            "address 0x100000000\n"
        )
        assert "0x100000006 → 0x2000100000006" in out
        assert "gfn 0x100000 is private: PRIVATE_ACCESS set" in out

    def test_options_and_settings_reach_the_fault(self):
        _, out, _ = run(
            "explain", "RSVD|USER", "--revision", "v6_12", "--gpa", "0x5000", "--mode", "shadow",
            "--set", "pf_ret=EMULATE", "--set", "walk_leaf=1", "--set", "spte1=0x6",
        )  # fmt: skip
        assert out.startswith("v6_12: default VM, address 0x5000, error code 0xc (USER|RSVD)")
        assert "MMIO SPTE is stale" in out
        assert "emulate with type 0x40" in out

    @pytest.mark.parametrize(
        ("arguments", "handler", "change"),
        [
            (("0x500000004", "--vm", "snp"), "npf_interception", "0x500000004 → 0x2000500000004"),
            (("0x181",), "handle_ept_violation", "0x181 → 0x100000004"),
            (("0x683",), "handle_ept_violation", "0x683 → 0x200000006"),
            (("181",), "handle_ept_violation", "0x181 → 0x100000004"),
            (("kvm_page_fault: address febd0000 error_code 181",), "handle_ept_violation", "0x181 → 0x100000004"),
            (("8",), "handle_ept_misconfig", "0x0 → 0x8"),
            (("0x9",), "kvm_handle_page_fault", "0x9"),
            (("0x683", "--from", "npf"), "npf_interception", "0x683"),
        ],
    )  # fmt: skip
    def test_a_number_enters_where_it_comes_from(self, arguments, handler, change):
        status, out, _ = run("explain", *arguments, "--revision", "v6_12")
        title, entry, given, first, *_ = (line for line in out.splitlines() if not line.startswith("note: "))
        assert status == 0
        assert f"through {handler}()" in title
        assert entry.startswith("entry: ")
        assert ("--from decides otherwise" in entry) is ("--from" not in arguments)
        assert given.startswith("given: ")
        assert first.split()[0] == handler
        assert change in first

    @pytest.mark.parametrize(
        "arguments",
        [("0x2000500000004",), ("WRITE|USER|GUEST_FINAL",), ("0x181", "--from", "mmu"), ("RSVD",)],
    )
    def test_what_kvm_itself_made_enters_the_mmu(self, arguments):
        title, _, _, first, *_ = run("explain", *arguments)[1].splitlines()
        assert title.endswith("straight into kvm_mmu_page_fault()")
        assert first.startswith("kvm_mmu_page_fault")

    def test_what_was_given_is_not_shown_as_found_out(self):
        _, out, _ = run("explain", "6", "--vm", "sw-protected", "--private")
        assert "given: the page-fault handler answers FIXED" in out
        assert "given: gfn 0x100000: private" in out

    def test_a_pasted_line_is_followed_at_its_own_address(self):
        line = "kvm_page_fault: vcpu 5 rip 0x7f08a4602116 address 0x0000000113600002 error_code 0x181"
        assert "address 0x113600002" in run("explain", line)[1].splitlines()[0]
        assert "address 0x5000" in run("explain", line, "--gpa", "0x5000")[1].splitlines()[0]
        assert "address 0x100000000" in run("explain", "0x181")[1].splitlines()[0]

    def test_a_tdx_guests_line_is_followed_by_the_first_revision_that_has_them(self):
        line = "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000012345000 error_code 0x2"
        first, entry, *_ = run("explain", line)[1].splitlines()
        assert first.startswith(
            "v7_3: tdx VM, through tdx_handle_ept_violation() with exit qualification 0x2"
        )
        assert entry.startswith("entry: tdx, likely")
        assert "v6_12 has no trust domains" in run("explain", line, "--revision", "v6_12")[2]

    def test_linuxs_own_page_fault_is_said_to_be_none_that_kvm_sees(self):
        assert (
            "note: Linux's own page fault"
            in run("explain", "#PF: error_code(0x0003) - permissions violation")[1]
        )

    def test_a_code_that_an_old_kernel_may_have_cut_is_marked(self):
        assert "note: not a whole code; it was 0x100000014 if" in run("explain", "14")[1]
        assert "note: not a whole code" not in run("explain", "0x100000014")[1]

    def test_a_setting_may_be_any_input_even_those_that_have_an_option(self):
        for column in CASE_INPUTS:
            if column.column != "error_code":
                assert run("explain", "6", "--set", f"{column.column}={column.default}")[0] == 0, (
                    column.column
                )
        assert run("explain", "6", "--set", "revision=before") == run("explain", "6", "--revision", "before")
        assert run("explain", "6", "--set", "source=npf") == run("explain", "6", "--from", "npf")
        assert "is shared" in run("explain", "6", "--set", "private=0", "--vm", "sw-protected")[1]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("x",), "no bit is called 'x'"),
            (("1" + "0" * 16,), "64 bits"),
            (("0x80000301",), "no fault's code but IDT-vectoring information"),
            (("6", "--gpa", "zz"), "cr2_or_gpa='zz'"),
            (("6", "--gpa", "-1"), "cr2_or_gpa='-1'"),
            (("6", "--gpa", "5", "--set", "cr2_or_gpa=6"), "given twice, once by --gpa"),
            (("6", "--private", "--set", "private=0"), "given twice, once by --private"),
            (("6", "--revision", "nope"), "there is no revision 'nope'"),
            (("6", "--vm", "nope"), "vm_type='nope'"),
            (("6", "--vm", ""), "vm_type=''"),
            (("6", "--mode", ""), "mode=''"),
            (("6", "--mode", "nope"), "mode='nope'"),
            (("6", "--from", "nope"), "invalid choice: 'nope'"),
            (("6", "--set", "source=nope"), "source='nope'"),
            (("6", "--from", "tdx"), "no trust domains"),
            (("6", "--from", "misconfig"), "an EPT misconfiguration has no code"),
            (("6", "--set", "nope"), "a setting has the form NAME=VALUE"),
            (("6", "--set", "nope=1"), "a fault has no 'nope'"),
            (("6", "--set", "error_code=2"), "the error code is the argument"),
            (("6", "--set", "gen=2", "--set", "gen=3"), "gen is set twice"),
            (("6", "--set", "=1"), "a fault has no ''"),
            (("6", "--set", "self=1"), "a fault has no 'self'"),
            (("6", "--set", "gen="), "gen=''"),
            (("6", "--set", "attrs=0", "--private"), "not beside attrs"),
            ((), "the following arguments are required: code"),
        ],
    )
    def test_what_a_fault_cannot_have_is_refused(self, arguments, complaint):
        assert complaint in refused("explain", *arguments)


class TestCheck:
    def test_a_table_that_agrees_ends_well(self, table):
        status, out, err = run("check", str(table))
        assert (status, err) == (0, "")
        assert re.fullmatch(
            r"cases_before\.csv: cases, before: \d+ rows, 54 columns compared, 0 differing rows\n", out
        )

    def test_a_table_that_differs_ends_with_1_and_shows_where(self, table):
        status, out, _ = run("check", str(table), "--revision", "posted", "--first", "2")
        assert status == 1
        assert len(re.findall(r"^  row \d+ \(case_id \d+\), \w+: table .+, model .+$", out, re.M)) == 2
        assert re.search(r"^  f_is_private: \d+ rows differ$", out, re.M)
        assert run("check", str(table), "--revision", "R1", "--first", "0")[1].count("case_id") == 0

    def test_one_that_differs_among_several_is_enough(self, table, tmp_path):
        other = tmp_path / "cases_posted.csv"
        other.write_bytes(table.read_bytes())
        status, out, _ = run("check", str(table), str(other))
        assert status == 1
        assert out.count("rows, 54 columns compared") == 2

    @pytest.mark.parametrize("engine", ["plain", "auto"])
    def test_the_engine_can_be_chosen(self, table, engine):
        assert run("check", str(table), "--engine", engine)[0] == 0

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("cases_posted.csv", b"", "not readable"),
            ("cases_posted.csv.gz", b"x", "not readable"),
            ("cases_posted.parquet", b"x", "not readable"),
            ("cases_nope.csv", b"ret\n1\n", "there is no revision 'nope'"),
            ("nope_posted.csv", b"ret\n1\n", "a table's name is cases or sources or faultin"),
            ("cases_posted.csv.xz", b"ret\n1\n", "a table's name is"),
            ("cases_posted.csv", b"ret,nope\n1,1\n", "column 'nope'"),
            (
                "cases_posted.csv",
                b"error_code,ret\n-1,1\n",
                "column 'error_code', row 0: '-1' is out of range",
            ),
            ("cases_posted.csv", b"ret\n", "no rows"),
        ],
    )
    def test_a_file_that_is_no_table_ends_with_2(self, tmp_path, name, content, complaint):
        path = tmp_path / name
        path.write_bytes(content)
        line = refused("check", str(path))
        assert complaint in line
        assert name in line

    def test_a_file_that_is_not_there_ends_with_2(self, tmp_path):
        for name in ("cases_posted.csv", "cases_posted.csv.gz", "cases_posted.parquet"):
            assert name in refused("check", str(tmp_path / name))
        assert "not readable" in refused("check", str(tmp_path / "two\nlines" / "cases_posted.csv"))


class TestReplayAndPatch:
    def test_a_recording_that_agrees_ends_well(self, root):
        status, out, _ = run("replay", str(root / "data" / "recordings" / "7.3-intel"))
        assert status == 0
        assert "7.3-intel" in out

    def test_another_revision_differs(self, root):
        folder = str(root / "data" / "recordings" / "posted-on-6.12")
        assert run("replay", folder, "--revision", "v6_12")[0] == 1

    @pytest.mark.parametrize("command", ["replay", "patch"])
    def test_what_is_neither_is_refused(self, tmp_path, command):
        (tmp_path / "empty").write_bytes(b"")
        for name in ("empty", "none", "."):
            status, out, err = run(command, str(tmp_path / name))
            assert (status, out, len(err.splitlines())) == (2, "", 1)


class TestEvaluateAndExport:
    def test_a_parquet_table_is_evaluated(self, tmp_path):
        pd.DataFrame({"error_code": ["0x6", "0x8"]}).to_parquet(tmp_path / "in.parquet")
        target = tmp_path / "out.parquet"
        status, out, _ = run("evaluate", str(tmp_path / "in.parquet"), str(target), "--revision", "v7_3")
        assert (status, out) == (0, f"{target}: 2 rows\n")
        assert pd.read_parquet(target)["ret"].tolist() == [5, 1]

    def test_other_kinds_too(self, tmp_path):
        pd.DataFrame({"info": ["0x6"]}).to_parquet(tmp_path / "in.parquet")
        assert run("evaluate", str(tmp_path / "in.parquet"), str(tmp_path / "o"), "--kind", "sources")[0] == 0

    def test_files_that_cannot_be_read_or_written_end_with_2(self, tmp_path):
        (tmp_path / "bad").write_bytes(b"x")
        pd.DataFrame({"error_code": [6]}).to_parquet(tmp_path / "good")
        assert "not readable" in refused("evaluate", str(tmp_path / "bad"), str(tmp_path / "out"))
        assert "none" in refused("evaluate", str(tmp_path / "good"), str(tmp_path / "none" / "out"))
        assert "this is the table itself" in refused(
            "evaluate", str(tmp_path / "good"), str(tmp_path / "good")
        )
        assert "bad" in refused("export", str(tmp_path / "bad"))

    def test_the_corpus_is_exported(self, tmp_path, monkeypatch):
        records = [("cases", {"id": "x"}), ("cases", {"id": "y"}), ("recordings", {"id": "z"})]
        monkeypatch.setattr("kvm_pf.conformance.corpus.Corpus.records", lambda self: iter(records))
        status, out, _ = run("export", str(tmp_path / "out"))
        assert status == 0
        assert [line.split(": ")[1] for line in out.splitlines()] == ["1 rows", "2 rows", "1 rows"]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "cases.jsonl.gz", "recordings.jsonl.gz", "schema.json",
        ]  # fmt: skip


class TestProve:
    def test_a_table_with_witnesses_and_a_last_word(self):
        status, out, err = run(
            "prove", "outside-bits-never-survive", "--revision", "before", "--revision", "posted"
        )
        lines = out.splitlines()
        assert (status, err) == (0, "")
        assert lines[0].split() == ["claim", "revision", "expected", "answer", "strength", "seconds"]
        assert lines[1].split()[:4] == ["outside-bits-never-survive", "before", "fails", "fails"]
        assert lines[2].split() == ["error_code=PRIVATE_ACCESS"]
        assert lines[3].split()[:5] == ["outside-bits-never-survive", "posted", "holds", "holds", "proved"]
        assert lines[4] == "2 answers, all as expected"

    def test_the_witness_as_steps_side_by_side(self):
        status, out, _ = run("prove", "outside-bits-never-survive", "--revision", "before", "--witness")
        assert status == 0
        assert "error_code 0x2000000000000: bit 49, PRIVATE_ACCESS: " in out
        assert re.search(r"before +│ posted\n", out)

    def test_a_solver_that_gives_up_is_unknown_and_not_as_expected(self):
        status, out, _ = run("prove", "five-differences", "--revision", "posted", "--timeout", "0.001")
        assert status == 1
        row, last = out.splitlines()[1:]
        assert row.split()[:5] == ["!", "five-differences", "posted", "holds", "unknown"]
        assert last == "1 answer, 1 not as expected"
        assert "proved" not in out

    def test_what_nobody_said_is_told_without_judgement(self):
        status, out, _ = run("prove", "never-released", "--revision", "v6_1")
        assert (status, out.splitlines()[1].split()[:4]) == (0, ["never-released", "v6_1", "–", "holds"])

    def test_json(self):
        status, out, _ = run("prove", "callers-may-say-private", "--revision", "posted", "--json")
        (answer,) = json.loads(out)
        assert status == 0
        assert (answer["claim"], answer["answer"], answer["as_expected"]) == (
            "callers-may-say-private",
            "fails",
            True,
        )
        assert answer["witness"]["error_code"] == 1 << 49

    def test_the_list_of_claims(self):
        status, out, _ = run("prove", "--list", "never-released")
        assert status == 0
        assert out.splitlines()[0] == "never-released"
        assert "  lines: h2+04 h2+05" in out
        assert len(run("prove", "--list")[1].splitlines()) > 100

    def test_what_is_not_there_is_refused(self):
        assert "there is no claim 'mine'" in refused("prove", "mine")
        assert "there is no revision 'v9'" in refused("prove", "never-released", "--revision", "v9")
        assert "0: from 0.001 to 86400 seconds" in refused("prove", "--timeout", "0")
        assert "--timeout" in refused("prove", "--timeout", "soon")


class TestCompare:
    def test_a_difference(self):
        status, out, err = run("compare", "before", "posted", "--way", "kvm_arch_async_page_ready", "--diff")
        assert (status, err) == (1, "")
        assert out.startswith(
            "before → posted, states that can exist in both: 2 kinds of difference; nothing else "
        )
        assert "a page that became ready, if the page is private, the handler is called for it\n" in out
        assert "cases: revision-page-ready-and-now-private" in out
        assert "-     return kvm_mem_is_private(vm, gpa_to_gfn(cr2_or_gpa))\n" in out

    def test_no_difference(self):
        status, out, _ = run("compare", "before", "posted", "--way", "source", "--all-states")
        assert status == 0
        assert out.startswith("before → posted, all states: no difference (proved)\n")

    def test_what_is_not_there_is_refused(self):
        assert "there is no revision 'v9'" in refused("compare", "before", "v9")
        assert "way='door'" in refused("compare", "before", "posted", "--way", "door")


class TestHelp:
    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_help_gives_examples_of_the_command(self, command):
        status, out, err = run(*filter(None, [command]), "--help")
        assert (status, err) == (0, "")
        examples = re.findall(r"^  kvm-pf (\w+) ", out.split("example", 1)[1], re.M)
        assert examples
        assert set(examples) <= ({command} if command else set(COMMANDS))

    def test_the_overview_names_every_command(self):
        _, out, _ = run("--help")
        for command in COMMANDS:
            assert re.search(rf"^ +{command} +\w", out, re.M), command

    @pytest.mark.parametrize(
        "arguments",
        [(), ("nope",), ("--nope",), ("decode",), ("decode", "6", "7"), ("decode", "6", "--as", "x"),
         ("check", "x", "--first", "y"), ("evaluate", "x"), ("export",), ("decode", "6", "--two\nlines")],
    )  # fmt: skip
    def test_a_command_line_that_is_none_is_refused_in_one_line(self, arguments):
        assert "--help shows more" in refused(*arguments)


class TestHostile:
    words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
        ["--", "-", "--set", "=", "0x", "--json", "--as"]
    )

    @given(st.sampled_from(["decode", "explain"]), st.lists(words, max_size=4))
    @settings(fixed, max_examples=200)
    def test_no_argument_makes_it_stumble(self, command, arguments):
        status, out, err = run(command, *arguments)
        assert status in (0, 2)
        assert bool(out) is (status == 0)
        assert len(err.splitlines()) == (status == 2)

    @given(st.sampled_from(["check", "replay", "patch"]), words.filter(lambda word: "\0" not in word))
    @settings(fixed, max_examples=60)
    def test_no_file_name_makes_it_stumble(self, command, name):
        status, _, err = run(command, "--", f"nowhere/{name}")
        assert status == 2
        assert len(err.splitlines()) == 1

    @given(name=st.sampled_from([c.column for c in CASE_INPUTS]), value=words)
    @fixed
    def test_no_setting_makes_it_stumble(self, name, value):
        assert run("explain", "6", "--set", f"{name}={value}")[0] in (0, 2)


class TestProcess:
    def test_it_runs_as_a_module_and_ends_with_the_commands_status(self, table):
        done = process("decode", "0x2000100000006")
        assert (done.returncode, done.stderr) == (0, "")
        assert "PRIVATE_ACCESS" in done.stdout
        done = process("check", str(table), "--revision", "posted")
        assert done.returncode == 1
        done = process("decode", "nope")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)

    def test_a_reader_that_goes_away_is_told_by_the_status(self, table):
        assert to_nobody("explain", "6") == (141, b"")
        assert to_nobody("--help") == (141, b"")
        assert to_nobody("check", str(table)) == (141, b"")

    def test_differences_found_until_then_are_not_lost(self, table):
        assert to_nobody("check", str(table), str(table), "--revision", "posted") == (1, b"")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
    @pytest.mark.parametrize(
        "arguments", [("--help",), ("decode", "6"), ("prove", "--list"), ("check", "--help")]
    )
    def test_output_that_cannot_be_written_is_a_failure(self, arguments):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*KVM_PF, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert (done.returncode, done.stderr) == (2, b"kvm-pf: standard output: No space left on device\n")
        closed = subprocess.run(
            ["bash", "-c", '"$@" >&-', "-", *KVM_PF, *arguments], capture_output=True, timeout=60
        )
        assert (closed.returncode, closed.stderr) == (2, b"kvm-pf: standard output: Bad file descriptor\n")
        with open("/dev/full", "w") as full:  # nor the complaint
            done = subprocess.run([*KVM_PF, *arguments], stdout=full, stderr=full, timeout=60)
        assert done.returncode == 2

    def test_a_terminal_without_these_letters_is_no_fault(self):
        old = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        done = process("explain", "6", "--vm", "sw-protected", "--private", env=old)
        assert (done.returncode, done.stderr) == (0, "")
        assert r"0x6 \u2192 0x2000000000006" in done.stdout

    def test_a_name_that_is_no_text_is_no_fault(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "kvm_pf", "check", os.fsencode(tmp_path) + b"/\xff/cases_posted.csv"],
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def ended(signals, *arguments, after=1.0, everybody=False):
    """Begin a command, send it signals, and give status, error stream and seconds that it took to end.

    `everybody`: the signals go to its processes, too, as Ctrl-C in a terminal does.
    """
    command = subprocess.Popen(
        [*KVM_PF, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's & hands on that it is ignored
    )
    time.sleep(after)
    start = time.monotonic()
    for number in signals:
        (os.killpg if everybody else os.kill)(command.pid, number)
    try:
        _, err = command.communicate(timeout=30)  # which waits until no process holds the streams any more
    finally:
        command.kill()
    return command.returncode, err.decode(), time.monotonic() - start


class TestInterruption:
    @pytest.mark.parametrize("after", [0.7, 2.5])
    @pytest.mark.parametrize(
        ("signals", "status", "line"),
        [((signal.SIGINT,), 130, "kvm-pf: interrupted\n"), ((signal.SIGTERM,), 143, "kvm-pf: terminated\n"),
         ((signal.SIGINT, signal.SIGINT), 130, "kvm-pf: interrupted\n")],
    )  # fmt: skip
    def test_a_command_and_its_processes_end_at_once_in_a_line(self, after, signals, status, line):
        got, err, seconds = ended(signals, "prove", after=after, everybody=signals[0] == signal.SIGINT)
        assert (got, err) == (status, line)
        assert seconds < 1.5

    def test_processes_end_with_a_command_that_is_killed(self):
        status, _, seconds = ended((signal.SIGKILL,), "prove", after=2.5)
        assert (status, seconds < 2) == (-9, True)

    def test_nothing_is_left_half_written(self, tmp_path):
        status, err, _ = ended((signal.SIGTERM,), "export", str(tmp_path / "new" / "corpus"), after=2.5)
        assert (status, err) == (143, "kvm-pf: terminated\n")
        assert not os.listdir(tmp_path)

    def test_in_this_process_it_is_a_line_and_a_status_too(self, monkeypatch):
        def interrupt(args):
            raise KeyboardInterrupt

        monkeypatch.setattr("kvm_pf.cli.decode.run", interrupt)
        assert run("decode", "6") == (130, "", "kvm-pf: interrupted\n")

    def test_a_mistake_of_ours_is_no_status_that_means_something_else(self, monkeypatch):
        def mistake(args):
            return {}["no such key"]

        monkeypatch.setattr("kvm_pf.cli.decode.run", mistake)
        status, out, err = run("decode", "6")
        assert (status, out) == (3, "")
        assert re.fullmatch(
            r"kvm-pf: a mistake in kvm-pf, at test_cli.py, line \d+: KeyError: 'no such key'\n", err
        )


class TestWhatIsShown:
    HOSTILE = "a\x1b[2J\x9b31m\r\u202ez\x07"

    def test_an_error_shows_control_characters(self):
        for command in (
            ("decode",),
            ("check",),
            ("replay",),
            ("patch",),
            ("prove",),
            ("explain",),
            (),
            ("explain", "6", "--vm"),
        ):
            err = refused(*command, self.HOSTILE)
            assert err[:-1].isprintable()

    def test_an_error_is_bounded(self):
        for command in (("decode",), ("check",), ("patch",), ("prove",), (), ("explain", "6", "--vm")):
            assert len(refused(*command, "x\n" * 50_000)) < 1200

    def test_a_case_id_cannot_forge_a_line(self, table, tmp_path):
        frame = pd.read_csv(table, dtype=str, keep_default_na=False).iloc[:3]
        frame["case_id"] = self.HOSTILE.replace("\r", "")
        frame["ret"] = self.HOSTILE.replace("\r", "")
        path = tmp_path / "cases_before.csv"
        frame.to_csv(path, index=False)
        status, out, _ = run("check", str(path))
        assert status == 1
        assert "a\\x1b[2J\\x9b31m\\u202ez\\x07" in out
        assert out.replace("\n", "").isprintable()
