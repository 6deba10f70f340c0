# SPDX-License-Identifier: GPL-2.0-only
"""The corpus is exported without loss, as JSON that fits its schema."""

import gzip
import json

import jsonschema
import pandas as pd
import pytest

from kvm_pf.conformance.corpus import Corpus, export, json_schema, load_corpus


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def read(value):
    """The number that a text with 0x stands for; anything else as it is."""
    return int(value, 16) if isinstance(value, str) and value.startswith("0x") else value


@pytest.fixture(scope="module")
def part(corpus):
    """A part of the corpus: some cases, one small table, some recorded faults."""

    class Part(Corpus):
        cases = corpus.cases.iloc[::29]
        recordings = corpus.recordings.iloc[::20]

        def vectors(self, kind="cases", revision="posted"):
            return corpus.vectors(kind, revision).iloc[::30]

    part = Part(corpus.folder)
    part.vector_tables = {k: corpus.vector_tables[k] for k in (("cases", "v7_3"), ("sources", "before"))}
    return part


@pytest.fixture(scope="module")
def written(part, tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "new" / "folder", corpus=part)


class TestExport:
    def records(self, path):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def test_every_table_is_a_file_and_the_counts_are_those_returned(self, written):
        counts = {path.name: count for path, count in written.items()}
        assert set(counts) == {
            "schema.json", "cases.jsonl.gz", "cases_v7_3.jsonl.gz", "sources_before.jsonl.gz", "recordings.jsonl.gz",
        }  # fmt: skip
        for path, count in written.items():
            assert path.suffix == ".json" or len(self.records(path)) == count > 30

    def test_every_record_fits_the_schema(self, written):
        schema = json.loads(next(p for p in written if p.name == "schema.json").read_text(encoding="utf-8"))
        assert schema == json_schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        for path in written:
            if path.suffix == ".gz":
                for record in self.records(path):
                    validator.validate(record)

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"id": "x", "kind": "nope", "source": "kernel"},
            {"id": "x", "kind": "cases", "source": "kernel"},
            {"id": "x", "kind": "cases", "source": "kernel", "revision": "nope", "input": {}, "expect": {}},
            {
                "id": "x",
                "kind": "cases",
                "source": "kernel",
                "revision": "posted",
                "input": {"nope": 1},
                "expect": {},
            },
            {
                "id": "x",
                "kind": "cases",
                "source": "kernel",
                "revision": "posted",
                "input": {},
                "expect": {"nope": 1},
            },
            {
                "id": "x",
                "kind": "cases",
                "source": "k",
                "revision": "posted",
                "input": {"error_code": -1},
                "expect": {},
            },
            {
                "id": "x",
                "kind": "cases",
                "source": "k",
                "revision": "posted",
                "input": {"vm_type": 6},
                "expect": {},
            },
            {
                "id": "x",
                "kind": "faultin",
                "source": "k",
                "revision": "posted",
                "input": {"slot_kind": "z"},
                "expect": {},
            },
            {
                "id": "x",
                "kind": "cases",
                "source": "k",
                "revision": "posted",
                "input": {"gen": 1.5},
                "expect": {},
            },
            {"id": "x", "kind": "recording", "source": "recording", "fault": {}, "nope": 1},
        ],
    )
    def test_the_schema_refuses_what_is_no_record(self, record):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record, json_schema())

    def test_nothing_is_lost_on_the_way(self, part, written):
        files = {path.name: self.records(path) for path in written if path.suffix == ".gz"}
        cases = part.cases.to_dict("records")
        for record, case in zip(files["cases.jsonl.gz"], cases, strict=True):
            parts = {part: {n: read(v) for n, v in record[part].items()} for part in ("input", "expect")}
            assert {**record, "flags": tuple(record["flags"]), **parts} == {
                **case, **{part: {n: read(v) for n, v in case[part].items()} for part in ("input", "expect")}
            }  # fmt: skip
        frame = part.vectors("cases", "v7_3")
        for record, (_, row) in zip(files["cases_v7_3.jsonl.gz"], frame.iterrows(), strict=True):
            assert record["id"] == f"cases_v7_3-{row['case_id']}"
            for name, value in {**record["input"], **record["expect"]}.items():
                assert (value is None) == pd.isna(row[name])
                assert value is None or read(value) == row[name]
        widest = [record["input"]["gen"] for record in files["cases_v7_3.jsonl.gz"]]
        assert max(int(value, 16) for value in widest) >= 2**63

    def test_no_number_is_longer_than_every_reader_of_json_keeps(self, written):
        for path in written:
            if path.suffix == ".gz":
                for record in self.records(path):
                    values = [
                        v for part in ("input", "expect", "fault") for v in record.get(part, {}).values()
                    ]
                    assert all(abs(v) < 2**53 for v in values if isinstance(v, int)), record["id"]

    def test_the_same_corpus_gives_the_same_bytes(self, part, written, tmp_path):
        again = export(tmp_path, corpus=part)
        for one, other in zip(written, again, strict=True):
            assert one.read_bytes() == other.read_bytes()

    def test_each_table_is_announced(self, part, tmp_path):
        said = []
        export(tmp_path, said.append, corpus=part)
        assert said == ["cases", "cases_v7_3", "sources_before", "recordings"]
