# SPDX-License-Identifier: GPL-2.0-only
"""Tables of faults: every input read or refused by name, every output as documented, and the path's own answers."""

import datetime
import decimal
import fractions
import re
from functools import partial
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.run import batch
from kvm_pf.run.batch import evaluate, evaluate_parquet
from kvm_pf.run.inputs import case_state, case_values, limits, outputs, results, words
from kvm_pf.run.tables import ENTRY_POINTS, MODE_COLUMNS, MODES, TABLES

fixed = settings(derandomize=True, deadline=None)
u64 = st.integers(0, 2**64 - 1)

DTYPES = {
    "u64": "UInt64",
    "long": "Int64",
    "int": "Int16",
    "bool": "UInt8",
    "warns": "string",
    "label": "string",
}

NUMBERS = [0, 1, 6, 2**63, 2**64 - 1]


BAD = {
    "blank": "",
    "None": None,
    "NA": pd.NA,
    "NaN": float("nan"),
    "NaT": pd.NaT,
    "negative": -1,
    "negative text": "-1",
    "negative hexadecimal": "-0x1",
    "too wide": 2**64,
    "too wide text": "0x10000000000000000",
    "much too wide": 2**20000,
    "much too wide text": "9" * 5000,
    "much too wide hexadecimal": "0x" + "f" * 5000,
    "float": 1.0,
    "numpy float": np.float32(1),
    "complex": 1j,
    "bool": True,
    "numpy bool": np.True_,
    "word": "WRITE",
    "blank before": " 1",
    "line after": "1\n",
    "NUL after": "1\0",
    "underscore": "1_000",
    "plus": "+1",
    "octal": "0o17",
    "binary": "0b1",
    "half a number": "0x",
    "another script": "٣",
    "surrogate": "\ud800",
    "bytes": b"1",
    "date": datetime.date(2024, 2, 28),
    "time": pd.Timestamp("2024-02-28"),
    "duration": pd.Timedelta(1),
    "decimal": decimal.Decimal(1),
    "fraction": fractions.Fraction(1),
    "list": [1],
    "dict": {"a": 1},
    "set": {1},
    "tuple": (1,),
    "array": np.array([1, 2]),
    "scalar array": np.array(1),
    "series": pd.Series([1]),
    "type": int,
    "exception": ValueError("x"),
    "ellipsis": ...,
    "interval": pd.Interval(0, 1),
}
"""What no column of numbers takes."""


def column(values, dtype=None):
    return pd.DataFrame({"error_code": pd.Series(values, dtype=dtype)})


def boxed(values):
    """A column of anything."""
    series = pd.Series([None] * len(values), dtype=object)
    for row, value in enumerate(values):
        series.iloc[row : row + 1] = [value]
    return series


def meant(value):
    """The number that a value means, or None if it means none that fits."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,40}|-?0[xX][0-9a-fA-F]+", value):
        value = int(value, 16 if "x" in value.lower() else 10)
    return value if type(value) is int and 0 <= value < 2**64 else None


def codes(frame):
    """The error codes as the handler got them (none of NUMBERS below has a bit that the path changes)."""
    return evaluate(frame, "posted_series").f_error_code.tolist()


def random_rows(kind, revision, rows, seed):
    """Rows in every column's range: each value an extreme, the default, or anything."""
    draw = Random(seed)
    frame = {}
    for i in ENTRY_POINTS[kind].inputs:
        low, high, _ = limits(i)
        names = [label for label in i.labels if label in words(i, get(revision))] or range(low, high + 1)

        def anything(i=i, names=names, high=high):
            return draw.randint(0, high) >> draw.randrange(52) if i.kind == "u64" else draw.choice(names)

        values = [draw.choice((names[0], names[-1], i.default, anything())) for _ in range(rows)]
        known = {} if i.kind == "label" else words(i, get(revision))
        frame[i.column] = [known.get(value, value) for value in values]
    return pd.DataFrame(frame)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def known_rows(corpus, kind, revision, every=1):
    """Inputs of the kernel's own rows."""
    frame = corpus.vectors(kind, revision)
    return (
        frame[[i.column for i in TABLES[kind].inputs if i.column in frame]]
        .iloc[::every]
        .reset_index(drop=True)
    )


class TestIndex:
    @pytest.mark.parametrize(
        "index",
        [
            pd.RangeIndex(5, 9, 2),
            pd.Index([7, 7]),
            pd.Index([2, 1], name="row"),
            pd.Index(["b", "a"]),
            pd.MultiIndex.from_tuples([(1, "x"), (1, "x")], names=["a", "b"]),
            pd.date_range("2024-02-28", periods=2),
            pd.CategoricalIndex(["x", "y"]),
            pd.Index([pd.NA, None], dtype=object),
            pd.Index([1, None], dtype="Int64"),
            pd.interval_range(0, 2),
        ],
        ids=lambda index: type(index).__name__ + str(index.dtype),
    )
    def test_the_same_index_comes_out_and_a_wrong_row_is_named_under_it(self, index):
        frame = pd.DataFrame({"error_code": [2, 4]}, index=index)
        result = evaluate(frame)
        pd.testing.assert_index_equal(result.index, index)
        assert result.f_error_code.tolist() == [2, 4]
        for row, values in enumerate([["x", 2], [2, "x"]]):
            bad = pd.DataFrame({"error_code": pd.Series(values, dtype=object).array}, index=index)
            with pytest.raises(InputError, match=rf"column 'error_code', row {row}\b"):
                evaluate(bad)

    def test_a_row_is_named_by_its_place_and_by_its_label_if_that_is_another(self):
        with pytest.raises(InputError, match=re.escape("row 1: 'x'")):
            evaluate(pd.DataFrame({"error_code": ["1", "x"]}))
        with pytest.raises(InputError, match=re.escape("row 1 (index 'b'): 'x'")):
            evaluate(pd.DataFrame({"error_code": ["1", "x"]}, index=["a", "b"]))

    @pytest.mark.parametrize("kind", ENTRY_POINTS)
    def test_no_rows_no_columns_and_neither(self, kind):
        run = partial(evaluate, kind=kind)
        wanted = [o.column for o in outputs(kind, "posted")]
        for frame in (pd.DataFrame(), pd.DataFrame({ENTRY_POINTS[kind].inputs[0].column: []})):
            result = run(frame)
            assert (list(result), len(result)) == (wanted, 0)
            assert [str(t) for t in result.dtypes] == [DTYPES[o.kind] for o in outputs(kind, "posted")]
        assert len(run(pd.DataFrame(index=range(3)))) == 3

    def test_no_rows_of_any_type_are_no_fault(self):
        for dtype in (float, object, "datetime64[ns]", "str", "Float64", "category"):
            assert evaluate(column([], dtype)).empty


class TestOutputs:
    @pytest.mark.parametrize("kind", ENTRY_POINTS)
    @pytest.mark.parametrize("revision", ["posted", "v7_3"])
    def test_columns_and_types_are_those_documented(self, kind, revision):
        result = evaluate(pd.DataFrame(index=range(2)), revision, kind=kind)
        wanted = outputs(kind, revision)
        assert list(result) == [o.column for o in wanted]
        assert {c: str(t) for c, t in result.dtypes.items()} == {o.column: DTYPES[o.kind] for o in wanted}

    def test_7_3_has_other_columns_and_so_has_what_is_derived_from_it_whatever_its_name(self):
        gone, new = {"f_hva"}, {"tdx_private_gpa", "f_refcounted_page"}
        old = {o.column for o in outputs("cases", "v6_12")}
        assert {o.column for o in outputs("cases", "v7_3")} == old - gone | new
        assert outputs("cases", get("v7_3").derive("mine")) == outputs("cases", "v7_3")
        assert outputs("cases", get("posted").derive("v7_3")) == outputs("cases", "posted")

    def test_what_was_not_reached_is_missing_and_no_warning_is_the_empty_text(self):
        row = evaluate(pd.DataFrame({"root_valid": [0, 1]}))
        assert row.f_gfn.isna().tolist() == [True, False]
        assert row.mf_gpa.isna().tolist() == [True, True]
        assert row.warns.tolist() == ["bad_root", ""]
        both = evaluate(pd.DataFrame({"root_valid": [0], "error_code": [3 << 48]}))
        assert both.warns.tolist() == ["synthetic|bad_root"]

    def test_columns_share_no_memory(self):
        result = evaluate(pd.DataFrame({"error_code": [6, 6]}))
        before = result.copy(deep=True)
        for name in result:
            result.loc[0, name] = pd.NA
            changed = [c for c in result if not result[c].equals(before[c])]
            assert changed in ([name], []), name
            result[name] = before[name]

    def test_the_answers_are_numbers_of_the_whole_width(self):
        got = evaluate(pd.DataFrame({"cr2_or_gpa": [2**64 - 1], "error_code": [2**64 - 1 - 8]})).iloc[0]
        assert int(got.f_addr) == 2**64 - 1
        assert int(got.f_gfn) == 2**52 - 1
        assert int(got.f_error_code) == (2**64 - 1 - 8) & ~(3 << 48)

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_every_revision_runs_every_kind_of_table(self, revision):
        for kind in ENTRY_POINTS:
            rows = random_rows(kind, revision, 20, seed=1)
            assert len(evaluate(rows, revision, kind=kind, engine="plain")) == 20


class TestInputs:
    @pytest.mark.parametrize("dtype", ["uint64", "UInt64", "uint64[pyarrow]", object])
    def test_unsigned_integers_of_the_whole_width_are_taken(self, dtype):
        assert codes(column(NUMBERS, dtype)) == NUMBERS

    @pytest.mark.parametrize(
        "dtype",
        [f"{u}int{n}{arrow}" for u in ("", "u") for n in (8, 16, 32, 64) for arrow in ("", "[pyarrow]")]
        + [f"{u}Int{n}" for u in ("", "U") for n in (8, 16, 32, 64)],
    )
    def test_every_integer_type_is_taken(self, dtype):
        assert codes(column([0, 1, 6], dtype)) == [0, 1, 6]
        assert evaluate(pd.DataFrame({"vm_type": pd.Series([0, 5], dtype=dtype)})).ret.tolist() == [1, 1]
        assert evaluate(pd.DataFrame({"root_valid": pd.Series([0, 1], dtype=dtype)})).pf_called.tolist() == [
            0,
            1,
        ]

    @pytest.mark.parametrize("dtype", ["str", object, "string", "string[pyarrow]", "category"])
    def test_text_is_taken_decimal_or_hexadecimal(self, dtype):
        texts = ["0", "0x1", "0X6", "9223372036854775808", "0xffffffffffffffff"]
        assert codes(column(texts, dtype)) == NUMBERS
        assert codes(column(["007", "0x006"], dtype)) == [7, 6]

    def test_categories_of_integers_and_a_dictionary_of_arrow_are_taken(self):
        assert codes(column(pd.Categorical([6, 1, 6]))) == [6, 1, 6]
        dictionary = pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))
        assert codes(column(["0x6", "1", "0x6"], dictionary)) == [6, 1, 6]

    def test_texts_and_numbers_may_stand_in_one_column(self):
        assert codes(column([1, "0x6", np.uint64(2**64 - 1)], object)) == [1, 6, 2**64 - 1]

    @pytest.mark.parametrize("dtype", [bool, "boolean", "bool[pyarrow]", object])
    def test_truth_values_are_taken_for_flags_only(self, dtype):
        flags = pd.Series([False, True], dtype=dtype)
        assert evaluate(pd.DataFrame({"root_valid": flags})).pf_called.tolist() == [0, 1]
        for name in ("error_code", "vm_type", "pf_ret"):
            with pytest.raises(InputError, match=f"column '{name}', row 0: .*False"):
                evaluate(pd.DataFrame({name: flags}))

    def test_equal_values_of_different_types_are_not_taken_for_each_other(self):
        for values in ([1, 1.0], [1, True], [1, decimal.Decimal(1)], [1, np.float64(1)]):
            with pytest.raises(InputError, match="column 'error_code', row 1"):
                evaluate(column(values, object))

    @pytest.mark.parametrize("value", BAD.values(), ids=BAD)
    def test_anything_else_is_refused_with_column_and_row(self, value):
        values = boxed([0, value, 0])
        for name in ("error_code", "cr2_or_gpa", "gen"):
            with pytest.raises(InputError) as caught:
                evaluate(pd.DataFrame({name: values}))
            message = str(caught.value)
            assert message.startswith(f"column '{name}', row 1: ")
            assert "it takes an unsigned 64-bit number" in message
            assert len(message) < 300
            assert len(message.splitlines()) == 1

    def test_what_cannot_be_shown_or_compared_is_refused_too(self):
        class Hostile:
            __hash__ = None

            def __eq__(self, other):
                raise RuntimeError

            def __repr__(self):
                raise RuntimeError

            def __index__(self):
                raise RuntimeError

        with pytest.raises(InputError, match="column 'error_code', row 0: <Hostile instance"):
            evaluate(column([Hostile()], object))
        with pytest.raises(InputError, match="column <Hostile instance"):
            evaluate(
                pd.DataFrame([[1]], columns=pd.Index([type("Hostile", (), {"__repr__": Hostile.__repr__})()]))
            )

    @pytest.mark.parametrize(
        "dtype",
        ["float64", "float32", "float16", "Float64", "double[pyarrow]", "complex128", "Sparse[float64]"],
    )
    def test_a_column_of_floats_is_refused_for_what_it_is(self, dtype):
        with pytest.raises(
            InputError, match=r"column 'error_code', row 0: it holds .*64-bit codes do not fit"
        ):
            evaluate(column([1, 2], dtype))

    @pytest.mark.parametrize(
        "values",
        [
            pd.to_datetime(["2024-02-28"]),
            pd.to_datetime(["2024-02-28"]).tz_localize("UTC"),
            pd.to_timedelta([1]),
            pd.period_range("2024", periods=1),
            pd.interval_range(0, 1),
            pd.array([b"1"], dtype=pd.ArrowDtype(pa.binary())),
            pd.array([[1]], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
            pd.array([{"a": 1}], dtype=pd.ArrowDtype(pa.struct([("a", pa.int8())]))),
            pd.array([None], dtype=pd.ArrowDtype(pa.null())),
            pd.array([decimal.Decimal(1)], dtype=pd.ArrowDtype(pa.decimal128(5))),
            pd.Categorical([1.0]),
            pd.Categorical([None]),
            pd.array([None], dtype="Int64"),
        ],
        ids=lambda values: str(values.dtype),
    )
    def test_a_column_of_another_type_is_refused_with_its_first_row(self, values):
        for name in ("error_code", "mode", "vm_type", "root_valid"):
            with pytest.raises(InputError, match=f"column '{name}', row 0: "):
                evaluate(pd.DataFrame({name: values}))
        with pytest.raises(InputError, match="column 'slot_kind', row 0: "):
            evaluate(pd.DataFrame({"slot_kind": values}), kind="faultin")

    @pytest.mark.parametrize(
        ("name", "good", "bad", "takes"),
        [
            (
                "vm_type",
                [0, 5, "tdx", "5"],
                [6, -1, "TDX", ""],
                "from 0 to 5, or one of default, sw-protected",
            ),
            ("pf_ret", [0, 6, -4095, "FIXED", "EFAULT"], [7, -4096, "WRITE_PROTECTED"], "from -4095 to 6"),
            ("root_valid", [0, 1, "0x1", True], [2, -1, "yes", "True"], "it takes 0 or 1"),
            ("walk_leaf", [-1, 5], [-2, 6], "from -1 to 5"),
            ("walk_root", [4, 5], [3, 6], "from 4 to 5"),
            ("mmio_cfg", [0, 3], [4], "from 0 to 3"),
            ("insn_len", [0, 15], [16, -1], "from 0 to 15"),
            ("emu_ret", [-4095, 4095], [4096, 2**64 - 1], "from -4095 to 4095"),
        ],
    )
    def test_narrow_columns_take_their_range_and_their_words(self, name, good, bad, takes):
        for value in good:
            evaluate(pd.DataFrame({name: pd.Series([value], dtype=object)}))
        for value in bad:
            with pytest.raises(InputError, match=f"column '{name}', row 0: .*{re.escape(takes)}"):
                evaluate(pd.DataFrame({name: pd.Series([value], dtype=object)}))

    def test_wide_values_are_refused_in_typed_columns_too(self):
        for values, row in (([0, 2**32], 1), ([-1, 0], 0), ([300, 0], 0)):
            with pytest.raises(InputError, match=f"column 'vm_type', row {row}: .* is out of range"):
                evaluate(pd.DataFrame({"vm_type": np.array(values, dtype=np.int64)}))

    @pytest.mark.parametrize(
        ("kind", "name", "bad"),
        [
            ("sources", "kind", "nope"),
            ("sources", "sev_kind", 1),
            ("faultin", "slot_kind", "0"),
            ("faultin", "gup_result", ""),
        ],
    )
    def test_names_are_given_by_name_alone(self, kind, name, bad):
        with pytest.raises(InputError, match=f"column '{name}', row 0: .*it takes one of "):
            evaluate(pd.DataFrame({name: [bad]}), kind=kind)

    def test_words_of_an_answer_are_the_revisions(self):
        frame = pd.DataFrame({"pf_ret": ["WRITE_PROTECTED"], "error_code": ["0x200000003"]})
        assert evaluate(frame, "v6_12").unprot_called.tolist() == [1]
        with pytest.raises(InputError, match="'WRITE_PROTECTED' is not readable"):
            evaluate(frame, "posted")

    everything = st.one_of(
        st.none(), st.booleans(), st.integers(), u64, st.floats(), st.text(), st.binary(), st.dates(), st.decimals(),
        st.complex_numbers(), st.lists(st.integers()), st.dictionaries(st.text(), st.integers()),
        u64.map(hex), u64.map(str), st.integers().map(hex),
    )  # fmt: skip

    @fixed
    @given(st.lists(everything, min_size=1, max_size=4))
    def test_whatever_stands_in_a_column_it_is_read_right_or_refused_by_row(self, values):
        frame = pd.DataFrame({"cr2_or_gpa": boxed(values)})
        read = [meant(value) for value in values]
        if None not in read:
            assert evaluate(frame).f_addr.tolist() == read
            return
        with pytest.raises(InputError) as caught:
            evaluate(frame)
        rows = [row for row, value in enumerate(read) if value is None]
        assert re.match(rf"column 'cr2_or_gpa', row ({'|'.join(map(str, rows))}): ", str(caught.value))
        assert len(str(caught.value).splitlines()) == 1

    @fixed
    @given(
        st.lists(everything, max_size=3),
        st.sampled_from(["vm_type", "root_valid", "mode", "pf_ret", "walk_leaf"]),
    )
    def test_whatever_stands_in_a_narrow_column_it_is_taken_or_refused_by_name(self, values, name):
        try:
            length = len(evaluate(pd.DataFrame({name: boxed(values)})))
        except InputError as error:
            complaint = str(error)
        else:
            complaint = f"column '{name}'" if length == len(values) else "lost rows"
        assert complaint.startswith(f"column '{name}'")

    @fixed
    @given(st.lists(everything.filter(lambda v: v.__hash__), min_size=1, max_size=3))
    def test_whatever_columns_are_called_an_unknown_one_is_named(self, names):
        frame = pd.DataFrame([[0] * len(names)])
        frame.columns = pd.Index(names, dtype=object, tupleize_cols=False)
        with pytest.raises(InputError, match=r"^column "):
            evaluate(frame)


class TestColumns:
    @pytest.mark.parametrize(
        "name",
        [
            "nope",
            "ERROR_CODE",
            "error_code ",
            "",
            5,
            None,
            pd.NA,
            float("nan"),
            b"error_code",
            ("error_code",),
        ],
    )
    def test_an_unknown_column_is_refused_with_its_place_and_those_there_are(self, name):
        frame = pd.DataFrame([[6, 1]])
        frame.columns = pd.Index(["error_code", name], dtype=object, tupleize_cols=False)
        with pytest.raises(
            InputError, match=r"^column .* \(number 1\) is no input of cases tables; they have error_code, "
        ):
            evaluate(frame)

    def test_a_column_of_another_kind_of_table_is_unknown(self):
        for kind, name in (("cases", "slot_kind"), ("sources", "error_code"), ("faultin", "mode")):
            with pytest.raises(InputError, match=f"column '{name}'"):
                evaluate(pd.DataFrame({name: [1]}), kind=kind)

    @pytest.mark.parametrize("kind", ["", "case", None, 5, []])
    def test_an_unknown_kind_of_table_is_refused(self, kind):
        with pytest.raises(
            InputError, match=r"kind .*: it takes cases, sources, page_ready, pre_fault, faultin"
        ):
            evaluate(pd.DataFrame(), kind=kind)

    @pytest.mark.parametrize("name", ["error_code", "case_id", "ret"])
    def test_a_column_that_is_there_twice_is_refused(self, name):
        with pytest.raises(InputError, match=f"column '{name}' is there twice"):
            evaluate(pd.DataFrame([[1, 2]], columns=[name, name]))

    def test_several_levels_of_columns_are_refused(self):
        with pytest.raises(InputError, match=re.escape("column ('error_code', 'a') (number 0)")):
            evaluate(pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("error_code", "a")])))

    @pytest.mark.parametrize(
        "frame", [None, 5, "error_code", [1], {"error_code": [1]}, pd.Series([1]), np.zeros(2)]
    )
    def test_a_table_is_a_data_frame(self, frame):
        with pytest.raises(InputError, match="a table of faults is a pandas DataFrame, not a "):
            evaluate(frame)

    @pytest.mark.parametrize("engine", ["", "fast", None, 5, []])
    def test_an_unknown_engine_is_refused(self, engine):
        with pytest.raises(InputError, match="it takes auto, plain or compiled"):
            evaluate(pd.DataFrame(), engine=engine)

    def test_an_unknown_revision_is_refused(self):
        with pytest.raises(InputError, match="there is no revision 'nope'"):
            evaluate(pd.DataFrame(), "nope")

    def test_outputs_and_names_that_ride_along_are_not_read(self):
        frame = pd.DataFrame(
            {"error_code": [6], "ret": ["x"], "f_gfn": [object()], "case_id": [None], "part": ["p"]}
        )
        assert evaluate(frame).equals(evaluate(frame[["error_code"]]))

    def test_the_frame_is_left_as_it_was(self):
        frame = pd.DataFrame(
            {"error_code": ["0x6", "1"], "mode": ["shadow", "tdp"], "pf_ret": ["FIXED", "RETRY"]},
            index=[4, 4],
        )
        before = frame.copy(deep=True)
        evaluate(frame)
        pd.testing.assert_frame_equal(frame, before)
        array = np.array([1, 2], dtype=np.uint64)
        result = evaluate(pd.DataFrame({"error_code": array}, copy=False))
        result.loc[0, "f_error_code"] = 0
        assert array.tolist() == [1, 2]

    @pytest.mark.parametrize("mode", MODES)
    def test_a_mode_stands_for_its_four_flags(self, mode):
        flags = dict(zip(MODE_COLUMNS, ([flag] for flag in MODES[mode]), strict=True))
        frame = {"error_code": [8], "mmio_gfn": [0x100000], "mmio_gen": [0x15]}
        by_name = evaluate(pd.DataFrame({**frame, "mode": [mode]}))
        assert by_name.equals(evaluate(pd.DataFrame({**frame, **flags})))

    def test_a_flag_that_is_given_counts_more_than_the_mode(self):
        frame = pd.DataFrame({"mode": ["shadow"], "direct": [1]})
        result = evaluate(frame).iloc[0]
        assert (int(result.f_is_tdp), int(result.f_gfn)) == (0, 0x100000)
        whole = pd.DataFrame(
            {"mode": ["w_odd"], "direct": [1], "is_tdp": [0], "guest_mode": [0], "nested": [1]}
        )
        assert evaluate(whole).f_is_tdp.tolist() == [0]  # then the mode is only a name

    @pytest.mark.parametrize("mode", ["nope", "", None, 1, True, "TDP", "w_1"])
    def test_an_unknown_mode_is_refused(self, mode):
        with pytest.raises(
            InputError, match=r"column 'mode', row 1: .*tdp, nonpaging, shadow|column 'mode', row 1: no value"
        ):
            evaluate(pd.DataFrame({"mode": pd.Series(["tdp", mode], dtype=object)}))

    def test_an_answer_goes_by_name_or_number(self):
        named = evaluate(pd.DataFrame({"pf_ret": ["EMULATE", "SPURIOUS"]}), "v6_12")
        assert named.equals(evaluate(pd.DataFrame({"pf_ret": [2, 6]}), "v6_12"))
        with pytest.raises(InputError, match="column 'pf_ret', row 0: 'nope' is not readable"):
            evaluate(pd.DataFrame({"pf_ret": ["nope"]}))
        assert evaluate(pd.DataFrame({"pf_ret_name": ["nope"], "pf_ret": [2]})).emu_called.tolist() == [1]

    @pytest.mark.parametrize(
        ("name", "say"), [("cache_state", "mmio_gva, mmio_gfn"), ("spte_state", "walk_leaf, spte5")]
    )
    def test_a_name_of_a_state_does_not_make_the_state(self, name, say):
        with pytest.raises(InputError, match=f"column '{name}' only names a state; give {say}"):
            evaluate(pd.DataFrame({name: ["x"]}))

    def test_a_frame_number_that_is_left_out_is_that_of_the_address(self):
        frame = pd.DataFrame({"addr": ["0x5000", str(2**64 - 1)], "slot_kind": ["none", "none"]})
        assert evaluate(frame, kind="faultin").a_mmio_gfn.tolist() == [5, 2**52 - 1]
        assert evaluate(frame.assign(gfn=[7, 7]), kind="faultin").a_mmio_gfn.tolist() == [7, 7]
        assert evaluate(frame[["slot_kind"]], kind="faultin").a_mmio_gfn.tolist() == [0x100000, 0x100000]
        with pytest.raises(InputError, match=r"column 'gfn', row 0: .* it takes a frame number of 52 bits"):
            evaluate(pd.DataFrame({"gfn": [2**52]}), kind="faultin")


class TestAnswers:
    @pytest.mark.parametrize("revision", ["before", "posted", "v6_10", "v6_12", "v7_3"])
    @settings(fixed, max_examples=10)
    @given(seed=st.integers(0, 2**32))
    def test_a_table_gives_row_by_row_what_the_path_itself_gives(self, revision, seed):
        table = random_rows("cases", revision, 30, seed)
        rows = [case_values(revision, **row) for row in table.to_dict("records")]
        result = evaluate(table, revision, engine="plain")
        run = get(revision).link("kvm_mmu_page_fault")
        for values, got in zip(rows, result.to_dict("records"), strict=True):
            vcpu = case_state(values, get(revision))
            o = run(vcpu, values["cr2_or_gpa"], values["error_code"], values["insn_len"])
            f, m = o.handled.fault, o.mmio
            assert got["ret"] == o.ret
            assert (got["mmio_called"], got["pf_called"]) == (m.called, o.handled.called)
            if o.handled.called:
                assert [got[f"f_{n}"] for n in ("addr", "error_code", "gfn", "pfn", "is_private", "rsvd", "slot")] == [
                    f.addr, f.error_code, f.gfn, f.pfn, f.is_private, f.rsvd, f.slot,
                ]  # fmt: skip
            else:
                assert pd.isna(got["f_gfn"])
            if m.checked:
                assert (got["chk_kvm_gen"], got["chk_spte_gen"]) == (m.kvm_gen, m.spte_gen)
            assert tuple(got[f"a_mmio_{n}"] for n in ("gva", "gfn", "gen", "access")) == m.cache
            assert tuple(got[f"st_{n}"] for n in ("taken", "fixed", "emulate", "spurious")) == o.stats
            assert got["exit_reason"] == o.handled.exit.exit_reason
            assert (got["emu_called"], got["unprot_called"]) == (o.emulation.called, o.unprotect.called)

    @pytest.mark.parametrize("kind", TABLES)
    def test_one_row_run_alone_gives_what_the_table_gives(self, corpus, kind):
        rows = known_rows(corpus, kind, "v7_3", every=50)
        table = evaluate(rows, "v7_3", kind=kind, engine="plain").astype(object)
        for given_, told in zip(rows.to_dict("records"), table.to_dict("records"), strict=True):
            assert results(kind, get("v7_3"), given_) == {
                c: None if v is pd.NA else v for c, v in told.items()
            }

    @pytest.mark.parametrize("kind", TABLES)
    def test_the_order_and_company_of_rows_do_not_matter(self, corpus, kind):
        rows = known_rows(corpus, kind, "v7_3", every=30)
        whole = evaluate(rows, "v7_3", kind=kind, engine="plain")
        turned = evaluate(rows[::-1], "v7_3", kind=kind, engine="plain")
        pd.testing.assert_frame_equal(turned[::-1], whole)
        one = evaluate(rows.iloc[7:8], "v7_3", kind=kind, engine="plain")
        pd.testing.assert_frame_equal(one, whole.iloc[7:8])

    def test_columns_left_out_have_the_documented_defaults(self, corpus):
        for kind, table in ENTRY_POINTS.items():
            known = {i.column: words(i, get("v7_3")) for i in table.inputs}
            written = pd.DataFrame({i.column: [i.default] for i in table.inputs}, dtype=object)
            assert all(written[c][0] in known[c] for c in written if isinstance(written[c][0], str))
            run = partial(evaluate, kind=kind)
            pd.testing.assert_frame_equal(run(written, "v7_3"), run(pd.DataFrame(index=[0]), "v7_3"))

    def test_a_derived_revision_is_run(self):
        blunt = get("posted").derive("blunt", sanitize=lambda error_code: (error_code, 0))
        frame = pd.DataFrame({"error_code": ["0x2000000000002"]})
        assert evaluate(frame, blunt).f_is_private.tolist() == [1]
        assert evaluate(frame, "posted").f_is_private.tolist() == [0]


def agreed(kind, revision, rows, monkeypatch):
    """What the compiled loop makes of the rows, the same as uncompiled, whole, in pieces and of frozen columns."""
    run = partial(evaluate, kind=kind)
    whole = run(rows, revision, engine="compiled")
    pd.testing.assert_frame_equal(whole, run(rows, revision, engine="plain"))
    with monkeypatch.context() as changed:
        changed.setattr(batch, "CHUNK", 777)
        changed.setattr(batch, "PLAIN_ROWS", 777)
        pd.testing.assert_frame_equal(whole, run(rows, revision))
    assert run(rows[:0], revision, engine="compiled").empty
    frozen = {c: rows[c].to_numpy().copy() for c in rows}
    for array in frozen.values():
        array.flags.writeable = False
    still = pd.DataFrame(frozen, rows.index, copy=False)
    pd.testing.assert_frame_equal(whole, run(still, revision, engine="compiled"))
    assert len(batch.compiled_loop(kind, get(revision)).signatures) == 1  # nothing was compiled anew
    return whole


class TestCompiled:
    """Compiling takes seconds: each loop is compiled in one test, which asks everything of it."""

    def rows(self, corpus, kind, revision, every=1):
        known = known_rows(corpus, kind, revision, every)
        drawn = random_rows(kind, revision, 1000, seed=5)[list(known)]
        return pd.concat([known.astype(object), drawn.astype(object)]).infer_objects()

    @pytest.mark.parametrize(("kind", "every"), [("cases", 8), ("faultin", 1)])
    def test_compiled_and_plain_agree_on_known_and_random_rows(self, corpus, monkeypatch, kind, every):
        agreed(kind, "v7_3", self.rows(corpus, kind, "v7_3", every), monkeypatch)

    def test_a_derived_revision_is_compiled_with_what_it_holds(self, corpus, monkeypatch):
        mask = 2
        revision = get("v7_3").derive("mine", npf_synthetic=lambda error_code: (error_code & ~mask, 1))
        rows = self.rows(corpus, "sources", "v7_3")
        compiled = agreed("sources", revision, rows.reset_index(drop=True), monkeypatch)
        called = compiled[(rows.kind == "npf").to_numpy() & compiled.mmu_error_code.notna()]
        assert (called.warns == "npf_synthetic").all()
        assert not any(code & mask for code in called.mmu_error_code)
        assert len(called) > 100

    @pytest.mark.parametrize("kind", ["page_ready", "pre_fault"])
    def test_ways_without_kernel_tables_are_compiled_too(self, monkeypatch, kind):
        rows = random_rows(kind, "v7_3", 1500, seed=6)
        if kind == "pre_fault":
            rows["size"] //= 2  # what the call returns, a signed number, can say
        agreed(kind, "v7_3", rows, monkeypatch)

    def test_what_cannot_be_compiled_says_so_and_runs_plain(self):
        odd = get("posted").derive("odd", npf_synthetic=lambda code: eval("(code + 1, 0)"))
        frame = pd.DataFrame({"info": [6]})
        assert evaluate(frame, odd, kind="sources", engine="plain").mmu_error_code.tolist() == [7]
        with pytest.raises(InputError, match=r"step 'npf_synthetic' uses eval.*engine='plain' runs it"):
            evaluate(frame, odd, kind="sources", engine="compiled")


class TestParquet:
    @pytest.fixture
    def paths(self, tmp_path):
        return tmp_path / "in.parquet", tmp_path / "out.parquet"

    def answers(self, paths, frame, **more):
        frame.to_parquet(paths[0])
        assert evaluate_parquet(*paths, **more) == len(frame)
        return pd.read_parquet(paths[1], dtype_backend="numpy_nullable")

    @pytest.mark.parametrize("kind", TABLES)
    def test_it_gives_what_evaluate_gives_batch_by_batch(self, corpus, paths, kind):
        rows = known_rows(corpus, kind, "v7_3", every=200 if kind == "cases" else 40)
        seen = []
        got = self.answers(
            paths, rows, revision="v7_3", kind=kind, batch_rows=9, progress=lambda *done: seen.append(done)
        )
        want = evaluate(rows, "v7_3", kind=kind, engine="plain")
        pd.testing.assert_frame_equal(got.convert_dtypes(), want.convert_dtypes(), check_dtype=False)
        assert {str(t) for t in got.dtypes} <= {*DTYPES.values()}
        ends = list(range(9, len(rows), 9))
        assert [done for done, _ in seen] == [0, *ends, len(rows)]
        assert {rows_ for _, rows_ in seen} == {len(rows)}

    def test_text_categories_and_an_unnamed_index_are_taken(self, paths):
        frame = pd.DataFrame(
            {"error_code": ["0x6", "0x1", "6"], "mode": pd.Categorical(["tdp", "shadow", "tdp"])}
        )
        got = self.answers(paths, frame[frame.error_code != "0x1"])
        assert got.f_error_code.tolist() == [6, 6]

    def test_an_index_with_a_name_is_a_column(self, paths):
        got = self.answers(paths, pd.DataFrame({"mode": ["tdp"], "error_code": [6]}).set_index("error_code"))
        assert got.f_error_code.tolist() == [6]
        pd.DataFrame({"error_code": [6], "nope": [1]}).set_index("nope").to_parquet(paths[0])
        with pytest.raises(InputError, match="column 'nope'"):
            evaluate_parquet(*paths)

    def test_a_table_without_rows_gives_one(self, paths):
        got = self.answers(paths, pd.DataFrame({"error_code": pd.Series([], dtype="uint64")}))
        assert list(got) == [o.column for o in outputs("cases", "posted")]

    @pytest.mark.parametrize(
        ("frame", "complaint"),
        [
            (pd.DataFrame({"nope": [1]}), "column 'nope'"),
            (
                pd.DataFrame({"error_code": pd.array([1, 2, 3, 4, None], dtype="Int64")}),
                "row 1 (index 4): no value",
            ),
            (pd.DataFrame({"error_code": [1.5]}), "it holds float64"),
            (pd.DataFrame({"error_code": [[1]]}), "column 'error_code', row 0"),
            (pd.DataFrame({"error_code": [b"1"]}), "column 'error_code', row 0: b'1' is not readable"),
            (pd.DataFrame({"error_code": pd.to_datetime(["2024-02-28"])}), "column 'error_code', row 0"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_wrong_column_or_value_is_refused_and_nothing_is_written(self, paths, frame, complaint):
        frame.to_parquet(paths[0])
        paths[1].write_bytes(b"as it was")
        with pytest.raises(InputError, match=re.escape(complaint)):
            evaluate_parquet(*paths, batch_rows=3)
        assert paths[1].read_bytes() == b"as it was"
        assert sorted(paths[0].parent.iterdir()) == list(paths)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"error_code\n6\n", bytes(range(256)) * 9])
    def test_what_is_no_parquet_file_is_refused_by_name(self, paths, content):
        paths[0].write_bytes(content)
        with pytest.raises(InputError, match=r"in\.parquet: not readable as a table"):
            evaluate_parquet(*paths)
        with pytest.raises(InputError, match=r"none\.parquet: not readable"):
            evaluate_parquet(paths[0].with_name("none.parquet"), paths[1])
        with pytest.raises(InputError, match="this is a folder"):
            evaluate_parquet(paths[0].parent, paths[1])

    def test_a_damaged_file_is_refused(self, paths):
        pd.DataFrame({"error_code": np.arange(5000, dtype=np.uint64)}).to_parquet(paths[0])
        content = bytearray(paths[0].read_bytes())
        content[50:3000] = bytes(2950)
        paths[0].write_bytes(content)
        with pytest.raises(InputError, match="not readable as a table"):
            evaluate_parquet(*paths)

    def test_a_column_that_is_there_twice_is_refused(self, paths):
        table = pa.table([pa.array([1]), pa.array([2])], names=["error_code", "error_code"])
        pq.write_table(table, paths[0])
        with pytest.raises(InputError, match="error_code"):
            evaluate_parquet(*paths)

    def test_a_table_is_not_written_over_itself(self, paths):
        pd.DataFrame({"error_code": [6]}).to_parquet(paths[0])
        with pytest.raises(InputError, match="this is the table itself"):
            evaluate_parquet(paths[0], paths[0])
        assert pd.read_parquet(paths[0]).error_code.tolist() == [6]

    def test_an_unknown_kind_or_revision_is_refused(self, paths):
        pd.DataFrame({"error_code": [6]}).to_parquet(paths[0])
        with pytest.raises(InputError, match="kind 'nope': it takes cases, sources, page_ready"):
            evaluate_parquet(*paths, kind="nope")
        with pytest.raises(InputError, match="there is no revision 'nope'"):
            evaluate_parquet(*paths, "nope")
