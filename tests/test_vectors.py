# SPDX-License-Identifier: GPL-2.0-only
"""The model against tables of the kernel's answers; and a table that is wrong is caught."""

import gzip
import re

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.conformance import vectors as check
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.conformance.vectors import ALIASES, check_table, kind_and_revision
from kvm_pf.run.batch import outputs

CORPUS = load_corpus()
ROWS = 60


@pytest.mark.parametrize(
    "table", [("cases", "posted"), ("sources", "v7_3"), ("faultin", "v6_12")], ids="_".join
)
def test_every_output_column_of_kernel_vectors_agrees(table):
    """One table of each kind; `make conformance` compares them all."""
    kind, revision = table
    report = check_table(CORPUS.vector_tables[table])
    assert report.differing == 0, str(report)
    assert report.rows > 1000
    assert report.compared == [o.column for o in outputs(kind, revision)]
    assert report.missing == []


@pytest.fixture(scope="module")
def texts():
    """Some rows of a table as text, each table read once."""
    read = {}

    def of(table):
        if table not in read:
            frame = CORPUS.vectors(*table)
            frame = frame.iloc[:: len(frame) // ROWS].head(ROWS).reset_index(drop=True)
            read[table] = frame.astype(object).where(frame.notna(), "").astype(str)
        return read[table].copy()

    return of


@pytest.mark.parametrize(
    ("kind", "revision"), [("cases", "v7_3"), ("sources", "posted"), ("faultin", "v7_3")]
)
def test_a_wrong_value_of_any_column_is_found_where_it_stands(texts, tmp_path, kind, revision):
    frame = texts((kind, revision))
    columns = [output.column for output in outputs(kind, revision)]
    for row, column in enumerate(columns):
        frame.loc[row, column] = "5" if frame.loc[row, column] != "5" else "6"
    path = tmp_path / f"{kind}_{revision}.csv"
    frame.to_csv(path, index=False)
    report = check_table(path, first=len(columns))
    assert report.differing == len(columns)
    assert report.by_column == dict.fromkeys(columns, 1)
    assert [(found.row, found.case, found.column, found.expected) for found in report.first] == [
        (row, frame.loc[row, "case_id"], column, frame.loc[row, column]) for row, column in enumerate(columns)
    ]
    assert set(columns) <= set(re.findall(r"\w+", str(report)))


def test_a_blank_where_the_kernel_answered_is_a_difference(texts, tmp_path):
    frame = texts(("cases", "posted"))
    row = int((frame["f_gfn"] != "").argmax())
    frame.loc[row, "f_gfn"] = ""
    frame.to_csv(tmp_path / "cases_posted.csv", index=False)
    assert check_table(tmp_path / "cases_posted.csv").by_column == {"f_gfn": 1}


def test_a_missing_output_column_is_named(texts, tmp_path):
    texts(("cases", "posted")).drop(columns=["ret"]).to_csv(tmp_path / "cases_posted.csv", index=False)
    report = check_table(tmp_path / "cases_posted.csv")
    assert report.missing == ["ret"]
    assert "ret" in str(report)


def test_another_revision_shows_what_the_patch_changes(texts, tmp_path):
    texts(("cases", "before")).to_csv(tmp_path / "cases_before.csv", index=False)
    report = check_table(tmp_path / "cases_before.csv", "posted")
    assert report.differing > 0
    assert {"warns", "f_is_private"} & set(report.by_column)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cases_posted.csv.gz", ("cases", "posted")),
        ("sources_R3.csv", ("sources", "v6_12")),
        ("cases_ALTP.parquet", ("cases", "guest_enc_gated")),
        ("cases_before+sanitize.csv", ("cases", "before+sanitize")),
    ],
)
def test_the_name_says_kind_and_revision(tmp_path, name, expected):
    assert kind_and_revision(tmp_path / name) == expected
    assert kind_and_revision(tmp_path / name, "v6_10") == (expected[0], "v6_10")


@pytest.mark.parametrize(("short", "name"), ALIASES.items())
def test_every_short_name_is_taken_in_a_name_and_instead_of_one(tmp_path, short, name):
    assert kind_and_revision(tmp_path / f"cases_{short}.csv.gz") == ("cases", name)
    assert kind_and_revision(tmp_path / "cases.csv", short) == ("cases", name)


@pytest.mark.parametrize(
    "name",
    [
        "cases", "cases_posted", "cases_posted.txt", "cases_posted.csv.xz", "cases_posted.csv.zip", "cases_posted.zip",
        "mycases_posted.csv", "cases-posted.csv", "cases_posted.CSV", "cases_.csv", "cases.csv", "cases_nope.csv",
        ".csv", "cases_posted.csv.gz.old",
    ],
)  # fmt: skip
def test_a_name_that_does_not_say_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=re.escape(name)):
        kind_and_revision(tmp_path / name)


def damaged(content):
    """Turn some bytes in the middle round."""
    middle = len(content) // 2
    return (
        content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 4]) + content[middle + 4 :]
    )


WRONG = {
    "cases_nothing.csv": b"ret\n1\n",
    "other_posted.csv": b"ret\n1\n",
    "cases_posted.csv": b"",
    "cases_before.csv": b"error_code,ret\n",
    "cases_v6_10.csv": b"error_code\n0x1\n",
    "cases_v6_12.csv": b"error_code,ret,colour\n0x1,1,red\n",
    "cases_v7_3.csv": b"error_code,ret\nzz,1\n",
    "faultin_posted.csv": b"\xff\xfe\x00\x01\x80,ret\n1,1\n",
    "faultin_v7_3.csv.gz": b"no gzip at all",
    "faultin_before.csv.gz": gzip.compress(b"addr,ret\n0x1,1\n" * 99)[:-9],
    "sources_posted.parquet": b"no parquet at all",
    "sources_before.csv.gz": b"",
    "sources_v6_10.csv.gz": damaged(gzip.compress(b"info,ret\n" + b"0x1,1\n" * 999)),
    "sources_v6_12.csv": b"info,ret\n0x1,1,1\n",  # a value too many
    "sources_v7_3.csv": b"info,ret\n0x1,1\n0x1\n",  # and one too few
    "sources_posted_series.csv": b'info,ret\n0x1,1\n0x1,"1\n',
    "sources_R0.csv": b"info,ret,ret\n0x1,1,1\n",
    "sources_R1.csv": b"info,ret\n0x1,\xe9\n",
    "sources_R2.csv": bytes(range(256)) * 40,
    "sources_R3.csv": b"info,ret\n,1\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_table_is_refused_with_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WRONG[name])
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        check_table(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_in_the_place_of_a_table_is_refused(tmp_path):
    for name in ("cases_posted.csv", "cases_posted.csv.gz", "cases_posted.parquet"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=re.escape(name)):
            check_table(tmp_path / name)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cases_posted"):
        check_table(tmp_path / "cases_posted.csv")


def test_an_expectation_that_is_no_number_is_a_difference(texts, tmp_path):
    frame = texts(("cases", "posted"))
    frame["ret"] = "one"
    frame.to_csv(tmp_path / "cases_posted.csv", index=False)
    assert check_table(tmp_path / "cases_posted.csv").differing == len(frame)


@pytest.mark.parametrize(
    ("text", "same"), [("0x1", True), ("0X1", True), ("01", True), ("1 ", False), ("9" * 5000, False)]
)
def test_a_number_may_be_written_in_any_way(texts, tmp_path, text, same):
    frame = texts(("cases", "posted"))
    row = int((frame["ret"] == "1").argmax())
    frame.loc[row, "ret"] = text
    frame.to_csv(tmp_path / "cases_posted.csv", index=False)
    assert check_table(tmp_path / "cases_posted.csv").differing == (0 if same else 1)


def test_outputs_that_the_revision_does_not_have_are_named_and_not_compared(texts, tmp_path):
    texts(("cases", "v6_12")).to_csv(tmp_path / "cases_v6_12.csv", index=False)
    report = check_table(tmp_path / "cases_v6_12.csv", "v7_3")
    assert report.foreign == ["f_hva"]
    assert report.missing == ["tdx_private_gpa", "f_refcounted_page"]
    assert "not of this revision: f_hva" in str(report)
    assert "not in the table: tdx_private_gpa, f_refcounted_page" in str(report)


def test_differences_are_shown_up_to_the_number_asked_for_and_all_counted(texts, tmp_path):
    frame = texts(("cases", "posted"))
    frame["ret"] = "77"
    frame.to_csv(tmp_path / "cases_posted.csv", index=False)
    for first in (0, 3, 1000):
        report = check_table(tmp_path / "cases_posted.csv", first=first)
        assert len(report.first) == min(first, len(frame))
        assert (report.differing, report.by_column) == (len(frame), {"ret": len(frame)})


def test_a_long_table_is_read_in_pieces_and_rows_are_counted_through(texts, tmp_path, monkeypatch):
    frame = texts(("sources", "posted"))
    frame.loc[33, "ret"] = "77"
    csv, parquet = tmp_path / "sources_posted.csv", tmp_path / "sources_posted.parquet"
    frame.to_csv(csv, index=False)
    frame.to_parquet(parquet)
    monkeypatch.setattr(check, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(check, "CHUNK_ROWS", 9)
    for path in (csv, parquet):
        done = []
        report = check_table(path, progress=done.append)
        assert (report.rows, [d.row for d in report.first]) == (len(frame), [33])
        assert len(done) > 3
        assert done == sorted(done)
        assert done[-1] == len(frame)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda ret: ret.astype(float), "column 'ret' holds float64"),
        (lambda ret: [[1]] * len(ret), "column 'ret' holds object"),
        (lambda ret: [b"1"] * len(ret), "column 'ret' holds object"),
    ],
)
def test_a_parquet_column_that_is_neither_number_nor_text_is_refused(tmp_path, make, complaint):
    frame = CORPUS.vectors("sources", "posted").head(9)
    path = tmp_path / "sources_posted.parquet"
    frame.assign(ret=make(frame["ret"])).to_parquet(path)
    with pytest.raises(InputError, match=rf"sources_posted\.parquet: {complaint}"):
        check_table(path)


def test_a_parquet_table_is_compared_as_it_is_typed(tmp_path):
    frame = CORPUS.vectors("sources", "posted").head(50)
    path = tmp_path / "sources_posted.parquet"
    for typed in (
        frame,
        frame.assign(traced=frame["traced"] == 1),
        frame.assign(warns=frame["warns"].astype("category")),
        frame.set_index("case_id"),
        frame.iloc[::2],
    ):
        typed.to_parquet(path)
        report = check_table(path)
        assert (report.rows, report.differing, report.missing) == (len(typed), 0, [])
