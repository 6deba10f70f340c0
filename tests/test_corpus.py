# SPDX-License-Identifier: GPL-2.0-only
"""The corpus: complete, described, and checked when read."""

import json
import re
import tomllib
from collections import Counter

import jsonschema
import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.cases import CALLS, CASE_COLUMNS, call
from kvm_pf.conformance.corpus import (
    Corpus,
    case_schema,
    differences,
    load_corpus,
    run_cases,
    vector_schema,
)
from kvm_pf.exits import SOURCE_WARN_NAMES
from kvm_pf.faultin import FAULTIN_WARN_NAMES
from kvm_pf.revisions import HUNK_STEPS, LATTICE, REVISIONS, get
from kvm_pf.run.inputs import outputs
from kvm_pf.run.tables import BREAK_KINDS, KINDS, MODES, SEV_KINDS, SLOT_KINDS, TABLES, VM_TYPES
from kvm_pf.state import WARN_NAMES

RELEASED = ("before", "posted", "posted_series", "merged_patch", "v6_10", "v6_12", "v7_3")
CURATED = (*RELEASED, "guest_enc_gated", "guest_enc_ungated", "posted_u32", "posted_on_6_12")

SOURCE = re.compile(
    r"mail <[^>\s]+>(, \d{4}-\d\d-\d\d)?(, hunk [123])?"
    r"|Linux [\w./-]+(, [\w(), ]+)?, ((?:commits?|blob) [0-9a-f]{12}( \(v\d+\.\d+(-rc\d)?\))?"
    r"|Debian linux-source-[\w.+~: -]+)"
    r"|AMD APM vol\. \d.*|Intel SDM vol\. \d.*"
)
"""The fixed forms of a source."""


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def cases(corpus):
    return corpus.cases


@pytest.fixture(scope="module")
def readme(root):
    return (root / "data" / "cases" / "README.md").read_text(encoding="utf-8")


def flags_of(cases):
    return {flag for flags in cases["flags"] for flag in flags}


class TestCases:
    def test_each_row_has_every_column_documented(self, cases):
        assert list(cases) == list(CASE_COLUMNS)
        assert len(case_schema().validate(cases)) == len(cases)

    def test_an_id_names_one_case_in_one_file(self, cases):
        assert not cases.duplicated(["id", "revision"]).any()
        per_case = cases.groupby("id")[["topic", "kind", "why", "source", "function"]].nunique()
        assert (per_case == 1).all(axis=None)

    def test_every_case_gives_a_reason_of_its_own_in_a_sentence(self, cases):
        whys = cases.drop_duplicates("id")["why"]
        assert not whys.duplicated().any(), whys[whys.duplicated()].tolist()
        for why in whys:
            assert why.endswith("."), why

    def test_every_source_is_in_a_fixed_form(self, cases):
        for source in cases["source"].unique():
            for part in source.split("; "):
                assert SOURCE.fullmatch(part), part

    def test_every_flag_is_explained_once_and_every_flag_explained_is_used(self, cases, root):
        groups = tomllib.loads((root / "data" / "cases" / "flags.toml").read_text(encoding="utf-8"))
        explained = [flag for group in groups.values() for flag in group]
        assert len(explained) == len(set(explained))
        assert set(explained) == flags_of(cases)

    def test_the_files_fit_their_schema(self, root):
        folder = root / "data" / "cases"
        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        of_cases = jsonschema.Draft202012Validator(schema)
        of_flags = jsonschema.Draft202012Validator({**schema["$defs"]["flags"], "$defs": schema["$defs"]})
        for path in folder.glob("*.toml"):
            told = tomllib.loads(path.read_text(encoding="utf-8"))
            (of_flags if path.name == "flags.toml" else of_cases).validate(told)

    @pytest.mark.parametrize(
        "change",
        [
            {"id": "Not a slug"},
            {"kind": "table"},
            {"flags": []},
            {"flags": ["two words"]},
            {"input": {"error_code": 1.5}},
            {"input": {"error_code": "0x1_000"}},
            {"expect": {}},
            {"function": "smap_applies"},
            {"note": "unknown"},
        ],
        ids=str,
    )
    def test_the_schema_refuses_what_is_no_case(self, root, change):
        folder = root / "data" / "cases"
        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        case = tomllib.loads((folder / "sanitize.toml").read_text(encoding="utf-8"))["case"][0]
        validator = jsonschema.Draft202012Validator(schema)
        assert validator.is_valid({"case": [case]})
        assert not validator.is_valid({"case": [{**case, **change}]})

    def test_the_readmes_counts_are_right(self, cases, readme):
        told = dict(re.findall(r"^\| ([a-z_]+)\.toml \| (\d+) \|", readme, re.MULTILINE))
        there = cases.drop_duplicates("id")["topic"].value_counts()
        assert {topic: int(count) for topic, count in told.items()} == there.to_dict()
        assert int(re.search(r"^\| all \| (\d+) \|", readme, re.MULTILINE)[1]) == there.sum() >= 150

    def test_the_readme_lists_every_function_that_a_case_can_call(self, cases, readme):
        part = readme.split("## Functions of kind `call`", 1)[1].split("\n## ", 1)[0]
        assert set(re.findall(r"^\| (\w+) \|", part, re.MULTILINE)) - {"function"} == set(CALLS)
        assert set(cases["function"]) == {"", *CALLS}

    def test_case_files_are_text_of_one_shape(self, root):
        for path in (root / "data" / "cases").glob("*.toml"):
            text = path.read_text(encoding="utf-8")
            assert text.startswith("# SPDX-License-Identifier: GPL-2.0-only\n"), path.name
            assert text.endswith("\n")
            assert "\t" not in text


class TestCoverage:
    """What the curated cases alone reach."""

    def expected(self, cases, column):
        return {e[column] for e in cases["expect"] if e.get(column) is not None}

    def test_every_revision_has_cases(self, cases):
        counts = cases["revision"].value_counts()
        assert set(CURATED) <= set(counts.index) <= set(REVISIONS)
        assert (counts[list(RELEASED)] > 200).all()

    @pytest.mark.parametrize("vm_type", range(len(VM_TYPES)))
    def test_every_kind_of_vm_is_met(self, cases, vm_type):
        given = cases[cases["kind"] == "cases"]["input"]
        assert any(i.get("vm_type", 0) in (vm_type, VM_TYPES[vm_type]) for i in given)

    @pytest.mark.parametrize("mode", MODES)
    def test_every_paging_mode_is_met(self, cases, mode):
        given = cases[cases["kind"] == "cases"]["input"]
        assert any(i.get("mode", "tdp") == mode for i in given)

    def test_every_warning_is_expected_somewhere(self, cases):
        names = {*WARN_NAMES, *SOURCE_WARN_NAMES, *FAULTIN_WARN_NAMES}
        texts = self.expected(cases, "warns")
        assert {name for text in texts for name in text.split("|")} == names | {""}

    @pytest.mark.parametrize(
        ("kind", "column", "names"),
        [
            ("sources", "kind", KINDS), ("sources", "sev_kind", SEV_KINDS), ("sources", "break_kind", BREAK_KINDS),
            ("faultin", "slot_kind", SLOT_KINDS),
        ],
    )  # fmt: skip
    def test_every_named_input_is_met(self, cases, kind, column, names):
        given = cases[cases["kind"] == kind]["input"]
        default = next(i.default for i in TABLES[kind].inputs if i.column == column)
        assert {i.get(column, default) for i in given} == set(names)

    @pytest.mark.parametrize("kind", TABLES)
    def test_every_input_is_set_by_some_case(self, cases, kind):
        given = {name for i in cases[cases["kind"] == kind]["input"] for name in i}
        given |= {"direct", "is_tdp", "guest_mode", "nested"} if "mode" in given else set()
        unread = {"exec"}  # a memory-fault exit does not tell it
        assert {i.column for i in TABLES[kind].inputs} - given <= unread

    @pytest.mark.parametrize("kind", TABLES)
    def test_every_output_is_fixed_by_some_case(self, cases, kind):
        fixed = {name for e in cases[cases["kind"] == kind]["expect"] for name in e}
        assert {o.column for o in TABLES[kind].outputs} - fixed == set()

    @pytest.mark.parametrize("kind", TABLES)
    def test_every_flag_of_an_outcome_is_expected_both_ways_unless_it_never_changes(self, cases, kind):
        chosen = cases[cases["kind"] == kind]
        constant = {"f_prefetch", "f_huge_disallowed", "f_refcounted_page", "f_map_writable", "f_write_to_sp"}
        for output in TABLES[kind].outputs:
            if output.kind == "bool":
                expected = self.expected(chosen, output.column)
                assert expected == ({0} if output.column in constant else {0, 1}), output.column

    @pytest.mark.parametrize("step", HUNK_STEPS)
    def test_each_hunk_shows_alone(self, cases, step):
        """Some case that `posted` meets is missed without the hunk, and one that `before` meets with it alone."""
        posted = cases[(cases["kind"] == "cases") & (cases["revision"] == "posted")]
        without = next(n for n, steps in LATTICE.items() if set(steps) == set(HUNK_STEPS) - {step})
        assert differences(posted, without)
        before = cases[(cases["kind"] == "cases") & (cases["revision"] == "before")]
        assert differences(before, f"before+{step}")

    @pytest.mark.parametrize("revision", [r for r in CURATED if r != "posted"])
    def test_no_revision_is_taken_for_posted(self, cases, revision):
        posted = cases[(cases["kind"] != "call") & (cases["revision"] == "posted")]
        assert differences(posted, revision)


class TestRun:
    def test_a_wrong_expectation_is_a_difference_with_both_values(self, cases):
        row = cases[(cases["id"] == "sanitize-bit49") & (cases["revision"] == "posted")].copy()
        row["expect"] = [{"ret": 1, "warns": "", "f_error_code": None, "nope": 5}]
        found = {d.column: (d.expected, d.got) for d in differences(row)}
        assert found == {"warns": ("", "synthetic"), "f_error_code": (None, 4), "nope": (5, "no such output")}

    def test_what_was_run_keeps_order_and_columns(self, cases):
        chosen = cases.iloc[[900, 3, 500, 4]]
        ran = run_cases(chosen)
        assert list(ran) == [*CASE_COLUMNS, "got"]
        assert ran["id"].tolist() == chosen["id"].tolist()
        assert all(isinstance(got, dict) for got in ran["got"])

    def test_cases_run_on_a_revision_made_by_hand(self, cases):
        blunt = get("posted").derive("blunt", sanitize=lambda error_code: (error_code, 0))
        chosen = cases[(cases["id"] == "sanitize-bit49") & (cases["revision"] == "posted")]
        assert {d.column for d in differences(chosen, blunt)} == {"warns", "f_error_code", "f_is_private"}

    def test_an_input_that_the_path_does_not_take_is_refused(self, cases):
        for kind, given in (
            ("cases", {"vm_type": 9}),
            ("sources", {"info": -1}),
            ("faultin", {"gfn": 2**60}),
        ):
            row = cases[cases["kind"] == kind].iloc[:1].copy()
            row["input"] = [given]
            with pytest.raises(InputError, match=next(iter(given))):
                run_cases(row)

    def test_a_call_that_is_not_offered_or_not_complete_is_refused(self):
        with pytest.raises(
            InputError, match="a case cannot call 'nope'; it can call get_mmio_spte_generation"
        ):
            call("nope", {}, get("posted"))
        for given in ({}, {"spte": 1, "nope": 1}):
            with pytest.raises(InputError, match="get_mmio_spte_generation: "):
                call("get_mmio_spte_generation", given, get("posted"))


CASE = """
[[case]]
id = "a-case"
kind = "cases"
why = "It shows something."
flags = ["vm-default"]
source = "mail <x@y>, hunk 2"
input = { error_code = "0x6" }
[case.expect]
"before posted" = { ret = 1 }
"""


class TestDamage:
    def load(self, folder, text):
        (folder / "cases").mkdir(exist_ok=True)
        (folder / "cases" / "made.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_corpus(folder).cases

    def test_a_good_file_is_read(self, tmp_path):
        cases = self.load(tmp_path, CASE)
        assert cases[["id", "topic", "revision"]].to_numpy().tolist() == [
            ["a-case", "made", "before"],
            ["a-case", "made", "posted"],
        ]
        assert cases["input"][0] == {"error_code": 6}
        assert cases["expect"][1] == {"ret": 1}

    def test_blanks_are_not_reached_and_no_warning_is_no_blank(self, tmp_path):
        cases = self.load(tmp_path, CASE.replace("{ ret = 1 }", '{ f_gfn = "", warns = "", ret = "0x1" }'))
        assert cases["expect"][0] == {"f_gfn": None, "warns": "", "ret": 1}

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[[case",
            b"case = 5",
            b"[case]\nid = 'x'",
            b"case = [1]",
            b"\xff\xfe",
            b"other = 1",
            b"\0",
            b"x = 1\nx = 2",
        ],
    )
    def test_what_is_no_file_of_cases_is_refused_by_name(self, tmp_path, text):
        with pytest.raises(InputError, match=r"made\.toml: not a file of cases"):
            self.load(tmp_path, text)

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            ('why = "It shows something."\n', "", "why: a case has id"),
            ("flags", "flag", "flag, flags: a case has"),
            ('id = "a-case"\n', "", "'no id'"),
            ('"a-case"', "5", "id: a case has id (str)"),
            ('["vm-default"]', '"vm-default"', "flags: a case has"),
            ('["vm-default"]', "[]", "flags: ()"),
            ('["vm-default"]', "[5]", "flags: (5,)"),
            ('{ error_code = "0x6" }', '"0x6"', "input: a case has"),
            ('{ error_code = "0x6" }', "{ nope = 1 }", "made.toml"),
            ('{ error_code = "0x6" }', '{ error_code = "0xz" }', "error_code is '0xz', which is no number"),
            (
                '{ error_code = "0x6" }',
                "{ error_code = 1.5 }",
                "error_code is 1.5; it takes a number or text",
            ),
            ('{ error_code = "0x6" }', "{ error_code = true }", "error_code is True"),
            ('{ error_code = "0x6" }', "{ error_code = 2024-02-28 }", "error_code is datetime.date"),
            ('{ error_code = "0x6" }', "{ error_code = [6] }", "error_code is [6]"),
            ("{ ret = 1 }", "{ nope = 1 }", "made.toml"),
            ("{ ret = 1 }", "{}", "expect: {} fails something"),
            ("{ ret = 1 }", "5", "5 is no table of values"),
            ("before posted", "before nope", "revision: 'nope' fails"),
            ("a-case", "A Case", "id: 'A Case' fails"),
            ('"cases"', '"nope"', "kind: 'nope' fails"),
            ("It shows something.", "x", "why: 'x' fails"),
            ("mail <x@y>, hunk 2", "x", "source: 'x' fails"),
            ("before posted", "posted posted", "a-case"),
        ],
    )
    def test_a_wrong_case_is_refused_with_file_and_id(self, tmp_path, old, new, complaint):
        assert old in CASE
        with pytest.raises(InputError) as caught:
            self.load(tmp_path, CASE.replace(old, new))
        message = str(caught.value)
        assert complaint in message
        assert "made.toml, case " in message
        assert "a-case" in message or "A Case" in message or old in ('"a-case"', 'id = "a-case"\n')
        assert len(message.splitlines()) == 1

    def test_it_is_read_once_and_again_when_a_file_has_changed(self, tmp_path):
        assert list(self.load(tmp_path, CASE)["why"].unique()) == ["It shows something."]
        assert load_corpus(tmp_path) is load_corpus(str(tmp_path))
        assert list(self.load(tmp_path, CASE.replace("something", "more"))["why"].unique()) == [
            "It shows more."
        ]

    def test_everyone_gets_a_copy_to_change(self, tmp_path):
        mine = self.load(tmp_path, CASE)
        mine["why"] = "no more"
        mine.loc[0, "id"] = "mine"
        mine.loc[0, "input"]["error_code"] = 7
        theirs = load_corpus(tmp_path).cases
        assert theirs.loc[0, ["id", "why", "input"]].tolist() == [
            "a-case",
            "It shows something.",
            {"error_code": 6},
        ]
        faults = load_corpus().recordings
        faults["pf_err"] = 0
        assert (load_corpus().recordings["pf_err"] != 0).any()

    def test_a_link_to_nowhere_is_no_table(self, tmp_path):
        (tmp_path / "cases").mkdir()
        (tmp_path / "cases" / ".#made.txt").symlink_to("nobody@nowhere:1")  # an editor's lock
        assert len(self.load(tmp_path, CASE)) == 2
        (tmp_path / "cases" / "gone.toml").symlink_to("nowhere")
        with pytest.raises(InputError, match=r"gone\.toml: not a file of cases"):
            load_corpus(tmp_path).cases  # noqa: B018

    def test_an_id_used_twice_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="a-case"):
            self.load(tmp_path, CASE + CASE)

    def test_a_folder_without_cases_is_refused(self, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(InputError, match=r"no cases/\*\.toml here"):
                load_corpus(folder)

    def test_a_folder_in_the_place_of_a_file_is_refused(self, tmp_path):
        (tmp_path / "cases" / "made.toml").mkdir(parents=True)
        with pytest.raises(InputError, match=r"made\.toml: not a file of cases"):
            load_corpus(tmp_path).cases  # noqa: B018


class TestVectors:
    def test_there_are_the_tables_of_which_the_readme_tells(self, corpus):
        kinds = Counter(kind for kind, _ in corpus.vector_tables)
        readme = (corpus.folder / "vectors" / "README.md").read_text(encoding="utf-8")
        table = readme.split("| revision |", 1)[1].split("\n\n", 1)[0]
        revisions = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
        assert {revision for _, revision in corpus.vector_tables} == revisions
        assert kinds["cases"] == len(revisions)
        assert set(kinds) == {"cases", "sources", "faultin"}

    @pytest.mark.parametrize("key", load_corpus().vector_tables, ids="_".join)
    def test_every_table_fits_its_schema_with_every_column(self, corpus, key):
        frame = corpus.vectors(*key)
        vector_schema(*key).validate(frame)
        assert {o.column for o in outputs(*key)} <= set(frame)
        types = {"u64": "UInt64", "warns": "str", "label": "str"}
        for spec in (*TABLES[key[0]].inputs, *outputs(*key)):
            if spec.column in frame:
                assert str(frame[spec.column].dtype) == types.get(spec.kind, "Int64"), spec.column

    def test_a_table_that_is_not_there_is_refused_with_those_there_are(self, corpus):
        with pytest.raises(
            InputError, match="no kernel vectors sources_guest_enc_gated; there are cases_before"
        ):
            corpus.vectors("sources", "guest_enc_gated")

    @pytest.mark.parametrize(
        ("column", "value", "complaint"),
        [
            ("is_private", 2, r"faultin_posted\.parquet, row 0: is_private: .*2.* fails"),
            ("slot_kind", "nope", r"faultin_posted\.parquet, row 0: slot_kind: 'nope' fails"),
            ("nope", 1, r"faultin_posted\.parquet"),
            ("attrs", None, r"faultin_posted\.parquet, row 0: attrs"),
            ("attrs", "x", r"faultin_posted\.parquet: not a table of kernel vectors"),
            ("case_id", 7, r"faultin_posted\.parquet, row 0: case_id: .*7.* fails"),
        ],
    )
    def test_a_damaged_table_is_refused_by_name_row_and_column(
        self, corpus, tmp_path, column, value, complaint
    ):
        (tmp_path / "vectors").mkdir()
        frame = corpus.vectors("faultin", "posted").head(20)
        frame.assign(**{column: value}).to_parquet(tmp_path / "vectors" / "faultin_posted.parquet")
        with pytest.raises(InputError, match=complaint):
            Corpus(tmp_path).vectors("faultin", "posted")

    def test_a_file_that_is_no_table_is_refused(self, tmp_path):
        (tmp_path / "vectors").mkdir()
        (tmp_path / "vectors" / "cases_posted.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"cases_posted\.parquet: not a table of kernel vectors"):
            Corpus(tmp_path).vectors("cases", "posted")
        (tmp_path / "vectors" / "nope.parquet").write_bytes(b"")
        with pytest.raises(InputError, match=r"nope\.parquet"):
            Corpus(tmp_path).vectors("cases", "posted")


class TestRecordings:
    def test_every_fault_of_every_recording_is_one_row(self, corpus, root):
        frame = corpus.recordings
        folders = {path.name for path in (root / "data" / "recordings").iterdir() if path.is_dir()}
        assert set(frame["recording"]) == folders
        assert not frame.duplicated(["recording", "scenario", "fault"]).any()
        readme = (root / "data" / "recordings" / "README.md").read_text(encoding="utf-8")
        told = {
            name: int(count)
            for name, count in re.findall(r"^\| `([^`]+)` \|(?:[^|]*\|){4} (\d+) \|", readme, re.M)
        }
        assert told == frame["recording"].value_counts().to_dict()

    def test_codes_and_addresses_keep_their_width(self, corpus):
        for column in ("cpu_code", "address", "pf_err", "in_error_code"):
            assert str(corpus.recordings[column].dtype) == "UInt64", column
